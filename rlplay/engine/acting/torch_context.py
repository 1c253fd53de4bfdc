"""The torch context: the settings that PyTorch keeps for each thread, and under which the actor runs.

A new thread does not inherit them. So they are read in the thread that asks for the first fragment, and applied in the
thread that collects.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

__all__ = ["TorchContext", "global_generator_kept"]


@dataclass(frozen=True)
class TorchContext:
    """A thread's autocast state, default dtype and default device.

    The default dtype belongs to the whole process and cannot be applied to one thread. It is recorded only so that a
    change of it makes the context unequal.
    """

    kind: str
    """The type of the actor's device, such as ``"cuda"``: autocast is set for each type of device."""
    autocast: bool
    autocast_dtype: torch.dtype
    default_dtype: torch.dtype
    default_device: torch.device

    @classmethod
    def here(cls, device: torch.device) -> TorchContext:
        """Read the settings of the calling thread, for an actor on this device."""
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
        """Apply the settings inside a ``with`` block, without gradients and outside inference mode.

        Inference tensors could not be used by the learner in computations with gradients.
        """
        # This call makes a new thread use the number of intra-op threads that was set. Without the call some kernels
        # use all cores in a new thread, and round differently from the caller's thread.
        torch.get_num_threads()
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch.autocast(self.kind, dtype=self.autocast_dtype, enabled=self.autocast))
            if torch.get_default_device() != self.default_device:
                stack.enter_context(self.default_device)
            yield


@contextmanager
def global_generator_kept(device: torch.device) -> Iterator[None]:
    """Restore torch's global random generators (of the CPU, and of ``device``) at the end of the block."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
