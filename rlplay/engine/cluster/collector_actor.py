"""What runs in a Ray actor: a collector, whose fragments go back through Ray's object store.

It uses the same :class:`~rlplay.engine.collector.collector.Collector` as the other engines. Ray calls the methods of
:class:`CollectorActor`: ``make``, ``prepare``, ``collect``, ``collect_again`` and ``close`` in one thread, one after
another, and the others (the concurrency group ``control``) in another thread, also while a fragment is being collected.
"""

from __future__ import annotations

import functools
import math
import os
import pickle
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, ParamSpec, TypeVar

import cloudpickle
import torch

from ..acting.behaviour import Snapshot
from ..acting.make import make_behaviour
from ..acting.plain_attributes import PlainChanges
from ..acting.torch_context import TorchContext
from ..collector.collector import Collector
from ..collector.messages import Token
from ..concurrency.exceptions import add_note, pack
from ..concurrency.gate import Gate
from ..concurrency.progress import Progress
from ..core import Final, Fragment
from ..envs.environment_list import EnvironmentList
from ..memory.cuda import lane_between
from ..remote.collector_process import CollectorSpec, Prepared, Reply
from ..stepping.inline import InlineStepper
from ..stepping.sent_spaces import send_spaces
from .object_store import Bytes, bytes_of, tensor_over
from .reported_progress import Report

__all__ = ["CollectorActor", "Failed", "Part", "Request"]

P = ParamSpec("P")
T = TypeVar("T")


class Failed(NamedTuple):
    """The answer of a method that has raised. Ray would change the type of the exception."""

    error: bytes
    """By :func:`~rlplay.engine.concurrency.exceptions.pack`."""
    report: Report


class Request(NamedTuple):
    """What a fragment is collected with, beside the weights."""

    version: int
    modes: list[bool]
    plain: PlainChanges


class Part(NamedTuple):
    """The answer to ``collect``: the fragment of one collector."""

    fragment: list[Bytes]
    """The bytes of each leaf."""
    finals: list[Bytes]
    """The same for ``final``, with as many rows as episodes have ended; empty if the plan has no ``final``."""
    reply: Reply
    report: Report
    state: bytes
    """What the next fragment is collected from; empty unless the collector is to be restarted if it dies."""


def _answers(method: Callable[P, T]) -> Callable[P, T | Failed]:
    """Let a method of :class:`CollectorActor` return its exception."""

    @functools.wraps(method)
    def answer(*args: P.args, **options: P.kwargs) -> T | Failed:
        try:
            return method(*args, **options)
        except BaseException as error:  # SystemExit too: the consumer has to receive it
            actor: Any = args[0]
            return Failed(pack(error), actor.report())

    return answer


class CollectorActor:
    """Collects fragments on request; the class of a Ray actor.

    Parameters
    ----------
    keeps_state : bool
        Whether answers bring the state that the next fragment is collected from.
    """

    _here: _CollectorHere

    def __init__(self, keeps_state: bool) -> None:
        self._keeps_state = keeps_state
        self._gate, self._progress = Gate(), Progress()
        self._held = ExitStack()

    @_answers
    def make(self, spec: bytes) -> bytes:
        """Make the collector, and reset its environments; return a description of their spaces, pickled."""
        self._here = _CollectorHere(spec, self._progress, self._gate)
        introduction: bytes = cloudpickle.dumps(self._here.introduction)
        return introduction

    @_answers
    def prepare(self, torch_context: TorchContext) -> tuple[bytes, bytes]:
        """Determine the shapes and dtypes of the actor's outputs; return a ``Prepared``, pickled, and the state."""
        return cloudpickle.dumps(self._here.prepare(torch_context)), self._state()

    @_answers
    def collect(self, request: Request, weights: Sequence[Bytes]) -> Part:
        """Collect a fragment with these weights."""
        return self._collect(request, weights)

    @_answers
    def collect_again(
        self, spec: bytes, state: bytes, torch_context: TorchContext, request: Request, weights: Sequence[Bytes]
    ) -> Part:
        """Make the collector, go on from the state of another one that has died, and collect a fragment."""
        self._here = _CollectorHere(spec, self._progress, self._gate)
        self._here.load_state(state)
        self._here.prepare(torch_context)
        return self._collect(request, weights)

    def _collect(self, request: Request, weights: Sequence[Bytes]) -> Part:
        fragment, finals, reply = self._here.collect(request, weights)
        return Part(fragment, finals, reply, self.report(), self._state())

    def _state(self) -> bytes:
        return self._here.state() if self._keeps_state else b""

    @_answers
    def close(self) -> list[str]:
        """Close the environments; return what went wrong."""
        return self._here.close() if hasattr(self, "_here") else []

    def where(self) -> str:
        """Return the node and the process that this is."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        return f"node {node} ({ray.util.get_node_ip_address()}), process {os.getpid()}"

    def report(self) -> Report:
        """Return what the collector is doing."""
        return Report.of(self._progress)

    def hold(self) -> None:
        """Let the collector stand still at its next step; return once it does."""
        self._held.enter_context(self._gate.held(math.inf, lambda: str(self._progress)))

    def release(self) -> None:
        """Let the collector go on."""
        self._held.close()

    def end(self) -> None:
        """Stop the collector at its next step, for good."""
        self._gate.close()


class _CollectorHere:
    """A collector with its environments and its behaviour copy, made in the thread that collects.

    Attributes
    ----------
    introduction : tuple of SentSpace
        Describes the spaces of the environments.
    """

    def __init__(self, packed: bytes, progress: Progress, gate: Gate) -> None:
        try:
            spec: CollectorSpec = pickle.loads(packed)
        except BaseException as error:
            add_note(error, "raised in a Ray actor by unpickling what it was given: factories, actor, options")
            raise
        torch.set_num_threads(spec.threads)
        spec.defaults.set()
        self._progress, self._gate = progress, gate
        self._lane = lane = lane_between("cpu", spec.actor_device, torch.device("cpu"))
        self._behaviour = make_behaviour(spec.actor, lane, compile=spec.compile)
        self._entries = spec.plan.entries
        self._entries.leave_warning()
        with spec.defaults.for_environments():
            envs = EnvironmentList(spec.sources, spec.seeds, self._entries, progress, first=spec.columns.start)
            self.introduction = send_spaces(envs.spaces)
            stepper = InlineStepper([envs], spec.plan.groups)
        self._collector = Collector(stepper, self._behaviour, lane, spec.plan, progress, gate, spec.defaults)
        self._blank: Fragment | None = None

    def prepare(self, torch_context: TorchContext) -> Prepared:
        self._collector.prepare(torch_context)
        return Prepared(self._collector.layout, self._collector.warnings)

    def collect(self, request: Request, weights: Sequence[Bytes]) -> tuple[list[Bytes], list[Bytes], Reply]:
        """Return the bytes of a fragment, in memory that the next one is written into, and the rest of the answer."""
        like = self._behaviour.weights
        tensors = [tensor_over(x, form.shape, form.dtype) for x, form in zip(weights, like, strict=True)]
        snapshot = Snapshot(tensors, request.modes, request.plain)
        self._blank = blank = self._blank or self._collector.blank()
        self._gate.enter()
        try:
            delivery = self._collector.serve(Token(request.version, snapshot, blank, None, self._lane.record()))
        finally:
            self._gate.leave()
        self._progress.finish_fragment()
        final = delivery.final
        n_finals = len(final.t) if isinstance(final, Final) else 0
        episodes = [(env, ret, length) for env, ret, length in delivery.episodes]
        reply = Reply(n_finals, delivery.steps, episodes, delivery.warning, list(self._entries.untold))
        return bytes_of(blank), bytes_of(final), reply

    def state(self) -> bytes:
        return pickle.dumps(self._collector.state_dict(whole=True))

    def load_state(self, state: bytes) -> None:
        self._collector.load_state_dict(pickle.loads(state), whole=True)

    def close(self) -> list[str]:
        return self._collector.close()
