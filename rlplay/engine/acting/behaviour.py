"""The behaviour copy of the actor: it acts in the environments while the learner changes the original.

The copy loads snapshots of the learner's weights, and advances the recurrent state of each group of environments.
This module must not import queues, threads or environments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import nested
from ...nested import Nested
from ...process_state import global_generator_kept
from ...sampling import Source
from ..core import BaseActorModule, State
from ..envs.spaces import along
from ..memory.lane import Lane, Place
from ..memory.layout import Leaf
from ..memory.slot import NO_COPIES, GroupBlocks, RowCopies
from .actor_spec import NOT_PROBED, ActorSpec, check_forms, check_unchanged, form_of, note_obs, versions_of
from .checks import check_answer, clamped_leaves, first_answer, method_of
from .copying.copied_actor import CopiedActor
from .copying.kept_inputs import copy_kept_inputs
from .fast_modules import fast_step, make_fast
from .group import Group
from .independence import keeps_nothing
from .recurrent.form import HX_IS_WRITTEN_TO
from .recurrent.reset import SLOW_RESET, honours_mask
from .snapshot import Snapshot
from .weights import restore_stores

__all__ = ["Behaviour", "Snapshot"]


class Behaviour(CopiedActor):
    """A copy of the actor, with weights and random generators of its own, on the actor's device. Its step is eager.

    Attributes
    ----------
    spec : ActorSpec
        The form of the actor's answers. :meth:`probe` replaces it.
    keeps_nothing : bool
        Whether steps leave the copy as it was (:mod:`.independence`). Then those of different groups may run side by
        side. False if there is one group, or if the actor is on the host, and once plain attributes have changed.
    eager_because : str
        A warning for the user: why a step that was to be compiled runs eagerly. Empty if there is none.
    """

    def __init__(self, actor: BaseActorModule, lane: Lane, *, snapshot_in_place: bool = False) -> None:
        """Copy the actor, as :class:`~rlplay.engine.acting.copying.copied_actor.CopiedActor` does."""
        super().__init__(actor, lane, snapshot_in_place=snapshot_in_place)
        self._actor_modules = [module for module in self._modules.values() if isinstance(module, BaseActorModule)]
        self.spec: ActorSpec = NOT_PROBED
        self._step: Callable[..., Any] = self._module.step
        self.eager_because = ""
        self._pending_warning = ""
        self._drawn_from: torch.Generator | None = None
        self._input_memory = set[int]()  # the addresses of the memory that the actor's inputs are in

    @property
    def warnings(self) -> list[str]:
        """What makes the actor slower than it could be, as warnings for the user. Complete after :meth:`probe`."""
        slow_reset = "" if self.spec.resets_by_mask else SLOW_RESET
        return [warning for warning in (slow_reset, self.eager_because) if warning]

    def take_pending_warning(self) -> str:
        """Return the warning that is due with the next fragment, or an empty string, and forget it."""
        warning, self._pending_warning = self._pending_warning, ""
        return warning

    def bind_rows(
        self, groups: Sequence[Group], inputs: Sequence[GroupBlocks], answers: Sequence[list[Tensor]], info: Nested
    ) -> None:
        """Prepare steps that read and write fixed memory; in the collector's thread, once, before the first step.

        Parameters
        ----------
        inputs : sequence of GroupBlocks, with ``1 + T`` rows
            For each group, the states that the actor reads in all fragments.
        answers : sequence of lists of tensors, ``(1, b, ...)``
            For each group, where the answer to row 0 is written: the action's leaves, then the info's.
        info : nested tensors, ``(1+T, B, ...)``
            The infos that the actor writes in all fragments.
        """

    def offer_environment_step(
        self, group: Group, work: Callable[[Tensor], None], generators: Sequence[torch.Generator]
    ) -> None:
        """Offer the step of an environment, to be captured behind that of a group; an eager step ignores it.

        Parameters
        ----------
        work : callable
            Takes an int64 tensor ``(1,)``: the index of the row that the environment is to write.
        generators : sequence of torch.Generator
            What the environment draws from.
        """

    def takes_environment(self, group: Group) -> bool:
        """Whether captured steps of the group take a step of its environment as well."""
        return False

    def copies_rows(self, group: Group) -> bool:
        """Whether captured steps of the group copy its rows between host and device as well."""
        return False

    def captured_step(self, group: Group, *, virtual: bool, copies: RowCopies = NO_COPIES) -> Callable[[], None] | None:
        """Return the next step of the group, with these copies, if it is a captured one. None if it is to run eagerly.

        Must be called inside of ``lane.launch``: the earlier work of the device decides whether the step is captured.
        """
        return None

    def start_fragment(self, group: Group, fin: Tensor, begun: Sequence[int]) -> list[Tensor]:
        """Reset the group's recurrent state where an episode has just begun at row 0, and return its leaves.

        Parameters
        ----------
        fin : bool tensor, ``(b,)``, on the actor's device
            Whether an episode has just begun, for each environment of the group.
        begun : sequence of int
            The same as indices, on the host.
        """
        self._draw_from(group.generator)
        self._input_memory.add(fin.untyped_storage().data_ptr())  # all leaves of all rows of a turn are in one storage
        if begun:
            group.hx = self._reset(group.hx, fin, begun)
        return group.hx_form.check(group.hx)

    def copy_recurrent_state(self, group: Group) -> None:
        """Copy the group's recurrent state into new memory; for the first group, also the inputs that the actor keeps.

        The actor may have returned, or keep in its attributes, a view of a row that the next fragment overwrites.
        """
        group.hx = nested.map(torch.clone, group.hx)
        if not group.number:
            copy_kept_inputs(self._modules.values(), self._input_memory)

    def react(self, group: Group, state: State, *, begun: Sequence[int], virtual: bool) -> list[Tensor]:
        """React to one row of one group, and return the answer. A virtual step leaves the recurrent state unchanged.

        Parameters
        ----------
        state : State of tensors, ``(1, b, ...)``, on the actor's device
        begun : sequence of int
            The environments of the group whose episode has just begun: their recurrent state is reset first.
        virtual : bool
            See :meth:`rlplay.engine.core.BaseActorModule.step`.

        Returns
        -------
        list of tensors, ``(1, b, ...)``
            The leaves of the answer: ``spec.n_acts`` of the action, then those of the info.

        Raises
        ------
        ValueError
            If shapes or dtypes have changed since :meth:`probe`, or if the actor writes to the recurrent state that it
            has returned earlier. For the recurrent state both are found out by the next virtual step, thus before the
            fragment is delivered.
        """
        generator = group.virtual_generator if virtual else group.generator
        if self._drawn_from is not generator:
            self._draw_from(generator)
        if virtual:
            group.hx_form.check(group.hx)
        hx = self._reset(group.hx, state.fin[0], begun) if begun else group.hx
        if virtual:
            hx = nested.map(torch.clone, hx)  # the actor may advance its recurrent state in place
            versions = versions_of(group.hx)
        try:
            act, new, info = self._step(*state, hx=hx, virtual=virtual)
        except Exception as error:
            note_obs(error, state.obs)
            raise
        if not virtual:
            group.hx = new
        elif versions_of(group.hx) != versions:
            raise ValueError(HX_IS_WRITTEN_TO)
        answer = self.spec.leaves(act, info)
        forms = list(map(form_of, answer))
        if forms != group.answer_forms:
            check_forms(group.answer_forms, forms)
        return answer

    def react_to_last(self, group: Group, state: State, *, begun: Sequence[int] = ()) -> list[Tensor]:
        """React virtually to true last observations, and return the answer, as :meth:`react` does.

        The actor gets a copy of ``state``, which it may keep: the next last observations are written into the same row.
        """
        return self.react(group, nested.map(torch.clone, state), begun=begun, virtual=True)

    def react_into(
        self, group: Group, state: State, rows: list[Tensor], *, begun: Sequence[int], virtual: bool
    ) -> None:
        """React to one row as :meth:`react` does, and write the answer into ``rows``.

        ``rows`` are for the leaves of the action, then of the info; if the step is virtual, of the info alone.
        """
        answer = self.react(group, state, begun=begun, virtual=virtual)
        if rows:
            torch._foreach_copy_(rows, answer[self.spec.n_acts :] if virtual else answer, non_blocking=True)

    def _draw_from(self, generator: torch.Generator) -> None:
        self._drawn_from = generator
        for module in self._actor_modules:
            module.__dict__["generator"] = generator  # the same as an assignment, without torch's overhead

    def _reset(self, hx: Nested, fin: Tensor, begun: Sequence[int]) -> Nested:
        if not self.spec.recurrent:
            return hx
        if self.spec.resets_by_mask:
            return self._module.reset(hx, fin)
        for at in begun:
            hx = self._module.reset(hx, at)
        return hx

    def probe(self, groups: Sequence[Group], inputs: Sequence[GroupBlocks], act: Nested) -> tuple[Nested, Nested]:
        """Run one virtual step of each group on the first row, to find the form of the actor's answers.

        Replaces :attr:`spec`, and gives each group its first recurrent state. Draws from no group's generators.

        Parameters
        ----------
        inputs : sequence of GroupBlocks, with one row
            For each group, the first row, on the actor's device.
        act : nested Field
            The fields of the action space.

        Returns
        -------
        info, hx : nested Leaf
            The leaves of the actor's info, and of its recurrent state: shapes are those of one environment.

        Raises
        ------
        TypeError, ValueError
            If an answer does not have the form that the contract requires.
        """
        make_fast(self._module)
        self._step = fast_step(self._module)
        device = self._lane.actor_device
        self._draw_from(Source(device).manual_seed(0))
        for group, first in zip(groups, inputs, strict=True):
            part = nested.map(torch.clone, first.state)
            with global_generator_kept(device):
                versions = versions_of(part)
                answer = first_answer(self._module, part)
                check_unchanged(part, versions)
                acted, hx, info = check_answer(answer, act, group.width, method_of(self._module))
                if group is groups[0]:
                    structure = nested.structure((along(act, acted, "act"), info))
                    leaves: list[Tensor] = structure.flatten_up_to((acted, info))  # type: ignore[assignment,arg-type]
                    self.spec = ActorSpec(
                        answer=structure,
                        n_acts=len(nested.leaves(act)),
                        dtypes=[leaf.dtype for leaf in leaves],
                        clamped=clamped_leaves(nested.leaves(act), leaves),
                        recurrent=bool(nested.leaves(hx)),
                        resets_by_mask=honours_mask(self._module, hx, group.width, device),
                    )
                everybody = torch.ones(group.width, dtype=torch.bool, device=device)
                hx = self._reset(hx, everybody, range(group.width))
            group.start(hx, list(map(form_of, self.spec.leaves(acted, info))))
        restore_stores(self._stores)  # trials on copies are to begin with them as they are at each snapshot
        if len(groups) > 1 and not self._lane.shared(Place.ACTOR, Place.HOST):
            first = nested.map(torch.clone, inputs[0].state)
            self.keeps_nothing = keeps_nothing(self._module, self._drawn_from, first, groups[0].hx, device)
        return (
            nested.map(lambda x: Leaf(tuple(x.shape[2:]), x.dtype), info),
            nested.map(lambda x: Leaf((x.shape[0], *x.shape[2:]), x.dtype), hx),
        )
