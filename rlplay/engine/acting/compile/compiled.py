"""The behaviour copy whose step is compiled: ``compile=True`` where the actor runs on the host.

The step is traced into a graph (:mod:`.graph`), which TorchInductor compiles to C++ (:mod:`.inductor`). It is called
without guards and without PyTorch's dispatcher, and writes its answers straight into their rows. A compiled step equals
the eager one up to rounding, and gives the very same numbers in every engine. The weights stay at their addresses.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .... import nested
from ....nested import Nested
from ....process_state import global_generator_kept
from ...core import BaseActorModule, State
from ...memory.lane import Lane
from ...memory.slot import GroupBlocks
from ..actor_spec import note_obs
from ..behaviour import Behaviour, Snapshot
from ..copying.copy_actor import copy_actor
from ..copying.copy_state import load_copy_state
from ..group import Group
from ..plain_attributes import NO_CHANGES, PlainChanges, apply_changes
from ..torch_context import TorchContext
from ..weights import restore_stores, weight_stores
from .attribute_reads import ReadWatch, Retraces, StepTable, advise_buffer, changed_since
from .draws import DrawsOutside, RecordedNoise, check_repeats
from .graph import StepGraph, TracedStep, make_graph
from .inductor import Program, copy_all
from .step_checks import (
    ArraysUnread,
    Modes,
    NoGraph,
    Remembers,
    ValuesUnread,
    describe_error,
    eager_warning,
    no_foreign_draws,
    set_modes,
)
from .workspace import Workspace

__all__ = ["CompiledBehaviour"]


class CompiledBehaviour(Behaviour):
    """A behaviour copy that compiles its step when it is probed, or warns and steps eagerly."""

    def __init__(self, actor: BaseActorModule, lane: Lane, *, snapshot_in_place: bool = False) -> None:
        """Copy the actor twice: the second copy is for tracing."""
        super().__init__(actor, lane, snapshot_in_place=snapshot_in_place)
        parameters = [weight.detach() for weight in self._module.parameters()]
        self._weights_by_kind = {"parameter": parameters, "buffer": list(self._module.buffers())}
        self._twin = copy_actor(self._module, lane.actor_device).module
        self._twin_stores = weight_stores(self._twin)
        self._torch_context = TorchContext.here(lane.actor_device)  # of the latest probe
        self._probed = False  # once True, a warning is given at once rather than at the call
        self._workspaces: dict[int, Workspace] = {}  # by the number of the group
        # If snapshots are published in this process, only the publishing thread writes these; the collector's reads.
        self._steps = StepTable[TracedStep]()
        self._programs: dict[str, Program] = {}  # by the key of the graph
        self._watch, self._retraces = ReadWatch(), Retraces()
        self._latest: dict[Modes, tuple[TracedStep, PlainChanges]] = {}
        self._eager_for_ever = False
        self._active_programs: dict[tuple[int, bool], Program] = {}

    def probe(self, groups: Sequence[Group], inputs: Sequence[GroupBlocks], act: Nested) -> tuple[Nested, Nested]:
        """Run the actor on the first row, as the base class does, and compile its step."""
        info, hx = super().probe(groups, inputs, act)
        self._torch_context = TorchContext.here(self._lane.actor_device)
        # probed again if the torch context has changed between the call and the first ask
        self._steps = StepTable()
        for results in (self._workspaces, self._programs, self._active_programs):
            results.clear()
        for group, first in zip(groups, inputs, strict=True):
            part = nested.map(torch.clone, first.state)
            rows = [torch.empty((1, group.width, *x.shape), dtype=x.dtype, device="cpu") for x in nested.leaves(info)]
            self._workspaces[group.number] = Workspace(part, group.hx, rows)
        present = tuple(module.training for module in self._modules.values())
        try:
            with no_foreign_draws():
                for modes in dict.fromkeys([present, (True,) * len(present), (False,) * len(present)]):
                    self._steps.put(modes, NO_CHANGES, None, self._try_to_trace(modes))
        except NoGraph as error:
            self._steps.replace_all(TracedStep({}, str(error)))
        remembering = next((step for _, step in self._steps if step.remembers), None)
        if remembering is not None:
            self._steps.replace_all(remembering)
        self._compile_in(present, NO_CHANGES)
        self._probed = True
        return info, hx

    def adopt(self, snapshot: Snapshot) -> None:
        """Use these weights and modes from now on."""
        super().adopt(snapshot)
        self._lane.launch(partial(self._activate, tuple(snapshot.modes), snapshot.plain))

    def publish(self, actor: BaseActorModule) -> Snapshot:
        """Take a snapshot of the learner's weights, and compile the step if it has changed, which takes seconds.

        The step has changed if the modes are new, or if a plain attribute that the step reads has another value.

        Compiling happens here, in the learner's thread, since the compiler saves and restores the global generator.
        """
        return self._compiled_for(super().publish(actor))

    def unpack_snapshot(self, state: Mapping[str, Any]) -> Snapshot:
        """Return a snapshot that was saved, and compile its step, as for a new one."""
        return self._compiled_for(super().unpack_snapshot(state))

    def _compiled_for(self, snapshot: Snapshot) -> Snapshot:
        with self._torch_context.applied():
            warning = self._compile_in(tuple(snapshot.modes), snapshot.plain)
        if warning:
            warnings.warn(warning, RuntimeWarning, stacklevel=3)
        return snapshot

    def load_state_dict(self, state: Mapping[str, Any], *, before_trial: bool = False) -> None:
        """Continue from a saved state; so does the second copy."""
        super().load_state_dict(state, before_trial=before_trial)
        load_copy_state(dict(self._twin.named_modules()), state, keep_others=before_trial)

    def start_fragment(self, group: Group, fin: Tensor, begun: Sequence[int]) -> list[Tensor]:
        """Reset the group's recurrent state where an episode has just begun, and return its leaves."""
        leaves = super().start_fragment(group, fin, begun)
        if self._active_programs:
            self._move_hx(group)
        return leaves

    def copy_recurrent_state(self, group: Group) -> None:
        """Copy the group's recurrent state into memory that the actor does not write to."""
        if self._active_programs:
            self._move_hx(group)
        else:
            super().copy_recurrent_state(group)

    def react(self, group: Group, state: State, *, begun: Sequence[int], virtual: bool) -> list[Tensor]:
        """React to one row. The next step of the group overwrites what a compiled step returns."""
        if not self._active_programs:
            return super().react(group, state, begun=begun, virtual=virtual)
        workspace = self._workspaces[group.number]
        self.react_into(group, state, workspace.infos if virtual else workspace.rows, begun=begun, virtual=virtual)
        return workspace.rows

    def react_to_last(self, group: Group, state: State, *, begun: Sequence[int] = ()) -> list[Tensor]:
        """React virtually to true last observations. A compiled step keeps no inputs, so none is copied."""
        if not self._active_programs:
            return super().react_to_last(group, state, begun=begun)
        return self.react(group, state, begun=begun, virtual=True)

    def react_into(
        self, group: Group, state: State, rows: list[Tensor], *, begun: Sequence[int], virtual: bool
    ) -> None:
        """React to one row and write the answer into ``rows``."""
        if not self._active_programs:
            super().react_into(group, state, rows, begun=begun, virtual=virtual)
            return
        workspace, program = self._workspaces[group.number], self._active_programs[group.width, virtual]
        source: Any = group.virtual_generator if virtual else group.generator
        hx = workspace.virtual_hx_leaves if virtual else workspace.hx_leaves
        if begun:
            if self._drawn_from is not source:
                self._draw_from(source)
            copy_all(hx, nested.leaves(self._reset(group.hx, state.fin[0], begun)))
        elif virtual:
            copy_all(hx, workspace.hx_leaves)
        bound = program.bound.get((id(rows), id(state)))
        if bound is None:
            acts = workspace.acts if virtual else []
            bound = program.bind([*nested.leaves(state), *hx, *acts, *rows]), (rows, state)
            program.bound[id(rows), id(state)] = bound
        operands, targets = bound[0]
        try:
            program.run([*operands, *program.draw(source)])
        except Exception as error:
            note_obs(error, state.obs)
            raise
        copy_all(targets, program.next_values)

    def _move_hx(self, group: Group) -> None:
        """Copy the group's recurrent state to the addresses of its compiled steps, unless it is there already."""
        workspace = self._workspaces[group.number]
        if group.hx is not workspace.hx:
            copy_all(workspace.hx_leaves, nested.leaves(group.hx))
            group.hx = workspace.hx

    def _activate(self, modes: Modes, plain: PlainChanges) -> None:
        """Select the programs for these modes, and let them recompute what depends on the weights alone."""
        warning = self._compile_in(modes, plain)  # no work left, unless the snapshot was published in another process
        self._pending_warning = self._pending_warning or warning
        step = self._known(modes, plain) or TracedStep({})
        self._active_programs = {at: self._programs[graph.key] for at, graph in step.graphs.items()}
        for program in {id(program): program for program in self._active_programs.values()}.values():
            program.update_derived()

    def _known(self, modes: Modes, plain: PlainChanges) -> TracedStep | None:
        """Return the step that was traced for these modes and attributes; None if it is still to be traced."""
        return self._steps.find(modes, plain) or (TracedStep({}) if self._eager_for_ever else None)

    def _compile_in(self, modes: Modes, plain: PlainChanges) -> str:
        """Trace and compile the step in these modes, unless that is done already or has failed; return a warning."""
        step, warning = self._known(modes, plain), ""
        if step is None:
            apply_changes(dict(self._twin.named_modules()), plain, 0)
            step, warning = self._trace_anew(modes, plain)
        if modes not in self._latest or self._latest[modes][1].number < plain.number:
            self._latest[modes] = step, plain
        try:
            for graph in step.graphs.values():
                if graph.key not in self._programs:
                    self._programs[graph.key] = Program(graph, self._weights_by_kind)
        except Exception as error:
            refused = TracedStep({}, f"compiling it failed with {describe_error(error)}", step.reads)
            if self._probed:
                self._steps.put(modes, plain, step.reads, refused)
            else:
                self._steps.replace_all(refused)
        return warning or self._report()

    def _trace_anew(self, modes: Modes, plain: PlainChanges) -> tuple[TracedStep, str]:
        """Trace the step with other plain attributes, and note which ones it reads.

        Steps eagerly from now on if changes of an attribute have altered the step too often. Returns also a warning,
        or an empty string.
        """
        step = self._try_to_trace(modes)
        reads = self._watch.reads(self._twin, lambda: self._try_to_trace(modes).outcome == step.outcome)
        step = step._replace(reads=reads)
        before, seen = self._latest.get(modes, (step, plain))
        altered, warning = before.outcome != step.outcome, ""
        often = self._retraces.count(changed_since(plain, seen, reads), altered=altered)
        if often:
            self._eager_for_ever = True
            if before.graphs or step.graphs:  # else it runs eagerly already, for another reason
                step = TracedStep({}, "a plain attribute of it changes often", reads)
                self.eager_because = warning = advise_buffer(often, "from now on")
        self._steps.put(modes, plain, reads, step)
        return step, warning

    def _try_to_trace(self, modes: Modes) -> TracedStep:
        """Trace the step as the twin is now, for each width of a group, virtual and not; note why if that fails."""
        try:
            with global_generator_kept(torch.device("cpu")):
                return TracedStep(self._traced(modes))
        except NoGraph as error:
            return TracedStep({}, str(error), remembers=isinstance(error, Remembers))
        except Exception as error:
            return TracedStep({}, f"tracing it failed with {describe_error(error)}")

    def _traced(self, modes: Modes) -> dict[tuple[int, bool], StepGraph]:
        return {
            (workspace.width, virtual): self._trace(workspace, modes, virtual=virtual)
            for workspace in {workspace.width: workspace for workspace in self._workspaces.values()}.values()
            for virtual in (False, True)
        }

    def _trace(self, workspace: Workspace, modes: Modes, *, virtual: bool) -> StepGraph:
        """Check one kind of step in trial runs, and trace it."""
        twin, noise = self._twin, RecordedNoise()
        restore_stores(self._twin_stores)  # an earlier trial may have added a buffer
        set_modes(twin, modes)
        for module in [one for one in twin.modules() if isinstance(one, BaseActorModule)]:
            module.__dict__["generator"] = noise
        inputs, weights = [x.clone() for x in workspace.inputs], [*twin.parameters(), *twin.buffers()]

        def step(*inputs: Tensor) -> None:
            with DrawsOutside(noise), ValuesUnread(weights), ArraysUnread(weights):
                workspace.step(twin, self.spec, self._twin_stores, virtual, *inputs)

        check_repeats(twin, noise, lambda: step(*[x.clone() for x in inputs]))
        n_read = len(inputs) - len(workspace.rows)
        return make_graph(step, inputs, n_read, list(twin.parameters()), list(twin.buffers()), noise)

    def _report(self) -> str:
        """Note once that the step runs eagerly; return it as a warning if it is found out only after the call."""
        steps = list(self._steps)
        refusals = [(modes, step.why_eager) for modes, step in steps if step.why_eager]
        if not refusals or self.eager_because:
            return ""
        modes, why = refusals[0]
        self.eager_because = eager_warning(modes, why, always=len(refusals) == len(steps))
        return self.eager_because if self._probed else ""
