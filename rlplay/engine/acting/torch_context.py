"""The torch context: PyTorch's settings of a thread and of the process, for the actor and for the environments.

A new thread or process does not inherit them. The default dtype and the default device are those of the call of
``rollout``, and hold for actor and environments. Autocast is that of the thread that asks for the first fragment, and
holds for the actor alone: environments are made, reset and stepped without autocast, with gradients enabled and outside
inference mode. So an environment that is written in torch does the same in every engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from ...contexts import contextmanager

__all__ = ["TorchContext", "TorchDefaults"]

_AUTOCAST_KINDS = ("cpu", "cuda", "xpu", "mps")
"""The types of device for which environments must not inherit autocast."""


@dataclass(frozen=True)
class TorchDefaults:
    """The default dtype, which belongs to the process, and the default device, which belongs to a thread."""

    dtype: torch.dtype
    device: torch.device

    @classmethod
    def here(cls) -> TorchDefaults:
        """Read the defaults of the calling thread."""
        return cls(torch.get_default_dtype(), torch.get_default_device())

    @property
    def are_initial(self) -> bool:
        """Whether these are the defaults of a new process."""
        return self == TorchDefaults(torch.float32, torch.device("cpu"))

    def set(self) -> None:
        """Set the defaults of a child process, in its main thread."""
        torch.set_default_dtype(self.dtype)
        if self.device != torch.get_default_device():
            torch.set_default_device(self.device)

    @contextmanager
    def for_environments(self) -> Iterator[None]:
        """Apply what environments are made, reset and stepped under, in the calling thread.

        The default dtype is left as it is, since it belongs to the whole process.
        """
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            for kind in _enabled_kinds():
                stack.enter_context(torch.autocast(kind, enabled=False))
            if torch.get_default_device() != self.device:
                stack.enter_context(self.device)
            yield


@dataclass(frozen=True)
class TorchContext:
    """The settings that the actor runs under."""

    kind: str
    """The type of the actor's device, such as ``"cuda"``: autocast is set for each type of device."""
    autocast: bool
    autocast_dtype: torch.dtype
    defaults: TorchDefaults
    """The default dtype and device at the call of ``rollout``."""
    sets_dtype: bool = False
    """Whether :meth:`applied` restores the default dtype of the process if it has changed. Only an engine that collects
    in the consumer's thread may do so: the default dtype of a learner that computes meanwhile must not change."""

    @classmethod
    def here(cls, device: torch.device, *, sets_dtype: bool = False) -> TorchContext:
        """Read the settings of the calling thread, for an actor on this device."""
        kind = device.type
        return cls(
            kind=kind,
            autocast=torch.is_autocast_enabled(kind),
            autocast_dtype=torch.get_autocast_dtype(kind),
            defaults=TorchDefaults.here(),
            sets_dtype=sets_dtype,
        )

    def at_first_ask(self) -> TorchContext:
        """Return the context of the calling thread, which asks for the first fragment; this is the one of the call.

        Raises
        ------
        RuntimeError
            If the default dtype or the default device is no longer the one of the call.
        """
        now = TorchContext.here(torch.device(self.kind), sets_dtype=self.sets_dtype)
        for what in ("dtype", "device"):
            before, found = getattr(self.defaults, what), getattr(now.defaults, what)
            if before != found:
                raise RuntimeError(
                    f"torch's default {what} was {before} when the feed was made, and is {found} in the thread that "
                    "asks for the first fragment: the environments have been made with the former, and would be "
                    f"stepped with the latter. Set it back to {before} for this `next()`, or set it to {found} before "
                    "the feed is made. No fragment was asked for, and the feed remains usable."
                )
        return now

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Apply the settings inside a ``with`` block, without gradients and outside inference mode.

        Inference tensors could not be used by the learner in computations with gradients.
        """
        # This call makes a new thread use the number of intra-op threads that was set. Without the call some kernels
        # use all cores in a new thread, and round differently from the caller's thread.
        torch.get_num_threads()
        if self._is_that_of_the_thread():
            with torch.no_grad():
                yield
            return
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            for kind in _enabled_kinds():
                if kind != self.kind:
                    stack.enter_context(torch.autocast(kind, enabled=False))
            stack.enter_context(torch.autocast(self.kind, dtype=self.autocast_dtype, enabled=self.autocast))
            if torch.get_default_device() != self.defaults.device:
                stack.enter_context(self.defaults.device)
            if self.sets_dtype and torch.get_default_dtype() != self.defaults.dtype:
                stack.callback(torch.set_default_dtype, torch.get_default_dtype())
                torch.set_default_dtype(self.defaults.dtype)
            yield

    def _is_that_of_the_thread(self) -> bool:
        """Return whether :meth:`applied` has nothing to set but the gradients, as in most programs."""
        return not (
            self.autocast
            or torch.is_inference_mode_enabled()
            or _enabled_kinds()
            or torch.get_default_device() != self.defaults.device
            or (self.sets_dtype and torch.get_default_dtype() != self.defaults.dtype)
        )

    def call_environments(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function under what environments are stepped under, inside :meth:`applied`; return its result.

        Costs less than :meth:`TorchDefaults.for_environments`, since it is called at each step. Nothing need be undone
        after an exception: the end of :meth:`applied` restores the settings of the thread.
        """
        torch._C._set_grad_enabled(True)
        if self.autocast:
            torch.set_autocast_enabled(self.kind, False)
        result = function(*args)
        torch._C._set_grad_enabled(False)
        if self.autocast:
            torch.set_autocast_enabled(self.kind, True)
        return result


def _enabled_kinds() -> list[str]:
    """Return the types of device for which autocast is enabled in the calling thread."""
    return [kind for kind in _AUTOCAST_KINDS if torch.is_autocast_enabled(kind)]
