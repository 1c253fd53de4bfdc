"""Functions of arrays: returns, temporal differences, GAE and V-trace.

Each is a backward recursion ``x_t = a_t + b_t x_{t+1}``, for its own ``a``, ``b`` and ``x_T``::

                   a_t         b_t                 x_T           result
    returns        rew_t       gamma n_t rho_t     V(s_T)        x
    gae            delta_t     gamma n_t C         0             x
    vtrace         D_t         gamma n_t c_t       0             V + x

with ``n_t = 1 - fin_t``, ``rho_t = min(exp(omega_t), r_bar)`` and ``c_t = min(exp(omega_t), c_bar)``. A coefficient of
zero stops NaN and infinity as well: numbers beyond the end of an episode have no effect on the rows before it.

Arguments
=========

The arguments are those of transitions: row ``t`` describes the transition from ``s_t`` to ``s_{t+1}``.
:func:`rlplay.algo.transitions` makes them from a fragment, and handles time limits and rows that are no transition.

rew : float array, ``(T, B, ...)``
    ``r_{t+1}``. Integer rewards are refused, not converted, since they do not determine a float dtype.
fin : bool array, ``(T, B)``
    ``d_{t+1}``: the transition ended an episode, and nothing is carried over from ``s_{t+1}``.
val : float array, the shape of ``rew``
    ``V(s_t)``.
omega : float array, ``(T, B)``
    ``log pi(a_t | s_t) - log mu(a_t | s_t)``, where ``pi`` is the target policy and ``mu`` the behaviour policy.
    ``None``: all importance weights are 1.
bootstrap : float, or float array ``(B, ...)`` or ``(1, B, ...)``
    ``V(s_T)``.
gamma, C : float in [0, 1]
    The discount; GAE's lambda.
r_bar, c_bar : float >= 0, or None
    The upper bounds of the weights ``exp(omega)``. Zero is allowed; ``None``: no bound (a weight that overflows becomes
    the largest finite number).

``fin`` and ``omega`` may have fewer trailing dimensions than ``rew``, over which they are broadcast.

All arrays are NumPy's, or all are torch tensors on one device, of any float dtypes. The result is a new array of the
same kind, on the same device, with the shape of ``rew`` and the dtype to which the float arguments promote (16-bit
floats are computed in float32). It has no gradients, and the host never waits for the device. NaN and infinity in the
arguments appear in the result, without warnings.

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
from .recursion import iterate, solve

__all__ = ["deltas", "gae", "multistep", "returns", "vtrace"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _quiet(function: _Function) -> _Function:
    """Suppress NumPy's warnings about overflow and invalid values.

    Under ``torch.compile`` nothing is suppressed: the compiler cannot trace ``errstate``, and NumPy is not used then.
    """

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

    The weight multiplies only the *later* return. So a bootstrap value that has been added to the reward at a time
    limit, as :func:`rlplay.algo.transitions` does, is not weighted.

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
    b = x.weighted_discount("r_bar", r_bar)
    return x.converted(solve(x.rew, b, x.end))


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
    """Compute the n-step returns: ``n_lookahead`` rewards, and the value of the state after them.

    ``x_t <- rew_t + gamma n_t rho_t x_{t+1}`` is applied ``n_lookahead`` times, starting from ``val``, with
    ``x_T = bootstrap`` each time. So 0 gives ``val`` itself, 1 the target of TD(0), and ``None`` (or ``T`` and more)
    gives :func:`returns`. Near the end of the fragment only the remaining steps are used.

    Parameters
    ----------
    rew, fin, val, gamma, bootstrap, omega, r_bar
        See the module's docstring.
    n_lookahead : int >= 0, or None
        The number of steps. The time taken is proportional to it; on a device, to its logarithm.

    Returns
    -------
    float array, ``(T, B, ...)``
        The value targets.
    """
    x = columns(rew, fin, val, gamma=gamma, bootstrap=bootstrap, omega=omega)
    b = x.weighted_discount("r_bar", r_bar)
    if not isinstance(n_lookahead, Integral | None):
        raise TypeError(f"`n_lookahead` must be a whole number of steps, or None for all; got {n_lookahead!r}.")
    if n_lookahead is not None and n_lookahead < 0:
        raise ValueError(f"`n_lookahead` must be a number of steps >= 0, got {n_lookahead}.")
    if n_lookahead is None or n_lookahead >= len(rew):
        return x.converted(solve(x.rew, b, x.end))
    return x.converted(iterate(x.rew, b, x.end, x.val, int(n_lookahead)))


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

    ``D_t = rho_t (rew_t + gamma n_t V_{t+1} - V_t)``, with ``V_T = bootstrap``. These are V-trace's ``delta_t V``.

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
    weighted = x.deltas()
    weighted *= x.weight("r_bar", r_bar)
    return x.converted(weighted)


@_quiet
def gae(
    rew: Array,
    fin: Array,
    val: Array,
    *,
    gamma: float,
    C: float | None = None,
    gae_lambda: float | None = None,
    bootstrap: float | Array = 0.0,
) -> Array:
    """Compute the generalised advantage estimates.

    ``A_t = delta_t + gamma C n_t A_{t+1}``, with ``delta_t = rew_t + gamma n_t V_{t+1} - V_t``, ``A_T = 0``. ``C = 0``
    gives the temporal differences, ``C = 1`` the returns less the values.

    Parameters
    ----------
    rew, fin, val, gamma, bootstrap
        See the module's docstring.
    C, gae_lambda : float in [0, 1]
        The paper's lambda, by either name.

    Returns
    -------
    float array, ``(T, B, ...)``
        ``A_t``.

    Raises
    ------
    TypeError
        Lambda is given by both names, or by neither.

    Notes
    -----
    Schulman et al. (2016), "High-Dimensional Continuous Control Using Generalized Advantage Estimation", eq. 16. The
    paper's reward ``r_t`` is ``rew_t = r_{t+1}`` here; its sums are infinite, while the sums here end with the episode
    or at ``T``.
    """
    x = columns(rew, fin, val, gamma=gamma, bootstrap=bootstrap)
    a, b = x.deltas(), x.discount
    if (C is None) == (gae_lambda is None):
        raise TypeError(f"give lambda once, as `C` or as `gae_lambda`; got C={C!r}, gae_lambda={gae_lambda!r}.")
    b *= fraction("C", C) if gae_lambda is None else fraction("gae_lambda", gae_lambda)  # type: ignore[arg-type]
    return x.converted(solve(a, b, x.xp.zeros_like(x.end)))


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
    On-policy (``omega`` zero, neither upper bound below one) the targets equal :func:`returns`. The advantage of
    V-trace's policy gradient is ``rho_t (rew_t + gamma n_t v_{t+1} - V_t)``: the :func:`deltas` with ``v_{t+1}``
    instead of ``V_{t+1}``.

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
    eq. 1, with ``n`` reaching to ``T``. The paper's reward ``r_t`` is ``rew_t = r_{t+1}`` here. The paper requires
    ``r_bar >= c_bar``; this is not checked.
    """
    x = columns(rew, fin, val, gamma=gamma, bootstrap=bootstrap, omega=omega)
    a = x.deltas()
    a *= x.weight("r_bar", r_bar)
    targets = solve(a, x.weighted_discount("c_bar", c_bar), x.xp.zeros_like(x.end))
    targets += x.val
    return x.converted(targets)
