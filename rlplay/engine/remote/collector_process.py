"""A collector in a process of its own: what happens there, and the memory that it shares with the consumer's process.

The very :class:`~rlplay.engine.collector.collector.Collector` of the other engines runs here. Its blank fragments are
shared memory, which is transport only: the consumer's process copies fragments out of it into memory of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ... import nested
from ..acting.behaviour import Snapshot
from ..acting.make import make_behaviour
from ..acting.torch_context import TorchContext
from ..collector.collector import Collector
from ..collector.messages import Plan, Token
from ..concurrency.exceptions import pack
from ..concurrency.link import Link
from ..concurrency.progress import SharedProgress
from ..concurrency.shared_memory import map_memory
from ..core import BaseActorModule, Final
from ..envs.environment_list import EnvironmentList
from ..memory.cuda import lane_between
from ..stepping.inline import InlineStepper
from .shared_fragment import SharedFragmentSpec

__all__ = ["CollectorSpec", "Reply", "serve"]


class CollectorSpec(NamedTuple):
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


class _RemoteGate:
    """The gate of a collector whose consumer is in another process, who makes it stand still, or stop, from there."""

    def __init__(self, link: Link, progress: SharedProgress) -> None:
        self._link, self._progress = link, progress

    @property
    def shut(self) -> bool:
        return bool(self._progress.halted)

    def stand(self, settle: Callable[[], None]) -> None:
        """Stand still until told to go on. Whoever is to stop finds that the other end is gone."""
        settle()
        self._link.send(("standing", None))
        word, _ = self._link.receive()
        if word != "go on":
            raise _Interrupted(word)


class _Interrupted(BaseException):
    """Told something else than to go on."""


def serve(link: Link, spec: CollectorSpec) -> None:
    """Live the whole life of a collector process."""
    torch.set_num_threads(spec.threads)
    _, (fd,) = link.receive()
    progress = SharedProgress(map_memory(fd))
    os.close(fd)
    service = _CollectorService(link, spec, progress)
    said, fds = link.receive()
    while True:
        name, *args = said
        try:
            answer = "closed" if name == "close" else "done", getattr(service, name)(*args, *fds)
        except _Interrupted as interrupt:
            (said,) = interrupt.args
            continue
        except BaseException as error:  # even SystemExit: it is the consumer who is to hear of it
            answer = "failed", pack(error)
        link.send(answer)
        if name == "close":
            return
        said, fds = link.receive()


class _CollectorService:
    """What a collector process can be asked to do."""

    def __init__(self, link: Link, spec: CollectorSpec, progress: SharedProgress) -> None:
        self._link, self._errand, self._progress = link, spec, progress
        self._close: Callable[[], list[str]] = list  # nothing is there yet
        self._collector: Collector

    def make(self) -> Any:
        """Make the collector, and with it the environments; return what they look like."""
        spec, progress = self._errand, self._progress
        self._lane = lane_between("cpu", spec.actor_device, torch.device("cpu"))
        self._behaviour = behaviour = make_behaviour(spec.actor, self._lane, compile=spec.compile)
        looks: list[Any] = []

        def stepper() -> InlineStepper:
            first = spec.columns.start
            envs = EnvironmentList(spec.sources, spec.seeds, spec.plan.entries, progress, first=first)
            looks.append((envs.act, envs.spaces))
            return InlineStepper(envs, spec.plan.groups)

        gate: Any = _RemoteGate(self._link, progress)
        self._collector = Collector(stepper, behaviour, self._lane, spec.plan, progress, gate)
        self._close = self._collector.close
        return looks[0]

    def prepare(self, torch_context: TorchContext) -> Any:
        """Learn what the actor answers; return the layout of a fragment, and what there is to be warned of."""
        torch.set_default_dtype(torch_context.default_dtype)  # which is the process's
        self._collector.prepare(torch_context)
        return self._collector.layout, self._collector.warnings

    def share(self, form: SharedFragmentSpec, fd: int) -> None:
        """Map the memory that fragments and weights travel in."""
        self._region = form.region(torch.from_numpy(map_memory(fd)))
        os.close(fd)

    def collect(self, version: int, modes: list[bool]) -> Reply:
        """Collect a fragment with the weights that are there now."""
        token = Token(version, Snapshot(self._region.weights, modes), self._region.blank, None, self._lane.record())
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
