"""Groups of environments. The actor reacts to each group as one batch, with the group's own random generators."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from ... import nested
from ...nested import Nested
from ...sampling import Source
from ..memory.lane import Lane, Place
from .actor_spec import Form
from .noise import BlockNoise, seed_from
from .recurrent.form import RecurrentForm

__all__ = ["Group", "split"]


class Group:
    """A contiguous part of the environments, which the actor reacts to as one batch.

    Attributes
    ----------
    number : int
        The index of the group among those of its collector.
    columns : slice
        The group's environments, out of all environments of the collector.
    hx : nested tensors, ``(L, b, ...)``
        The recurrent state before the next step. It is not yet reset where an episode has just begun.
    answer_forms : list of Form
        The shapes and dtypes of the leaves of the actor's answers: the action, then the info.
    hx_form : RecurrentForm
        The form of the recurrent state.
    generator, virtual_generator : Source
        The random generators for actions, and for virtual steps, which draw noise ahead. On a device they draw it so
        that captured steps can use it, and eager ones use the same.
    """

    def __init__(self, index: int, columns: slice, seed: int, lane: Lane, *, key: int) -> None:
        """Create the generators, seeded from ``seed``, ``key`` and their use.

        The spawn keys of generators have two numbers and those of environments have one, so that they never coincide.

        Parameters
        ----------
        key : int
            The number of the group among those of all collectors.
        """
        kind: type[Source] = Source if lane.shared(Place.ACTOR, Place.HOST) else BlockNoise
        self.number, self.columns = index, columns
        self.hx: Nested = ()
        self.answer_forms: list[Form] = []
        self.hx_form = RecurrentForm(())
        self.generator, self.virtual_generator = (
            kind(lane.actor_device).manual_seed(seed_from(np.random.SeedSequence(seed, spawn_key=(key, use))))
            for use in (0, 1)
        )

    @property
    def width(self) -> int:
        """The number of environments in this group, ``b``."""
        return int(self.columns.stop - self.columns.start)

    def state_dict(self) -> dict[str, Any]:
        """Return the leaves of the recurrent state and the states of the generators, as tensors on the host."""
        return {
            "hx": [leaf.to("cpu", copy=True) for leaf in nested.leaves(self.hx)],
            "generator": self.generator.state_dict(),
            "virtual_generator": self.virtual_generator.state_dict(),
        }

    def load_generators(self, state: dict[str, Any]) -> None:
        """Let the generators continue from what :meth:`state_dict` returned."""
        self.generator.load_state_dict(state["generator"])
        self.virtual_generator.load_state_dict(state["virtual_generator"])

    def load_hx(self, state: dict[str, Any], lane: Lane) -> None:
        """Replace the first recurrent state by that of :meth:`state_dict`; on the current stream, after :meth:`start`.

        Raises
        ------
        ValueError
            The recurrent state has other shapes.
        """
        leaves, structure = nested.flatten(self.hx)
        saved = state["hx"]
        forms, others = ([tuple(leaf.shape) for leaf in some] for some in (saved, leaves))
        if forms != others:
            raise ValueError(
                f"the state is of another actor: its recurrent state had the shapes {forms}, and has {others}."
            )
        fresh = [_empty_like(leaf, lane) for leaf in saved]
        lane.copy(fresh, lane.steady(saved))
        self.hx = structure.unflatten(fresh)

    def start(self, hx: Nested, answer_forms: list[Form]) -> None:
        """Set the first recurrent state, and the shapes and dtypes that all later answers must have."""
        self.hx, self.answer_forms = hx, answer_forms
        self.hx_form = RecurrentForm(hx)


def _empty_like(leaf: Tensor, lane: Lane) -> Tensor:
    """Allocate memory for a tensor with its strides, if it has no gaps; the last bits of a product depend on these."""
    order = sorted(range(leaf.ndim), key=leaf.stride, reverse=True)
    fresh = lane.empty(Place.ACTOR, [leaf.shape[k] for k in order], leaf.dtype)
    return fresh.permute([order.index(k) for k in range(leaf.ndim)])


def split(n_envs: int, groups: int) -> list[slice]:
    """Split the environments into contiguous parts whose sizes differ by at most one; the larger ones come first."""
    edges = [int(part[0]) for part in np.array_split(np.arange(n_envs), groups)] + [n_envs]
    return [slice(start, stop) for start, stop in pairwise(edges)]
