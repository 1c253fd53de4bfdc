"""Evaluations in a process of their own, while training goes on."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import torch

from ..acting.behaviour import Behaviour
from ..concurrency.child import Child
from ..concurrency.exceptions import pack, unpack
from ..concurrency.link import Gone, Link
from ..concurrency.progress import SharedProgress
from ..concurrency.shared_memory import map_memory, new_memory
from ..core import BaseActorModule
from ..envs.dialects import takes
from ..envs.make import seeds_of
from ..envs.rows import Array
from ..feed.driver import noting
from ..feed.options import home_of
from ..memory.cuda import lane_between
from .episodes import _evaluated

__all__ = ["Examiner"]


class Examiner(Iterator[Array]):
    """What :func:`background` returns: an endless iterator, and a context manager.

    ``next()`` raises what the evaluation raised, with its type, a note of where, and the original traceback as its
    cause; RuntimeError if the process has died (it names the signal) or is closed; TimeoutError if it makes no
    progress. Then it is closed. It also ends with its last reference, and with the interpreter.
    """

    def __init__(self, actor: BaseActorModule, timeout: float, start_timeout: float, errand: tuple[Any, ...]) -> None:
        """Start the process, and the first evaluation."""
        self._actor, self._timeout, self._closed = actor, timeout, False
        self._lane = lane_between("cpu", "cpu", home_of(actor))
        with torch.inference_mode(False):
            self._behaviour = Behaviour(actor, self._lane)
        child = Child(_examine, self._behaviour.module, *errand, name="the evaluation process")
        self._child = child
        self._forgotten = weakref.finalize(self, child.close, 0.0)
        fd = new_memory(SharedProgress.SIZE)
        self._progress = SharedProgress(map_memory(fd))
        try:
            self._tell(None, fd)
            self._wait(start_timeout)
            self._begin()
        except BaseException:
            self.close()
            raise
        finally:
            os.close(fd)

    def __iter__(self) -> Examiner:
        """Return the examiner itself."""
        return self

    def __next__(self) -> Array:
        """Return the returns of the evaluation that is under way, and begin another."""
        if self._closed:
            raise RuntimeError("the evaluation process is closed.")
        try:
            returns: Array = self._wait(self._timeout)
            self._begin()
        except KeyboardInterrupt:  # it goes on, and can be asked again
            raise
        except BaseException:
            self.close()
            raise
        return returns

    def close(self) -> None:
        """End the process; an evaluation that is under way is given up. May be called often."""
        self._closed = True
        self._forgotten()

    def __enter__(self) -> Examiner:
        """Return the examiner itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close it."""
        self.close()

    def _begin(self) -> None:
        with torch.inference_mode(False), torch.no_grad():
            weights = self._behaviour.publish(self._actor).weights
        self._tell(weights)

    def _tell(self, thing: Any, *fds: int) -> None:
        try:
            self._child.link.send(thing, *fds)
        except Gone:
            raise RuntimeError(f"{self._child.epitaph()}.") from None

    def _wait(self, timeout: float) -> Any:
        """Wait for an answer, for as long as there is progress."""
        moment, moved = self._progress.moment(), perf_counter()
        while not self._child.speaks(min(timeout / 8, 0.5)):
            now = self._progress.moment()
            if now != moment:
                moment, moved = now, perf_counter()
            elif perf_counter() - moved >= timeout:
                raise TimeoutError(f"no progress for {timeout:g} s: {self._child.name}: {self._progress}.")
        try:
            (kind, answer), _ = self._child.link.receive()
        except Gone:
            raise RuntimeError(f"{self._child.epitaph()}.") from None
        if kind == "failed":
            raise unpack(answer)
        return answer


def _examine(
    link: Link,
    actor: BaseActorModule,
    factory: Callable[..., Any],
    n_envs: int,
    n_steps: int | None,
    seed: int,
    greedy: bool,
    threads: int,
) -> None:
    """Live the whole life of the evaluation process."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    _, (fd,) = link.receive()
    progress = SharedProgress(map_memory(fd))
    os.close(fd)
    weights = [*actor.parameters(), *actor.buffers()]
    envs: list[Any] = []

    def make() -> None:
        with noting(progress):
            progress.doing = "env.make"
            for j, env_seed in enumerate(seeds_of(seed, n_envs)):
                progress.env = j
                envs.append(factory(seed=env_seed) if takes(factory, "seed") else factory())

    def play() -> Array:
        with torch.no_grad():
            for weight, new in zip(weights, news, strict=True):
                weight.copy_(new)
        rewards, _ = _evaluated(envs, actor.train(not greedy), n_steps, False, "cpu", progress)
        returns: Array = rewards.sum(axis=0)
        return returns

    work: Callable[[], Any] = make
    while True:
        try:
            answer = "done", work()
        except BaseException as error:  # even SystemExit: it is the consumer who is to hear of it
            answer = "failed", pack(error)
        link.send(answer)
        news, _ = link.receive()
        work = play
