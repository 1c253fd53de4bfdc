"""What runs in the evaluation process: a service that makes environments and plays an episode in each on request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..acting.plain_attributes import PlainChanges, apply_changes
from ..acting.torch_context import TorchDefaults
from ..concurrency.channel import Closed
from ..concurrency.exceptions import closed_on_error
from ..concurrency.link import Disconnected
from ..concurrency.progress import SharedProgress, note_progress
from ..concurrency.service import Server
from ..concurrency.shared_memory import receive_memory
from ..core import BaseActorModule
from ..envs.dialects import make_each
from ..envs.make import seeds_of
from ..envs.rows import Array
from ..envs.vectors.closing import close_environments
from ..remote.shared_fragment import SharedWeights
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
    """torch's defaults and switches in the caller's process; those of this process are set to them."""
    greedy: bool
    """Whether the actor is in eval mode."""
    threads: int
    """The number of torch's threads in the process."""


class EvaluationService:
    """Makes the environments of the evaluation process, and plays episodes in them."""

    introduction = None

    def __init__(self, server: Server, actor: BaseActorModule, spec: EvaluationSpec) -> None:
        """Make the environments; if that fails, close those that have been made."""
        torch.set_num_threads(spec.threads)
        spec.defaults.set()
        torch.manual_seed(spec.seed % 2**64)  # torch takes no larger seeds
        self._progress = SharedProgress(server.memory)
        self._actor, self._spec = actor.train(not spec.greedy), spec
        self._weights = [*actor.parameters(), *actor.buffers()]
        self._plain_adopted = 0
        self._received: list[Tensor] = []
        self._made: list[Any] = []
        with closed_on_error(self.close), note_progress(self._progress):
            factories, seeds = [spec.factory] * spec.n_envs, seeds_of(spec.seed, spec.n_envs)
            self._envs = make_each(factories, seeds, self._progress, 0, self._made)

    def share(self, weights: SharedWeights, fd: int) -> None:
        """Map the memory that weights are passed in."""
        self._received = weights.divide(torch.from_numpy(receive_memory(fd)))

    def play(self, plain: PlainChanges) -> Array:
        """Play one episode in each environment with the shared weights; return the returns, float32 ``(n_envs,)``.

        Raises
        ------
        Disconnected
            If the consumer's process ends the evaluation before it is finished.
        """
        with torch.no_grad():
            for weight, new in zip(self._weights, self._received, strict=True):
                weight.copy_(new)
        self._plain_adopted = apply_changes(dict(self._actor.named_modules()), plain, self._plain_adopted)
        try:
            rewards, _ = play_episodes(self._envs, self._actor, self._spec.n_steps, False, "cpu", self._progress)
        except Closed:
            raise Disconnected from None
        returns: Array = rewards.sum(axis=0, dtype=np.float64).astype(np.float32)
        return returns

    def run_short(self, head: bytes) -> None:
        """Do nothing: the evaluation process gets no short requests."""

    def close(self) -> list[str]:
        """Close the environments, each once; return one sentence for each that failed."""
        return close_environments(self._made)
