"""A replay buffer of whole episodes that replaces goals by what was achieved later (hindsight experience replay)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import nested
from ..dtypes import as_movable, move
from ..engine import Fragment, State
from ..nested import Nested
from .batches import Batch
from .buffer import check_count, check_fraction
from .sumtree import SumTree

__all__ = ["Hindsight"]


class Hindsight:
    """Stores whole episodes, and samples transitions in which the goal is one that the episode has achieved later.

    Observations are dicts with ``"achieved_goal"`` and ``"desired_goal"``, of one shape and dtype, beside others, as
    those of gym's goal environments. Of the sampled transitions a fraction gets a new ``"desired_goal"``: the
    ``"achieved_goal"`` of a later row of the same episode, drawn uniformly (the strategy "future"). Reward and
    termination of these are computed anew; the others keep theirs.

    Parameters
    ----------
    capacity : int >= 1
        In rows. An episode of ``T`` steps has ``1 + T`` rows. The oldest rows are overwritten, also in the middle of an
        episode: the rest of the episode can still be sampled.
    outcome : function
        ``outcome(achieved, desired) -> (rew, terminated)``: given the goals achieved after the transition and the goals
        desired, nested ``(N, ...)``, it returns the rewards, float ``(N,)``, and whether the episode then terminates,
        bool ``(N,)``.
    fraction : float in [0, 1]
        The fraction of the transitions that get a new goal. The paper has 0.8 (``k = 4``).
    device : torch.device or str, optional
        The device of the rows and of the samples; None: the device of the first episode.

    Notes
    -----
    Andrychowicz et al. (2017), "Hindsight Experience Replay", algorithm 1 and section 4.5. Here goals are drawn when
    transitions are sampled, so that each sample has another one.
    """

    def __init__(
        self,
        capacity: int,
        *,
        outcome: Callable[[Nested, Nested], tuple[Tensor, Tensor]],
        fraction: float = 0.8,
        device: torch.device | str | None = None,
    ) -> None:
        check_count("capacity", capacity)
        check_fraction("fraction", fraction)
        self.capacity, self._outcome, self._fraction = int(capacity), outcome, fraction
        self._device = None if device is None else torch.device(device)
        self._rows: Any = None  # made of the first episode: State, terminated, and the number of the episode's last row
        self._n_rows = 0

    def __len__(self) -> int:
        """The number of rows held."""
        return min(self._n_rows, self.capacity)

    @torch.inference_mode(False)  # what is kept must not be an inference tensor
    @torch.no_grad()
    def commit(self, episode: Fragment) -> None:
        """Copy a whole episode into the buffer, over the oldest rows if the buffer is full.

        Parameters
        ----------
        episode : Fragment
            With ``B = 1``, as :func:`rlplay.engine.rollout.episodic.rollout` returns them: row ``T`` holds the true
            last observation, and only the last transition ends the episode.

        Raises
        ------
        TypeError
            Observations are no dicts with ``"achieved_goal"`` and ``"desired_goal"``.
        ValueError
            The fragment is not one whole episode, it has more rows than the buffer, its achieved and desired goals are
            not alike, or its structure differs from that of the first one. The buffer is unchanged.
        """
        self._check(episode)
        n_rows = len(episode.state.fin)
        if self._rows is None:
            device = episode.state.fin.device if self._device is None else self._device
            new = partial(torch.zeros, device=device)
            state = nested.map(lambda x: new((self.capacity, *x.shape[2:]), dtype=x.dtype), episode.state)
            self._rows = state, new(self.capacity, dtype=torch.bool), new(self.capacity, dtype=torch.int64)
            self._tree = SumTree(self.capacity, device)
        state, terminated, last = self._rows

        numbers = torch.arange(self._n_rows, self._n_rows + n_rows, device=last.device)
        at = numbers % self.capacity
        for ring, rows in zip(nested.leaves(state), nested.leaves(episode.state), strict=True):
            as_movable(ring)[at] = as_movable(rows[:, 0].to(ring.device))
        terminated[at[:-1]] = episode.env.terminated[:, 0].to(last.device)
        last[at] = numbers[-1]
        self._tree.set(at, (numbers < numbers[-1]).double())  # no transition starts from the last row
        self._n_rows += n_rows

    def sample(self, n: int, *, gamma: float, generator: torch.Generator | None = None) -> Batch:
        """Draw ``n`` transitions of one step, uniformly. The host does not wait for the device.

        Parameters
        ----------
        n : int >= 1
            The number of transitions.
        gamma : float in [0, 1]
            The discount.
        generator : torch.Generator, optional
            On the buffer's device. ``None``: torch's global one.

        Returns
        -------
        Batch
            ``ids`` are the numbers of rows, counted from the first row ever stored. All weights are 1.

        Raises
        ------
        RuntimeError
            Nothing has been committed.
        ValueError
            ``outcome`` returns tensors of another shape, or flags that are no bools.
        """
        check_count("n", n)
        check_fraction("gamma", gamma)
        if self._rows is None:
            raise RuntimeError("There is nothing to sample: the buffer is empty; `commit` an episode first.")
        rows, terminated_rows, last = self._rows
        device = last.device
        jitter, ahead, luck = torch.rand(3, n, dtype=torch.float64, device=device, generator=generator)
        at = self._tree.find((torch.arange(n, device=device) + jitter) * (self._tree.total / n))
        newest = self._n_rows - 1
        number = newest - (newest - at) % self.capacity

        state, following = self._gather(rows, number), self._gather(rows, number + 1)
        later = number + 1 + (ahead * (last[at] - number)).long()
        relabelled = luck < self._fraction
        goal = self._gather(rows.obs["achieved_goal"], later)
        goal = nested.map(partial(_where, relabelled), goal, state.obs["desired_goal"])
        rew, terminated = self._outcome(following.obs["achieved_goal"], goal)
        if rew.shape != (n,) or terminated.shape != (n,) or terminated.dtype != torch.bool:
            raise ValueError(
                f"`outcome` must return two tensors ({n},), got {tuple(rew.shape)} and {tuple(terminated.shape)}: one "
                f"reward and one flag, a bool, for each pair of goals; got {rew.dtype} and {terminated.dtype}."
            )
        rew = torch.where(relabelled, rew.to(following.rew.dtype), following.rew)
        terminated = torch.where(relabelled, terminated, terminated_rows[at])

        states = [x._replace(obs={**x.obs, "desired_goal": goal}) for x in (state, following)]
        states[1] = states[1]._replace(fin=torch.zeros_like(following.fin))
        state, reached = nested.map(lambda x: x[None], tuple(states))
        return Batch(
            state=state,
            act=nested.map(lambda x: x[None], following.act),
            rew=rew[None],
            discount=torch.full((1, n), gamma, dtype=torch.float32, device=device).masked_fill(terminated, 0),
            next=reached._replace(rew=rew[None]),
            ids=number,
            weight=torch.ones(n, dtype=torch.float32, device=device),
        )

    def _gather(self, rows: Nested, numbers: Tensor) -> Nested:
        """Return the rows with these numbers, ``(N, ...)``."""
        return nested.map(partial(move, lambda x: x.index_select(0, numbers % self.capacity)), rows)

    def _check(self, episode: Fragment) -> None:
        """Raise unless this is a whole episode that fits the buffer."""
        state, env = episode.state, episode.env
        ended = (env.terminated | env.truncated)[:, 0]
        if env.valid.shape[1] != 1 or not env.valid.all() or not ended[-1] or ended[:-1].any():
            raise ValueError(
                f"Only whole episodes are stored, fragments (T, 1) whose last transition alone is an end; got one of "
                f"{tuple(env.valid.shape)} with {int(ended.sum())} ends. Collect them with `episodic.rollout`."
            )
        if not isinstance(state.obs, dict) or not {"achieved_goal", "desired_goal"} <= state.obs.keys():
            got = sorted(state.obs) if isinstance(state.obs, dict) else type(state.obs).__name__
            raise TypeError(f"Observations must be dicts with 'achieved_goal' and 'desired_goal', got {got}.")
        achieved, desired = state.obs["achieved_goal"], state.obs["desired_goal"]
        kinds = [[(x.shape, x.dtype) for x in nested.leaves(goal)] for goal in (achieved, desired)]
        if nested.structure(achieved) != nested.structure(desired) or kinds[0] != kinds[1]:
            raise ValueError(
                f"'achieved_goal' and 'desired_goal' must have one structure, shape and dtype, since one replaces the "
                f"other; got {_describe(state, 2)}."
            )
        if len(state.fin) > self.capacity:
            raise ValueError(f"An episode of {len(state.fin)} rows has no room in a `capacity` of {self.capacity}.")
        if self._rows is None:
            return
        held: State = self._rows[0]
        alike = nested.structure(state) == nested.structure(held) and all(
            (x.shape[2:], x.dtype) == (y.shape[1:], y.dtype)
            for x, y in zip(nested.leaves(state), nested.leaves(held), strict=True)
        )
        if not alike:
            raise ValueError(
                f"All episodes must have the structure, shapes and dtypes of the first one, {_describe(held, 1)}; got "
                f"{_describe(state, 2)}."
            )


def _describe(state: State, n_lead: int) -> str:
    """Name the leaves of a state, with dtypes and shapes, for messages."""
    leaves = zip(nested.names(state, "state"), nested.leaves(state), strict=True)
    return ", ".join(f"{name} {x.dtype} {tuple(x.shape[n_lead:])}" for name, x in leaves)


def _where(mask: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return ``x`` where a mask ``(N,)`` is True, else ``y``; both ``(N, ...)``."""
    chosen: Tensor = move(lambda x, y: torch.where(mask.view(-1, *(1,) * (x.ndim - 1)), x, y), x, y)
    return chosen
