"""The behaviour copy whose step is captured: ``compile=True`` where the actor runs on a device.

The operations of a step are captured as a CUDA graph, if possible with the upload of its row and the download of its
actions. One launch then runs them all: take the row at an index in device memory, reset the recurrent state where an
episode has just begun, run the actor, write its answers into their rows, and increment the index. Noise for sampling is
read by an index of its own, out of a block that was drawn ahead. The virtual step that ends a fragment is captured too,
if possible; those that react to true last observations run eagerly. The numbers are those of eager steps, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import cast

import torch
from torch import Tensor

from .... import nested
from ....nested import Nested
from ....process_state import global_generator_kept
from ...core import BaseActorModule, State
from ...memory.lane import Lane, Place
from ...memory.slot import NO_COPIES, GroupBlocks, RowCopies
from ..behaviour import Behaviour, Snapshot
from ..copying.copy_actor import copy_actor
from ..group import Group
from ..noise import BlockNoise
from ..plain_attributes import NO_CHANGES, PlainChanges
from ..weights import adds_fills_or_empties, replaced_weights, restore_stores
from .attribute_reads import Alterations
from .capture_memory import CaptureMemory, copy_at_once
from .captured_step import CapturedSteps, StepTrials, make_step
from .environment_steps import EnvironmentSteps
from .step_checks import Modes, NoGraph, Remembers, describe_error, eager_warning, no_foreign_draws, set_modes

__all__ = ["CapturedBehaviour"]


class CapturedBehaviour(Behaviour):
    """A behaviour copy that captures its step before it takes the first one, or warns and steps eagerly.

    ``probe`` checks whether the step can be captured. The checks run on a copy of the module with another generator, so
    that they change nothing. ``bind_rows`` captures the step, in the collector's thread.
    """

    def __init__(self, actor: BaseActorModule, lane: Lane, *, snapshot_in_place: bool = False) -> None:
        """Copy the actor."""
        super().__init__(actor, lane, snapshot_in_place=snapshot_in_place)
        self._probed = False  # once True, warnings are given with the next fragment rather than at the call
        self._reported: set[str] = set()  # reasons for stepping eagerly
        self._trials = StepTrials(self.spec, [])
        self._memory: dict[int, CaptureMemory] = {}  # by the number of the group
        self._checked_modes: list[Modes] = []
        self._refusals: dict[Modes, str] = {}  # why the step runs eagerly in these modes
        self._remembers = ""  # if the step changes attributes in one of the modes: why it runs eagerly in all
        self._captured_steps: dict[Modes, CapturedSteps] = {}
        self._active_steps: CapturedSteps = {}  # empty while the step is eager
        self._environment_steps = EnvironmentSteps()
        self._plain = NO_CHANGES  # of the snapshot that is in use
        self._alterations = Alterations()
        self._may_be_replaced = False  # True if an eager step may have replaced buffers since they were put back

    @property
    def _present_modes(self) -> Modes:
        return tuple(module.training for module in self._modules.values())

    def probe(self, groups: Sequence[Group], inputs: Sequence[GroupBlocks], act: Nested) -> tuple[Nested, Nested]:
        """Run the actor on the first row, as the base class does, and check whether its step can be captured."""
        info, hx = super().probe(groups, inputs, act)
        memory = []  # for trials: one for each width of a group
        for group, first in {group.width: (group, first) for group, first in zip(groups, inputs, strict=True)}.values():
            infos = [self._allocate((1, group.width, *x.shape), x.dtype) for x in nested.leaves(info)]
            acts = [torch.empty_like(x) for x in nested.leaves(first.state.act)]
            memory.append(CaptureMemory(first, acts, infos, group.hx, self._allocate))
        self._trials = StepTrials(self.spec, memory)
        self._checked_modes, self._refusals = [], {}  # probed again if the torch context changes before the first ask
        n = len(self._modules)
        with global_generator_kept(self._lane.actor_device):
            for modes in dict.fromkeys([self._present_modes, (True,) * n, (False,) * n]):
                self._check_step(modes)
        if self._remembers:
            self._refusals = dict.fromkeys(self._checked_modes, self._remembers)
        for modes, why in self._refusals.items():
            self._report(modes, why)
        self._probed = True
        return info, hx

    def offer_environment_step(
        self, group: Group, work: Callable[[Tensor], None], generators: Sequence[torch.Generator]
    ) -> None:
        """Capture this work behind the real step of a group, in the same graph. To be called before ``bind_rows``."""
        self._environment_steps.add(group.number, work, generators)

    def takes_environment(self, group: Group) -> bool:
        """Whether a step of its environment is captured behind that of the group."""
        return group.number in self._environment_steps

    def copies_rows(self, group: Group) -> bool:
        """Whether there are captured steps, and the group has host rows of its own."""
        return bool(self._captured_steps) and self._memory[group.number].has_host_rows

    def captured_step(self, group: Group, *, virtual: bool, copies: RowCopies = NO_COPIES) -> Callable[[], None] | None:
        """Return the captured step of the group, with its buffers in their places. None if it is to run eagerly."""
        step = self._active_steps.get((group.number, virtual, copies))
        return step if step is not None and (not self._may_be_replaced or self._return_buffers()) else None

    def bind_rows(
        self, groups: Sequence[Group], inputs: Sequence[GroupBlocks], answers: Sequence[list[Tensor]], info: Nested
    ) -> None:
        """Capture the step of each group in all modes that passed the checks. If one capture fails, use none."""
        lane = self._lane
        lane.host_wait(lane.record())  # weights, modes and the first rows have arrived
        present = self._present_modes
        if present not in self._checked_modes:
            self._check_step(present)
            if present in self._refusals:
                self._report(present, self._refusals[present])
        for group, rows, answer in zip(groups, inputs, answers, strict=True):
            infos = [leaf[:, group.columns] for leaf in nested.leaves(info)]
            acts, allocate = answer[: self.spec.n_acts], partial(lane.empty, Place.ACTOR)
            self._memory[group.number] = CaptureMemory(rows, acts, infos, group.hx, allocate)
        passed = [modes for modes in self._checked_modes if modes not in self._refusals]
        try:
            self._warm_up(passed)
            self._capture_all(groups, passed)
        except Exception as error:
            self._refuse_all_modes(f"capturing it failed with {describe_error(error)}", present)
        finally:
            set_modes(self._module, present)
        self._alterations.begin(self._captured_steps, self._plain)
        self._active_steps = self._captured_steps.get(present, {})

    def _capture_all(self, groups: Sequence[Group], wanted: Sequence[Modes]) -> None:
        """Capture the steps in these modes, each with the step of its environment, or if that fails without."""
        try:
            for modes in wanted:
                set_modes(self._module, modes)
                steps = self._captured_steps[modes] = {}
                for group, virtual in product(groups, self._trials.kinds(modes)):
                    steps |= self._capture(group, modes, virtual=virtual)
        except Exception as error:
            if not self._environment_steps:
                raise
            warning = self._environment_steps.drop(error)
            self._capture_all(groups, wanted)
            self._pending_warning = self._pending_warning or warning

    def adopt(self, snapshot: Snapshot) -> None:
        """Use these weights and modes from now on, and the step that was captured in these modes if there is one."""
        super().adopt(snapshot)
        modes = tuple(snapshot.modes)
        if self._captured_steps and modes not in self._captured_steps and modes not in self._refusals:
            self._refusals[modes] = "it is captured at the first fragment, and its modules were in no such modes then"
            self._report(modes, self._refusals[modes])
        before, self._plain = self._plain, snapshot.plain
        altered = modes in self._captured_steps and self._is_altered(modes, before)
        self._lane.launch(partial(self._activate, {} if altered else self._captured_steps.get(modes, {})))

    def _activate(self, steps: CapturedSteps) -> None:
        """Take these steps from now on."""
        self._active_steps = steps

    def _is_altered(self, modes: Modes, before: PlainChanges) -> bool:
        """Return whether plain attributes have changed so that the captured step is not what the step does now."""
        alterations, plain = self._alterations, self._plain
        if alterations.known(modes, plain) is None:
            self._lane.host_wait(self._lane.record())  # weights and attributes have arrived
            twin, noise = self._copy_module()
            operations = partial(self._trials.operations, twin, noise, modes)
            warning = alterations.judge(twin, modes, plain, before, operations)
            self._pending_warning = self._pending_warning or warning
        return bool(alterations.known(modes, plain))

    def start_fragment(self, group: Group, fin: Tensor, begun: Sequence[int]) -> list[Tensor]:
        """Reset the group's recurrent state where an episode has just begun, and return its leaves."""
        leaves = super().start_fragment(group, fin, begun)
        if self._active_steps:
            self._move_hx(group)
            self._memory[group.number].index.zero_()
        return leaves

    def copy_recurrent_state(self, group: Group) -> None:
        """Copy the group's recurrent state into memory that the actor does not write to."""
        if self._active_steps:
            self._move_hx(group)
        else:
            super().copy_recurrent_state(group)

    def react(self, group: Group, state: State, *, begun: Sequence[int], virtual: bool) -> list[Tensor]:
        """React to one row, eagerly."""
        self._may_be_replaced = True
        return super().react(group, state, begun=begun, virtual=virtual)

    def react_into(
        self, group: Group, state: State, rows: list[Tensor], *, begun: Sequence[int], virtual: bool
    ) -> None:
        """React to one row and write the answer into ``rows``. Captured steps take the rows in order, from row 0 on."""
        step = self.captured_step(group, virtual=virtual)
        if step is None:
            super().react_into(group, state, rows, begun=begun, virtual=virtual)
        else:
            step()

    def _return_buffers(self) -> bool:
        """Copy tensors that eager steps have assigned to buffers to the addresses of captured steps.

        Returns
        -------
        bool
            False if that is impossible, since a buffer has been added, filled or emptied. All steps are eager then.
        """
        replaced = replaced_weights(self._stores)
        if adds_fills_or_empties(self._module, self._stores, replaced):
            why = "a step that ran eagerly has added or filled a buffer, or emptied one"
            self._refuse_all_modes(why, self._present_modes)
            return False
        if replaced:
            restore_stores(self._stores)
            copy_at_once(replaced)  # type: ignore[arg-type]
        self._may_be_replaced = False
        return True

    def _move_hx(self, group: Group) -> None:
        """Copy the group's recurrent state to the addresses of its captured steps, unless it is there already."""
        memory = self._memory[group.number]
        if group.hx is not memory.hx:
            copy_at_once(list(zip(memory.hx_leaves, nested.leaves(group.hx), strict=True)))
            group.hx = memory.hx

    def _allocate(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, device=self._lane.actor_device)

    def _copy_module(self) -> tuple[BaseActorModule, BlockNoise]:
        """Copy the module, with a generator of its own; ``to`` makes the weights of recurrent layers contiguous."""
        noise = BlockNoise(self._lane.actor_device)
        noise.manual_seed(0)
        return copy_actor(self._module, self._lane.actor_device, {id(self._drawn_from): noise}).module, noise

    def _check_step(self, modes: Modes) -> None:
        """Check whether a captured step would do in these modes what the eager one does; note why not."""
        self._checked_modes.append(modes)
        try:
            with no_foreign_draws():
                self._trials.check(*self._copy_module(), modes)
        except NoGraph as error:
            self._refusals[modes] = str(error)
            self._remembers = self._remembers or (str(error) if isinstance(error, Remembers) else "")
        except Exception as error:
            self._refusals[modes] = f"trying it out failed with {describe_error(error)}"

    def _warm_up(self, wanted: Sequence[Modes]) -> None:
        """Step a copy in this thread, so that libraries initialise themselves and choose kernels before the capture."""
        twin, noise = self._copy_module()
        for modes in wanted:
            for _ in range(2):
                self._alterations.operations[modes] = self._trials.operations(twin, noise, modes)
        self._lane.host_wait(self._lane.record())

    def _capture(self, group: Group, modes: Modes, *, virtual: bool) -> CapturedSteps:
        """Capture the group's step in these modes, once for each combination of copies."""
        number, memory, lane = group.number, self._memory[group.number], self._lane
        noise = cast(BlockNoise, group.virtual_generator if virtual else group.generator)
        taken = self._trials.taken(modes, group.width, virtual=virtual)
        self._draw_from(noise)
        noise.prepare(taken)  # graphs read its blocks, which must be there before

        def work(copies: RowCopies) -> None:
            state = memory.uploaded_row(lane, copies)
            if make_step(self.spec, self._module, self._stores, memory, state, noise, virtual=virtual) != taken:
                raise NoGraph("it does not draw alike each time")
            if not virtual:
                self._environment_steps.run(number, memory.index)
            memory.download_action(lane, copies)

        generators: list[torch.Generator] = [noise] if self._trials.draws else []
        generators += [] if virtual else self._environment_steps.generators(number)
        return {
            (number, virtual, copies): noise.around(lane.capture(partial(work, copies), generators, number), taken)
            for copies in memory.copies(virtual=virtual)
        }

    def _refuse_all_modes(self, why: str, present: Modes) -> None:
        """Step eagerly from now on, whatever the modes."""
        self._captured_steps, self._active_steps = {}, {}
        self._refusals = dict.fromkeys(self._checked_modes, why)
        self._report(present, why)

    def _report(self, modes: Modes, why: str) -> None:
        """Warn once for each reason that the step runs eagerly: at the call, or later with the next fragment."""
        if why in self._reported:
            return
        self._reported.add(why)
        warning = eager_warning(modes, why, always=self._refusals.keys() >= set(self._checked_modes))
        if self._probed:
            self._pending_warning = self._pending_warning or warning
        else:
            self.eager_because = self.eager_because or warning
