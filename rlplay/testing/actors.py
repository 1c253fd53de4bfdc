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
    reset, and the sums over these rows of the observations (all numbers of all leaves) and of the rewards (except in
    rows with ``fin``, whose reward belongs to the previous episode). It advances in virtual steps too, so that tests
    notice a caller that does not discard the recurrent state of a virtual step.

    Its info contains the inputs ``stepno``, ``obs``, ``act``, ``rew`` and ``fin``; ``hx``, the recurrent state before
    each row, with leaves ``(n_seq, B, ...)``; ``virtual`` (bool) and ``weight`` (float32).

    Its action is a function of an integer ``m``, see :meth:`act`: ``m = floor(4 sum(obs)) + count``, with the ``count``
    before this row. All these numbers are exact if the observations are those of a ledger environment.

    Parameters
    ----------
    action : str
        The action space, see :func:`rlplay.testing.action_space`.
    sampled : bool
        Draw ``m`` uniformly from 0 to 59 instead, with ``self.generator``.

    Attributes
    ----------
    weight : parameter, float32, no dimensions
        Only copied into the info: change it to see in a fragment which snapshot the behaviour copy had.
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
        steps = torch.stack([torch.as_tensor(obs_sums), rew.double().masked_fill(fin, 0.0)], -1)
        states = []
        for step in steps:
            states.append(hx)
            hx = {"count": hx["count"] + 1, "sums": hx["sums"] + step}
        before = nested.map(lambda *rows: torch.cat(rows), *states)
        if self.sampled:
            m = sampling.categorical(torch.zeros(*fin.shape, 60, device=fin.device), generator=self.generator)
        else:
            m = (4 * steps[..., 0]).floor().long() + before["count"][..., 0]
        info = {
            "stepno": stepno,
            "obs": obs,
            "act": act,
            "rew": rew,
            "fin": fin,
            "hx": before,
            "virtual": torch.full_like(fin, virtual),
            "weight": self.weight.expand(fin.shape),
        }
        return self.act(self.action, m), hx, info

    @staticmethod
    def act(action: str, m: Tensor) -> Nested:
        """Return the action that an integer stands for.

        Parameters
        ----------
        action : str
            discrete: ``m % 5``; multidiscrete: ``[m % 3, (m // 3) % 4]``; box: ``[m % 9 - 4, m % 7 - 3] / 2``, which
            may be out of bounds; multibinary: the three lowest bits, lowest first; dict: ``move`` discrete of
            ``m``, ``aim.box`` of ``m + 1``, ``aim.bits`` of ``m + 2``, ``gears`` multidiscrete of ``m + 3``.
        m : int64 tensor, ``(n_seq, B)``

        Returns
        -------
        nested tensors, ``(n_seq, B, ...)``
            int64, or float32 for the box.
        """
        if action == "discrete":
            return m % 5
        if action == "multidiscrete":
            return torch.stack([m % 3, m.div(3, rounding_mode="floor") % 4], -1)
        if action == "box":
            return torch.stack([m % 9 - 4, m % 7 - 3], -1).float() / 2
        if action == "multibinary":
            return torch.stack([m >> bit & 1 for bit in range(3)], -1)
        act = CountingActor.act
        aim = {"box": act("box", m + 1), "bits": act("multibinary", m + 2)}
        return {"move": act("discrete", m), "aim": aim, "gears": act("multidiscrete", m + 3)}
