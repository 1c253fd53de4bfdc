"""A collector in a process of its own: what happens there, and the memory that it shares with the consumer's process.

The very :class:`~rlplay.engine.schedule.Collector` of the other engines turns here. Its vessels are shared memory,
which is transport only: the consumer's process copies fragments out of it into memory of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import nested
from ..nested import Nested
from .ambient import Ambient
from .behaviour import Snapshot
from .captured import behaviour_for
from .core import BaseActorModule, Final, Fragment
from .crew import Alone
from .environment import Environments
from .process import Link, map_memory, packed
from .schedule import Collector, Plan, Token
from .storage import blank, blank_rows
from .trace import Posted
from .transfer import lane_between

__all__ = ["Errand", "Form", "Region", "Reply", "serve"]

_ALIGNMENT = 64  # bytes: a cache line


class Errand(NamedTuple):
    """What a collector process is told at first."""

    sources: list[Any]
    seeds: list[int]
    columns: slice
    """Its environments, out of all."""
    actor: BaseActorModule
    actor_device: str
    plan: Plan
    threads: int
    compile: bool


class Reply(NamedTuple):
    """What comes with a fragment, beside the memory that it lies in."""

    n_ends: int
    steps: int
    episodes: list[tuple[int, float, int]]
    """Bare tuples, which are pickled in half the time."""
    complaint: str


class Region(NamedTuple):
    """Memory that two processes share: a fragment on its way, and the true last states that belong to it."""

    vessel: Fragment
    final: Nested
    """A ``Final`` with room for as many ends as there are transitions, or ``()``. Pages that nothing is written to take
    no memory."""
    weights: list[Tensor]
    """Those that the next fragment is collected with."""


class Form(NamedTuple):
    """What a region has to hold."""

    layout: Fragment
    plan: Plan
    n_envs: int
    weights: list[tuple[tuple[int, ...], torch.dtype]]

    @property
    def size(self) -> int:
        """How many bytes it takes."""
        carver = _Carver(None)
        self._carved(carver)
        return carver.used

    def region(self, memory: Tensor) -> Region:
        """Carve it out of a slab."""
        return self._carved(_Carver(memory))

    def _carved(self, carver: _Carver) -> Region:
        layout, plan, n_envs, forms = self
        vessel = blank(layout, plan.n_steps, n_envs, carver)
        final: Nested = ()
        if plan.final:
            room = plan.n_steps * n_envs
            t, b = carver((room,), torch.int64), carver((room,), torch.int64)
            obs, actor = (blank_rows(tree, 1, room, carver) for tree in (layout.state.obs, layout.actor))
            final = Final(t, b, *nested.map(lambda x: x[0], (obs, actor)))
        return Region(vessel, final, [carver(*form) for form in forms])


class _Carver:
    """Allocates from a slab; without one, it only counts."""

    def __init__(self, memory: Tensor | None) -> None:
        self._memory, self.used = memory, 0

    def __call__(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocate; what is allocated without a slab is on the meta device."""
        start, size = self.used, prod(shape) * dtype.itemsize
        self.used += -(-size // _ALIGNMENT) * _ALIGNMENT
        if self._memory is None:
            return torch.empty(tuple(shape), dtype=dtype, device="meta")
        return self._memory[start : start + size].view(dtype).view(tuple(shape))


class _Door:
    """The gate of a collector whose consumer is in another process, who makes it stand still, or stop, from there."""

    def __init__(self, link: Link, posted: Posted) -> None:
        self._link, self._posted = link, posted

    @property
    def shut(self) -> bool:
        return bool(self._posted.halted)

    def stand(self, settle: Callable[[], None]) -> None:
        """Stand still until told to go on. Whoever is to stop finds that the other end is gone."""
        settle()
        self._link.send(("standing", None))
        word, _ = self._link.receive()
        if word != "go on":
            raise _Interrupted(word)


class _Interrupted(BaseException):
    """Told something else than to go on."""


def serve(link: Link, errand: Errand) -> None:
    """Live the whole life of a collector process."""
    torch.set_num_threads(errand.threads)
    _, (fd,) = link.receive()
    progress = Posted(map_memory(fd))
    os.close(fd)
    post = _Post(link, errand, progress)
    said, fds = link.receive()
    while True:
        name, *args = said
        try:
            answer = "closed" if name == "close" else "done", getattr(post, name)(*args, *fds)
        except _Interrupted as interrupt:
            (said,) = interrupt.args
            continue
        except BaseException as error:  # even SystemExit: it is the consumer who is to hear of it
            answer = "failed", packed(error)
        link.send(answer)
        if name == "close":
            return
        said, fds = link.receive()


class _Post:
    """What a collector process can be asked to do."""

    def __init__(self, link: Link, errand: Errand, progress: Posted) -> None:
        self._link, self._errand, self._progress = link, errand, progress
        self._close: Callable[[], list[str]] = list  # nothing is there yet
        self._collector: Collector

    def make(self) -> Any:
        """Make the collector, and with it the environments; return what they look like."""
        errand, progress = self._errand, self._progress
        self._lane = lane_between("cpu", errand.actor_device, torch.device("cpu"))
        self._behaviour = behaviour = behaviour_for(errand.actor, self._lane, compile=errand.compile)
        looks: list[Any] = []

        def crew() -> Alone:
            first = errand.columns.start
            envs = Environments(errand.sources, errand.seeds, errand.plan.entries, progress, first=first)
            looks.append((envs.act, envs.spaces))
            return Alone(envs, errand.plan.groups)

        door: Any = _Door(self._link, progress)
        self._collector = Collector(crew, behaviour, self._lane, errand.plan, progress, door)
        self._close = self._collector.close
        return looks[0]

    def prepare(self, ambient: Ambient) -> Any:
        """Learn what the actor answers; return the layout of a fragment, and what there is to be warned of."""
        torch.set_default_dtype(ambient.default_dtype)  # which is the process's
        self._collector.prepare(ambient)
        return self._collector.layout, self._behaviour.resets_by_mask, self._behaviour.eager_because

    def share(self, form: Form, fd: int) -> None:
        """Map the memory that fragments and weights travel in."""
        self._region = form.region(torch.from_numpy(map_memory(fd)))
        os.close(fd)

    def collect(self, version: int, modes: list[bool]) -> Reply:
        """Collect a fragment with the weights that are there now."""
        token = Token(version, Snapshot(self._region.weights, modes), self._region.vessel, None, self._lane.record())
        delivery = self._collector.serve(token)
        self._progress.begin("waiting for the learner")
        ended = delivery.staged
        episodes = [(env, ret, length) for env, ret, length in delivery.episodes]
        if not isinstance(ended, Final):
            return Reply(0, delivery.steps, episodes, delivery.complaint)
        k = len(ended.t)
        nested.map(lambda room, x: room[:k].copy_(x), self._region.final, ended)
        return Reply(k, delivery.steps, episodes, delivery.complaint)

    def close(self) -> list[str]:
        """Close the environments; return what went wrong with that."""
        return self._close()
