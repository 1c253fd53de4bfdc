"""A step on fixed memory, which is what is captured, and trial runs of it on copies of the actor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any

import torch

from .... import nested
from ...core import BaseActorModule, State
from ...memory.slot import RowCopies
from ..actor_spec import ActorSpec, Form
from ..noise import BlockNoise
from ..weights import WeightStore, addresses, adds_fills_or_empties, replaced_weights, restore_stores, weight_stores
from .attribute_reads import Operations, check_same_operations
from .capture_memory import CaptureMemory, copy_at_once
from .step_checks import (
    FILLS_OR_EMPTIES,
    Modes,
    NoGraph,
    OperationCheck,
    check_changes_only_buffers,
    check_reset,
    set_modes,
)

__all__ = ["CapturedSteps", "StepTrials", "make_step"]

CapturedSteps = dict[tuple[int, bool, RowCopies], Callable[[], None]]
"""Captured steps, to be called inside of ``lane.launch``: by the number of the group, whether the step is virtual, and
what it copies between host and device. The virtual ones may be missing."""


def make_step(
    spec: ActorSpec,
    module: BaseActorModule,
    stores: Sequence[WeightStore],
    memory: CaptureMemory,
    state: State,
    noise: BlockNoise,
    *,
    virtual: bool,
) -> dict[Form, int]:
    """React to the row at the index, write answers, recurrent state and buffers, and move the indices on.

    Parameters
    ----------
    stores : sequence of WeightStore
        Those of the module's weights, before the step.
    state : State
        A copy of that row.
    noise : BlockNoise
        The module's generator.
    virtual : bool
        Whether the action and the recurrent state are not written.

    Returns
    -------
    dict
        How many rows of noise of each form were taken.

    Raises
    ------
    NoGraph
        If the answer does not fit the memory.
    """
    before = addresses(stores)
    hx = nested.map(torch.clone, memory.hx) if virtual else memory.hx  # the actor may change it in place
    hx = module.reset(hx, state.fin[0]) if spec.recurrent else hx
    try:
        with noise.by_index() as taken:
            act, new_hx, info = module.step(*state, hx=hx, virtual=virtual)
    finally:
        replaced: list[Any] = replaced_weights(stores)
        fills_or_empties = adds_fills_or_empties(module, stores, replaced)
        restore_stores(stores)
    if addresses(stores) != before:
        raise NoGraph("it gives a parameter or a buffer other memory, as by `.data =`")
    if fills_or_empties:
        raise NoGraph(FILLS_OR_EMPTIES)
    new_hx = memory.hx if virtual else new_hx  # the recurrent state that a virtual step returns is ignored
    answer: list[Any] = spec.leaves(act, info)
    acts, infos = answer[: spec.n_acts], answer[spec.n_acts :]
    hx_pairs = zip(memory.hx_leaves, nested.leaves(new_hx), strict=False)  # the structures are compared below
    pairs = [*zip(memory.acts, acts, strict=True), *hx_pairs, *replaced]
    if (
        nested.structure(new_hx) != nested.structure(memory.hx)
        or [x.dtype for x in answer] != spec.dtypes
        or [x.shape for x in infos] != [x[:1].shape for x in memory.infos]
        or [x.shape for x, _ in pairs] != [x.shape for _, x in pairs]
        or [x.dtype for x, _ in pairs[len(acts) :]] != [x.dtype for _, x in pairs[len(acts) :]]
    ):
        raise NoGraph("what it answers, remembers or keeps in buffers changes its form")
    for rows, value in zip(memory.infos, infos, strict=True):
        rows.index_copy_(0, memory.index, value.to(rows.dtype))
    copy_at_once(replaced if virtual else pairs)
    indices = [memory.index, *(noise.block(form).index for form in taken)]
    torch._foreach_add_(indices, [1, *taken.values()])
    return taken


class StepTrials:
    """Trial runs of the step, on copies of the actor. They tell whether it can be captured, and what it draws.

    Attributes
    ----------
    draws : bool
        Whether a trial has drawn from the actor's generator otherwise than out of a block of noise.
    """

    def __init__(self, spec: ActorSpec, memory: Sequence[CaptureMemory]) -> None:
        """Take memory to step on: one for each width of a group."""
        self._spec, self._memory = spec, memory
        # by modes, width of the group, and whether the step is virtual
        self._taken: dict[tuple[Modes, int, bool], dict[Form, int]] = {}
        self._kinds: dict[Modes, list[bool]] = {}
        self.draws = False

    def kinds(self, modes: Modes) -> list[bool]:
        """Return which kinds of step can be captured in these modes: real ones (False), and virtual ones (True).

        A virtual step that cannot be captured runs eagerly: there is one in a fragment.
        """
        return self._kinds.get(modes, [])

    def taken(self, modes: Modes, width: int, *, virtual: bool) -> dict[Form, int]:
        """Return how many rows of noise of each form a step takes, in these modes and with this width of a group."""
        return self._taken[modes, width, virtual]

    def check(self, twin: BaseActorModule, noise: BlockNoise, modes: Modes) -> None:
        """Check whether a captured step would do in these modes what the eager one does.

        Raises
        ------
        NoGraph
            If it would not.
        """
        set_modes(twin, modes)
        self._check(twin, noise, modes, virtual=False)
        self._kinds[modes] = [False]
        with suppress(Exception):
            self._check(twin, noise, modes, virtual=True)
            self._kinds[modes] = [False, True]

    def _check(self, twin: BaseActorModule, noise: BlockNoise, modes: Modes, *, virtual: bool) -> None:
        stores = weight_stores(twin)
        for memory in self._memory:
            noise.manual_seed(0)  # what the first step takes is not known before, so it needs whole blocks
            self._taken[modes, memory.width, virtual] = {}
            step = partial(self._step, twin, stores, memory, noise, modes, virtual)
            check_changes_only_buffers(twin, step)
            if self._spec.recurrent:
                if not self._spec.resets_by_mask:
                    raise NoGraph("its `reset` does not honour a mask")
                check_reset(twin, memory.hx, noise)
            step(check := OperationCheck(noise))
            self.draws = self.draws or bool(check.drawn)
            check_same_operations(step)

    def operations(self, twin: BaseActorModule, noise: BlockNoise, modes: Modes) -> list[str]:
        """Return what steps do in these modes, as a list of their operations."""
        set_modes(twin, modes)
        stores, operations = weight_stores(twin), Operations()
        for memory in self._memory:
            for virtual in self.kinds(modes):
                self._step(twin, stores, memory, noise, modes, virtual, operations)
        return operations.listed

    def _step(
        self,
        twin: BaseActorModule,
        stores: Sequence[WeightStore],
        memory: CaptureMemory,
        noise: BlockNoise,
        modes: Modes,
        virtual: bool,
        watch: AbstractContextManager[Any] | None = None,
    ) -> None:
        """Let the copy react to the first row, inside ``with watch``; note what it takes."""
        at = modes, memory.width, virtual
        noise.prepare(self._taken[at])
        memory.index.zero_()
        with watch or nullcontext():
            taken = make_step(self._spec, twin, stores, memory, memory.row(), noise, virtual=virtual)
        noise.advance(taken)
        self._taken[at] = taken
