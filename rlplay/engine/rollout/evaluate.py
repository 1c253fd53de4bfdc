"""Play whole episodes to measure how good an actor is: at the call, or in a process of its own during training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...nested import Nested
from ..acting.torch_context import TorchDefaults
from ..concurrency.progress import Progress
from ..core import BaseActorModule
from ..envs.rows import Array
from ..evaluation.episodes import play_episodes
from ..evaluation.evaluation_process import EvaluationSpec
from ..evaluation.examiner import Examiner
from ..feed.options import at_least, check_factory, check_flags, seconds_of, seed_of

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

    The actor's train/eval mode decides whether it is greedy. Seeds are drawn from torch's global generator, so
    ``torch.manual_seed`` makes an evaluation reproducible.

    Parameters
    ----------
    envs : list of environments, list of factories, or one vector environment
        As for :func:`rlplay.engine.rollout.threaded.rollout`. Each is reset at the call. Environments that serve an
        open feed are refused: evaluate in environments of their own.
    actor : BaseActorModule
        Copied at the call, with its train/eval mode.
    n_steps : int, optional
        Stop after this number of steps of each environment, even if its episode has not ended.
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
        an episode the environment stands still, and its last observation is repeated, with ``fin`` True. (The
        environments of a vector environment go on instead.)

    Raises
    ------
    TypeError, ValueError
        If the arguments are not as described, as for ``rollout``.
    RuntimeError
        If an environment serves an open feed. The feed goes on.
    """
    check_flags(render=render)
    return play_episodes(envs, actor, n_steps, render, device, Progress())


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
    """Evaluate an actor repeatedly, in a process of its own, while training goes on.

    ::

        with background(factory, actor, n_envs=16) as examiner:
            for k, fragment in zip(range(1000), feed):
                ...
                if k % 100 == 99:
                    returns = next(examiner)  # of the actor as it was 100 fragments ago

    The first evaluation begins at the call, with the weights of that moment. Each ``next()`` waits for the evaluation
    under way, begins another one with the current weights, and returns the result of the first.

    Parameters
    ----------
    factory : callable, optionally taking ``seed``
        Makes an environment; called ``n_envs`` times, in the process. It travels by value (cloudpickle).
    actor : BaseActorModule
        Copied at the call. Each evaluation takes over its parameters, buffers and changed plain attributes. The copy
        acts on the CPU.
    n_envs : int
        The number of environments. An evaluation has one episode of each.
    n_steps : int, optional
        Stop after this number of steps of each environment, even if its episode has not ended.
    seed : int, optional
        The seed of everything random in the process. By default drawn from torch's global generator.
    greedy : bool
        Whether the copy is in eval mode, else in train mode. The actor's own mode does not change.
    threads : int
        The number of torch's threads in the process.
    timeout : float
        Seconds without any progress after which ``next()`` raises TimeoutError.
    start_timeout : float
        As ``timeout``, for the call: each environment that has been made counts as progress.

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
    check_factory(factory, takes_lists="`evaluate`")
    check_flags(greedy=greedy)
    timeout, start_timeout = seconds_of("timeout", timeout), seconds_of("start_timeout", start_timeout)
    spec = EvaluationSpec(factory, n_envs, n_steps, seed_of(seed), TorchDefaults.here(switches=True), greedy, threads)
    return Examiner(actor, timeout, start_timeout, spec)
