"""The behaviour copy whose step is captured: ``compile=True`` where the actor is beside the host, on a device.

All that a step asks of the device, between the upload of its row and the copy of its actions down, is noted once and
asked for again by one launch: the row is picked out by an index that lies on the device, the recurrent state is reset
where an episode has just begun, the actor reacts, what it answers is written where it belongs, and the index goes on.
The numbers are those of the eager step, bit for bit. Virtual steps, of which there are few, are eager ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .... import nested
from ....nested import Nested
from ...core import BaseActorModule, State
from ...memory.lane import Lane, Place
from ..behaviour import Behaviour, Snapshot, global_generator_kept
from ..group import Group
from ..weights import places_in
from .step_checks import (
    Modes,
    NoGraph,
    OperationCheck,
    check_changes_only_buffers,
    eager_warning,
    no_foreign_draws,
    one_line,
)

__all__ = ["CapturedBehaviour"]

Hook = tuple[Any, str, Tensor]
Pair = tuple[Tensor, Tensor]


class CapturedBehaviour(Behaviour):
    """A behaviour copy that captures its step before it takes the first one, or says why not and goes on eagerly.

    Whether it can be captured is tried out at the call, with a twin, so that nothing is drawn, or changed, in earnest.
    It is captured in the collector's thread while the learner waits for the first fragment.
    """

    def __init__(self, actor: BaseActorModule, lane: Lane, *, snapshot_in_place: bool = False) -> None:
        """Copy the actor."""
        super().__init__(actor, lane, snapshot_in_place=snapshot_in_place)
        self._at_the_call = True
        self._said: set[str] = set()
        self._trials: list[_Seat] = []
        self._seats: dict[int, _Seat] = {}
        self._tried: list[Modes] = []
        self._refused: dict[Modes, str] = {}
        self._captured: dict[Modes, dict[int, Callable[[], None]]] = {}
        # by the number of the group; empty while the step runs eagerly
        self._now: dict[int, Callable[[], None]] = {}
        self._hooks: list[Hook] = []  # of all buffers, those filled since the call among them
        self._strayed = False  # whether a virtual step may have left other tensors in the places of buffers

    @property
    def _modes(self) -> Modes:
        return tuple(module.training for module in self._modules.values())

    def probe(self, groups: Sequence[Group], state: State, act: Nested) -> tuple[Nested, Nested]:
        """Let the actor react to the first row, see what its answers look like, and try the step out."""
        info, hx = super().probe(groups, state, act)
        self._trials = []
        for group in {group.width: group for group in groups}.values():
            part = nested.map(lambda x, at=group.columns: x[:, at].clone(), state)
            rows = nested.map(lambda x, n=group.width: self._blank((1, n, *x.shape), x.dtype), info)
            self._trials.append(_Seat(part, rows, group.hx, self._blank))
        self._tried, self._refused = [], {}  # this may be done again at the first ask, under other conditions
        n = len(self._modules)
        with global_generator_kept(self._lane.actor_device):
            for modes in dict.fromkeys([self._modes, (True,) * n, (False,) * n]):
                self._try(modes)
        for modes, why in self._refused.items():
            self._say(modes, why)
        self._at_the_call = False
        return info, hx

    def bind_rows(self, groups: Sequence[Group], state: State, info: Nested) -> None:
        """Capture the step of each group; if that fails, none is."""
        lane = self._lane
        lane.host_wait(lane.record())  # weights, modes and the first rows are there
        now = self._modes
        if now not in self._tried:
            self._try(now)
            if now in self._refused:
                self._say(now, self._refused[now])
        for group in groups:
            part, rows = nested.map(lambda x, at=group.columns: x[:, at], (state, info))
            self._seats[group.number] = _Seat(part, rows, group.hx, partial(lane.empty, Place.ACTOR))
        self._hooks = places_in(self._module)
        wanted = [modes for modes in self._tried if modes not in self._refused]
        try:
            self._warm_up(wanted)
            for modes in wanted:
                self._turn_modules(self._module, modes)
                self._captured[modes] = {group.number: self._capture(group) for group in groups}
        except Exception as error:
            self._captured, self._refused = (
                {},
                dict.fromkeys(self._tried, f"capturing it failed with {one_line(error)}"),
            )
            self._say(now, self._refused[now])
        finally:
            self._turn_modules(self._module, now)
        self._trials = []
        self._now = self._captured.get(now, {})

    def adopt(self, snapshot: Snapshot) -> None:
        """Act with these weights and in these modes from now on."""
        super().adopt(snapshot)
        modes = tuple(snapshot.modes)
        if self._captured and modes not in self._captured and modes not in self._refused:
            self._refused[modes] = "it is captured at the first fragment, and its modules were in no such modes then"
            self._say(modes, self._refused[modes])
        self._lane.launch(partial(self._turn_to, modes))

    def _turn_to(self, modes: Modes) -> None:
        self._now = self._captured.get(modes, {})

    def start_fragment(self, group: Group, fin: Tensor, begun: Sequence[int]) -> list[Tensor]:
        """Reset the group's recurrent state where an episode has just begun, and return its leaves."""
        leaves = super().start_fragment(group, fin, begun)
        if self._now:
            self._hold(group)
            self._seats[group.number].index.zero_()
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
        """React to one row, eagerly."""
        self._strayed = True
        return super().react(group, state, begun=begun, virtual=virtual)

    def react_into(
        self, group: Group, state: State, rows: list[Tensor], *, begun: Sequence[int], virtual: bool
    ) -> None:
        """React to one row, and write the answer where it belongs. Rows are captured in their order, from row 0 on."""
        step = self._now.get(group.number)
        if step is None or virtual:
            super().react_into(group, state, rows, begun=begun, virtual=virtual)
            return
        if self._strayed:
            _write(_put_back(self._hooks))
            self._strayed = False
        step()
        acts = self._seats[group.number].acts
        if acts:
            torch._foreach_copy_(rows[: len(acts)], acts, non_blocking=True)

    def _hold(self, group: Group) -> None:
        """Put the recurrent state where captured steps have it."""
        seat = self._seats[group.number]
        if group.hx is not seat.tree:
            _write(zip(seat.hx, nested.leaves(group.hx), strict=True))
            group.hx = seat.tree

    def _blank(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, device=self._lane.actor_device)

    def _turn_modules(self, module: nn.Module, modes: Modes) -> None:
        for part, mode in zip(module.modules(), modes, strict=True):
            part.training = mode

    def _twin(self) -> tuple[BaseActorModule, torch.Generator]:
        """Copy the module once more, with another generator; moving it lays recurrent weights out in one piece."""
        generator = torch.Generator(self._lane.actor_device).manual_seed(0)
        twin = copy.deepcopy(self._module, {id(self._drawn_from): generator})
        return twin.to(self._lane.actor_device), generator

    def _try(self, modes: Modes) -> None:
        """See whether the step would do, in these modes, if it were captured."""
        self._tried.append(modes)
        try:
            with no_foreign_draws():
                twin, generator = self._twin()
                self._turn_modules(twin, modes)
                for seat in self._trials:
                    step = partial(self._step, twin, places_in(twin), seat)
                    check_changes_only_buffers(twin, partial(seat.begin, step))
                    self._check_reset(twin, seat, generator)
                    with OperationCheck(generator):
                        seat.begin(step)
        except NoGraph as error:
            self._refused[modes] = str(error)
        except Exception as error:
            self._refused[modes] = f"trying it out failed with {one_line(error)}"

    def _check_reset(self, module: BaseActorModule, seat: _Seat, generator: torch.Generator) -> None:
        """See that it makes no difference where, and how often, the recurrent state is reset that need not be."""
        if not self.spec.recurrent:
            return
        if not self.spec.resets_by_mask:
            raise NoGraph("its `reset` does not honour a mask")
        everybody = torch.arange(seat.width, device=seat.index.device)
        for chosen in (everybody < 0, 2 * everybody < seat.width, everybody >= 0):
            before = nested.map(_numbered, seat.tree)
            with OperationCheck(generator) as watch:
                once = module.reset(nested.map(torch.clone, before), chosen)
                twice = module.reset(nested.map(torch.clone, once), chosen)
            if watch.drawn:
                raise NoGraph(f"its `reset` draws random numbers (`{watch.drawn}`)")
            if not chosen.any() and not _same(before, once):
                raise NoGraph("its `reset` changes the recurrent state where nothing is to be reset")
            if not _same(once, twice):
                raise NoGraph("its `reset` does something else where it has been done already")

    def _warm_up(self, wanted: Sequence[Modes]) -> None:
        """Let libraries make in this thread what they make at first, and choose their kernels."""
        twin, _ = self._twin()
        for modes in wanted:
            self._turn_modules(twin, modes)
            for seat in self._trials:
                for _ in range(2):
                    seat.begin(partial(self._step, twin, places_in(twin), seat))
        self._lane.host_wait(self._lane.record())

    def _capture(self, group: Group) -> Callable[[], None]:
        self._draw_from(group.generator)
        step = partial(self._step, self._module, self._hooks, self._seats[group.number])
        return self._lane.capture(step, [group.generator])

    def _step(self, module: BaseActorModule, places: list[Hook], seat: _Seat) -> None:
        """React to the row that the index says, write the answers and all that has changed, and go on to the next."""
        state = seat.row()
        hx = module.reset(seat.tree, state.fin[0]) if self.spec.recurrent else seat.tree
        try:
            act, new, info = module.step(*state, hx=hx, virtual=False)
        finally:
            moved = _put_back(places)
        if len(places_in(module)) != len(places):
            raise NoGraph("it fills a buffer that was empty, or empties one")
        acts: list[Any] = self.spec.act.flatten_up_to(act)
        infos: list[Any] = self.spec.info.flatten_up_to(info)
        pairs = [*zip(seat.acts, acts, strict=True), *zip(seat.hx, nested.leaves(new), strict=True), *moved]
        if (
            nested.structure(new) != nested.structure(seat.tree)
            or [x.dtype for x in acts + infos] != self.spec.dtypes
            or [x.shape for x in infos] != [x[:1].shape for x in seat.infos]
            or [x.shape for x, _ in pairs] != [x.shape for _, x in pairs]
            or [x.dtype for x, _ in pairs[len(acts) :]] != [x.dtype for _, x in pairs[len(acts) :]]
        ):
            raise NoGraph("what it answers, remembers or keeps in buffers changes its form")
        for rows, value in zip(seat.infos, infos, strict=True):
            rows.index_copy_(0, seat.index, value.to(rows.dtype))
        _write(pairs)
        seat.index.add_(1)

    def _say(self, modes: Modes, why: str) -> None:
        """Say why the step runs eagerly, once: at the call if it is known then, else with the next fragment."""
        if why in self._said:
            return
        self._said.add(why)
        told = eager_warning(modes, why, always=self._refused.keys() >= set(self._tried))
        if self._at_the_call:
            self.eager_because = self.eager_because or told
        else:
            self._pending_warning = self._pending_warning or told


class _Seat:
    """Where a group reacts: rows, recurrent state, actions and the index, all at addresses that stay.

    Attributes
    ----------
    index : int64 tensor, ``(1,)``
        Which row is reacted to next.
    infos : list of tensors, ``(n, b, ...)``
        Rows for the infos.
    tree, hx : nested tensors, and their leaves, ``(L, b, ...)``
        The recurrent state before that row, not yet reset.
    acts : list of tensors, ``(1, b, ...)``
        The latest actions.
    """

    def __init__(
        self, state: State, info: Nested, hx: Nested, allocate: Callable[[Sequence[int], torch.dtype], Tensor]
    ) -> None:
        """Take a seat, in new memory but for the rows, which are ``(n, b, ...)``."""
        self.width = state.fin.shape[1]
        self._rows, self._spec = nested.flatten(state)
        self.infos = nested.leaves(info)
        self.index = allocate((1,), torch.int64).zero_()
        self.tree = nested.map(lambda x: allocate(x.shape, x.dtype).copy_(x), hx)
        self.hx = nested.leaves(self.tree)
        self.acts = [allocate((1, *x.shape[1:]), x.dtype) for x in nested.leaves(state.act)]

    def row(self) -> State:
        """Pick out the row that the index says, on the device."""
        return self._spec.unflatten([rows.index_select(0, self.index) for rows in self._rows])  # type: ignore[return-value]

    def begin(self, step: Callable[[], None]) -> None:
        """Take a step from the first row."""
        self.index.zero_()
        step()


def _put_back(places: Sequence[Hook]) -> list[Pair]:
    """Hang parameters and buffers back into their places; return those that were moved, and what hung there instead."""
    moved = [(weight, store[name]) for store, name, weight in places if store[name] is not weight]
    if moved:
        for store, name, weight in places:
            store[name] = weight
    return moved


def _write(pairs: Iterable[Pair]) -> None:
    """Copy into the first of each pair, all at once: the second may lie in the memory of another's first."""
    pairs = list(pairs)
    written = {_memory(target) for target, _ in pairs}
    values = [value.clone() if _memory(value) in written and value is not target else value for target, value in pairs]
    for (target, _), value in zip(pairs, values, strict=True):
        if value is not target:
            target.copy_(value)


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _numbered(x: Tensor) -> Tensor:
    """Fill a tensor like this one with numbers, a negative zero among them."""
    numbers = torch.arange(x.numel(), device=x.device) % 7
    return (-0.5 * numbers if x.is_floating_point() else numbers).view(x.shape).to(x.dtype)


def _same(some: Nested, others: Nested) -> bool:
    """Whether recurrent states are the same, bit for bit."""
    return nested.structure(some) == nested.structure(others) and all(
        x.dtype == y.dtype
        and torch.equal(x, y)
        and (not x.is_floating_point() or torch.equal(x.signbit(), y.signbit()))
        for x, y in zip(nested.leaves(some), nested.leaves(others), strict=True)
    )
