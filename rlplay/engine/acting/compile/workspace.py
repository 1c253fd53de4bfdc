"""Memory at fixed addresses that the compiled steps of one group use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .... import nested
from ....nested import Nested
from ...core import BaseActorModule, State
from ..actor_spec import ActorSpec
from ..weights import WeightStore, adds_fills_or_empties, replaced_weights, restore_stores
from .step_checks import FILLS_OR_EMPTIES, NoGraph

__all__ = ["Workspace"]


class Workspace:
    """The recurrent state of a group at fixed addresses, and memory for results that are not kept.

    Attributes
    ----------
    state : State of tensors, ``(1, b, ...)``
        An example row, to trace with.
    width : int
        ``b``, the number of environments in the group.
    hx, hx_leaves, hx_structure : nested tensors, list of their leaves, and their structure, ``(L, b, ...)``
        The recurrent state, which compiled steps advance.
    virtual_hx_leaves : list of tensors, ``(L, b, ...)``
        A copy of the recurrent state, which virtual steps advance.
    acts, infos, rows : lists of tensors, ``(1, b, ...)``
        Memory for the leaves of an action, for those of an info, and both together.
    """

    def __init__(self, state: State, hx: Nested, infos: list[Tensor]) -> None:
        self.state, self.width = state, state.fin.shape[1]
        self.hx = nested.map(lambda x: x.clone(memory_format=torch.contiguous_format), hx)
        self.hx_leaves, self.hx_structure = nested.flatten(self.hx)
        self.virtual_hx_leaves = [x.clone() for x in self.hx_leaves]
        self.acts, self.infos = [torch.empty_like(x) for x in nested.leaves(state.act)], infos
        self.rows = self.acts + self.infos

    @property
    def inputs(self) -> list[Tensor]:
        """The inputs of a step, in order: leaves of the state, of the recurrent state, and rows for the answer."""
        return [*nested.leaves(self.state), *self.hx_leaves, *self.rows]

    def split_inputs(self, inputs: Sequence[Tensor]) -> tuple[State, list[Tensor], list[Tensor]]:
        """Split inputs in the order of :attr:`inputs` into state, leaves of the recurrent state, and rows."""
        found, spec = nested.flatten(self.state)
        n, m = len(found), len(found) + len(self.hx_leaves)
        return spec.unflatten(inputs[:n]), list(inputs[n:m]), list(inputs[m:])  # type: ignore[return-value]

    def step(
        self, twin: BaseActorModule, spec: ActorSpec, stores: Sequence[WeightStore], virtual: bool, *inputs: Tensor
    ) -> None:
        """Run a step of an actor; write answers, recurrent state and changed buffers in place.

        The recurrent state that a virtual step returns may have any structure, since it is ignored. It is written if it
        has that of real steps, so that both kinds of step may have the same graph. ``stores`` are those of the actor's
        weights. Raises :class:`NoGraph` if the step cannot be written in place.
        """
        state, hx, rows = self.split_inputs(inputs)
        act, new_hx, info = twin.step(*state, hx=self.hx_structure.unflatten(hx), virtual=virtual)
        if virtual and nested.structure(new_hx) != self.hx_structure:
            new_hx = hx
        values: list[Any] = [*spec.leaves(act, info), *nested.leaves(new_hx)]
        replaced: list[Any] = replaced_weights(stores)
        if adds_fills_or_empties(twin, stores, replaced):
            raise NoGraph(FILLS_OR_EMPTIES)
        restore_stores(stores)
        targets = [*rows, *hx]
        pairs = [*zip(targets, values, strict=False), *replaced]
        forms = [(x.shape, dtype) for x, dtype in zip(rows, spec.dtypes, strict=True)]
        forms += [(target.shape, target.dtype) for target, _ in pairs[len(rows) :]]
        if len(values) != len(targets) or forms != [(value.shape, value.dtype) for _, value in pairs]:
            raise NoGraph("what it answers, remembers or keeps in buffers changes its shape or dtype")
        values = [value.clone() for _, value in pairs]  # a value may be a view of another pair's target
        for (target, _), value in zip(pairs, values, strict=True):
            target.copy_(value)
