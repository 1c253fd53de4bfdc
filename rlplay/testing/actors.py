"""The counting actor: its info, recurrent state and actions can be computed by hand from its inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import nested, sampling
from ..engine import BaseActorModule
from ..nested import Nested
from .forms import ACTIONS

__all__ = ["CountingActor"]


class CountingActor(BaseActorModule):
    """An actor that returns its inputs as its info, and counts rows in its recurrent state.

    Its recurrent state is ``{"count": int64 (1, B, 1), "sums": float64 (1, B, 2)}``: the number of rows since the last
    reset, and two sums over these rows: of all numbers in all leaves of the observations, and of the rewards. The
    reward of a row with ``fin`` is left out, since this reward belongs to the previous episode. The recurrent state
    advances in virtual steps as well, so that tests notice a caller that does not discard the recurrent state of a
    virtual step.

    Its info contains the inputs ``stepno``, ``obs``, ``act``, ``rew`` and ``fin``. The info also contains ``hx``, the
    recurrent state before each row, with leaves ``(n_seq, B, ...)``; the argument ``virtual`` (bool); and ``weight``
    (float32).

    Its action is a function of an integer, ``m = floor(4 sum(obs)) + count``, with the ``count`` before this row; see
    :meth:`action_of`. Because of the factor 4, observations whose sums differ by a quarter or more give different
    ``m``. All these numbers are exact if the observations come from a ledger environment.

    Parameters
    ----------
    action : str
        The action space, see :func:`rlplay.testing.action_space`.
    sampled : bool
        If True, ``m`` is drawn uniformly from 0 to 59 with ``self.generator`` and does not depend on the inputs.

    Attributes
    ----------
    weight : parameter, float32, no dimensions
        The actor only copies it into the info. Change it between asks; a fragment then shows which snapshot collected
        it.
    """

    def __init__(self, action: str = "discrete", *, sampled: bool = False) -> None:
        super().__init__()
        if action not in ACTIONS:
            raise ValueError(f"`action` must be one of {ACTIONS}, got {action!r}.")
        self.action, self.sampled = action, sampled
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(
        self,
        obs: Nested,
        *,
        act: Nested,
        rew: Tensor,
        fin: Tensor,
        stepno: Tensor,
        hx: Nested = None,
        virtual: bool = False,
    ) -> tuple[Nested, Nested, Nested]:
        """React to rows ``(n_seq, B, ...)``, one after the other."""
        n_envs = fin.shape[1]
        if hx is None:
            hx = {
                "count": torch.zeros(1, n_envs, 1, dtype=torch.int64, device=fin.device),
                "sums": torch.zeros(1, n_envs, 2, dtype=torch.float64, device=fin.device),
            }
        obs_sums = sum(leaf.double().reshape(*fin.shape, -1).sum(-1) for leaf in nested.leaves(obs))
        row_sums = torch.stack([torch.as_tensor(obs_sums), rew.double().masked_fill(fin, 0.0)], -1)
        hxs = []
        for row_sum in row_sums:
            hxs.append(hx)
            hx = {"count": hx["count"] + 1, "sums": hx["sums"] + row_sum}
        hx_before = nested.map(lambda *rows: torch.cat(rows), *hxs)
        if self.sampled:
            m = sampling.categorical(torch.zeros(*fin.shape, 60, device=fin.device), generator=self.generator)
        else:
            m = (4 * row_sums[..., 0]).floor().long() + hx_before["count"][..., 0]
        info = {
            "stepno": stepno,
            "obs": obs,
            "act": act,
            "rew": rew,
            "fin": fin,
            "hx": hx_before,
            "virtual": torch.full_like(fin, virtual),
            "weight": self.weight.expand(fin.shape),
        }
        return self.action_of(self.action, m), hx, info

    @staticmethod
    def action_of(action: str, m: Tensor) -> Nested:
        """Return the action that the integer ``m`` determines.

        Parameters
        ----------
        action : str
            The name of the action space. The action is

            - in ``discrete``: ``m % 5``;
            - in ``multidiscrete``: ``[m % 3, (m // 3) % 4]``;
            - in ``box``: ``[m % 9 - 4, m % 7 - 3] / 2``, which may be outside the bounds of the space;
            - in ``multibinary``: the three lowest bits of ``m``, the lowest one first;
            - in ``dict``: ``move``, the discrete action of ``m``; ``aim.box``, the box action of ``m + 1``;
              ``aim.bits``, the multibinary action of ``m + 2``; ``gears``, the multidiscrete action of ``m + 3``.
        m : int64 tensor, ``(n_seq, B)``
            One integer for each row and environment.

        Returns
        -------
        nested tensors, ``(n_seq, B, ...)``
            float32 for a box, int64 for all other spaces.
        """
        if action == "discrete":
            return m % 5
        if action == "multidiscrete":
            return torch.stack([m % 3, m.div(3, rounding_mode="floor") % 4], -1)
        if action == "box":
            return torch.stack([m % 9 - 4, m % 7 - 3], -1).float() / 2
        if action == "multibinary":
            return torch.stack([m >> bit & 1 for bit in range(3)], -1)
        action_of = CountingActor.action_of
        aim = {"box": action_of("box", m + 1), "bits": action_of("multibinary", m + 2)}
        return {"move": action_of("discrete", m), "aim": aim, "gears": action_of("multidiscrete", m + 3)}
