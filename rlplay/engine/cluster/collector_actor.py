"""What runs in a Ray actor: a collector, whose fragments go back through Ray's object store.

It uses the same :class:`~rlplay.engine.collector.collector.Collector` as the other engines. Ray calls the methods of
:class:`CollectorActor` in two threads: ``where``, ``report``, ``hold``, ``release`` and ``end`` in that of the
concurrency group ``control``, also while a fragment is being collected; the others, one after another, in the thread
that collects.
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

from ..acting.behaviour import Snapshot
from ..acting.plain_attributes import PlainChanges
from ..acting.torch_context import TorchContext
from ..collector.messages import Token
from ..collector.saving import from_bytes, resume, to_bytes
from ..concurrency.exceptions import add_note, pack
from ..concurrency.gate import Gate
from ..concurrency.progress import Progress
from ..core import Fragment
from ..remote.collector_process import CollectorSpec, Prepared, Reply, SavedState, make_collector
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
        """Make the collector, and reset its environments; return a description of their spaces."""
        self._here = _CollectorHere(spec, self._progress, self._gate)
        return _pickled(self._here.made.introduction)

    @_answers
    def prepare(self, torch_context: TorchContext) -> bytes:
        """Determine the shapes and dtypes of the actor's outputs; return these, and the state before a fragment."""
        torch_context.defaults.set_switches()
        self._here.made.collector.prepare(torch_context)
        return self._prepared()

    @_answers
    def resume(self, saved: bytes, torch_context: TorchContext) -> bytes:
        """Go on from a saved stream, of these environments alone; otherwise like :meth:`prepare`."""
        torch_context.defaults.set_switches()
        with self._here.made.lane.collecting():
            resume(self._here.made.collector, from_bytes(saved), torch_context)
        return self._prepared()

    def _prepared(self) -> bytes:
        collector = self._here.made.collector
        return _pickled((Prepared(collector.layout, collector.warnings), self._state()))

    @_answers
    def state_dict(self, whole: bool) -> bytes:
        """Return what the next fragments depend on; with ``whole`` the states of the environments are part of it."""
        return _pickled(SavedState.of(self._here.made.collector, whole=whole))

    @_answers
    def collect(self, request: Request, weights: Sequence[Bytes]) -> Part:
        """Collect a fragment with these weights."""
        fragment, finals, reply = self._here.collect(request, weights)
        return Part(fragment, finals, reply, self.report(), self._state())

    def go_on(self, spec: bytes, state: bytes, torch_context: TorchContext, method: str, *args: Any) -> Any:
        """Make the collector, go on from the state of one that has died, and do what that one was requested to do."""
        failed = self._load(spec, state, torch_context)
        return failed or getattr(self, method)(*args)

    @_answers
    def _load(self, spec: bytes, state: bytes, torch_context: TorchContext) -> None:
        self._here = _CollectorHere(spec, self._progress, self._gate)
        torch_context.defaults.set_switches()
        collector = self._here.made.collector
        with self._here.made.lane.collecting():
            collector.load_state_dict(from_bytes(state), whole=True)
            collector.prepare(torch_context)

    def _state(self) -> bytes:
        return to_bytes(self._here.made.collector.state_dict(whole=True)) if self._keeps_state else b""

    @_answers
    def close(self) -> list[str]:
        """Close the environments; return what went wrong."""
        return self._here.made.collector.close() if hasattr(self, "_here") else []

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
    """A collector with its environments and its behaviour copy, made in the thread that collects."""

    def __init__(self, packed: bytes, progress: Progress, gate: Gate) -> None:
        try:
            spec: CollectorSpec = pickle.loads(packed)
        except BaseException as error:
            add_note(error, "raised in a Ray actor by unpickling what it was given: factories, actor, options")
            raise
        self.made = make_collector(spec, progress, gate)
        self._progress, self._gate, self._entries = progress, gate, spec.plan.entries
        self._blank: Fragment | None = None

    def collect(self, request: Request, weights: Sequence[Bytes]) -> tuple[list[Bytes], list[Bytes], Reply]:
        """Return the bytes of a fragment, in memory that the next one is written into, and the rest of the answer."""
        like = self.made.behaviour.weights
        tensors = [tensor_over(x, form.shape, form.dtype) for x, form in zip(weights, like, strict=True)]
        snapshot = Snapshot(tensors, request.modes, request.plain)
        self._blank = blank = self._blank or self.made.collector.blank()
        token = Token(request.version, snapshot, blank, None, self.made.lane.record())
        self._gate.enter()
        try:
            delivery = self.made.collector.serve(token)
        finally:
            self._gate.leave()
        self._progress.finish_fragment()
        return bytes_of(blank), bytes_of(delivery.final), Reply.to(delivery, self._entries)


def _pickled(thing: Any) -> bytes:
    """Pickle an answer as other engines do; Ray would unpickle it in a thread of its own."""
    data: bytes = cloudpickle.dumps(thing)
    return data
