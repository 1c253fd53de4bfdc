"""The arguments of :mod:`rlplay.algo.returns`, NumPy's or torch's alike: checked, brought to one shape and dtype."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from numbers import Real
from typing import Any, Generic, NoReturn, TypeVar

import numpy as np
import torch

__all__ = ["Array", "Columns", "columns", "fraction"]

Array = TypeVar("Array", "np.ndarray[Any, Any]", torch.Tensor)
"""A NumPy array or a torch tensor: what goes in is what comes out."""


@dataclass(frozen=True)
class Columns(Generic[Array]):
    """What the recursions are made of: in the working dtype, without gradients, ready to be broadcast."""

    xp: Any
    """The module whose arrays they are, ``numpy`` or ``torch``; only names that both know are asked of it."""
    rew: Any
    """``(T, B, ...)``: ``r_{t+1}``."""
    fin: Any
    """Bool, broadcasts to ``rew``: ``d_{t+1}``."""
    val: Any
    """The shape of ``rew``: ``V(s_t)``, or None."""
    omega: Any
    """Broadcasts to ``rew``: ``log pi - log mu``, or None."""
    end: Any
    """``(B, ...)``: ``V(s_T)``."""
    dtype: Any
    """Of the answer."""

    def weight(self, name: str, bar: float | None) -> Any:
        """Compute ``min(exp(omega_t), bar)``. It is always finite, so that a discount of zero times it is zero."""
        if bar is not None and not (isinstance(bar, Real) and bar >= 0):
            raise ValueError(f"`{name}` must be a number >= 0, or None for no clipping; got {bar!r}.")
        if self.omega is None:
            return self.xp.ones_like(self.rew)
        with np.errstate(over="ignore"):  # infinity is clipped like any other number
            ratio = self.xp.exp(self.omega)
        largest = float(self.xp.finfo(ratio.dtype).max)
        return ratio.clip(None, largest if bar is None else min(float(bar), largest))

    def discount(self, gamma: float, weight: Any = None) -> Any:
        """Compute ``gamma n_t weight_t``: how much of what comes later counts."""
        weight = self.xp.ones_like(self.rew) if weight is None else weight
        return self.xp.where(self.fin, 0.0, fraction("gamma", gamma) * weight)

    def later(self, val: Any) -> Any:
        """Shift values by a step: ``V(s_{t+1})``."""
        return self.xp.concatenate([val[1:], self.end[None]])

    def answer(self, x: Any) -> Array:
        """Give back an array that is the caller's own, of the dtype promised."""
        mine = x is not self.val
        if self.xp is torch:
            given: Array = x.to(self.dtype, copy=not mine)
        else:
            given = x.astype(self.dtype, copy=not mine)
        return given


def columns(
    rew: Array,
    fin: Array,
    val: Array | None = None,
    *,
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
    xp: Any = torch if isinstance(rew, torch.Tensor) else np
    end: Any = None if isinstance(bootstrap, Real) else bootstrap
    floats: dict[str, Any] = {"rew": rew, "val": val, "omega": omega, "bootstrap": end}
    floats = {name: x for name, x in floats.items() if x is not None}
    for name, x in floats.items():
        _check_kind(name, x, rew, "float")
    _check_kind("fin", fin, rew, "bool")
    _check_shapes(rew, fin, val, omega, end)

    # a zero-dimensional bootstrap is a number: it has no say in the dtype
    dtype = reduce(xp.promote_types, [x.dtype for x in floats.values() if x.ndim])
    working = xp.promote_types(dtype, xp.float32)

    def work(x: Any) -> Any:
        return x.detach().to(working) if xp is torch else x.astype(working, copy=False)

    def aligned(x: Any) -> Any:
        return x.reshape(*x.shape, *(1,) * (rew.ndim - x.ndim))

    rewards = work(rew)
    last = xp.zeros_like(rewards[0])
    last[...] = float(bootstrap) if isinstance(bootstrap, Real) else work(end)
    return Columns(
        xp=xp,
        rew=rewards,
        fin=aligned(fin),
        val=None if val is None else work(val),
        omega=None if omega is None else aligned(work(omega)),
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
        fits = np.issubdtype(x.dtype, np.bool_ if dtype == "bool" else np.floating)
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
