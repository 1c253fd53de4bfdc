"""What runs in the evaluation process: a service that makes environments and plays an episode in each on request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..acting.torch_context import TorchDefaults
from ..concurrency.progress import SharedProgress, note_progress
from ..concurrency.service import Server
from ..core import BaseActorModule
from ..envs.dialects import takes
from ..envs.make import seeds_of
from ..envs.rows import Array
from .episodes import play_episodes

__all__ = ["EvaluationService", "EvaluationSpec"]


class EvaluationSpec(NamedTuple):
    """What the evaluation process is given at its start, beside the actor."""

    factory: Callable[..., Any]
    n_envs: int
    n_steps: int | None
    """At most so many steps of each environment."""
    seed: int
    defaults: TorchDefaults
    """torch's default dtype and device in the caller's process; those of this process are set to them."""
    greedy: bool
    """Whether the actor is in eval mode."""
    threads: int
    """The number of torch's threads in the process."""


class EvaluationService:
    """Makes the environments of the evaluation process, and plays episodes in them."""

    introduction = None

    def __init__(self, server: Server, actor: BaseActorModule, spec: EvaluationSpec) -> None:
        torch.set_num_threads(spec.threads)
        spec.defaults.set()
        torch.manual_seed(spec.seed)
        self._progress = SharedProgress(server.memory)
        self._actor, self._spec = actor.train(not spec.greedy), spec
        self._weights = [*actor.parameters(), *actor.buffers()]
        self._envs: list[Any] = []
        with note_progress(self._progress):
            self._progress.doing = "env.make"
            for j, env_seed in enumerate(seeds_of(spec.seed, spec.n_envs)):
                self._progress.env = j
                env = spec.factory(seed=env_seed) if takes(spec.factory, "seed") else spec.factory()
                self._envs.append(env)

    def play(self, weights: list[Tensor]) -> Array:
        """Play one episode in each environment with these weights; return the returns, float32 ``(n_envs,)``."""
        with torch.no_grad():
            for weight, new in zip(self._weights, weights, strict=True):
                weight.copy_(new)
        rewards, _ = play_episodes(self._envs, self._actor, self._spec.n_steps, False, "cpu", self._progress)
        returns: Array = rewards.sum(axis=0)
        return returns

    def run_short(self, head: bytes) -> None:
        """Do nothing: the evaluation process gets no short requests."""

    def close(self) -> list[str]:
        """Do nothing: the environments end with the process, which is killed."""
        return []
