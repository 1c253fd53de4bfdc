"""The behaviour copy whose step is compiled: ``compile=True``, on the host. Beside a device it is captured instead.

The step is traced into a graph (:mod:`.graph`), which TorchInductor turns into C++ that is called without anything in
between: no guards, no dispatcher, and answers go straight into their rows. It is a kind of step of its own:
the same as the eager one up to rounding, and the very same in all engines. The weights stay where they are.
"""

from __future__ import annotations

import copy
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
from ..group import Group
from ..torch_context import TorchContext
from .graph import Program, StepGraph, copy_all, make_graph
from .step_checks import Modes, NoGraph, ReplayedNoise, check_repeats, eager_warning, no_foreign_draws, one_line

__all__ = ["CompiledBehaviour"]


class CompiledBehaviour(Behaviour):
    """A behaviour copy that compiles its step when it is probed, or says why it cannot and goes on eagerly."""

    def __init__(self, actor: BaseActorModule, lane: Lane, *, snapshot_in_place: bool = False) -> None:
        """Copy the actor, and once more to try things with."""
        super().__init__(actor, lane, snapshot_in_place=snapshot_in_place)
        self._kinds = {
            "parameter": [weight.detach() for weight in self._module.parameters()],
            "buffer": list(self._module.buffers()),
        }
        self._twin = copy.deepcopy(self._module)
        self._twin_places: list[tuple[Any, str, Any]] = [
            (store, name, weight)
            for module in self._twin.modules()
            for store in (module._parameters, module._buffers)
            for name, weight in store.items()
        ]
        self._ambient: TorchContext
        self._at_the_call = True
        self._seats: dict[int, _Seat] = {}
        self._traced: dict[Modes, dict[tuple[int, bool], StepGraph]] = {}
        self._refused: dict[Modes, str] = {}
        self._programs: dict[str, Program] = {}
        # by the width of the group, and whether the step is virtual; empty while the step runs eagerly
        self._now: dict[tuple[int, bool], Program] = {}

    def probe(self, groups: Sequence[Group], state: State, act: Nested) -> tuple[Nested, Nested]:
        """Let the actor react to the first row, see what its answers look like, and compile the step."""
        info, hx = super().probe(groups, state, act)
        self._ambient = TorchContext.here(self._lane.actor_device)
        for book in (self._seats, self._traced, self._refused, self._programs, self._now):
            book.clear()  # when this is done again at the first ask, under other conditions
        for group in groups:
            part = nested.map(lambda x, at=group.columns: x[:, at].clone(), state)
            rows = [
                torch.empty((1, group.width, *leaf.shape), dtype=leaf.dtype, device="cpu")
                for leaf in nested.leaves(info)
            ]
            self._seats[group.number] = _Seat(part, group.hx, rows)
        now = tuple(module.training for module in self._modules.values())
        try:
            with no_foreign_draws():
                for modes in dict.fromkeys([now, (True,) * len(now), (False,) * len(now)]):
                    self._try(modes)
        except NoGraph as error:
            self._give_up(str(error))
        self._get_ready(now)
        self._at_the_call = False
        return info, hx

    def adopt(self, snapshot: Snapshot) -> None:
        """Act with these weights and in these modes from now on."""
        super().adopt(snapshot)
        self._lane.launch(partial(self._turn_to, tuple(snapshot.modes)))

    def publish(self, actor: BaseActorModule) -> Snapshot:
        """Take a snapshot of the learner's weights; modes that are met for the first time may take seconds.

        The compiler puts torch's global generator back when it is done: so it must not run beside the learner.
        """
        snapshot = super().publish(actor)
        with self._ambient.applied():
            self._get_ready(tuple(snapshot.modes))
        return snapshot

    def start_fragment(self, group: Group, fin: Tensor, begun: Sequence[int]) -> list[Tensor]:
        """Reset the group's recurrent state where an episode has just begun, and return its leaves."""
        leaves = super().start_fragment(group, fin, begun)
        if self._now:
            self._hold(group)
        return leaves

    def copy_recurrent_state(self, group: Group) -> None:
        """Make the group's recurrent state its own."""
        if self._now:
            self._hold(group)
        else:
            super().copy_recurrent_state(group)

    def react(
        self, group: Group, state: State, *, begun: Sequence[int], virtual: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """React to one row. If it is compiled, what is returned is good until the next time."""
        if not self._now:
            return super().react(group, state, begun=begun, virtual=virtual)
        seat = self._seats[group.number]
        self.react_into(group, state, seat.infos if virtual else seat.rows, begun=begun, virtual=virtual)
        return seat.acts, seat.infos

    def react_into(
        self, group: Group, state: State, rows: list[Tensor], *, begun: Sequence[int], virtual: bool
    ) -> None:
        """React to one row, and write the answer where it belongs."""
        if not self._now:
            super().react_into(group, state, rows, begun=begun, virtual=virtual)
            return
        seat, program = self._seats[group.number], self._now[group.width, virtual]
        source: Any = group.virtual_generator if virtual else group.generator
        hx = seat.looked if virtual else seat.hx
        if begun:
            if self._drawn_from is not source:
                self._draw_from(source)
            copy_all(hx, nested.leaves(self._reset(group.hx, state.fin[0], begun)))
        elif virtual:
            copy_all(hx, seat.hx)
        bound = program.bound.get((id(rows), id(state)))
        if bound is None:
            acts = seat.acts if virtual else []
            bound = program.bind([*nested.leaves(state), *hx, *acts, *rows]), (rows, state)
            program.bound[id(rows), id(state)] = bound
        args, targets = bound[0]
        program.run([*args, *[source.log_exponential(shape, dtype) for shape, dtype in program.noise]])
        copy_all(targets, program.next)

    def _hold(self, group: Group) -> None:
        """Put the recurrent state where compiled steps have it."""
        seat = self._seats[group.number]
        if group.hx is not seat.tree:
            copy_all(seat.hx, nested.leaves(group.hx))
            group.hx = seat.tree

    def _turn_to(self, modes: Modes) -> None:
        """Step as is right in these modes, and for the weights that are there now."""
        self._get_ready(modes)  # which has been done, unless the learner is in another process
        self._now = {at: self._programs[traced.key] for at, traced in self._traced[modes].items()}
        for program in {id(program): program for program in self._now.values()}.values():
            program.fold()

    def _get_ready(self, modes: Modes) -> None:
        """Compile the step in these modes, unless that has been done, or cannot be."""
        if modes not in self._traced:
            self._try(modes)
        try:
            for traced in self._traced[modes].values():
                if traced.key not in self._programs:
                    self._programs[traced.key] = Program(traced, self._kinds)
        except Exception as error:
            why = f"compiling it failed with {one_line(error)}"
            if self._at_the_call:
                self._give_up(why)
            else:
                self._traced[modes], self._refused[modes] = {}, why
        self._say()

    def _try(self, modes: Modes) -> None:
        """Trace the step in these modes, as all groups take it."""
        self._traced[modes] = {}
        try:
            with torch.random.fork_rng([]):
                self._traced[modes] = {
                    (seat.width, virtual): self._trace(seat, modes, virtual=virtual)
                    for seat in {seat.width: seat for seat in self._seats.values()}.values()
                    for virtual in (False, True)
                }
        except NoGraph as error:
            self._refused[modes] = str(error)
        except Exception as error:
            self._refused[modes] = f"tracing it failed with {one_line(error)}"

    def _trace(self, seat: _Seat, modes: Modes, *, virtual: bool) -> StepGraph:
        twin, noise = self._twin, ReplayedNoise()
        for module, mode in zip(twin.modules(), modes, strict=True):
            module.training = mode
            if isinstance(module, BaseActorModule):
                module.__dict__["generator"] = noise
        inputs = [x.clone() for x in seat.inputs]
        step = partial(self._step, seat, virtual)
        check_repeats(twin, noise, lambda: step(*[x.clone() for x in inputs]))
        n_read = len(inputs) - len(seat.rows)
        return make_graph(step, inputs, n_read, list(twin.parameters()), list(twin.buffers()), noise)

    def _step(self, seat: _Seat, virtual: bool, *inputs: Tensor) -> None:
        """Let the twin react; write its answers, and all that it has changed, in place."""
        state, hx, rows = seat.taken_apart(inputs)
        act, new, info = self._twin.step(*state, hx=seat.spec.unflatten(hx), virtual=virtual)
        values: list[Any] = [
            *self.spec.act.flatten_up_to(act),
            *self.spec.info.flatten_up_to(info),
            *nested.leaves(new),
        ]
        pairs = list(zip([*rows, *hx], values, strict=True))
        for store, name, weight in self._twin_places:
            if store[name] is not weight:
                pairs.append((weight, store[name]))
                store[name] = weight
        forms = [(x.shape, dtype) for x, dtype in zip(rows, self.spec.dtypes, strict=True)]
        forms += [(target.shape, target.dtype) for target, _ in pairs[len(rows) :]]
        if forms != [(value.shape, value.dtype) for _, value in pairs]:
            raise NoGraph("what it answers, remembers or keeps in buffers changes its shape or dtype")
        values = [value.clone() for _, value in pairs]  # one may be a view of another's target
        for (target, _), value in zip(pairs, values, strict=True):
            target.copy_(value)

    def _give_up(self, why: str) -> None:
        self._traced = {modes: {} for modes in self._traced}
        self._refused = dict.fromkeys(self._traced, why)

    def _say(self) -> None:
        """Say once why the step runs eagerly: at the call, unless it comes of modes that nobody could expect then."""
        if self._refused and not self.eager_because:
            modes, why = next(iter(self._refused.items()))
            self.eager_because = eager_warning(modes, why, always=self._refused.keys() == self._traced.keys())
            if not self._at_the_call:
                warnings.warn(self.eager_because, RuntimeWarning, stacklevel=2)


class _Seat:
    """Where a group reacts: its recurrent state at addresses that stay, and room for what nobody keeps."""

    def __init__(self, state: State, hx: Nested, infos: list[Tensor]) -> None:
        self.state, self.width = state, state.fin.shape[1]
        self.tree = nested.map(lambda x: x.clone(memory_format=torch.contiguous_format), hx)
        self.hx, self.spec = nested.flatten(self.tree)
        self.looked = [x.clone() for x in self.hx]
        """A copy, for virtual steps to advance."""
        self.acts, self.infos = [torch.empty_like(x) for x in nested.leaves(state.act)], infos
        self.rows = self.acts + self.infos

    @property
    def inputs(self) -> list[Tensor]:
        """What a step takes: a state, the recurrent state, and rows for the answers."""
        return [*nested.leaves(self.state), *self.hx, *self.rows]

    def taken_apart(self, inputs: Sequence[Tensor]) -> tuple[State, list[Tensor], list[Tensor]]:
        """Make of a step's inputs a state, the leaves of the recurrent state, and rows for the answers."""
        found, spec = nested.flatten(self.state)
        n, m = len(found), len(found) + len(self.hx)
        return spec.unflatten(inputs[:n]), list(inputs[n:m]), list(inputs[m:])  # type: ignore[return-value]
