"""The sum tree against a list and its cumulative sums."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlplay.replay import SumTree

# multiples of 1/8 that add up exactly, so that the twin and the tree must agree to the last bit
VALUES = st.sampled_from([0.0, 0.0, 0.125, 1.0, 2.5, 1024.0])


def floats(xs):
    return torch.tensor(xs, dtype=torch.float64)


def check(tree, twin):
    assert tree.check_valid() == (True, "")
    assert tree[torch.arange(len(twin))].tolist() == twin
    assert tree.total.shape == ()
    assert tree.total.item() == sum(twin)
    if not sum(twin):
        return
    ends = list(accumulate(twin))
    points = [p for end in ends for p in (end - 0.125, end - 0.0625, end, end + 0.0625) if 0 <= p < ends[-1]]
    expected = [next(i for i, end in enumerate(ends) if p < end) for p in points]
    assert tree.find(floats(points)).tolist() == expected
    last = max(i for i, value in enumerate(twin) if value)
    assert tree.find(floats([ends[-1], 2 * ends[-1], float("inf")])).tolist() == [last] * 3


@given(data=st.data(), capacity=st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_the_tree_equals_a_list_with_cumulative_sums(data, capacity):
    tree, twin = SumTree(capacity), [0.0] * capacity
    check(tree, twin)
    for _ in range(data.draw(st.integers(1, 5))):
        pairs = data.draw(st.lists(st.tuples(st.integers(-1, capacity - 1), VALUES), max_size=2 * capacity))
        for i in {i for i, _ in pairs} - {-1}:
            twin[i] = max(value for j, value in pairs if j == i)
        tree.set(torch.tensor([i for i, _ in pairs], dtype=torch.int64), floats([value for _, value in pairs]))
        check(tree, twin)
    again = SumTree(capacity)
    again.set(torch.arange(capacity), torch.ones(capacity))
    again.load_state_dict(tree.state_dict())
    check(again, twin)


@pytest.mark.parametrize("capacity", [1, 2, 7, 64, 1000])
def test_sums_do_not_drift_and_items_of_weight_zero_are_never_found(capacity):
    gen = torch.Generator().manual_seed(capacity)
    tree, twin = SumTree(capacity), torch.zeros(capacity, dtype=torch.float64)
    for _ in range(200):
        at = torch.randint(capacity, (5,), generator=gen).unique()
        value = torch.randn(len(at), dtype=torch.float64, generator=gen).mul(20).exp()  # many orders of magnitude
        value *= torch.rand(len(at), generator=gen) < 0.5
        tree.set(at, value)
        twin[at] = value
        assert tree.check_valid() == (True, "")
        if twin.any():
            points = torch.rand(64, dtype=torch.float64, generator=gen) * tree.total
            points = torch.cat([points, tree.total * floats([0.0, 1 - 2**-53, 1.0, 1.5, float("nan")])])
            found = tree.find(points)
            assert (found < capacity).all()
            assert (twin[found] > 0).all()
    assert torch.equal(tree[torch.arange(capacity)], twin)


def test_the_total_is_a_new_tensor():
    tree = SumTree(3)
    total = tree.total
    tree.set(torch.tensor([2]), floats([4]))
    assert (total.item(), tree.total.item()) == (0, 4)


def test_the_tree_never_waits_for_the_device():
    tree = SumTree(10, device="meta")  # where there is nothing to be read
    tree.set(torch.zeros(4, dtype=torch.int64, device="meta"), torch.zeros(4, device="meta"))
    assert tree.find(torch.rand(4, dtype=torch.float64, device="meta")).shape == (4,)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda nodes: nodes[8].fill_(-1), "node 8 is negative"),
        (lambda nodes: nodes[8].fill_(float("nan")), "node 8 is negative or not finite"),
        (lambda nodes: nodes[14].fill_(1), "node 14 is beyond the capacity"),
        (lambda nodes: nodes[3].add_(1), "node 1 is not the sum of its children"),
    ],
)
def test_check_valid_names_the_fault_of_a_tree(spoil, message):
    tree = SumTree(5)
    tree.set(torch.arange(5), torch.ones(5))
    spoil(tree._nodes)
    ok, said = tree.check_valid()
    assert not ok
    assert said.startswith(message)


@pytest.mark.parametrize(
    ("positions", "values", "message"),
    [
        ([0, 5], [1, 1], "`positions` must be from -1 to 4, got 5"),
        ([-2, 0], [1, 1], "`positions` must be from -1 to 4, got -2"),
        ([0, 1], [1, -3], r"`values` must be finite and not negative, got -3"),
        ([0, 1], [float("nan"), 1], r"`values` must be finite and not negative, got nan"),
    ],
)
def test_set_refuses_wrong_positions_and_values(positions, values, message):
    tree = SumTree(5)
    with pytest.raises(ValueError, match=message):
        tree.set(torch.tensor(positions), floats(values))
    assert tree.total.item() == 0


def test_a_tree_refuses_a_size_of_zero_and_a_state_of_another_size():
    with pytest.raises(ValueError, match="number of values >= 1, got 0"):
        SumTree(0)
    with pytest.raises(ValueError, match="capacity=3`, what is loaded has"):
        SumTree(3).load_state_dict(SumTree(4).state_dict())


def test_a_tree_is_checked_on_the_host_whatever_the_default_device():
    tree = SumTree(5)
    tree.set(torch.arange(5), torch.ones(5))
    with torch.device("meta"):
        assert tree.check_valid() == (True, "")
