"""The arguments of :mod:`rlplay.algo.returns`, NumPy's or torch's alike: checked, brought to one shape and dtype."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from numbers import Real
from typing import Any, Generic, NoReturn, TypeVar

import numpy as np
import torch

from .recursion import through

__all__ = ["Array", "Columns", "columns", "fraction"]

Array = TypeVar("Array", "np.ndarray[Any, Any]", torch.Tensor)
"""A NumPy array or a torch tensor: what goes in is what comes out."""


@dataclass(frozen=True)
class Columns(Generic[Array]):
    """What the recursions are made of: in the working dtype, without gradients, ready to be broadcast.

    Tensors on the host are seen as the NumPy arrays that share their memory: an operation on a short row costs NumPy a
    third of what it costs torch. So there are two cases, the host's arrays and a device's tensors; compiled tensors are
    of the second kind wherever they are.
    """

    xp: Any
    """The module whose arrays they are, ``numpy`` or ``torch``; only names that both know are asked of it."""
    rew: Any
    """``(T, B, ...)``: ``r_{t+1}``. Perhaps the caller's own memory, as is ``val``: only to be read."""
    discount: Any
    """Broadcasts to ``rew``: ``gamma n_t``, how much of what comes later counts. New: it may be written to."""
    val: Any
    """The shape of ``rew``: ``V(s_t)``, or None."""
    ratio: Any
    """Broadcasts to ``rew``: ``pi / mu``, or None."""
    end: Any
    """``(B, ...)``: ``V(s_T)``."""
    dtype: Any
    """Of the answer: NumPy's or torch's."""

    def weight(self, name: str, bar: float | None) -> Any:
        """Compute ``min(exp(omega_t), bar)``. Never infinite, so that zero times it is zero."""
        if bar is not None and not (isinstance(bar, Real) and bar >= 0):
            raise ValueError(f"`{name}` must be a number >= 0, or None for no clipping; got {bar!r}.")
        if self.ratio is None:
            return 1.0
        largest = float(self.xp.finfo(self.ratio.dtype).max)
        return self.ratio.clip(None, largest if bar is None else min(float(bar), largest))

    def carried(self, name: str, bar: float | None) -> Any:
        """Compute ``gamma n_t min(exp(omega_t), bar)``: the discount, weighted."""
        weight = self.weight(name, bar)
        return self.discount if self.ratio is None else through(self.discount, weight)

    def surprise(self) -> Any:
        """Compute the temporal differences ``rew_t + gamma n_t V_{t+1} - V_t``, unweighted, a new array."""
        found = through(self.discount, self.xp.concatenate([self.val[1:], self.end[None]]))
        found += self.rew
        found -= self.val
        return found

    def answer(self, x: Any) -> Array:
        """Give back the array in kind, of the dtype promised."""
        if isinstance(self.dtype, torch.dtype):
            tensor: Any = x if self.xp is torch else torch.from_numpy(x)
            given: Array = tensor.to(self.dtype)
        else:
            given = x.astype(self.dtype, copy=False)
        return given


def columns(
    rew: Array,
    fin: Array,
    val: Array | None = None,
    *,
    gamma: float,
    bootstrap: float | Array,
    omega: Array | None = None,
) -> Columns[Array]:
    """Check the arguments and put them side by side; :mod:`rlplay.algo.returns` says what each must be.

    Raises
    ------
    TypeError
        Something is no array, has not the right dtype, or NumPy and torch are mixed.
    ValueError
        The shapes do not fit, or the tensors are on several devices.
    """
    end: Any = None if isinstance(bootstrap, Real) else bootstrap
    floats: dict[str, Any] = {"rew": rew, "val": val, "omega": omega, "bootstrap": end}
    floats = {name: x for name, x in floats.items() if x is not None}
    for name, x in floats.items():
        _check_kind(name, x, rew, "float")
    _check_kind("fin", fin, rew, "bool")
    _check_shapes(rew, fin, val, omega, end)

    # a zero-dimensional bootstrap is a number: it has no say in the dtype
    kind: Any = torch if isinstance(rew, torch.Tensor) else np
    dtype = reduce(kind.promote_types, [x.dtype for x in floats.values() if x.ndim])
    working = kind.promote_types(dtype, kind.float32)
    on_host = _on_host(rew)
    xp: Any = np if on_host else torch

    def work(x: Any) -> Any:
        if kind is np:
            return x.astype(working, copy=False)
        return x.to(working).numpy(force=True) if on_host else x.detach().to(working)

    def aligned(x: Any) -> Any:
        return x.reshape(*x.shape, *(1,) * (rew.ndim - x.ndim))

    rewards, discount = work(rew), aligned(work(~fin))
    discount *= fraction("gamma", gamma)
    last = xp.zeros_like(rewards[0])
    last[...] = float(bootstrap) if isinstance(bootstrap, Real) else work(end)
    return Columns(
        xp=xp,
        rew=rewards,
        discount=discount,
        val=None if val is None else work(val),
        ratio=None if omega is None else xp.exp(aligned(work(omega))),
        end=last,
        dtype=dtype,
    )


def fraction(name: str, x: float) -> float:
    """Check a number that must lie between zero and one.

    Raises
    ------
    TypeError
        It is no number (a tensor is none: reading it would make the host wait for the device).
    ValueError
        It is outside of [0, 1].
    """
    if not isinstance(x, Real):
        raise TypeError(f"`{name}` must be a number, got {type(x).__name__}; of a tensor, take `.item()` beforehand.")
    if not 0 <= x <= 1:
        raise ValueError(f"`{name}` must be in [0, 1], got {x}.")
    return float(x)


def _on_host(x: Any) -> bool:
    """Whether NumPy is to work on the memory. `torch.compile` is shown torch alone, and makes kernels of that."""
    return not isinstance(x, torch.Tensor) or (x.device.type == "cpu" and not torch.compiler.is_compiling())


def _check_kind(name: str, x: Any, rew: Any, dtype: str) -> None:
    """Refuse what is no array, is of another kind or device than ``rew``, or has not the dtype."""
    if not isinstance(x, np.ndarray | torch.Tensor):
        raise TypeError(f"`{name}` must be a NumPy array or a torch tensor, got {type(x).__name__}.")
    if isinstance(x, torch.Tensor) != isinstance(rew, torch.Tensor):
        kinds = f"`rew` is a {type(rew).__name__}, `{name}` a {type(x).__name__}"
        raise TypeError(f"NumPy and torch do not mix: {kinds}; `torch.from_numpy` and `.numpy()` convert.")
    if isinstance(x, torch.Tensor):
        fits = x.dtype == torch.bool if dtype == "bool" else x.is_floating_point()
        if x.device != rew.device:
            raise ValueError(f"`{name}` is on {x.device}, `rew` on {rew.device}; bring them to one device with `.to`.")
    else:
        fits = x.dtype.kind == dtype[0]
    if not fits:
        remedy = {"bool": f"`{name} != 0`", "float": f"`{name}.float()` or `{name}.astype(np.float32)`"}[dtype]
        raise TypeError(f"`{name}` must be of dtype {dtype}, got {x.dtype}; convert it by {remedy}.")


def _check_shapes(rew: Any, fin: Any, val: Any, omega: Any, end: Any) -> None:
    """Refuse what is not time-major, or does not fit ``rew``."""
    shape = tuple(rew.shape)
    if len(shape) < 2 or shape[0] == 0:
        raise ValueError(f"`rew` must be (T, B, ...) with T >= 1, got {shape}; of a single stream take `rew[:, None]`.")
    for name, x in (("fin", fin), ("omega", omega)):
        if x is not None and (x.ndim < 2 or tuple(x.shape) != shape[: x.ndim]):
            _refuse(name, x, f"{shape[:2]}, as `rew` is (T, B, ...) = {shape}")
    if val is not None and tuple(val.shape) != shape:
        _refuse("val", val, f"{shape}, the shape of `rew`")
    if end is not None and tuple(end.shape) not in {(), shape[1:], (1, *shape[1:])}:
        _refuse("bootstrap", end, f"a number, {shape[1:]} or {(1, *shape[1:])}, as `rew` is (T, B, ...) = {shape}")


def _refuse(name: str, x: Any, expected: str) -> NoReturn:
    raise ValueError(
        f"`{name}` must be {expected}; got {tuple(x.shape)}. All is time-major: is something batch-major, or does a "
        f"dimension of one want `.squeeze(-1)`?"
    )
