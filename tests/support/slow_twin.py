"""The slow twin: an independent implementation of section 2 of the contract, to compare fragments with.

It steps one environment at a time and keeps rows as lists of Python objects. It shares no code with the engine, and
transcribes the description of `rlplay.testing.CountingActor`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from rlplay.engine import Episode, Final, Fragment, Outcome, State

FRESH = {
    "count": np.zeros(1, np.int64),
    "sums": np.zeros(2, np.float64),
}  # the first recurrent state of the counting actor


class Page(NamedTuple):
    """A fragment of NumPy arrays, and the episodes, steps and version of the feed after its delivery."""

    fragment: Fragment
    episodes: list[Episode]
    steps: int
    version: int


def pages(envs, n_fragments, *, n_steps, seeds, action, sticky=False, final=False, info=(), lag=0) -> list[Page]:
    """Collect fragments; the learner sets the weight of the counting actor to k before it asks for fragment k."""
    columns = [Column(env, seed, action, final) for env, seed in zip(envs, seeds, strict=True)]
    wanted = info if isinstance(info, dict) else {name: np.float32 for name in info}
    steps, found = 0, []
    for k in range(n_fragments):
        version = max(0, k - lag)
        parts = [column.fragment(n_steps, float(version), sticky, wanted) for column in columns]
        steps += sum(bool(outcome["valid"]) for part in parts for outcome in part["env"])
        found.append(Page(put_together(parts, n_steps, final), ended(parts), steps, version))
    return found


class Column:
    """One environment, and the recurrent state of the actor for it."""

    def __init__(self, env, seed, action, final):
        self.env, self.action, self.final = env, action, final
        # "At the call each environment is reset exactly once (that is row 0)"
        if hasattr(env, "seed"):
            env.seed(seed)
            obs = env.reset()
        else:
            obs, _ = env.reset(seed=seed)
        # "First fragment, row 0: `fin` all True, `rew` 0, `stepno` 0, `act` zeros."
        self.row = {
            "stepno": np.int64(0),
            "obs": in_space(env.observation_space, obs),
            "act": zeros(env.action_space),
            "rew": np.float32(0),
            "fin": np.bool_(True),
        }
        self.memory = FRESH
        self.ret = 0.0

    def fragment(self, n_steps, weight, sticky, wanted):
        part = {"state": [], "actor": [], "env": [], "final": [], "episodes": [], "hx": None}
        over = None  # how the episode ended after which a sticky environment stands still
        for t in range(n_steps):
            # "The recurrent state is reset at EVERY row with `fin`."
            before = FRESH if self.row["fin"] else self.memory
            if t == 0:
                part["hx"] = before
            act, after, seen = react(self.action, self.row, before, weight, virtual=False)
            part["state"].append(self.row)
            part["actor"].append(seen)
            self.memory = after
            if over is not None:
                # "Its remaining rows repeat the first observation of the next episode, with `rew` 0, `stepno` 0,
                # `fin` True, the last real action, and `terminated`/`truncated` of the end; `valid` is False."
                self.row = {**self.row, "rew": np.float32(0), "stepno": np.int64(0), "fin": np.bool_(True)}
                part["env"].append(outcome(*over, valid=False, info={}, wanted=wanted))
                continue
            obs, rew, terminated, truncated, told = self.carry_out(act)
            part["env"].append(outcome(terminated, truncated, valid=True, info=told, wanted=wanted))
            self.ret += float(rew)
            arrived = {
                "stepno": self.row["stepno"] + 1,
                "obs": in_space(self.env.observation_space, obs),
                "act": in_space(self.env.action_space, act),
                "rew": np.float32(rew),
                "fin": np.bool_(False),
            }
            if terminated or truncated:
                # "stepno + 1, the last observation, a_t, r_{t+1}, fin False and the recurrent state before the reset"
                _, _, reaction = react(self.action, arrived, after, weight, virtual=True)
                part["final"].append((t, arrived["obs"], reaction))
                part["episodes"].append((t, self.ret, int(arrived["stepno"])))
                self.ret = 0.0
                again = self.env.reset()
                first = again if hasattr(self.env, "seed") else again[0]
                # "`obs` is its first observation, while `act` and `rew` still hold [those] that ENDED the previous"
                arrived["obs"] = in_space(self.env.observation_space, first)
                arrived["stepno"], arrived["fin"] = np.int64(0), np.bool_(True)
                if sticky:
                    over = terminated, truncated
            self.row = arrived
        # "Row T is its *virtual* reaction to the look-ahead row: [...] nor does it advance the recurrent state"
        before = FRESH if self.row["fin"] else self.memory
        _, _, seen = react(self.action, self.row, before, weight, virtual=True)
        part["state"].append(self.row)
        part["actor"].append(seen)
        return part

    def carry_out(self, act):
        answer = self.env.step(act)
        if len(answer) == 5:
            return answer
        # "Old API: `done` with a true `info["TimeLimit.truncated"]` is truncated, else terminated."
        obs, rew, done, info = answer
        cut = bool(info.get("TimeLimit.truncated", False))
        return obs, rew, done and not cut, done and cut, info


def react(kind, row, memory, weight, *, virtual):
    """Transcribe the step of the counting actor: return its action, its next recurrent state and its info."""
    seen = float(sum(np.sum(leaf, dtype=np.float64) for leaf in numbers(row["obs"])))
    m = math.floor(4 * seen) + int(memory["count"][0])
    heard = 0.0 if row["fin"] else float(row["rew"])
    after = {"count": memory["count"] + 1, "sums": memory["sums"] + [seen, heard]}
    info = {**row, "hx": memory, "virtual": np.bool_(virtual), "weight": np.float32(weight)}
    return chosen(kind, m), after, info


def chosen(kind, m):
    if kind == "discrete":
        return np.int64(m % 5)
    if kind == "multidiscrete":
        return np.array([m % 3, m // 3 % 4], np.int64)
    if kind == "box":
        return np.array([(m % 9 - 4) / 2, (m % 7 - 3) / 2], np.float32)
    if kind == "multibinary":
        return np.array([m % 2, m // 2 % 2, m // 4 % 2], np.int8)
    aim = {"box": chosen("box", m + 1), "bits": chosen("multibinary", m + 2)}
    return {"move": chosen("discrete", m), "aim": aim, "gears": chosen("multidiscrete", m + 3)}


def outcome(terminated, truncated, *, valid, info, wanted):
    noted = {name: note(info, name, example) for name, example in wanted.items()}
    flags = {"terminated": terminated, "truncated": truncated, "valid": valid}
    return {**{name: np.bool_(flag) for name, flag in flags.items()}, "info": noted}


def note(info, name, example):
    """Find an entry; "absent: NaN, 0, False"."""
    form = np.zeros((), example) if isinstance(example, type | np.dtype | str) else np.zeros_like(example)
    if name in info:
        return np.asarray(info[name], form.dtype)
    inner: Any = info
    for key in name.split("."):
        if not isinstance(inner, dict) or key not in inner:
            return np.full_like(form, math.nan) if form.dtype.kind == "f" else form
        inner = inner[key]
    return np.asarray(inner, form.dtype)


def in_space(space, value):
    """Make an array of the space's dtype of each leaf: a copy, since the environment may overwrite its own."""
    inner = getattr(space, "spaces", None)
    if inner is None:
        return np.array(value, space.dtype)
    if isinstance(value, tuple):
        parts = [in_space(part, item) for part, item in zip(inner, value, strict=True)]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return {key: in_space(part, value[key]) for key, part in inner.items()}


def zeros(space):
    inner = getattr(space, "spaces", None)
    if inner is None:
        return np.zeros(space.shape, space.dtype)
    return {key: zeros(part) for key, part in inner.items()}


def numbers(nest):
    if isinstance(nest, dict):
        return [leaf for part in nest.values() for leaf in numbers(part)]
    if isinstance(nest, tuple):
        return [leaf for part in nest for leaf in numbers(part)]
    return [nest]


def put_together(parts, n_steps, final):
    """Make time-major arrays of the columns: `T x B x ...`."""
    state, actor, env = (
        stacked([stacked(list(row)) for row in zip(*(part[what] for part in parts), strict=True)])
        for what in ("state", "actor", "env")
    )
    assert len(state["fin"]) == n_steps + 1
    # "leaves of `hx` have the batch as their SECOND dimension"
    hx = {name: np.stack([part["hx"][name] for part in parts])[None] for name in FRESH}
    last = finals(parts) if final else ()
    return Fragment(State(**state), actor, Outcome(**env, final=last), hx)


def finals(parts):
    """ "in the order (t, b)", and K may be 0."""
    ends = sorted((t, b, obs, seen) for b, part in enumerate(parts) for t, obs, seen in part["final"])
    like = parts[0]["state"][0]["obs"], parts[0]["actor"][0]
    t, b = (np.array([end[i] for end in ends], np.int64) for i in (0, 1))
    return Final(t, b, *(stacked([end[2 + i] for end in ends], like[i]) for i in (0, 1)))


def ended(parts):
    """ "in the order (t, env)"."""
    ends = sorted((t, b, ret, length) for b, part in enumerate(parts) for t, ret, length in part["episodes"])
    return [Episode(b, ret, length) for _, b, ret, length in ends]


def stacked(nests, like=None):
    like = nests[0] if like is None else like
    if isinstance(like, dict):
        return {key: stacked([nest[key] for nest in nests], like[key]) for key in like}
    if isinstance(like, tuple):
        parts = [stacked([nest[i] for nest in nests], like[i]) for i in range(len(like))]
        return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)
    return np.stack(nests) if nests else np.zeros((0, *like.shape), like.dtype)


def assert_same(got, expected, where="fragment"):
    """Compare a nest of tensors with one of arrays: containers, dtypes, shapes, and every number (NaN is NaN)."""
    if isinstance(expected, dict):
        assert isinstance(got, dict), f"{where}: {type(got)}"
        assert set(got) == set(expected), f"{where}: {sorted(got)} != {sorted(expected)}"
        for key, part in expected.items():
            assert_same(got[key], part, f"{where}[{key!r}]")
    elif isinstance(expected, tuple):
        assert type(got) is type(expected), f"{where}: {type(got)} != {type(expected)}"
        assert len(got) == len(expected), where
        names = getattr(expected, "_fields", range(len(expected)))
        for name, mine, part in zip(names, got, expected, strict=True):
            assert_same(mine, part, f"{where}.{name}")
    else:
        array = got.numpy()
        assert array.dtype == expected.dtype, f"{where}: {array.dtype} != {expected.dtype}"
        assert array.shape == expected.shape, f"{where}: {array.shape} != {expected.shape}"
        np.testing.assert_array_equal(array, expected, where)
