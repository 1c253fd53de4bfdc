"""The consumer's side of the evaluation process: requests evaluations and waits for their results."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from typing import Any

import torch

from ..acting.behaviour import Behaviour
from ..concurrency.progress import SharedProgress
from ..concurrency.service import ServiceProcess
from ..concurrency.shared_memory import map_memory, new_memory
from ..concurrency.watchdog import Watchdog
from ..core import BaseActorModule
from ..envs.rows import Array
from ..feed.options import home_of
from ..memory.cuda import lane_between
from .evaluation_process import EvaluationService, EvaluationSpec

__all__ = ["Examiner"]


class Examiner(Iterator[Array]):
    """An endless iterator over the results of evaluations, and a context manager.

    Made by :func:`rlplay.engine.rollout.evaluate.background`. ``next()`` raises

    - what the evaluation raised, with its type, a note of the environment and step, and the original traceback as its
      cause;
    - RuntimeError if the process has died (the message names the signal) or is closed;
    - TimeoutError if the process makes no progress.

    After an error the examiner is closed. It also ends with its last reference, and with the interpreter.
    """

    def __init__(self, actor: BaseActorModule, timeout: float, start_timeout: float, spec: EvaluationSpec) -> None:
        """Start the process, wait until it has made its environments, and start the first evaluation."""
        self._actor, self._timeout, self._closed = actor, timeout, False
        with torch.inference_mode(False):
            self._behaviour = Behaviour(actor, lane_between("cpu", "cpu", home_of(actor)))
        fd = new_memory(SharedProgress.SIZE)
        try:
            self._progress = SharedProgress(map_memory(fd))
            name = "the evaluation process"
            self._child = ServiceProcess(EvaluationService, self._behaviour.to_send, spec, name=name, memory_fd=fd)
        finally:
            os.close(fd)
        self._finalizer = weakref.finalize(self, self._child.close, 0.0)
        try:
            self._receive(start_timeout)
            self._start_evaluation()
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Examiner:
        """Return the examiner itself."""
        return self

    def __next__(self) -> Array:
        """Wait for the result of the evaluation under way, start another one, and return the result."""
        if self._closed:
            raise RuntimeError("the evaluation process is closed.")
        try:
            returns: Array = self._receive(self._timeout)
            self._start_evaluation()
        except KeyboardInterrupt:  # the evaluation goes on, so `next()` may be called again
            raise
        except BaseException:
            self.close()
            raise
        return returns

    def close(self) -> None:
        """End the process, without waiting for the evaluation under way. May be called more than once."""
        self._closed = True
        self._finalizer()

    def __enter__(self) -> Examiner:
        """Return the examiner itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the examiner."""
        self.close()

    def _start_evaluation(self) -> None:
        with torch.inference_mode(False), torch.no_grad():
            snapshot = self._behaviour.publish(self._actor)
        self._child.request("play", snapshot.weights, snapshot.plain)

    def _receive(self, timeout: float) -> Any:
        """Wait for an answer for as long as there is progress."""
        watchdog = Watchdog(self._progress, timeout, lambda: f"{self._child.name}: {self._progress}")
        while not self._child.wait_readable(watchdog.interval):
            watchdog.check()
        _, value = self._child.receive()
        return value
