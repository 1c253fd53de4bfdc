"""Collecting: ``T`` steps of ``B`` environments into a slot, with the actor's reactions beside it.

Plain functions over rows that are there already. Knows the verbs of a lane, not what they do; no threads, no queues.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Protocol

from torch import Tensor

from ..nested import Nested
from .behaviour import Behaviour, Group
from .bench import Bench, upload
from .core import Episode
from .ends import Ends, complete_last, react_to_last
from .storage import Marks, Row
from .trace import Progress
from .transfer import Lane, Place

__all__ = ["Faces", "collect"]


class Faces(Protocol):
    """What collecting needs of environments."""

    obs: Nested
    act: Nested
    episodes: list[Episode]

    @property
    def n_envs(self) -> int:
        """The number of environments, ``B``."""

    def begin(self, row: Row) -> None:
        """Write the very first row."""

    def release(self) -> None:
        """Let environments go on that stood still for the rest of a fragment."""

    def step(self, now: Row, then: Row, marks: Marks, last: Row | None, *, sticky: bool) -> list[int]:
        """Carry out the actions in ``then``, and write what follows; return whose episode ended."""

    def render(self) -> None:
        """Let the environments show themselves."""

    def close(self) -> list[str]:
        """Close what was made for this feed; return what went wrong with it."""


def collect(
    bench: Bench,
    behaviour: Behaviour,
    groups: Sequence[Group],
    envs: Faces,
    lane: Lane,
    progress: Progress,
    boundary: Callable[[], None],
    *,
    sticky: bool,
    final: bool,
) -> Ends:
    """Fill a bench, whose row 0 is there already: react, carry out, write, ``T`` times; then look ahead.

    Parameters
    ----------
    boundary : callable
        Called before each step: where the collector can be made to stand still, or to stop by an exception.
    sticky, final : bool
        As in ``rollout``.

    Returns
    -------
    Ends
        Filled in only if ``final``. On an asynchronous lane its lists of tensors grow behind what was launched.
    """
    slot, ends = bench.slot, Ends()
    progress.doing = "actor.reset"
    envs.release()
    slot.clear()
    _begin(bench, behaviour, groups, lane)
    for t in range(bench.n_steps):
        boundary()
        progress.row, progress.doing = t, "actor.step"
        started = perf_counter()
        _react(bench, behaviour, groups, lane, t, virtual=False)
        if not lane.shared(Place.ACTOR, Place.HOST):
            lane.host_wait(lane.record())  # for the actions, which come down into row t + 1
        acted = perf_counter()
        progress.doing = "env.step"
        now, then = slot.rows[t], slot.rows[t + 1]
        ended = envs.step(now, then, slot.marks[t], slot.last_row if final else None, sticky=sticky)
        stepped = perf_counter()
        progress.inference += acted - started
        progress.stepping += stepped - acted
        progress.doing = "actor.step"
        upload(bench, lane, t + 1)  # filled -> copy
        if final and ended:
            complete_last(slot, now, then, ended)
            react_to_last(bench, behaviour, groups, lane, t, ended, ends)
    progress.row = bench.n_steps
    _react(bench, behaviour, groups, lane, bench.n_steps, virtual=True)
    return ends


def _begin(bench: Bench, behaviour: Behaviour, groups: Sequence[Group], lane: Lane) -> None:
    """Note the recurrent state at row 0, reset where an episode has just begun."""
    begun = _begun(bench, groups, 0)

    def noted() -> None:
        for g, group in enumerate(groups):
            _store(behaviour.begin(group, bench.inputs[g][0].fin[0], begun[g]), bench.hxs[g], "hx")

    lane.launch(noted)


def _begun(bench: Bench, groups: Sequence[Group], t: int) -> list[list[int]]:
    """List for each group where an episode has just begun at row ``t``; on the host, so nobody has to wait for it."""
    fin = bench.slot.rows[t].fin
    return [fin[group.columns].nonzero()[0].tolist() for group in groups]


def _react(bench: Bench, behaviour: Behaviour, groups: Sequence[Group], lane: Lane, t: int, *, virtual: bool) -> None:
    """React to row ``t``: the infos go into it, the actions down into row ``t + 1``."""
    # row 0 was seen to by `_begin`; a reset that a virtual step looks at is done again by that of the next fragment
    begun = _begun(bench, groups, t) if t else [[] for _ in groups]

    def reacted() -> None:
        for g, group in enumerate(groups):
            act, info = behaviour.react(group, bench.inputs[g][t], begun=begun[g], virtual=virtual)
            _store(info, bench.infos[g][t], "info")
            if not virtual:
                _store(act, bench.downs[g][t + 1], "act")

    lane.launch(reacted)


def _store(values: Sequence[Tensor], rows: Sequence[Tensor], what: str) -> None:
    """Write an answer of the actor into its row."""
    for value, row in zip(values, rows, strict=True):
        if value.shape != row.shape:  # or it would be broadcast, silently
            raise ValueError(
                f"the actor's {what} has changed its shape: expected {tuple(row.shape)}, got {tuple(value.shape)}."
            )
        row.copy_(value, non_blocking=True)
