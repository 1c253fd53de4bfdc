"""The writer of observations writes, and refuses, the same as the specification: casting leaf by leaf to the space."""

from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict, namedtuple
from decimal import Decimal
from types import MappingProxyType

import gym.spaces
import numpy as np
import pytest
import torch

from rlplay import nested
from rlplay.engine.envs import rows, spaces
from rlplay.engine.envs.rows import ObservationWriter, StateRow

B = 3
Pair = namedtuple("Pair", "x y")
Other = namedtuple("Other", "x y")

INF = np.inf


class MultiDiscrete:
    """As gymnasium's, which may start anywhere."""

    shape, dtype = (2,), np.dtype(np.int64)
    nvec, start = np.array([3, 4]), np.array([1, 2])


SPACES = {
    "float32": gym.spaces.Box(-INF, INF, (), np.float32),
    "float64": gym.spaces.Box(-INF, INF, (), np.float64),
    "float16": gym.spaces.Box(-10, 10, (), np.float16),
    "uint8": gym.spaces.Box(0, 255, (), np.uint8),
    "int32": gym.spaces.Box(-9, 9, (), np.int32),
    "bool": gym.spaces.Box(0, 1, (), np.bool_),
    "vector": gym.spaces.Box(-INF, INF, (2,), np.float32),
    "vector of bytes": gym.spaces.Box(0, 255, (2,), np.uint8),
    "vector of one": gym.spaces.Box(-INF, INF, (1,), np.float32),
    "empty vector": gym.spaces.Box(-INF, INF, (0,), np.float32),
    "image": gym.spaces.Box(0, 255, (2, 2), np.uint8),
    "Discrete": gym.spaces.Discrete(5),
    "Discrete, from 2": gym.spaces.Discrete(5, start=2),
    "MultiDiscrete": gym.spaces.MultiDiscrete([3, 4]),
    "MultiDiscrete, from 1": MultiDiscrete(),
    "MultiBinary": gym.spaces.MultiBinary(2),
}
DTYPES = ["?", "int8", "uint8", "int32", "int64", "uint64", "float16", "float32", "float64", "complex64"]
SHAPES = [(), (1,), (0,), (2,), (2, 2), (3,)]
VALUES = [
    *(np.ones(shape, dtype)[()] for shape in SHAPES for dtype in DTYPES),  # `[()]`: scalars instead of arrays ()
    *(np.array(1, dtype) for dtype in DTYPES),
    *(np.arange(4).astype(dtype)[::2] for dtype in DTYPES),  # not contiguous
    *(np.arange(8).astype(dtype).reshape(2, 4)[:, ::2] for dtype in ("uint8", "float32")),
    np.asfortranarray(np.arange(4, dtype=np.uint8).reshape(2, 2)),
    np.frombuffer(b"1234", np.uint8).reshape(2, 2),  # read-only
    np.int64(2**60 + 2**36 + 1),
    *(1, 0, -1, 300, 2**40, 2**70, 1.5, 1e300, -INF, True, 1j, None, "1", b"12", Decimal(1)),
    *([1, 0], [1.5, 0], (True, False), [[1, 2], [3, 4]], [], [1], ["a", "b"], [None, 1], {"x": 1}, Pair(1, 2)),
    *(torch.tensor(1), torch.tensor([1.0, 2.0]), torch.ones(1), torch.ones(2, 2, dtype=torch.uint8)),
    np.ma.masked_array([1.0, 2.0], dtype=np.float32),
    np.rec.array([(1, 2)], dtype=[("x", "i4"), ("y", "i4")])[0],
]


def blank(description):
    """Return a row whose numbers are all 7."""
    obs = [np.full((B, *field.shape), 7).astype(field.dtype) for field in nested.leaves(description)]
    row = StateRow.of(np.zeros(B), obs, [], np.zeros(B), np.zeros(B))
    return row.part(slice(None))


def outcome(description, write):
    """Return what `write` has done to a row: its bytes, or its error."""
    row = blank(description)
    try:
        write(row)
    except Exception as error:  # whatever it is: the other has to raise the same
        return type(error), str(error)
    return [leaf.tobytes() for leaf in row.obs]


def by_specification(description, obs):
    def write(row):
        for leaf, part in zip(row.obs, spaces.cast(description, obs), strict=True):
            leaf[1] = part

    return outcome(description, write)


def check(description, firsts, values):
    for first in firsts:
        writer = ObservationWriter(description, first, B)
        for obs in values:
            got = outcome(description, lambda row, writer=writer, obs=obs: writer.write(row, 1, obs))
            assert got == by_specification(description, obs), (first, obs)


@pytest.fixture(params=[500, 0], ids=["small", "large"])
def large(request, monkeypatch):
    """Whether these arrays are copied as small or as large ones."""
    monkeypatch.setattr(rows, "_LARGE", request.param)


@pytest.mark.filterwarnings("ignore")  # of NumPy, about numbers that overflow
@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("name", SPACES)
def test_every_value_is_written_or_refused_as_by_the_specification_whatever_came_first(name):
    description = spaces.fields(SPACES[name])
    fitting = [value for value in VALUES if isinstance(by_specification(description, value), list)]
    assert len(fitting) >= 3
    check(description, fitting, VALUES)


class OwnDict(dict):
    pass


class OwnTuple(tuple):
    pass


class OwnList(list):
    pass


NEST = {"a": gym.spaces.Discrete(3), "b": gym.spaces.Tuple((SPACES["vector"], SPACES["image"])), "c": SPACES["uint8"]}
VECTOR, IMAGE = np.array([1, 2], np.float32), np.ones((2, 2), np.uint8)
NESTS = [
    {"a": 1, "b": (VECTOR, IMAGE), "c": np.uint8(3)},
    {"c": np.uint8(3), "b": (VECTOR, IMAGE), "a": np.int64(1)},
    OrderedDict(a=1, b=(VECTOR, IMAGE), c=np.array(3, np.uint8)),
    {"a": 1, "b": [VECTOR, IMAGE], "c": 3},
    {"a": 1, "b": Pair(VECTOR, IMAGE), "c": 3},
    {"a": 1, "b": Other(VECTOR.astype(np.float64), IMAGE), "c": 3},
    {"a": 1, "b": (VECTOR.tolist(), IMAGE.tolist()), "c": 3},
    OwnDict(a=1, b=OwnTuple((VECTOR, IMAGE)), c=3),
    UserDict(a=1, b=OwnList((VECTOR, IMAGE)), c=3),
    MappingProxyType({"c": np.uint8(3), "b": (VECTOR, IMAGE), "a": 1}),
    {"a": 1, "b": (VECTOR, IMAGE), "c": 3, "d": 4},
    {"a": 1, "b": (VECTOR, IMAGE)},
    {"a": 1, "b": (VECTOR, IMAGE), "d": 3},
    {"a": 1, "b": (VECTOR, IMAGE, IMAGE), "c": 3},
    {"a": 1, "b": (VECTOR,), "c": 3},
    {"a": 1, "b": (IMAGE, VECTOR), "c": 3},
    {"a": 1.5, "b": (VECTOR, IMAGE), "c": 3},
    {"a": 1, "b": {"x": VECTOR}, "c": 3},
    {"a": {"x": 1}, "b": (VECTOR, IMAGE), "c": 3},
    UserDict(a=1, b=(VECTOR, IMAGE)),
    {"a": 1, "b": OwnTuple((VECTOR,)), "c": 3},
    {"a": UserDict(x=1), "b": (VECTOR, IMAGE), "c": 3},
    {"a": 1, "b": (Pair(1.0, 2.0), IMAGE), "c": 3},
    (1, (VECTOR, IMAGE), 3),
    None,
]


def test_a_dict_that_makes_values_for_missing_keys_is_refused_and_stays_as_it_is():
    description = spaces.fields(gym.spaces.Dict({"a": gym.spaces.Discrete(3), "b": gym.spaces.Discrete(3)}))
    writer = ObservationWriter(description, defaultdict(int, a=1, b=2), B)
    writer.write(blank(description), 1, defaultdict(int, a=1, b=2))
    wrong = defaultdict(int, a=1, c=2)
    with pytest.raises(ValueError, match="expected a dict with keys"):
        writer.write(blank(description), 1, wrong)
    assert dict(wrong) == {"a": 1, "c": 2}


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("first", range(7))
def test_nests_are_written_or_refused_as_by_the_specification_whatever_came_first(first):
    check(spaces.fields(gym.spaces.Dict(NEST)), [NESTS[first]], NESTS)


@pytest.mark.filterwarnings("ignore")  # of NumPy, about complex numbers
@pytest.mark.usefixtures("large")
def test_arrays_of_any_dtype_in_a_nest_are_written_or_refused_as_by_the_specification():
    description = spaces.fields(gym.spaces.Dict({"x": gym.spaces.Box(-INF, INF, (2, 2), np.float32)}))
    values = [{"x": np.arange(4).reshape(2, 2).astype(dtype)} for dtype in DTYPES]
    check(description, [{"x": np.ones((2, 2), np.float32)}], values)


@pytest.mark.parametrize("nested_in", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "bool"])
def test_images_are_copied_without_releasing_the_interpreter_lock(dtype, nested_in, monkeypatch):
    """NumPy would release it: then the learner's thread takes it, and the collector waits at each environment."""
    copied, copy = [], rows._copy_large
    monkeypatch.setattr(rows, "_copy_large", lambda *args: copied.append(copy(*args)) or copied[-1])
    space = gym.spaces.Box(0, 1, (4, 84, 84), dtype)
    image = np.random.default_rng(0).integers(2, size=(4, 84, 84)).astype(dtype)
    space, obs = (gym.spaces.Dict({"image": space}), {"image": image}) if nested_in else (space, image)
    description = spaces.fields(space)
    row = blank(description)
    ObservationWriter(description, obs, B).write(row, 1, obs)
    assert copied == [True]
    assert np.array_equal(row.obs[0][1], image)
    assert (row.obs[0][[0, 2]] == np.full((), 7).astype(dtype)).all()


def test_whole_rows_of_a_vector_environment_are_written_at_once():
    description = nested.map(lambda field: field.batched(B), spaces.fields(gym.spaces.Dict(NEST)))
    whole = {
        "a": np.arange(3),
        "b": (np.ones((3, 2)), np.ones((3, 2, 2), np.uint8)),
        "c": np.arange(3).astype(np.uint8),
    }
    writer, row = ObservationWriter(description, whole, None), blank(spaces.fields(gym.spaces.Dict(NEST)))
    writer.write(row, ..., whole)
    for leaf, expected in zip(row.obs, nested.leaves(whole), strict=True):
        assert np.array_equal(leaf, expected)
    with pytest.raises(ValueError, match=r"obs\['a'\]: expected shape \(3,\)"):
        writer.write(row, ..., whole | {"a": np.arange(4)})
