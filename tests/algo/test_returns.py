"""Returns, temporal differences, GAE and V-trace against literal transcriptions of the sums in the papers."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from rlplay.algo import returns as module
from rlplay.algo.returns import deltas, gae, multistep, returns, vtrace

GAMMAS = (0.0, 0.5, 0.99, 1.0)
CLIPS = (None, 0.0, 0.5, 1.0, 2.0)

host = importlib.import_module("rlplay.algo.columns")


@pytest.fixture(params=["numpy", "torch", "device"])
def kind(request, monkeypatch):
    """Bring a problem to a kind of array: two are walked over; the third is scanned, as if not on the host."""
    if request.param == "device":
        monkeypatch.setattr(host, "_uses_numpy", lambda x: isinstance(x, np.ndarray))
    return (lambda x: x) if request.param == "numpy" else Problem.torch


class Problem:
    """Random arguments in float64, and what every function makes of them."""

    def __init__(self, seed=0, T=7, B=3, trailing=(), p_fin=0.2):
        rng = np.random.default_rng(seed)
        self.rew, self.val = rng.normal(size=(2, T, B, *trailing))
        self.fin = rng.random((T, B)) < p_fin
        self.omega = rng.normal(size=(T, B)) * 0.7
        self.bootstrap = rng.normal(size=(B, *trailing))

    def map(self, fn):
        new = object.__new__(Problem)
        new.__dict__ = {name: fn(x) for name, x in vars(self).items()}
        return new

    def torch(self):
        return self.map(torch.from_numpy)

    def every(self, gamma=0.9, C=0.8, h=3, r_bar=1.2, c_bar=0.9):
        x, end = self, {"gamma": gamma, "bootstrap": self.bootstrap}
        weights = {"omega": x.omega, "r_bar": r_bar}
        return {
            "returns": returns(x.rew, x.fin, **end),
            "weighted returns": returns(x.rew, x.fin, **end, **weights),
            "multistep": multistep(x.rew, x.fin, x.val, n_lookahead=h, **end, **weights),
            "deltas": deltas(x.rew, x.fin, x.val, **end, **weights),
            "gae": gae(x.rew, x.fin, x.val, C=C, **end),
            "vtrace": vtrace(x.rew, x.fin, x.val, x.omega, r_bar=r_bar, c_bar=c_bar, **end),
        }


def literal(x, gamma, C, h, r_bar, c_bar):
    """Transcribe the sums, in O(T^2) terms, each product written out from scratch."""
    T, trail = len(x.rew), (1,) * (x.rew.ndim - 2)
    n = (1.0 - x.fin).reshape(*x.fin.shape, *trail)
    ratio = np.exp(x.omega).reshape(n.shape)
    rho = ratio if r_bar is None else np.minimum(ratio, r_bar)
    c = ratio if c_bar is None else np.minimum(ratio, c_bar)
    value = np.concatenate([x.val, x.bootstrap[None]])  # V(s_0) ... V(s_T)
    delta = x.rew + gamma * n * value[1:] - value[:-1]

    found = {name: np.zeros_like(x.rew) for name in ("returns", "weighted returns", "multistep", "gae", "vtrace")}
    for t in range(T):
        for k in range(t, T):
            alive = n[t:k].prod(0)  # no episode ended between s_t and s_k
            weight = rho[t:k].prod(0)
            found["returns"][t] += gamma ** (k - t) * alive * x.rew[k]
            found["weighted returns"][t] += gamma ** (k - t) * alive * weight * x.rew[k]
            found["gae"][t] += (gamma * C) ** (k - t) * alive * delta[k]  # Schulman et al., eq. 16
            # Espeholt et al., eq. 1
            found["vtrace"][t] += gamma ** (k - t) * alive * c[t:k].prod(0) * rho[k] * delta[k]
            if k < t + h:
                found["multistep"][t] += gamma ** (k - t) * alive * weight * x.rew[k]
        ahead = min(t + h, T)
        found["multistep"][t] += gamma ** (ahead - t) * (n[t:ahead] * rho[t:ahead]).prod(0) * value[ahead]
        found["returns"][t] += gamma ** (T - t) * n[t:].prod(0) * value[T]
        found["weighted returns"][t] += gamma ** (T - t) * (n[t:] * rho[t:]).prod(0) * value[T]
    found["vtrace"] += x.val
    found["deltas"] = rho * delta
    return found


def assert_close(got, expected, atol=1e-9):
    assert got.keys() == expected.keys()
    for name in got:
        np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=atol, err_msg=name)


LITERAL = [
    *((T, gamma, trailing) for T in (1, 2, 17) for gamma in GAMMAS for trailing in ((), (2,))),
    (257, 0.99, ()),
    (257, 1.0, (2,)),
]


@pytest.mark.parametrize(("T", "gamma", "trailing"), LITERAL)
def test_returns_equal_the_literal_sums_of_the_papers(T, gamma, trailing):
    x = Problem(T, T, trailing=trailing, p_fin=0.05 if T > 100 else 0.2)
    args = {"gamma": gamma, "C": 0.9, "h": 3, "r_bar": 1.3, "c_bar": 1.05}
    expected = literal(x, **args)
    assert_close(x.every(**args), expected)
    assert_close(x.torch().every(**args), expected)


def products(c):
    """Multiply all ``c[t:k]``, for ``t <= k <= T``: ``(T, 1+T, ...)``."""
    found = np.zeros((len(c), 1 + len(c), *c.shape[1:]))
    for t in range(len(c)):
        found[t, t], found[t, t + 1 :] = 1, np.cumprod(c[t:], 0)
    return found


def matrices(x, gamma, C, h, r_bar, c_bar):
    """Write the sums as matrices times columns: the same O(T^2) terms as :func:`literal`, for longer fragments."""
    T = len(x.rew)
    n = gamma * (1.0 - x.fin).reshape(*x.fin.shape, *(1,) * (x.rew.ndim - 2))
    ratio = np.exp(x.omega).reshape(n.shape)
    rho, c = np.minimum(ratio, r_bar), np.minimum(ratio, c_bar)
    value, both = np.concatenate([x.val, x.bootstrap[None]]), np.concatenate([x.rew, x.bootstrap[None]])
    delta = x.rew + n * value[1:] - value[:-1]

    weights, (t, k) = products(n * rho), np.indices((T, 1 + T))
    near, edge = (y.reshape(T, 1 + T, *(1,) * (x.rew.ndim - 1)) for y in (k < np.minimum(t + h, T), k == t + h))
    edge = edge | (k == T).reshape(edge.shape) & (t + h > T).reshape(edge.shape)
    return {
        "returns": (products(n) * both).sum(1),
        "weighted returns": (weights * both).sum(1),
        "multistep": (weights * near * both).sum(1) + (weights * edge * value).sum(1),
        "deltas": rho * delta,
        "gae": (products(n * C)[:, :-1] * delta).sum(1),
        "vtrace": x.val + (products(n * c)[:, :-1] * rho * delta).sum(1),
    }


LENGTHS = [*range(1, 41), 63, 64, 65, 127, 128, 129, 255, 256, 257]


@pytest.mark.parametrize("T", LENGTHS)
def test_returns_of_every_length_by_loop_and_by_scan(T, monkeypatch):
    x = Problem(T, T, 2, trailing=(2,) if T % 2 else (), p_fin=0.05)
    for gamma, h in zip(GAMMAS, (1, 3, T // 2, T - 1), strict=True):
        args = {"gamma": gamma, "C": 0.9, "h": h, "r_bar": 1.1, "c_bar": 1.05}
        expected = matrices(x, **args)
        if T < 8:
            assert_close(expected, literal(x, **args), 1e-12)
        assert_close(x.every(**args), expected)
        with monkeypatch.context() as patch:
            patch.setattr(host, "_uses_numpy", lambda x: isinstance(x, np.ndarray))
            assert_close(x.torch().every(**args), expected)


@pytest.mark.parametrize("r_bar", CLIPS)
@pytest.mark.parametrize("c_bar", CLIPS)
def test_vtrace_with_every_pair_of_clips_equals_the_literal_sum(r_bar, c_bar, kind):
    x = Problem(3, 9, trailing=(2,))
    args = {"gamma": 0.9, "C": 0.0, "h": 2, "r_bar": r_bar, "c_bar": c_bar}
    assert_close(kind(x).every(**args), literal(x, **args))


problems = st.builds(
    Problem,
    seed=st.integers(0, 2**32 - 1),
    T=st.integers(1, 20),
    B=st.integers(1, 4),
    trailing=st.sampled_from([(), (1,), (2, 3)]),
    p_fin=st.sampled_from([0.0, 0.2, 0.8, 1.0]),
)
gammas = st.sampled_from(GAMMAS)
quick = settings(max_examples=25, deadline=None)


@quick
@given(problems, gammas, st.sampled_from(CLIPS), st.sampled_from(CLIPS))
def test_returns_in_torch_equal_those_in_numpy(x, gamma, r_bar, c_bar):
    args = {"gamma": gamma, "r_bar": r_bar, "c_bar": c_bar}
    assert_close(x.torch().every(**args), x.every(**args), 1e-12)


@quick
@given(problems, gammas, st.randoms(use_true_random=False))
def test_returns_of_different_environments_do_not_mix(x, gamma, random):
    order = list(range(x.fin.shape[1]))
    random.shuffle(order)
    permuted = x.map(lambda y: y[:, order] if len(y) == len(x.fin) and y is not x.bootstrap else y[order])
    expected = {name: y[:, order] for name, y in x.every(gamma).items()}
    assert_close(permuted.every(gamma), expected, 0)


@quick
@given(problems, gammas, st.data())
def test_an_episode_end_splits_the_problem(x, gamma, data):
    cut = data.draw(st.integers(1, len(x.fin)))
    x.fin[cut - 1] = True
    first = x.map(lambda y: y if y is x.bootstrap else y[:cut])
    first.bootstrap = first.bootstrap + 17.0  # it is not looked at
    whole = x.every(gamma)
    assert_close(first.every(gamma), {name: y[:cut] for name, y in whole.items()}, 0)
    if cut < len(x.fin):
        second = x.map(lambda y: y if y is x.bootstrap else y[cut:])
        assert_close(second.every(gamma), {name: y[cut:] for name, y in whole.items()}, 0)


@quick
@given(problems, gammas)
def test_a_cut_elsewhere_is_bridged_by_the_bootstrap(x, gamma):
    whole, args = returns(x.rew, x.fin, gamma=gamma, bootstrap=x.bootstrap), {"gamma": gamma}
    for cut in range(1, len(x.fin)):
        np.testing.assert_allclose(returns(x.rew[:cut], x.fin[:cut], bootstrap=whole[cut], **args), whole[:cut])


@quick
@given(problems, gammas)
def test_gae_with_lambda_zero_and_one(x, gamma):
    args = {"gamma": gamma, "bootstrap": x.bootstrap}
    np.testing.assert_array_equal(gae(x.rew, x.fin, x.val, C=0.0, **args), deltas(x.rew, x.fin, x.val, **args))
    monte_carlo = returns(x.rew, x.fin, **args)
    np.testing.assert_allclose(gae(x.rew, x.fin, x.val, C=1.0, **args) + x.val, monte_carlo, atol=1e-9)


@quick
@given(problems, gammas, st.sampled_from([None, 1.0, 2.0]))
def test_vtrace_on_policy_is_multistep(x, gamma, bar):
    args = {"gamma": gamma, "bootstrap": x.bootstrap}
    v = vtrace(x.rew, x.fin, x.val, 0 * x.omega, r_bar=bar, c_bar=bar, **args)
    np.testing.assert_allclose(v, multistep(x.rew, x.fin, x.val, **args), atol=1e-9)


@quick
@given(problems, gammas, st.sampled_from(CLIPS))
def test_multistep_reaches_from_values_to_returns(x, gamma, r_bar):
    args = {"gamma": gamma, "bootstrap": x.bootstrap, "omega": x.omega, "r_bar": r_bar}
    np.testing.assert_array_equal(multistep(x.rew, x.fin, x.val, n_lookahead=0, **args), x.val)
    everything = returns(x.rew, x.fin, **args)
    for h in (None, len(x.rew), len(x.rew) + 5):
        np.testing.assert_array_equal(multistep(x.rew, x.fin, x.val, n_lookahead=h, **args), everything)
    one = multistep(x.rew, x.fin, x.val, n_lookahead=1, gamma=gamma, bootstrap=x.bootstrap)
    difference = deltas(x.rew, x.fin, x.val, gamma=gamma, bootstrap=x.bootstrap)
    np.testing.assert_allclose(one - x.val, difference, atol=1e-12)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_nothing_flows_back_over_the_end_of_an_episode(kind, poison):
    clean = Problem(5, 8, p_fin=0.0)
    clean.fin[3] = clean.fin[-1] = True
    spoilt = clean.map(np.copy)
    spoilt.rew[4], spoilt.val[4], spoilt.omega[4], spoilt.bootstrap[:] = poison, poison, -poison, poison
    clean, spoilt = kind(clean), kind(spoilt)
    for name, x in spoilt.every().items():
        expected = clean.every()[name]
        np.testing.assert_array_equal(x[:4], expected[:4], err_msg=name)
        np.testing.assert_array_equal(x[5:], expected[5:], err_msg=name)  # nor does it leak over the bootstrap


def test_the_last_weight_of_an_episode_does_not_count(kind):
    clean = Problem(5, 8, p_fin=0.0)
    clean.fin[3] = True
    spoilt = clean.map(np.copy)
    spoilt.omega[3] = np.nan
    clean, spoilt = kind(clean), kind(spoilt)
    expected, answers = clean.every(), spoilt.every()
    for name in ("weighted returns", "multistep"):
        np.testing.assert_array_equal(answers[name], expected[name], err_msg=name)


@pytest.mark.parametrize("seed", range(30))
def test_infinities_and_nans_spread_alike_by_loop_and_by_scan(seed, monkeypatch):
    x, rng = Problem(seed, 33, 4, p_fin=0.1), np.random.default_rng(seed)
    for y in (x.rew, x.val, x.omega):
        bad = rng.random(y.shape) < 0.03
        y[bad] = rng.choice([np.nan, np.inf, -np.inf], bad.sum())
    walked = x.every(h=5)
    assert not any(np.isfinite(y).all() for y in walked.values())
    monkeypatch.setattr(host, "_uses_numpy", lambda x: isinstance(x, np.ndarray))
    assert_close(walked, x.torch().map(torch.clone).every(h=5))


def test_an_end_splits_the_scan_to_the_last_bit(monkeypatch):
    monkeypatch.setattr(host, "_uses_numpy", lambda x: isinstance(x, np.ndarray))
    for cut in range(1, 23):
        x = Problem(cut, 23).torch()
        x.fin[cut - 1] = True
        first, second = x.map(lambda y, cut=cut: y[:cut]), x.map(lambda y, cut=cut: y[cut:])
        first.bootstrap = second.bootstrap = x.bootstrap
        first, second = first.every(h=None), second.every(h=None)
        for name, y in x.every(h=None).items():
            np.testing.assert_array_equal(torch.cat([first[name], second[name]]), y, err_msg=name)


def test_products_of_weights_may_overflow_where_there_is_nothing_to_be_weighted(kind):
    x = Problem(0, 64).map(lambda y: y.astype(np.float32) * 0 if y.dtype != bool else y & False)
    x.omega[:] = 60.0
    for name, y in kind(x).every(1.0, 1.0, 17, None, None).items():
        assert (y == 0).all(), name


def test_gamma_zero_ignores_later_rewards():
    rew, fin = np.ones((3, 1)), np.zeros((3, 1), bool)
    huge = np.full((3, 1), 1e4)  # its exponential overflows
    assert (returns(rew, fin, gamma=0.0, bootstrap=np.nan, omega=huge) == 1).all()
    assert (gae(rew, fin, np.zeros((3, 1)), gamma=0.0, C=1.0, bootstrap=np.inf) == 1).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_overflowing_importance_weights_are_clipped(kind, dtype):
    x = Problem(6, 5).map(lambda y: y.astype(dtype) if y.dtype != bool else y)
    x.omega[:] = 6e4
    answer = kind(x).every(r_bar=1.0, c_bar=1.0)
    x.omega[:] = 0
    assert_close(answer, x.every(r_bar=1.0, c_bar=1.0), 2e-3 if dtype == "float16" else 1e-6)


def test_float32_returns_over_long_fragments_are_accurate(kind):
    x = Problem(7, 4096, 2, p_fin=0.001)
    single = x.map(lambda y: y.astype(np.float32) if y.dtype != bool else y)
    exact = x.every(gamma=1.0, C=1.0, r_bar=1.0, c_bar=1.0)
    for name, got in kind(single).every(1.0, 1.0, 3, 1.0, 1.0).items():
        assert np.abs(np.asarray(got) - exact[name]).max() <= 1e-3 * np.abs(exact[name]).max(), name


@pytest.mark.parametrize("rew", [torch.ones(512, 1, dtype=torch.bfloat16), np.ones((4096, 1), np.float16)])
def test_half_precision_rewards_are_summed_in_float32(rew):
    fin = rew != rew
    assert returns(rew, fin, gamma=1.0)[0] == len(rew)  # 256 + 1 is 256 in bfloat16, and so 2048 + 1 in float16


@pytest.mark.parametrize("shape", [(), (2,)])
def test_the_bootstrap_may_be_a_number_a_row_or_an_array(shape):
    x = Problem(8, 4, 3, shape)
    one = returns(x.rew, x.fin, gamma=0.9, bootstrap=x.bootstrap)
    np.testing.assert_array_equal(returns(x.rew, x.fin, gamma=0.9, bootstrap=x.bootstrap[None]), one)
    number = returns(x.rew, x.fin, gamma=0.9, bootstrap=np.full_like(x.bootstrap, 0.3))
    for form in (0.3, np.float64(0.3), np.array(0.3)):
        np.testing.assert_array_equal(returns(x.rew, x.fin, gamma=0.9, bootstrap=form), number)
    y = x.torch()
    np.testing.assert_array_equal(returns(y.rew, y.fin, gamma=0.9, bootstrap=0.3), number)


def test_returns_have_the_kind_and_dtype_of_the_rewards():
    x, y = Problem(9), Problem(9).torch()
    for dtype in (np.float16, np.float32, np.float64):
        rew = x.rew.astype(dtype)
        answer = returns(rew, x.fin, gamma=0.9, bootstrap=0.5)
        assert isinstance(answer, np.ndarray)
        assert answer.dtype == dtype
        assert returns(rew, x.fin, gamma=0.9, bootstrap=np.float64(0.5)).dtype == dtype
        assert deltas(rew, x.fin, x.val, gamma=0.9).dtype == np.float64
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        rew, val = y.rew.to(dtype), y.val.to(dtype)
        for answer in (
            returns(rew, y.fin, gamma=0.9, bootstrap=torch.tensor(0.5, dtype=torch.float64)),
            gae(rew, y.fin, val, gamma=0.9, C=0.9),
            vtrace(rew, y.fin, val, y.omega.to(dtype), gamma=0.9, r_bar=1.0, c_bar=None),
        ):
            assert isinstance(answer, torch.Tensor)
            assert answer.dtype == dtype
        assert deltas(rew, y.fin, y.val, gamma=0.9).dtype == torch.float64
        assert returns(rew, y.fin, gamma=0.9, bootstrap=y.bootstrap).dtype == torch.float64


def test_returns_are_a_new_array_without_gradients(kind):
    x = kind(Problem(10))
    kept = x.map(lambda z: z.copy() if isinstance(z, np.ndarray) else z.clone())
    for answer in (*x.every(0.0).values(), *x.every(h=0).values(), *x.every(h=None, r_bar=None).values()):
        answer[:] = 0
    for name, z in vars(x).items():
        np.testing.assert_array_equal(z, getattr(kept, name))
    if isinstance(x.rew, torch.Tensor):
        for z in (x.rew, x.val, x.omega, x.bootstrap):
            z.requires_grad_()
        assert not any(z.requires_grad for z in x.every().values())


@pytest.mark.parametrize(
    "arrange", [lambda x: x.swapaxes(0, 1).copy().swapaxes(0, 1), lambda x: x.repeat(2, -1)[..., ::2]]
)
def test_returns_of_arrays_in_any_memory_layout(arrange, kind):
    x = Problem(13, 9, 4, (3,))
    y = x.map(lambda z: arrange(z) if z.ndim > 1 else z)
    assert not y.rew.flags.c_contiguous
    assert_close(kind(y).every(), x.every(), 1e-12)


class Launches(TorchDispatchMode):
    """Count the operations that compute something: views do not."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func._schema.returns[0].alias_info
        self.count += result is None or result.is_write
        return func(*args, **(kwargs or {}))


def launches(T, name, h):
    x = Problem(14, T).torch().map(lambda z: z.to("meta"))
    end = {"gamma": 0.9, "bootstrap": x.bootstrap}
    weights = {"omega": x.omega, "r_bar": 1.0}
    with Launches() as counter:
        match name:
            case "returns":
                returns(x.rew, x.fin, **end, **weights)
            case "multistep":
                multistep(x.rew, x.fin, x.val, n_lookahead=h, **end, **weights)
            case "deltas":
                deltas(x.rew, x.fin, x.val, **end, **weights)
            case "gae":
                gae(x.rew, x.fin, x.val, C=0.9, **end)
            case "vtrace":
                vtrace(x.rew, x.fin, x.val, c_bar=1.0, **end, **weights)
    return counter.count


@pytest.mark.parametrize(
    ("name", "per_doubling", "at_first"),
    [("returns", 5, 25), ("multistep", 5, 25), ("deltas", 0, 25), ("gae", 5, 25), ("vtrace", 5, 33)],
)
def test_kernel_launches_grow_with_the_logarithm_of_the_steps(name, per_doubling, at_first):
    counts = [launches(2**i, name, 2 ** (i - 1)) for i in range(4, 13)]
    assert set(np.diff(counts)) == {per_doubling}
    for T in (1, 2, 3, 17, 100, 255, 257):  # T - 1 has more binary ones than half of T: five more launches for each
        most = per_doubling * (1 + (name == "multistep")) * math.log2(T) + at_first
        assert launches(T, name, T - 1) <= most


def test_returns_never_wait_for_the_device():
    x = Problem(11).torch().map(lambda z: z.to("meta"))  # where there is nothing to be read
    assert all(z.device.type == "meta" for z in x.every().values())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"fin": np.zeros((3, 7), bool)}, ValueError, r"`fin` must be \(7, 3\).*got \(3, 7\).*batch-major"),
        ({"fin": np.zeros(7, bool)}, ValueError, r"`fin`.*got \(7,\)"),
        ({"fin": np.zeros((7, 3))}, TypeError, "`fin` must be of dtype bool, got float64"),
        ({"val": np.zeros((7, 3, 1))}, ValueError, r"`val` must be \(7, 3\).*squeeze"),
        ({"val": torch.zeros(7, 3)}, TypeError, "do not mix"),
        ({"val": [0.0]}, TypeError, "`val` must be a NumPy array.*got list"),
        ({"rew": np.zeros((7, 3), int)}, TypeError, "`rew` must be of dtype float, got int64.*astype"),
        ({"rew": np.zeros(7)}, ValueError, r"`rew` must be \(T, B, ...\).*rew\[:, None\]"),
        ({"rew": np.zeros((0, 3))}, ValueError, "T >= 1"),
        ({"omega": np.zeros((3, 7))}, ValueError, "`omega`"),
        ({"bootstrap": np.zeros(7)}, ValueError, r"`bootstrap` must be a number, \(3,\) or \(1, 3\).*got \(7,\)"),
        ({"bootstrap": None}, TypeError, "`bootstrap`"),
        ({"gamma": 99}, ValueError, r"`gamma` must be in \[0, 1\], got 99"),
        ({"gamma": torch.tensor(0.9)}, TypeError, "`gamma` must be a number, got Tensor"),
        ({"r_bar": -1.0}, ValueError, "`r_bar` must be a number >= 0"),
        ({"r_bar": float("nan")}, ValueError, "`r_bar` must be a number >= 0"),
        ({"n_lookahead": -1}, ValueError, "`n_lookahead`"),
        ({"n_lookahead": 1.5}, TypeError, "`n_lookahead`"),
    ],
)
def test_returns_name_the_argument_that_is_wrong(change, error, message):
    x = Problem(12)
    args = {"gamma": 0.9, **vars(x), **change}
    if "bootstrap" in change and change["bootstrap"] is None:
        args["bootstrap"] = [None]
    with pytest.raises(error, match=message):
        multistep(**args)


def test_gae_names_a_wrong_lambda():
    x = Problem(12)
    with pytest.raises(ValueError, match=r"`C` must be in \[0, 1\]"):
        gae(x.rew, x.fin, x.val, gamma=0.9, C=1.5)


def test_the_module_exports_its_public_names():
    assert module.__all__ == sorted(["returns", "multistep", "deltas", "gae", "vtrace"])
    assert callable(module.returns)
