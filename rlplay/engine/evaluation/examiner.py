"""The consumer's side of the evaluation process: requests evaluations and waits for their results."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..acting.behaviour import Behaviour
from ..concurrency.exceptions import add_note
from ..concurrency.progress import SharedProgress
from ..concurrency.sendable import check_factory_and_actor
from ..concurrency.service import PARTIAL, ServiceProcess
from ..concurrency.shared_memory import map_memory, new_memory
from ..concurrency.watchdog import LONGEST_INTERVAL, Watchdog
from ..core import BaseActorModule
from ..envs.rows import Array
from ..feed.options import home_of
from ..memory.cuda import lane_between
from ..remote.shared_fragment import SharedWeights
from .evaluation_process import EvaluationService, EvaluationSpec

__all__ = ["Examiner"]

_CLOSED = "the evaluation process is closed."


class Examiner(Iterator[Array]):
    """An endless iterator over the results of evaluations, and a context manager.

    Made by :func:`rlplay.engine.rollout.evaluate.background`. ``next()`` raises

    - what the evaluation raised, with its type, a note of the environment and step, and the original traceback as its
      cause (an environment's StopIteration becomes a RuntimeError);
    - RuntimeError if the process has died (the message names the signal) or is closed, also by another thread
      meanwhile; or if this is a fork of the process that has made the examiner;
    - TimeoutError if the process makes no progress.

    After an error the examiner is closed. It also ends with its last reference, and with the interpreter. After an
    interrupt (KeyboardInterrupt) ``next()`` may be called again, unless a message was on its way at that moment: then
    the examiner is closed, too.
    """

    def __init__(self, actor: BaseActorModule, timeout: float, start_timeout: float, spec: EvaluationSpec) -> None:
        """Start the process, wait until it has made its environments, and start the first evaluation."""
        self._actor, self._timeout, self._closed = actor, timeout, False
        self._receiving = threading.RLock()  # held by the thread that waits for a result
        self._under_way = False  # whether an evaluation has been requested whose result has not arrived
        self._result: Any = None  # what has arrived, and `next()` has not returned
        self._exchanging = False  # whether a message is being sent or received
        with torch.inference_mode(False):
            self._behaviour = Behaviour(actor, lane_between("cpu", "cpu", home_of(actor)))
        name, copy = "the evaluation process", self._behaviour.to_send
        fd = new_memory(SharedProgress.SIZE)
        try:
            self._progress = SharedProgress(map_memory(fd))
            self._child = ServiceProcess(EvaluationService, copy, spec, name=name, memory_fd=fd)
        except Exception:
            check_factory_and_actor(spec.factory, copy, slice(0, spec.n_envs), name, "evaluate with `evaluate`")
            raise
        finally:
            os.close(fd)
        self._child.link.on_transfer = self._progress.note_transfer
        self._pid = os.getpid()
        # called when the examiner is garbage-collected and at the interpreter's exit; must not refer to the examiner
        self._finalizer = weakref.finalize(self, _end_unreferenced, self._child, self._progress, self._pid)
        try:
            self._receive(start_timeout)
            with torch.inference_mode(False):  # the shared memory is written to later
                self._shared = self._share_weights()
            self._receive(timeout)
            self._start_evaluation()
        except BaseException as error:
            self._end_after(error)
            raise

    def __iter__(self) -> Examiner:
        """Return the examiner itself."""
        return self

    def __next__(self) -> Array:
        """Wait for the result of the evaluation under way, start another one, and return the result."""
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"the evaluation process belongs to process {self._pid}, and this is a fork of it: call "
                "`evaluate.background` in this process."
            )
        with self._receiving:
            return self._next_result()

    def _next_result(self) -> Array:
        if self._closed:
            raise RuntimeError(_CLOSED)
        try:
            if self._result is None:
                self._receive(self._timeout)
            if not self._under_way:
                self._start_evaluation()
        except StopIteration as error:  # unchanged, it would end the user's `for` loop without an error
            at = str(self._progress)
            self._end_after(error)
            raise RuntimeError(f"an evaluation raised {error!r}: {at}.") from error
        except BaseException as error:
            closed_elsewhere = self._closed  # then that thread ends the process, and has its complaints
            if not closed_elsewhere and (self._exchanging or not isinstance(error, KeyboardInterrupt)):
                self._end_after(error)
            raise
        returns: Array = self._result
        self._result = None
        return returns

    def close(self) -> None:
        """End the process: it closes its environments at the next step. May be called more than once.

        If it does not end within a few seconds it is killed, with what it has started, and a RuntimeWarning says so.
        """
        self._close()

    def _close(self) -> None:
        for complaint in self._end():
            warnings.warn(complaint, RuntimeWarning, stacklevel=3)

    def _end_after(self, error: BaseException) -> None:
        """End the process after an error, and add to the error, as notes, what went wrong in ending it."""
        for complaint in self._end():
            add_note(error, complaint)

    def _end(self) -> list[str]:
        self._closed = True
        # another thread that waits for a result sees this soon, and stops reading what the process sends
        alone = self._receiving.acquire(timeout=LONGEST_INTERVAL + 1.0)
        try:
            complaints = _end(self._child, self._progress, self._pid)
            self._finalizer.detach()
        finally:
            if alone:
                self._receiving.release()
        return complaints

    def __enter__(self) -> Examiner:
        """Return the examiner itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the examiner."""
        self._close()

    def _start_evaluation(self) -> None:
        """Write the weights into the shared memory, which the process has read, and request an evaluation."""
        with torch.inference_mode(False), torch.no_grad():
            snapshot = self._behaviour.publish(self._actor)
            for shared, weight in zip(self._shared, snapshot.weights, strict=True):
                shared.copy_(weight)
        self._exchanging = True  # an interrupt leaves it True, since a part of the message may have been sent
        self._child.request("play", snapshot.plain)
        self._under_way, self._exchanging = True, False

    def _share_weights(self) -> list[Tensor]:
        """Allocate the memory that weights are passed in, and request that the process maps it."""
        spec = SharedWeights([(tuple(x.shape), x.dtype) for x in self._behaviour.weights])
        fd = new_memory(spec.size)
        try:
            self._child.request("share", spec, fds=[fd])
            return spec.divide(torch.from_numpy(map_memory(fd)))
        finally:
            os.close(fd)

    def _receive(self, timeout: float) -> None:
        """Wait for an answer for as long as there is progress; keep what it brings as the result."""
        watchdog = Watchdog(self._progress, timeout, lambda: f"{self._child.name}: {self._progress}")
        while not self._closed:
            if self._child.wait_readable(watchdog.interval):
                self._exchanging = True
                kind, self._result = self._child.receive()
                self._under_way, self._exchanging = self._under_way and kind == PARTIAL, False
                if kind != PARTIAL:
                    return
            watchdog.check()
        raise RuntimeError(_CLOSED)


def _end(child: ServiceProcess, progress: SharedProgress, pid: int) -> list[str]:
    """Stop the evaluation at its next step and end the process; return what went wrong."""
    if os.getpid() != pid:
        return []  # a forked child has a copy of the memory, but the process is its parent's
    progress.halt(True)
    return child.close(doing=lambda: str(progress))


def _end_unreferenced(child: ServiceProcess, progress: SharedProgress, pid: int) -> None:
    """End the process of an examiner that was dropped without ``close()``."""
    for complaint in _end(child, progress, pid):
        warnings.warn(complaint, RuntimeWarning, stacklevel=2)
