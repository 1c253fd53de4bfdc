"""The behaviour copy whose step is compiled: ``compile=True`` where the actor runs on the host.

The step is traced into a graph (:mod:`.graph`), which TorchInductor compiles to C++ (:mod:`.inductor`). It is called
without guards and without PyTorch's dispatcher, and writes its answers straight into their rows. A compiled step equals
the eager one up to rounding, and gives the very same numbers in every engine. The weights stay at their addresses.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .... import nested
from ....nested import Nested
from ...core import BaseActorModule, State
from ...memory.lane import Lane
from ..behaviour import Behaviour, Snapshot
from ..copying.copy_actor import copy_actor
from ..group import Group
from ..torch_context import TorchContext
from ..weights import fills_or_empties, put_back, replaced_weights, weight_places
from .graph import StepGraph, make_graph
from .inductor import Program, copy_all
from .step_checks import (
    FILLS_OR_EMPTIES,
    Modes,
    NoGraph,
    ReplayedNoise,
    check_repeats,
    describe_error,
    eager_warning,
    no_foreign_draws,
    set_modes,
)

__all__ = ["CompiledBehaviour"]


class CompiledBehaviour(Behaviour):
    """A behaviour copy that compiles its step when it is probed, or warns and steps eagerly."""

    def __init__(self, actor: BaseActorModule, lane: Lane, *, snapshot_in_place: bool = False) -> None:
        """Copy the actor twice: the second copy is for tracing."""
        super().__init__(actor, lane, snapshot_in_place=snapshot_in_place)
        self._weights_by_kind = {
            "parameter": [weight.detach() for weight in self._module.parameters()],
            "buffer": list(self._module.buffers()),
        }
        self._twin = copy_actor(self._module, lane.actor_device).module
        self._twin_places = weight_places(self._twin)
        self._torch_context = TorchContext.here(lane.actor_device)  # of the latest probe
        self._probed = False  # once True, a warning is given at once rather than at the call
        self._workspaces: dict[int, _Workspace] = {}  # by the number of the group
        # the following are by the width of the group, and whether the step is virtual; empty where the step is eager
        self._graphs: dict[Modes, dict[tuple[int, bool], StepGraph]] = {}
        self._active_programs: dict[tuple[int, bool], Program] = {}
        self._programs: dict[str, Program] = {}  # by the key of the graph
        self._refusals: dict[Modes, str] = {}  # why the step runs eagerly in these modes

    def probe(self, groups: Sequence[Group], state: State, act: Nested) -> tuple[Nested, Nested]:
        """Run the actor on the first row, as the base class does, and compile its step."""
        info, hx = super().probe(groups, state, act)
        self._torch_context = TorchContext.here(self._lane.actor_device)
        # probed again if the torch context has changed between the call and the first ask
        for results in (self._workspaces, self._graphs, self._refusals, self._programs, self._active_programs):
            results.clear()
        for group in groups:
            part = nested.map(lambda x, at=group.columns: x[:, at].clone(), state)
            rows = [
                torch.empty((1, group.width, *leaf.shape), dtype=leaf.dtype, device="cpu")
                for leaf in nested.leaves(info)
            ]
            self._workspaces[group.number] = _Workspace(part, group.hx, rows)
        present = tuple(module.training for module in self._modules.values())
        try:
            with no_foreign_draws():
                for modes in dict.fromkeys([present, (True,) * len(present), (False,) * len(present)]):
                    self._trace_all(modes)
        except NoGraph as error:
            self._refuse_all_modes(str(error))
        self._compile_in(present)
        self._probed = True
        return info, hx

    def adopt(self, snapshot: Snapshot) -> None:
        """Use these weights and modes from now on."""
        super().adopt(snapshot)
        self._lane.launch(partial(self._activate, tuple(snapshot.modes)))

    def publish(self, actor: BaseActorModule) -> Snapshot:
        """Take a snapshot of the learner's weights, and compile the step if its modes are new, which takes seconds.

        Compiling happens here, in the learner's thread, since the compiler saves and restores the global generator.
        """
        snapshot = super().publish(actor)
        with self._torch_context.applied():
            self._compile_in(tuple(snapshot.modes))
        return snapshot

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

    def react(
        self, group: Group, state: State, *, begun: Sequence[int], virtual: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """React to one row. The tensors returned by a compiled step are overwritten by the group's next step."""
        if not self._active_programs:
            return super().react(group, state, begun=begun, virtual=virtual)
        workspace = self._workspaces[group.number]
        self.react_into(group, state, workspace.infos if virtual else workspace.rows, begun=begun, virtual=virtual)
        return workspace.acts, workspace.infos

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
        program.run([*operands, *[source.log_exponential(shape, dtype) for shape, dtype in program.noise]])
        copy_all(targets, program.next_values)

    def _move_hx(self, group: Group) -> None:
        """Copy the group's recurrent state to the addresses of its compiled steps, unless it is there already."""
        workspace = self._workspaces[group.number]
        if group.hx is not workspace.hx:
            copy_all(workspace.hx_leaves, nested.leaves(group.hx))
            group.hx = workspace.hx

    def _activate(self, modes: Modes) -> None:
        """Select the programs for these modes, and let them recompute what depends on the weights alone."""
        self._compile_in(modes)  # no work left, unless the snapshot was published in another process
        self._active_programs = {at: self._programs[graph.key] for at, graph in self._graphs[modes].items()}
        for program in {id(program): program for program in self._active_programs.values()}.values():
            program.update_derived()

    def _compile_in(self, modes: Modes) -> None:
        """Trace and compile the step in these modes, unless that is done already or has failed."""
        if modes not in self._graphs:
            self._trace_all(modes)
        try:
            for graph in self._graphs[modes].values():
                if graph.key not in self._programs:
                    self._programs[graph.key] = Program(graph, self._weights_by_kind)
        except Exception as error:
            why = f"compiling it failed with {describe_error(error)}"
            if self._probed:
                self._graphs[modes], self._refusals[modes] = {}, why
            else:
                self._refuse_all_modes(why)
        self._report()

    def _trace_all(self, modes: Modes) -> None:
        """Trace the step in these modes, for each width of a group, virtual and not; note why if that fails."""
        self._graphs[modes] = {}
        try:
            with torch.random.fork_rng([]):
                self._graphs[modes] = {
                    (workspace.width, virtual): self._trace(workspace, modes, virtual=virtual)
                    for workspace in {workspace.width: workspace for workspace in self._workspaces.values()}.values()
                    for virtual in (False, True)
                }
        except NoGraph as error:
            self._refusals[modes] = str(error)
        except Exception as error:
            self._refusals[modes] = f"tracing it failed with {describe_error(error)}"

    def _trace(self, workspace: _Workspace, modes: Modes, *, virtual: bool) -> StepGraph:
        """Check one kind of step in trial runs, and trace it."""
        twin, noise = self._twin, ReplayedNoise()
        set_modes(twin, modes)
        for module in twin.modules():
            if isinstance(module, BaseActorModule):
                module.__dict__["generator"] = noise
        inputs = [x.clone() for x in workspace.inputs]
        step = partial(self._step_twin, workspace, virtual)
        check_repeats(twin, noise, lambda: step(*[x.clone() for x in inputs]))
        n_read = len(inputs) - len(workspace.rows)
        return make_graph(step, inputs, n_read, list(twin.parameters()), list(twin.buffers()), noise)

    def _step_twin(self, workspace: _Workspace, virtual: bool, *inputs: Tensor) -> None:
        """Run a step of the twin; write answers, recurrent state and changed buffers in place."""
        state, hx, rows = workspace.split_inputs(inputs)
        act, new_hx, info = self._twin.step(*state, hx=workspace.hx_structure.unflatten(hx), virtual=virtual)
        values: list[Any] = [
            *self.spec.act.flatten_up_to(act),
            *self.spec.info.flatten_up_to(info),
            *nested.leaves(new_hx),
        ]
        replaced: list[Any] = replaced_weights(self._twin_places)
        if replaced:
            put_back(self._twin_places)
        if fills_or_empties(replaced):
            raise NoGraph(FILLS_OR_EMPTIES)
        pairs = [*zip([*rows, *hx], values, strict=True), *replaced]
        forms = [(x.shape, dtype) for x, dtype in zip(rows, self.spec.dtypes, strict=True)]
        forms += [(target.shape, target.dtype) for target, _ in pairs[len(rows) :]]
        if forms != [(value.shape, value.dtype) for _, value in pairs]:
            raise NoGraph("what it answers, remembers or keeps in buffers changes its shape or dtype")
        values = [value.clone() for _, value in pairs]  # a value may be a view of another pair's target
        for (target, _), value in zip(pairs, values, strict=True):
            target.copy_(value)

    def _refuse_all_modes(self, why: str) -> None:
        """Step eagerly in all modes met so far."""
        self._graphs = {modes: {} for modes in self._graphs}
        self._refusals = dict.fromkeys(self._graphs, why)

    def _report(self) -> None:
        """Warn once that the step runs eagerly: at the call, or at once if that is only found out later."""
        if self._refusals and not self.eager_because:
            modes, why = next(iter(self._refusals.items()))
            self.eager_because = eager_warning(modes, why, always=self._refusals.keys() == self._graphs.keys())
            if self._probed:
                warnings.warn(self.eager_because, RuntimeWarning, stacklevel=2)


class _Workspace:
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
