"""Playing whole episodes to see how good an actor is: now, or in a process of its own while training goes on."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import numpy as np
import torch

from ... import nested
from ...nested import Nested
from ..ambient import Ambient
from ..behaviour import Behaviour, Group
from ..core import BaseActorModule
from ..crew import Faces
from ..driver import noting
from ..environment import is_factory, is_vector, takes
from ..info import Entries
from ..inspection import SLOW_RESET
from ..opening import at_least, claim, faces, home_of, listed, seed_of, seeds_of
from ..process import Child, Gone, Link, map_memory, new_memory, packed, unpacked
from ..rows import Array
from ..storage import Slot, fields_to_leaves, state_layout
from ..trace import Posted, Progress, note
from ..transfer import Place, lane_between

__all__ = ["Examiner", "background", "evaluate"]


def evaluate(
    envs: Any,
    actor: BaseActorModule,
    *,
    n_steps: int | None = None,
    render: bool = False,
    device: torch.device | str | None = None,
) -> tuple[Array, Nested]:
    """Play every environment to the end of one episode.

    Whether the actor is greedy is for its train/eval mode to say. Seeds are drawn from torch's global generator, so
    that ``torch.manual_seed`` makes an evaluation repeat.

    Parameters
    ----------
    envs : list of environments, list of factories, or one vector environment
        As in :func:`rlplay.engine.rollout.threaded.rollout`. Each is reset at the call.
    actor : BaseActorModule
        Copied at the call, with its train/eval mode.
    n_steps : int, optional
        Stop after so many steps of each environment, even if its episode has not ended.
    render : bool
        Call ``render`` of every environment after the reset and after each step.
    device : torch.device, optional
        Where the copy of the actor runs; by default where the actor's parameters are.

    Returns
    -------
    rewards : float32 array, ``(T, B)``
        ``T`` is the length of the longest episode. Rewards after the end of an episode are 0, so the returns are
        ``rewards.sum(axis=0)``.
    info : nested arrays, ``(1+T, B, ...)``
        The actor's info (bfloat16 as float32). Row ``T`` is its virtual reaction to the last row. After the end of
        an episode the environment stands still, and its last observation is repeated, with ``fin`` True. (The parts
        of a vector environment go on instead.)

    Raises
    ------
    TypeError, ValueError
        As ``rollout`` does, if the arguments are not as described.
    """
    return _evaluated(envs, actor, n_steps, render, device, Progress())


def _evaluated(
    envs: Any,
    actor: BaseActorModule,
    n_steps: int | None,
    render: bool,
    device: torch.device | str | None,
    progress: Progress,
) -> tuple[Array, Nested]:
    if n_steps is not None:
        at_least("n_steps", n_steps, 1)
    sources, seed = listed(envs), seed_of(None)
    lane = lane_between(device, None, home_of(actor))
    with torch.inference_mode(False):
        behaviour = Behaviour(actor, lane)
    claim(sources, stacklevel=4)
    with noting(progress):
        stage = faces(envs if is_vector(envs) else sources, seed, Entries(()), progress, once=True)
        try:
            with Ambient.here(lane.actor_device).applied():
                group = Group(0, slice(0, stage.n_envs), seed, lane, key=0)
                layout = state_layout(fields_to_leaves(stage.obs), fields_to_leaves(stage.act))
                slot = Slot(layout, {}, [], 1, stage.n_envs, lambda *form: lane.empty(Place.HOST, *form))
                played = _play(stage, behaviour, group, slot, progress, n_steps, render, sticky=not is_vector(envs))
        except BaseException as error:
            for complaint in stage.close():
                note(error, complaint)
            raise
    for complaint in [*stage.close(), *([] if behaviour.resets_by_mask else [SLOW_RESET])]:
        warnings.warn(complaint, RuntimeWarning, stacklevel=3)
    return played


def _play(
    envs: Faces,
    behaviour: Behaviour,
    group: Group,
    slot: Slot,
    progress: Progress,
    n_steps: int | None,
    render: bool,
    *,
    sticky: bool,
) -> tuple[Array, Nested]:
    (now, then), (marks,) = slot.rows, slot.marks
    envs.begin(now)
    here = group.acting.device
    info_layout, _ = behaviour.probe([group], _first_row(slot, here), envs.act)
    rewards: list[Array] = []
    infos: list[list[Array]] = []
    going_on = np.ones(envs.n_envs, bool)
    while True:
        if render:
            envs.render()
        last = not going_on.any() or len(rewards) == n_steps
        progress.doing, progress.row = "actor.step", len(rewards)
        begun = now.fin.nonzero()[0].tolist()
        act, info = behaviour.react(group, _first_row(slot, here), begun=begun, virtual=last)
        infos.append([_numpy(leaf[0]) for leaf in info])
        if last:
            break
        for value, row in zip(act, then.act, strict=True):
            row[...] = _numpy(value[0])
        slot.clear()
        progress.doing = "env.step"
        ended = envs.step(now, then, marks, None, sticky=sticky)
        rewards.append(np.where(going_on, then.rew, np.float32(0)))
        going_on[ended] = False
        for leaf in nested.leaves(slot.state):
            leaf[0].copy_(leaf[1])
    stacked = [np.stack(column) for column in zip(*infos, strict=True)]
    return np.stack(rewards), nested.structure(info_layout).unflatten(stacked)


def _numpy(x: torch.Tensor) -> Array:
    """Copy to numpy, which has no bfloat16: that comes as float32."""
    array: Array = (x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy().copy()
    return array


def _first_row(slot: Slot, device: torch.device) -> Nested:
    return nested.map(lambda x: x[:1].to(device, copy=True), slot.state)


def background(
    factory: Callable[..., Any],
    actor: BaseActorModule,
    n_envs: int,
    *,
    n_steps: int | None = None,
    seed: int | None = None,
    greedy: bool = True,
    threads: int = 1,
    timeout: float = 60.0,
    start_timeout: float = 300.0,
) -> Examiner:
    """Evaluate an actor again and again, in a process of its own, while training goes on.

    ::

        with background(factory, actor, n_envs=16) as examiner:
            for k, fragment in zip(range(1000), feed):
                ...
                if k % 100 == 99:
                    returns = next(examiner)  # of the actor as it was 100 fragments ago

    The first evaluation begins at the call, with the weights of that moment. Each ``next()`` gives the result of the
    evaluation that is under way, waiting for it if need be, and begins another with the weights of now.

    Parameters
    ----------
    factory : callable, optionally taking ``seed``
        Makes an environment; called ``n_envs`` times, in the process. It travels by value (cloudpickle).
    actor : BaseActorModule
        Copied at the call; parameters and buffers are followed from then on. It acts on the CPU.
    n_envs : int
        How many episodes an evaluation has: one of each environment.
    n_steps : int, optional
        Stop after so many steps of each environment, even if its episode has not ended.
    seed : int, optional
        Of everything random there. By default drawn from torch's global generator.
    greedy : bool
        Whether the copy is in eval mode; else in train mode. The actor's own mode is left alone.
    threads : int
        How many threads torch has in the process.
    timeout : float
        Seconds without any progress, while a result is waited for, after which ``next()`` raises TimeoutError.
    start_timeout : float
        Seconds within which the environments must have been made.

    Returns
    -------
    Examiner
        An iterator over float32 arrays, ``(n_envs,)``: the undiscounted returns.

    Raises
    ------
    TypeError, ValueError
        At the call, if anything is not as described.
    """
    at_least("n_envs", n_envs, 1)
    at_least("threads", threads, 1)
    if n_steps is not None:
        at_least("n_steps", n_steps, 1)
    if not is_factory(factory):
        raise TypeError(f"`factory` must be a callable that makes an environment, got {factory!r}.")
    return Examiner(actor, timeout, start_timeout, (factory, n_envs, n_steps, seed_of(seed), greedy, threads))


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
        fd = new_memory(Posted.SIZE)
        self._progress = Posted(map_memory(fd))
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
            raise unpacked(answer)
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
    progress = Posted(map_memory(fd))
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
            answer = "failed", packed(error)
        link.send(answer)
        news, _ = link.receive()
        work = play
