"""The arguments of :mod:`rlplay.algo.returns`, NumPy arrays or torch tensors: checked, and converted to one dtype."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from numbers import Real
from typing import Any, Generic, NoReturn, TypeVar

import numpy as np
import torch

from .recursion import times

__all__ = ["Array", "Columns", "columns", "fraction"]

Array = TypeVar("Array", "np.ndarray[Any, Any]", torch.Tensor)
"""A NumPy array or a torch tensor: the result is of the kind of the arguments."""


@dataclass(frozen=True)
class Columns(Generic[Array]):
    """The arguments of a recursion: in the dtype of the computation, without gradients, ready to be broadcast.

    Tensors on the host are converted to NumPy arrays that share their memory, since an operation on a short row takes
    NumPy a third of the time that it takes torch. Tensors on a device, and all tensors under ``torch.compile``, stay
    torch tensors. So the recursions work on NumPy arrays or on torch tensors.
    """

    xp: Any
    """The arrays' module, ``numpy`` or ``torch``. Only functions that both modules have are called."""
    rew: Any
    """``(T, B, ...)``: ``r_{t+1}``. Must not be written to, like ``val``: both may be the caller's memory."""
    discount: Any
    """Broadcasts to ``rew``: ``gamma n_t``, zero at the ends of episodes. A new array, which may be written to."""
    val: Any
    """The shape of ``rew``: ``V(s_t)``; None if not given."""
    ratio: Any
    """Broadcasts to ``rew``: ``pi / mu = exp(omega)``; None if not given."""
    end: Any
    """``(B, ...)``: ``V(s_T)``."""
    dtype: Any
    """The dtype of the result, NumPy's or torch's."""

    def weight(self, name: str, bar: float | None) -> Any:
        """Compute ``min(exp(omega_t), bar)``, at most the largest finite number, so that zero times a weight is 0."""
        if bar is not None and not (isinstance(bar, Real) and bar >= 0):
            raise ValueError(f"`{name}` must be a number >= 0, or None for no clipping; got {bar!r}.")
        if self.ratio is None:
            return 1.0
        largest = float(self.xp.finfo(self.ratio.dtype).max)
        return self.ratio.clip(None, largest if bar is None else min(float(bar), largest))

    def weighted_discount(self, name: str, bar: float | None) -> Any:
        """Compute ``gamma n_t min(exp(omega_t), bar)``: the discount times the importance weight."""
        weight = self.weight(name, bar)
        return self.discount if self.ratio is None else times(self.discount, weight)

    def deltas(self) -> Any:
        """Compute the temporal differences ``rew_t + gamma n_t V_{t+1} - V_t``, unweighted, as a new array."""
        differences = times(self.discount, self.xp.concatenate([self.val[1:], self.end[None]]))
        differences += self.rew
        differences -= self.val
        return differences

    def converted(self, x: Any) -> Array:
        """Convert a result to the kind of the arguments (NumPy or torch) and to ``dtype``."""
        if isinstance(self.dtype, torch.dtype):
            tensor: Any = x if self.xp is torch else torch.from_numpy(x)
            result: Array = tensor.to(self.dtype)
        else:
            result = x.astype(self.dtype, copy=False)
        return result


def columns(
    rew: Array,
    fin: Array,
    val: Array | None = None,
    *,
    gamma: float,
    bootstrap: float | Array,
    omega: Array | None = None,
) -> Columns[Array]:
    """Check the arguments, which :mod:`rlplay.algo.returns` documents, and convert them to one kind and dtype.

    Raises
    ------
    TypeError
        An argument is no array or has the wrong dtype, or NumPy and torch are mixed.
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

    # like a number, a zero-dimensional bootstrap does not take part in dtype promotion
    kind: Any = torch if isinstance(rew, torch.Tensor) else np
    dtype = reduce(kind.promote_types, [x.dtype for x in floats.values() if x.ndim])
    working = kind.promote_types(dtype, kind.float32)
    use_numpy = _uses_numpy(rew)
    xp: Any = np if use_numpy else torch

    def to_working(x: Any) -> Any:
        if kind is np:
            return x.astype(working, copy=False)
        return x.to(working).numpy(force=True) if use_numpy else x.detach().to(working)

    def aligned(x: Any) -> Any:
        return x.reshape(*x.shape, *(1,) * (rew.ndim - x.ndim))

    rewards, discount = to_working(rew), aligned(to_working(~fin))
    discount *= fraction("gamma", gamma)
    last = xp.zeros_like(rewards[0])
    last[...] = float(bootstrap) if isinstance(bootstrap, Real) else to_working(end)
    return Columns(
        xp=xp,
        rew=rewards,
        discount=discount,
        val=None if val is None else to_working(val),
        ratio=None if omega is None else xp.exp(aligned(to_working(omega))),
        end=last,
        dtype=dtype,
    )


def fraction(name: str, x: float) -> float:
    """Check that an argument is a number in [0, 1], and return it.

    Raises
    ------
    TypeError
        ``x`` is no number. A tensor is refused, since reading its value would make the host wait for the device.
    ValueError
        ``x`` is outside [0, 1].
    """
    if not isinstance(x, Real):
        raise TypeError(f"`{name}` must be a number, got {type(x).__name__}; convert a tensor with `.item()`.")
    if not 0 <= x <= 1:
        raise ValueError(f"`{name}` must be in [0, 1], got {x}.")
    return float(x)


def _uses_numpy(x: Any) -> bool:
    """Return whether to compute with NumPy. Under ``torch.compile`` torch is used, so that all can be compiled."""
    return not isinstance(x, torch.Tensor) or (x.device.type == "cpu" and not torch.compiler.is_compiling())


def _check_kind(name: str, x: Any, rew: Any, dtype: str) -> None:
    """Raise unless ``x`` is an array of this dtype, of the same kind (NumPy or torch) and device as ``rew``."""
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
    """Raise unless ``rew`` is ``(T, B, ...)`` and the other shapes fit it."""
    shape = tuple(rew.shape)
    if len(shape) < 2 or shape[0] == 0:
        raise ValueError(f"`rew` must be (T, B, ...) with T >= 1, got {shape}; convert (T,) by `rew[:, None]`.")
    for name, x in (("fin", fin), ("omega", omega)):
        if x is not None and (x.ndim < 2 or tuple(x.shape) != shape[: x.ndim]):
            _refuse(name, x, f"{shape[:2]}, as `rew` is (T, B, ...) = {shape}")
    if val is not None and tuple(val.shape) != shape:
        _refuse("val", val, f"{shape}, the shape of `rew`")
    if end is not None and tuple(end.shape) not in {(), shape[1:], (1, *shape[1:])}:
        _refuse("bootstrap", end, f"a number, {shape[1:]} or {(1, *shape[1:])}, as `rew` is (T, B, ...) = {shape}")


def _refuse(name: str, x: Any, expected: str) -> NoReturn:
    raise ValueError(
        f"`{name}` must be {expected}; got {tuple(x.shape)}. All arrays are time-major: transpose those that "
        f"are batch-major. If the last dimension has size 1, remove it with `.squeeze(-1)`."
    )
