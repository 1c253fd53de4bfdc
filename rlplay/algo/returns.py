"""Returns, temporal differences, GAE and V-trace: arrays in, arrays out, and one idea under all of them.

Each is the backward recursion ``x_t = a_t + b_t x_{t+1}``, for its own ``a``, ``b`` and ``x_T``::

                   a_t         b_t                 x_T           answer
    returns        rew_t       gamma n_t rho_t     V(s_T)        x
    gae            delta_t     gamma n_t C         0             x
    vtrace         D_t         gamma n_t c_t       0             V + x

with ``n_t = 1 - fin_t``, ``rho_t = min(exp(omega_t), r_bar)`` and ``c_t = min(exp(omega_t), c_bar)``. A coefficient of
zero lets nothing through, not even NaN or infinity: whatever lies beyond an episode's end cannot reach back over it.

What the arguments are
======================

They are those of transitions: row ``t`` is about the way from ``s_t`` to ``s_{t+1}``. :func:`rlplay.algo.transitions`
makes them from a fragment, and there time limits and rows that are no transition are taken care of.

rew : float array, ``(T, B, ...)``
    ``r_{t+1}``. Integer rewards are refused rather than converted, since no float dtype follows from them.
fin : bool array, ``(T, B)``
    ``d_{t+1}``: the transition ended an episode, and nothing is carried over from ``s_{t+1}``.
val : float array, the shape of ``rew``
    ``V(s_t)``.
omega : float array, ``(T, B)``
    ``log pi(a_t | s_t) - log mu(a_t | s_t)``: target policy against behaviour policy. ``None``: no weights at all.
bootstrap : float, or float array ``(B, ...)`` or ``(1, B, ...)``
    ``V(s_T)``.
gamma, C : float in [0, 1]
    The discount; lambda.
r_bar, c_bar : float >= 0, or None
    Where the weights ``exp(omega)`` are clipped. Zero is a value like any other; ``None`` does not clip (a weight that
    overflows is then the largest finite number).

``fin`` and ``omega`` may have fewer trailing dimensions than ``rew``, over which they are then broadcast.

All are NumPy arrays, or all are torch tensors on one device, of any float dtypes. The answer is a new array of that
kind, on that device, with the shape of ``rew`` and the dtype to which the float arguments promote (16-bit floats are
computed in float32). It carries no gradients, and a device is never waited for. What is not finite shows in the answer,
without warnings.

Wrong types and dtypes raise ``TypeError``, wrong shapes and values ``ValueError``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from numbers import Integral
from typing import Any, TypeVar, cast

import numpy as np
import torch

from .columns import Array, columns, fraction
from .recursion import ahead, backward

__all__ = ["deltas", "gae", "multistep", "returns", "vtrace"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _quiet(function: _Function) -> _Function:
    """Keep NumPy from warning of what is not finite. `torch.compile` sees no NumPy, and could not look through this."""

    @wraps(function)
    def quiet(*args: Any, **options: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args, **options)
        with np.errstate(over="ignore", invalid="ignore"):
            return function(*args, **options)

    return cast(_Function, quiet)


@_quiet
def returns(
    rew: Array,
    fin: Array,
    *,
    gamma: float,
    bootstrap: float | Array = 0.0,
    omega: Array | None = None,
    r_bar: float | None = None,
) -> Array:
    """Compute the discounted returns, weighted by importance if ``omega`` is given.

    ``G_t = rew_t + gamma n_t rho_t G_{t+1}``, with ``G_T = bootstrap``.

    The weight stands before the *later* return only. So where a time limit's value has been folded into the reward, as
    :func:`rlplay.algo.transitions` does, that value is not weighted.

    Parameters
    ----------
    rew, fin, gamma, bootstrap, omega, r_bar
        See the module's docstring.

    Returns
    -------
    float array, ``(T, B, ...)``
        ``G_t``.
    """
    x = columns(rew, fin, gamma=gamma, bootstrap=bootstrap, omega=omega)
    b = x.carried("r_bar", r_bar)
    return x.answer(backward(x.rew, b, x.end))


@_quiet
def multistep(
    rew: Array,
    fin: Array,
    val: Array,
    *,
    gamma: float,
    n_lookahead: int | None = None,
    bootstrap: float | Array = 0.0,
    omega: Array | None = None,
    r_bar: float | None = None,
) -> Array:
    """Compute the returns that look ``n_lookahead`` steps ahead and trust the value there.

    ``x_t <- rew_t + gamma n_t rho_t x_{t+1}`` is applied ``n_lookahead`` times, starting from ``val``, with
    ``x_T = bootstrap`` always. So 0 is ``val`` itself, 1 the target of TD(0), and ``None`` (or ``T`` and more) is
    :func:`returns`. Near the end of the fragment fewer steps are looked ahead, as there are no more.

    Parameters
    ----------
    rew, fin, val, gamma, bootstrap, omega, r_bar
        See the module's docstring.
    n_lookahead : int >= 0, or None
        How many steps. The time taken is proportional to it; on a device, to its logarithm.

    Returns
    -------
    float array, ``(T, B, ...)``
        The value targets.
    """
    x = columns(rew, fin, val, gamma=gamma, bootstrap=bootstrap, omega=omega)
    b = x.carried("r_bar", r_bar)
    if not isinstance(n_lookahead, Integral | None):
        raise TypeError(f"`n_lookahead` must be a whole number of steps, or None for all; got {n_lookahead!r}.")
    if n_lookahead is not None and n_lookahead < 0:
        raise ValueError(f"`n_lookahead` must be a number of steps >= 0, got {n_lookahead}.")
    if n_lookahead is None or n_lookahead >= len(rew):
        return x.answer(backward(x.rew, b, x.end))
    return x.answer(ahead(x.rew, b, x.end, x.val, int(n_lookahead)))


@_quiet
def deltas(
    rew: Array,
    fin: Array,
    val: Array,
    *,
    gamma: float,
    bootstrap: float | Array = 0.0,
    omega: Array | None = None,
    r_bar: float | None = None,
) -> Array:
    """Compute the temporal differences, weighted by importance if ``omega`` is given.

    ``D_t = rho_t (rew_t + gamma n_t V_{t+1} - V_t)``, with ``V_T = bootstrap``. These are the ``delta_t V`` of V-trace.

    Parameters
    ----------
    rew, fin, val, gamma, bootstrap, omega, r_bar
        See the module's docstring.

    Returns
    -------
    float array, ``(T, B, ...)``
        ``D_t``.
    """
    x = columns(rew, fin, val, gamma=gamma, bootstrap=bootstrap, omega=omega)
    found = x.surprise()
    found *= x.weight("r_bar", r_bar)
    return x.answer(found)


@_quiet
def gae(
    rew: Array,
    fin: Array,
    val: Array,
    *,
    gamma: float,
    C: float,
    bootstrap: float | Array = 0.0,
) -> Array:
    """Compute the generalised advantage estimates.

    ``A_t = delta_t + gamma C n_t A_{t+1}``, with ``delta_t = rew_t + gamma n_t V_{t+1} - V_t``, ``A_T = 0``. ``C = 0``
    gives the temporal differences, ``C = 1`` the returns less the values.

    Parameters
    ----------
    rew, fin, val, gamma, bootstrap
        See the module's docstring.
    C : float in [0, 1]
        The paper's lambda.

    Returns
    -------
    float array, ``(T, B, ...)``
        ``A_t``.

    Notes
    -----
    Schulman et al. (2016), "High-Dimensional Continuous Control Using Generalized Advantage Estimation", eq. 16. The
    paper's reward ``r_t`` is our ``rew_t = r_{t+1}``; its sums run for ever, ours end with the episode and at ``T``.
    """
    x = columns(rew, fin, val, gamma=gamma, bootstrap=bootstrap)
    a, b = x.surprise(), x.discount
    b *= fraction("C", C)
    return x.answer(backward(a, b, x.xp.zeros_like(x.end)))


@_quiet
def vtrace(
    rew: Array,
    fin: Array,
    val: Array,
    omega: Array,
    *,
    gamma: float,
    r_bar: float | None,
    c_bar: float | None,
    bootstrap: float | Array = 0.0,
) -> Array:
    """Compute the V-trace value targets ``v_t``.

    ``v_t - V_t = D_t + gamma n_t c_t (v_{t+1} - V_{t+1})``, where ``D_t`` are the :func:`deltas`, and ``v_T = V_T``.
    On-policy (``omega`` zero, neither bar below one) it is :func:`returns`. Its policy gradient has for advantage
    ``rho_t (rew_t + gamma n_t v_{t+1} - V_t)``: the :func:`deltas` with ``v`` in the place of the later values.

    Parameters
    ----------
    rew, fin, val, omega, gamma, r_bar, c_bar, bootstrap
        See the module's docstring.

    Returns
    -------
    float array, ``(T, B, ...)``
        ``v_t``: the targets themselves, not their differences from ``val``.

    Notes
    -----
    Espeholt et al. (2018), "IMPALA: Scalable Distributed Deep-RL with Importance Weighted Actor-Learner Architectures",
    eq. 1, with ``n`` reaching to ``T``. The paper's reward ``r_t`` is our ``rew_t = r_{t+1}``; it requires
    ``r_bar >= c_bar``, and here that is not enforced.
    """
    x = columns(rew, fin, val, gamma=gamma, bootstrap=bootstrap, omega=omega)
    a = x.surprise()
    a *= x.weight("r_bar", r_bar)
    found = backward(a, x.carried("c_bar", c_bar), x.xp.zeros_like(x.end))
    found += x.val
    return x.answer(found)
