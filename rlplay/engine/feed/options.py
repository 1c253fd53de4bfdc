"""The options of a rollout, and their checks. Constructs neither environments nor collectors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate, pairwise
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import torch

from ...process_state import draw_seed
from ..acting.group import split
from ..collector.messages import Plan
from ..envs.autoreset import AUTORESET_MODES
from ..envs.dialects import is_factory, is_vector
from ..envs.info import Entries
from ..envs.make import check_no_actor, check_vectors
from ..memory.lane import Lane

__all__ = [
    "Device",
    "Info",
    "Options",
    "at_least",
    "check_factory",
    "check_flags",
    "home_of",
    "plan_for",
    "plan_for_processes",
    "seconds_of",
    "seed_of",
]

Device: TypeAlias = torch.device | str | Lane | None
Info: TypeAlias = Sequence[str] | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of every engine. :func:`rlplay.engine.rollout.threaded.rollout` documents them.

    The constructor checks each option for itself, and replaces NumPy's numbers by Python's. :func:`plan_for` and
    :func:`plan_for_processes` check the options that depend on the environments.

    Raises
    ------
    TypeError, ValueError
        If a number is not an integer or is out of range, if a flag is no bool, if a timeout is not positive, if
        ``n_per_batch`` is more than ``n_actors``, or if ``shard`` is no pair as described, or there is neither a
        ``seed`` nor a ``state``, which has one.
    """

    n_steps: int
    lag: int
    device: Device
    actor_device: torch.device | str | None
    seed: int | None
    info: Info
    sticky: bool = False
    final: bool = False
    compile: bool = False
    reseed: bool = True
    """Whether environments are reset with seeds at the call."""
    shard: tuple[int, int] | None = None
    """``(i, n)``: this feed is the i-th of n equal ones."""
    state: Mapping[str, Any] | None = None
    """What ``feed.state_dict()`` has returned: the stream goes on from there."""
    autoreset: str | None = None
    """When vector environments that do not say it reset their parts."""
    groups: int = 1
    workers: int = 0
    worker: str = "process"
    n_actors: int = 1
    """The number of collector processes (``single`` and ``multi``)."""
    n_per_actor: int = 1
    """The number of environments in each collector process."""
    n_per_batch: int = 1
    """The number of collector processes whose parts make up one fragment."""
    threads: int = 1
    background: bool = False
    """True if a background thread collects, False if the thread that calls ``next()`` does."""
    timeout: float = 60.0
    start_timeout: float = 300.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.generic):
                object.__setattr__(self, field.name, value.item())
        for name in ("timeout", "start_timeout"):
            object.__setattr__(self, name, seconds_of(name, getattr(self, name)))
        for name, least in (
            ("n_steps", 1),
            ("n_actors", 1),
            ("n_per_actor", 1),
            ("n_per_batch", 1),
            ("lag", 0),
            ("threads", 1),
            ("groups", 1),
        ):
            at_least(name, getattr(self, name), least)
        check_flags(sticky=self.sticky, final=self.final, compile=self.compile, reseed=self.reseed)
        if self.autoreset not in (None, *AUTORESET_MODES):
            raise ValueError(
                f"`autoreset` must be one of {', '.join(map(repr, AUTORESET_MODES))}, or None, got {self.autoreset!r}."
            )
        if self.shard is not None:
            _check_shard(self.shard, has_seed=self.seed is not None or self.state is not None)
            object.__setattr__(self, "shard", (int(self.shard[0]), int(self.shard[1])))
        if self.n_per_batch > self.n_actors:
            raise ValueError(f"`n_per_batch` must be at most `n_actors`, {self.n_actors}, got {self.n_per_batch}.")


def plan_for(options: Options, sources: Sequence[Any]) -> Plan:
    """Check the options against the environments, and make the plan of the only collector.

    Parameters
    ----------
    sources : sequence
        Instances and factories of environments, as :func:`~rlplay.engine.envs.make.list_sources` returns them.

    Raises
    ------
    TypeError, ValueError
        If there are more groups or workers than environments, if the environments cannot be stepped by workers of this
        kind or cannot be sticky, or if the seed or the names of info entries are not as described.
    """
    vectors = [source for source in sources if is_vector(source)]
    if vectors:
        check_vectors(len(sources), options.groups, sticky=options.sticky)
    if 1 < len(vectors) == len(sources):
        _check_workers(options, sources)
        stops = list(accumulate((int(env.num_envs) for env in vectors), initial=0))
        return _plan(options, [slice(*pair) for pair in pairwise(stops)])
    if options.autoreset is not None and not vectors and not any(map(is_factory, sources)):
        raise ValueError(
            "`autoreset` is for vector environments that do not say when they reset their parts: leave it out for a "
            "list of single environments, which rlplay resets."
        )
    n_envs = int(vectors[0].num_envs) if len(vectors) == len(sources) else len(sources)
    if options.groups > n_envs:
        hint = " A factory counts as one: to divide a vector environment, pass the environment itself."
        raise ValueError(
            f"`groups` must be at most the number of environments, {n_envs}, got {options.groups}."
            f"{hint if any(map(is_factory, sources)) else ''}"
        )
    _check_workers(options, sources)
    return _plan(options, split(n_envs, options.groups))


def plan_for_processes(options: Options, factory: Any) -> Plan:
    """Check the factory, and make the plan of the first collector process.

    The plans of the other processes differ from this one in ``first_group`` alone.

    Raises
    ------
    TypeError, ValueError
        If ``factory`` is no factory, or if the seed or the names of info entries are not as described.
    """
    check_factory(factory)
    return _plan(options, [slice(0, options.n_per_actor)], options.n_actors)


def check_factory(factory: Any, takes_lists: str = "`same` and `threaded`") -> None:
    """Check the argument ``factory`` of an engine that makes its environments in other processes.

    Parameters
    ----------
    factory : object
        The argument.
    takes_lists : str
        What takes lists of environments instead, for the message.

    Raises
    ------
    TypeError
        It is no factory.
    """
    check_no_actor("factory", factory)
    if is_factory(factory):
        return
    got, remedy = repr(factory), f"; write `lambda: gym.make({factory!r})`"
    if not isinstance(factory, str):
        if isinstance(factory, list | tuple):
            got = f"a {type(factory).__name__} of {len(factory)}"
        elif factory is not None:
            got = f"an instance of {type(factory).__name__}"
        remedy = (
            ": environments are made in other processes here, so pass what makes one, such as `lambda: gym.make(...)`, "
            "and their number; lists of environments are for "
            f"{takes_lists}"
        )
    raise TypeError(f"`factory` must be a callable that makes an environment, got {got}{remedy}.")


def _plan(options: Options, groups: list[slice], n_collectors: int = 1) -> Plan:
    """Make the plan of the first of some collectors that have equal groups."""
    seed, entries = seed_of(options.seed), Entries(options.info)
    shard, _ = options.shard or (0, 1)
    first_group, first_env = shard * n_collectors * len(groups), shard * n_collectors * groups[-1].stop
    return Plan(options.n_steps, groups, seed, options.sticky, options.final, entries, first_group, first_env)


def _check_shard(shard: Any, *, has_seed: bool) -> None:
    if not isinstance(shard, tuple) or len(shard) != 2:
        raise TypeError(f"`shard` must be a pair (i, n), or None, got {shard!r}: with torchrun, (rank, world size).")
    i, n = shard
    at_least("n of `shard`", n, 1)
    at_least("i of `shard`", i, 0)
    if i >= n:
        raise ValueError(f"`shard` must be (i, n) with i from 0 to n - 1, got {shard!r}.")
    if not has_seed:
        raise ValueError(
            f"`shard={shard!r}` needs a `seed`, the same one in each of the {n} feeds: what they draw depends on it."
        )


def _check_workers(options: Options, sources: Sequence[Any]) -> None:
    workers, worker = options.workers, options.worker
    at_least("workers", workers, 0)
    if worker not in ("process", "thread"):
        raise ValueError(f"`worker` must be 'process' or 'thread', got {worker!r}.")
    if workers and any(map(is_vector, sources)):
        raise ValueError("`workers` are for a list of environments: a vector environment steps its parts by itself.")
    if workers > len(sources):
        raise ValueError(f"`workers` must be at most the number of environments, {len(sources)}, got {workers}.")
    instances = [j for j, source in enumerate(sources) if not is_factory(source)]
    if workers and worker == "process" and instances:
        raise TypeError(
            f"worker processes make their own environments: `envs[{instances[0]}]` is an instance; pass factories "
            "instead, such as `[lambda: gym.make(name)] * n`, or use `worker='thread'`."
        )


def check_flags(**flags: Any) -> None:
    """Raise TypeError if a value is neither True nor False. Python would take the text ``"False"`` as True."""
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"`{name}` must be True or False, got {value!r}.")


def seconds_of(name: str, value: float) -> float:
    """Return a time limit as Python's float, which all waits take; raise ValueError if it is not positive."""
    if isinstance(value, bool) or not isinstance(value, Real) or not value > 0:
        raise ValueError(f"`{name}` must be a positive number of seconds, got {value!r}; math.inf waits for ever.")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def at_least(name: str, value: Any, least: int) -> None:
    """Check that an argument is an integer, and not less than ``least``.

    Raises
    ------
    TypeError
        If it is no integer. (A bool is refused as well.)
    ValueError
        If it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"`{name}` must be an integer, got {value!r}.")
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value}.")


def seed_of(seed: int | None) -> int:
    """Check the seed; ``None`` draws one from torch's global generator, so that ``torch.manual_seed`` repeats runs.

    Raises
    ------
    TypeError, ValueError
        If the seed is no integer, or is negative.
    """
    if seed is None:
        return draw_seed()
    at_least("seed", seed, 0)
    return int(seed)


def home_of(actor: Any) -> torch.device:
    """Return the device of the actor's first parameter or buffer; the CPU if the actor has none."""
    tensors = [*actor.parameters(), *actor.buffers()] if isinstance(actor, torch.nn.Module) else []
    return tensors[0].device if tensors else torch.device("cpu")
