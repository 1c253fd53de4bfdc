"""Running normalisation of observations and of rewards, as modules with state.

The statistics are buffers. So they flow from the learner's actor into the behaviour copy with each snapshot, and are
saved with the actor. Only the learner updates them, from whole fragments, so every fragment is collected with fixed
statistics::

    class Actor(BaseActorModule):
        def __init__(self):
            ...
            self.norm = RunningNorm((4,))
        def forward(self, obs, **rest):
            obs = self.norm(obs)
            ...

    scale = ReturnNorm(n_envs, gamma=0.99)
    for fragment in feed:
        scale.update(fragment)
        loss, info = a2c.loss(scale(fragment), actor, gamma=0.99)   # with the statistics that acted
        ...
        actor.norm.update(fragment.state.obs[:-1], fragment.env.valid)

For nested observations use one module for each leaf.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..engine import Fragment
from .columns import fraction
from .masked import like
from .returns import returns

__all__ = ["ReturnNorm", "RunningNorm"]


class RunningNorm(nn.Module):
    """Shifts and scales to mean zero and standard deviation one, by the statistics of all values seen so far.

    Before the first update values are clipped, and else pass unchanged.

    Parameters
    ----------
    shape : sequence of int
        The shape of one observation. Each of its elements has statistics of its own.
    clip : float > 0, or None
        The bound of the magnitudes of normalised values.
    epsilon : float > 0
        Added to the variance.

    Attributes
    ----------
    count : buffer, float64, no dimensions
        The number of values seen.
    mean, var : buffers, float64, ``shape``
        Their mean and variance (the mean squared distance from the mean).

    Raises
    ------
    TypeError, ValueError
        ``shape`` is a number, or ``clip`` or ``epsilon`` is not positive.

    Notes
    -----
    Chan, Golub and LeVeque (1983), "Algorithms for Computing the Sample Variance", eq. 2.1: statistics of two sets are
    merged without looking at the values again, and without cancellation.
    """

    count: Tensor
    mean: Tensor
    var: Tensor

    def __init__(self, shape: Sequence[int], *, clip: float | None = 10.0, epsilon: float = 1e-8) -> None:
        super().__init__()
        if isinstance(shape, int):
            raise TypeError(f"`shape` must be a sequence of integers, got {shape!r}: write `({shape!r},)`.")
        if clip is not None and not clip > 0:
            raise ValueError(f"`clip` must be a number > 0, or None for no bound; got {clip!r}.")
        if not epsilon > 0:
            raise ValueError(f"`epsilon` must be a number > 0, got {epsilon!r}.")
        self._clip, self._epsilon = clip, epsilon
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(tuple(shape), dtype=torch.float64))
        self.register_buffer("var", torch.ones(tuple(shape), dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: Tensor, valid: Tensor | None = None) -> None:
        """Merge the statistics of some values. The host does not wait for the device.

        Parameters
        ----------
        x : tensor, ``(..., *shape)``
            On the module's device.
        valid : bool tensor, optional
            ``(...)``: the values that count; others may be anything, even NaN. ``None``: all of them.

        Raises
        ------
        ValueError
            The trailing dimensions of ``x`` are not ``shape``, or the leading ones are not those of ``valid``.
        """
        lead = x.shape[: x.ndim - self.mean.ndim]
        if x.shape[len(lead) :] != self.mean.shape or (valid is not None and valid.shape != lead):
            leading = ["..."] if valid is None else valid.shape
            expected = ", ".join(map(str, (*leading, *self.mean.shape)))
            raise ValueError(f"`x` must be ({expected}), got {tuple(x.shape)}.")
        rows = x.to(torch.float64).reshape(lead.numel(), *self.mean.shape)
        counts = rows.new_ones(len(rows)) if valid is None else valid.flatten().to(torch.float64)
        rows = rows.masked_fill(~like(counts > 0, rows), 0)

        n = counts.sum()
        mean = rows.sum(dim=0) / n.clamp(min=1)
        squares = ((rows - mean).square() * like(counts, rows)).sum(dim=0)
        total = (self.count + n).clamp(min=1)
        delta = mean - self.mean
        var = (self.count * self.var + squares + delta.square() * (self.count * n / total)) / total
        self.mean.add_(delta * (n / total))
        self.var.copy_(torch.where(self.count + n > 0, var, self.var))
        self.count.add_(n)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise values ``(..., *shape)``: in their dtype, or torch's default dtype if theirs is no float."""
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        y = ((x.to(torch.float64) - self.mean) * (self.var + self._epsilon).rsqrt()).to(dtype)
        return y if self._clip is None else y.clamp(-self._clip, self._clip)


class ReturnNorm(nn.Module):
    """Scales rewards by the standard deviation of the discounted sum of the rewards so far. The mean is not shifted.

    This makes the scale of returns, and so of the critic's errors, independent of the environment's units.

    An actor that takes ``rew`` as an input has acted on unscaled rewards, and would be given scaled ones by the losses.
    For such an actor scale rewards by a constant, in a wrapper of the environment.

    Parameters
    ----------
    n_envs : int
        ``B``.
    gamma : float in [0, 1]
        The discount.
    clip : float > 0, or None
        The bound of the magnitudes of scaled rewards.
    epsilon : float > 0
        Added to the variance.

    Attributes
    ----------
    stats : RunningNorm
        The statistics of the sums.
    ret : buffer, float64, ``(B,)``
        The present sum of each environment.

    Raises
    ------
    TypeError, ValueError
        ``gamma`` is no number or not in [0, 1], or ``clip`` or ``epsilon`` is not positive.

    Notes
    -----
    Engstrom et al. (2020), "Implementation Matters in Deep Policy Gradients", section 3, "reward scaling", and
    algorithm 1 in appendix A.2.
    """

    ret: Tensor

    def __init__(self, n_envs: int, *, gamma: float, clip: float | None = 10.0, epsilon: float = 1e-8) -> None:
        super().__init__()
        self.stats, self._gamma = RunningNorm((), clip=clip, epsilon=epsilon), fraction("gamma", gamma)
        self._clip, self._epsilon = clip, epsilon
        self.register_buffer("ret", torch.zeros(n_envs, dtype=torch.float64))

    @torch.no_grad()
    def update(self, fragment: Fragment) -> None:
        """Merge the sums ``R_t = r_{t+1} + gamma R_{t-1}`` of a fragment's valid transitions.

        Episodes begin at zero. Fragments must be those of one feed, in its order, each once. The host does not wait for
        the device.

        Raises
        ------
        ValueError
            The fragment has another number of environments.
        """
        valid = fragment.env.valid
        if valid.shape[1:] != self.ret.shape:
            raise ValueError(f"The fragment must have {len(self.ret)} environments, got {valid.shape[1]}.")
        rew = fragment.state.rew[1:].to(torch.float64).masked_fill(~valid, 0)
        # the sum from the past is a return when time runs backward
        begins = fragment.state.fin[:-1].flip(0)
        sums = returns(rew.flip(0), begins, gamma=self._gamma, bootstrap=self.ret).flip(0)
        self.stats.update(sums, valid)
        self.ret.copy_(sums[-1])

    def forward(self, fragment: Fragment) -> Fragment:
        """Return the fragment with scaled rewards; all other tensors are shared with it."""
        scaled = fragment.state.rew * (self.stats.var + self._epsilon).rsqrt().to(fragment.state.rew.dtype)
        scaled = scaled if self._clip is None else scaled.clamp(-self._clip, self._clip)
        return fragment._replace(state=fragment.state._replace(rew=scaled))
