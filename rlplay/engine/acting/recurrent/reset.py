"""Whether the actor's ``reset`` of the recurrent state takes a mask of environments, and states to try it on."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .... import nested
from ....nested import Nested
from ...core import BaseActorModule

__all__ = ["SLOW_RESET", "honours_mask", "numbered_like"]

SLOW_RESET = (
    "the actor's reset does not honour a bool mask, so it is called for one environment at a time. "
    "`x[:, at].zero_()` changes a copy where `at` is a mask; write `x = x.clone(); x[:, at] = 0`, or "
    "`torch.where(at[:, None], x.new_zeros(()), x)`."
)
"""The warning for an actor whose ``reset`` does not take masks, see :func:`honours_mask`."""


def honours_mask(actor: BaseActorModule, hx: Nested, width: int, device: torch.device) -> bool:
    """Return whether an overridden ``reset`` gives the same for a mask as for one index after another.

    Calls ``reset`` on recurrent states that are like ``hx`` but filled with known numbers.

    Parameters
    ----------
    actor : BaseActorModule
        The behaviour copy.
    hx : nested tensors, ``(L, width, ...)``
        A recurrent state of the actor.
    width : int
        The number of environments.
    device : torch.device
        Where the mask is made.
    """
    if type(actor).reset is BaseActorModule.reset or not nested.leaves(hx):
        return True

    def filled(shift: int) -> Nested:  # made again for each use: a reset may write in place and draw random numbers
        if actor.generator is not None:
            actor.generator.manual_seed(0)
        return nested.map(partial(numbered_like, shift=shift), hx)

    half = [j < (width + 1) // 2 for j in range(width)]
    # each leaf has two values at each place, so that one of them is not what it is reset to
    for chosen, shift in itertools.product((half, [True] * width), (0, 1)):
        one_by_one = filled(shift)
        for j in np.flatnonzero(chosen):
            one_by_one = actor.reset(one_by_one, int(j))
        try:
            at_once = actor.reset(filled(shift), torch.tensor(chosen, device=device))
            alike = nested.structure(at_once) == nested.structure(one_by_one) and all(
                torch.equal(x, y) for x, y in zip(nested.leaves(at_once), nested.leaves(one_by_one), strict=True)
            )
        except Exception:  # any exception means that this reset does not take masks
            alike = False
        if not alike:
            return False
    return True


def numbered_like(x: Tensor, *, shift: int) -> Tensor:
    """Return a tensor of the same form that holds various numbers; shifted by one it has another one at each place.

    Among them is a negative zero if they are floats.
    """
    numbers = (shift + torch.arange(x.numel(), device=x.device)) % (2 if x.dtype == torch.bool else 7)
    return (-0.5 * numbers if x.is_floating_point() else numbers).view(x.shape).to(x.dtype)
