"""The torch context: PyTorch's settings of a thread and of the process, for the actor and for the environments.

A new thread or process does not inherit them. The default dtype and the default device are those of the call of
``rollout``, and hold for actor and environments. Autocast is that of the thread that asks for the first fragment, and
holds for the actor alone: environments are made, reset and stepped without autocast, with gradients enabled and outside
inference mode. So an environment that is written in torch does the same in every engine. A stream that goes on from a
saved state keeps the autocast that the state contains.

Numeric switches, such as whether TF32 is allowed, belong to the process and hold at once. Collector processes get those
of the call, then those of the first ask; evaluation processes those of the call. Worker processes, which do not run the
actor, get none.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Any

import torch

from ...contexts import contextmanager
from ...process_state import generators_held

__all__ = ["TorchContext", "TorchDefaults"]

_AUTOCAST_KINDS = ("cpu", "cuda", "xpu", "mps")
"""The types of device for which environments must not inherit autocast."""


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _set_attribute(path: str, value: Any) -> None:
    owner, _, name = path.rpartition(".")
    setattr(attrgetter(owner)(torch), name, value)


_ATTRIBUTES = (
    *("backends.cuda.matmul.allow_tf32", "backends.cudnn.allow_tf32"),
    *("backends.cuda.matmul.fp32_precision", "backends.cudnn.conv.fp32_precision"),
    *("backends.cudnn.rnn.fp32_precision", "backends.mkldnn.matmul.fp32_precision"),
    *("backends.mkldnn.conv.fp32_precision", "backends.mkldnn.rnn.fp32_precision"),
    "backends.cuda.matmul.allow_fp16_reduced_precision_reduction",
    "backends.cuda.matmul.allow_bf16_reduced_precision_reduction",
    *("backends.cudnn.enabled", "backends.cudnn.benchmark", "backends.cudnn.deterministic"),
    *("backends.mkldnn.deterministic", "utils.deterministic.fill_uninitialized_memory"),
)

_SWITCHES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "float32_matmul_precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    **{path: (partial(attrgetter(path), torch), partial(_set_attribute, path)) for path in _ATTRIBUTES},
    "deterministic_algorithms": (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        _set_deterministic,
    ),
    "mha_fastpath": (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
    "flash_sdp": (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    "mem_efficient_sdp": (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    "math_sdp": (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    "cudnn_sdp": (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
}
"""How each of torch's switches that change the results of kernels is read and set. (One is missing, since it cannot be
read: whether denormal numbers are flushed.) The older switches come first: to set them sets some of the newer ones."""


def _read_switches() -> tuple[tuple[str, Any], ...]:
    found = []
    with generators_held(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the older switches for TF32 have been replaced
        for name, (read, _) in _SWITCHES.items():
            with suppress(AttributeError, RuntimeError):  # not in this version; or older than one that was set
                found.append((name, read()))
    return tuple(found)


@dataclass(frozen=True)
class TorchDefaults:
    """The default dtype and numeric switches, which belong to the process, and the default device of a thread."""

    dtype: torch.dtype
    device: torch.device
    switches: tuple[tuple[str, Any], ...] = ()
    """Names and values of the switches that could be read; none if all is done in this process."""

    @classmethod
    def here(cls, *, switches: bool = False) -> TorchDefaults:
        """Read the defaults of the calling thread, and the switches if they are to be sent to another process."""
        return cls(torch.get_default_dtype(), torch.get_default_device(), _read_switches() if switches else ())

    @property
    def are_initial(self) -> bool:
        """Whether dtype and device are those of a new process."""
        return (self.dtype, self.device) == (torch.float32, torch.device("cpu"))

    def set(self) -> None:
        """Set the defaults and the switches of a child process, in its main thread."""
        torch.set_default_dtype(self.dtype)
        if self.device != torch.get_default_device():
            torch.set_default_device(self.device)
        self.set_switches()

    def set_switches(self) -> None:
        """Set the switches that have other values in this child process than in its parent."""
        here = dict(_read_switches())
        for name, value in self.switches:
            if here.get(name) != value:
                _SWITCHES[name][1](value)
                here = dict(_read_switches())  # to set an older switch sets some of the newer ones

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
    def here(cls, device: torch.device, *, sets_dtype: bool = False, switches: bool = False) -> TorchContext:
        """Read the settings of the calling thread, for an actor on this device."""
        kind = device.type
        return cls(
            kind=kind,
            autocast=torch.is_autocast_enabled(kind),
            autocast_dtype=torch.get_autocast_dtype(kind),
            defaults=TorchDefaults.here(switches=switches),
            sets_dtype=sets_dtype,
        )

    def autocast_state(self) -> list[Any]:
        """Return whether autocast is enabled for the actor, and the name of its dtype."""
        return [self.autocast, str(self.autocast_dtype).removeprefix("torch.")]

    def with_autocast(self, state: Sequence[Any]) -> TorchContext:
        """Return these settings with the autocast that :meth:`autocast_state` has returned."""
        enabled, dtype = state
        return replace(self, autocast=enabled, autocast_dtype=getattr(torch, dtype))

    def at_first_ask(self) -> TorchContext:
        """Return the context of the calling thread, which asks for the first fragment; this is the one of the call.

        Raises
        ------
        RuntimeError
            If the default dtype or the default device is no longer the one of the call.
        """
        device, switches = torch.device(self.kind), bool(self.defaults.switches)
        now = TorchContext.here(device, sets_dtype=self.sets_dtype, switches=switches)
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

        Costs less than :meth:`TorchDefaults.for_environments`, since it is called at each step. The settings of
        :meth:`applied` are restored after an exception too: a capture that fails is followed by eager steps.
        """
        torch._C._set_grad_enabled(True)
        if self.autocast:
            torch.set_autocast_enabled(self.kind, False)
        try:
            return function(*args)
        finally:
            torch._C._set_grad_enabled(False)
            if self.autocast:
                torch.set_autocast_enabled(self.kind, True)


def _enabled_kinds() -> list[str]:
    """Return the types of device for which autocast is enabled in the calling thread."""
    return [kind for kind in _AUTOCAST_KINDS if torch.is_autocast_enabled(kind)]
