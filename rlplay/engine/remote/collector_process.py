"""What runs in a collector process: a service that makes a collector and collects fragments on request.

It uses the same :class:`~rlplay.engine.collector.collector.Collector` as the other engines. The collector's blank
fragment is memory that both processes share; the consumer's process copies each fragment out of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ... import nested
from ..acting.behaviour import Behaviour, Snapshot
from ..acting.make import make_behaviour
from ..acting.plain_attributes import PlainChanges
from ..acting.torch_context import TorchContext, TorchDefaults
from ..collector.collector import Collector
from ..collector.messages import Delivery, Plan, Token
from ..collector.saving import from_bytes, resume, to_bytes
from ..concurrency.exceptions import pack
from ..concurrency.gate import Gate
from ..concurrency.progress import Progress, SharedProgress
from ..concurrency.sendable import check_factory_and_actor
from ..concurrency.service import Server
from ..concurrency.shared_memory import receive_memory
from ..core import BaseActorModule, Final, Fragment
from ..envs.environment_list import EnvironmentList
from ..envs.info import Entries
from ..memory.cuda import lane_between
from ..memory.lane import Lane
from ..stepping.inline import InlineStepper
from ..stepping.sent_spaces import SentSpace, send_spaces
from .shared_fragment import SharedFragment, SharedFragmentSpec

__all__ = ["CollectorService", "CollectorSpec", "Prepared", "Reply", "SavedState", "make_collector"]


class CollectorSpec(NamedTuple):
    """What a collector process is given at its start."""

    sources: list[Any]
    seeds: list[int | None]
    columns: slice
    """The numbers of its environments among all environments: of the feed, or of all shards."""
    actor: BaseActorModule
    actor_device: str
    defaults: TorchDefaults
    """torch's defaults and switches in the consumer's process; those of this process are set to them."""
    plan: Plan
    threads: int
    """The number of torch's threads in the process."""
    compile: bool

    def check_sendable(self, where: str) -> None:
        """Raise TypeError if the factory or the actor cannot be pickled; ``where`` says where they were to be sent."""
        check_factory_and_actor(self.sources[0], self.actor, self.columns, where, "collect with `threaded`")


class Prepared(NamedTuple):
    """The answer of a collector process to ``prepare``."""

    layout: Fragment
    """The shapes and dtypes of a fragment."""
    warnings: list[str]
    """As :attr:`rlplay.engine.collector.collector.Collector.warnings`."""


class Reply(NamedTuple):
    """What a collector process answers with each fragment; the fragment itself is in shared memory."""

    n_finals: int
    """The number of rows of ``final`` that are filled in."""
    steps: int
    episodes: list[tuple[int, float, int]]
    """The fields of each Episode: bare tuples are pickled in half the time."""
    warning: str
    untold: list[str]
    """The names of ``info`` that none of the process's environments has told so far."""

    @classmethod
    def to(cls, delivery: Delivery, entries: Entries) -> Reply:
        """Make the reply to a request out of a delivery. ``entries`` are the info entries of this process."""
        n_finals = len(delivery.final.t) if isinstance(delivery.final, Final) else 0
        episodes = [(env, ret, length) for env, ret, length in delivery.episodes]
        return cls(n_finals, delivery.steps, episodes, delivery.warning, list(entries.untold))


class SavedState(NamedTuple):
    """What a collector process answers if it is asked for its state."""

    state: bytes | None
    """What :meth:`rlplay.engine.collector.collector.Collector.state_dict` returned, by
    :func:`~rlplay.engine.collector.saving.to_bytes`; None if that has failed."""
    error: bytes | None
    """What it raised, by :func:`~rlplay.engine.concurrency.exceptions.pack`. It is an answer like others, so that those
    of all processes are received before it is raised."""

    @classmethod
    def of(cls, collector: Collector, *, whole: bool) -> SavedState:
        """Ask a collector for its state; with ``whole`` the states of the environments are part of it."""
        try:
            return cls(to_bytes(collector.state_dict(whole=whole)), None)
        except BaseException as error:
            return cls(None, pack(error))


class MadeCollector(NamedTuple):
    """A collector in the process that collects, and what it consists of."""

    collector: Collector
    behaviour: Behaviour
    lane: Lane
    introduction: tuple[SentSpace, SentSpace]
    """Describes the spaces of its environments."""


def make_collector(spec: CollectorSpec, progress: Progress, gate: Gate) -> MadeCollector:
    """Make a collector, with its environments and its behaviour copy, in the thread that is to collect."""
    torch.set_num_threads(spec.threads)
    spec.defaults.set()
    lane = lane_between("cpu", spec.actor_device, torch.device("cpu"))
    behaviour = make_behaviour(spec.actor, lane, compile=spec.compile)
    spec.plan.entries.leave_warning()
    lane.host_wait(lane.record())  # edge: called -> made
    with lane.collecting():
        with spec.defaults.for_environments():
            envs = EnvironmentList(spec.sources, spec.seeds, spec.plan.entries, progress, first=spec.columns.start)
            introduction = send_spaces(envs.spaces)
            stepper = InlineStepper([envs], spec.plan.groups)
        collector = Collector(stepper, behaviour, lane, spec.plan, progress, gate, spec.defaults)
    return MadeCollector(collector, behaviour, lane, introduction)


class _RemoteGate:
    """The gate of a collector in a collector process; the consumer's process shuts and opens it."""

    def __init__(self, server: Server, progress: SharedProgress) -> None:
        self._server, self._progress = server, progress

    @property
    def shut(self) -> bool:
        return self._progress.halted

    def wait_while_shut(self, finish_work: Callable[[], None]) -> None:
        """Pause until the consumer's process resumes. Raises ``Disconnected`` if it ends this process instead."""
        finish_work()
        if self.shut:  # work may take long, and the pause may be over
            self._server.pause()


class CollectorService:
    """Makes a collector, with its environments and its behaviour copy, and collects fragments with it."""

    def __init__(self, server: Server, spec: CollectorSpec) -> None:
        self._progress = progress = SharedProgress(server.memory)
        self._shared: SharedFragment | None = None
        self._entries = spec.plan.entries
        gate: Any = _RemoteGate(server, progress)
        self._collector, _, self._lane, self.introduction = make_collector(spec, progress, gate)

    def prepare(self, torch_context: TorchContext) -> Prepared:
        """Determine the shapes and dtypes of the actor's outputs, by a trial step."""
        torch_context.defaults.set_switches()
        self._collector.prepare(torch_context)
        return Prepared(self._collector.layout, self._collector.warnings)

    def resume(self, saved: bytes, torch_context: TorchContext) -> Prepared:
        """Go on from a saved stream, of these environments alone; otherwise like :meth:`prepare`."""
        torch_context.defaults.set_switches()
        with self._lane.collecting():
            resume(self._collector, from_bytes(saved), torch_context)
        return Prepared(self._collector.layout, self._collector.warnings)

    def state_dict(self, whole: bool) -> SavedState:
        """Return what the next fragments depend on; with ``whole`` the states of the environments are part of it."""
        return SavedState.of(self._collector, whole=whole)

    def share(self, spec: SharedFragmentSpec, fd: int) -> None:
        """Map the memory that fragments and weights are passed in."""
        self._shared = spec.divide(torch.from_numpy(receive_memory(fd)))

    def collect(self, version: int, modes: list[bool], plain: PlainChanges) -> Reply:
        """Collect a fragment into the shared memory, with the weights that are there now."""
        shared = self._shared
        assert shared is not None, "call `share` first"
        token = Token(version, Snapshot(shared.weights, modes, plain), shared.fragment, None, self._lane.record())
        delivery = self._collector.serve(token)
        self._progress.begin("waiting for the learner")
        nested.map(lambda rows, x: rows[: len(x)].copy_(x), shared.final, delivery.final)
        return Reply.to(delivery, self._entries)

    def run_short(self, head: bytes) -> None:
        """Do nothing: a collector process gets no short requests."""

    def close(self) -> list[str]:
        """Close the environments; return what went wrong."""
        return self._collector.close()
