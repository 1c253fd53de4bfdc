"""What PyTorch keeps for each thread: the conditions under which the actor runs.

A new thread inherits nothing of it, so it is noted where the first fragment is asked for, and holds for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

__all__ = ["TorchContext"]


@dataclass(frozen=True)
class TorchContext:
    """The calling thread's autocast state, default dtype and default device.

    The default dtype is everybody's, and cannot be applied to one thread: it is noted to see whether it has changed.
    """

    kind: str
    autocast: bool
    autocast_dtype: torch.dtype
    default_dtype: torch.dtype
    default_device: torch.device

    @classmethod
    def here(cls, device: torch.device) -> TorchContext:
        """Note the conditions in this thread, for an actor on this device."""
        kind = device.type
        return cls(
            kind=kind,
            autocast=torch.is_autocast_enabled(kind),
            autocast_dtype=torch.get_autocast_dtype(kind),
            default_dtype=torch.get_default_dtype(),
            default_device=torch.get_default_device(),
        )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Run under these conditions, and without gradients.

        Yet not in inference mode: the learner must be able to differentiate through what it is given.
        """
        # By being asked, a new thread takes over the number of intra-op threads that was set. Kernels that never ask
        # would use all cores in it, and round otherwise than they do in the caller's thread.
        torch.get_num_threads()
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch.autocast(self.kind, dtype=self.autocast_dtype, enabled=self.autocast))
            if torch.get_default_device() != self.default_device:
                stack.enter_context(self.default_device)
            yield
