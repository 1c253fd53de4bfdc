"""One turn of the law: a token goes in, a fragment comes out.

Collector and learner are two sequential processes joined by two queues: tokens flow one way, fragments the other.
Asking for fragment ``k`` puts token ``k`` on the one queue and takes fragment ``k`` from the other, and the first ask
puts ``lag`` tokens more. Each token carries a snapshot of the weights as they were when it was put, and blank memory
of the consumer's, so fragment ``k`` is collected with the weights of ask ``max(0, k - lag)``, and at most ``lag + 1``
fragments are under way. Whatever was allocated on the consumer's stream returns there: the vessel as the fragment,
the snapshot beside it, to be let go behind the copies that the consumer's stream has waited for.

This is the collector's side. Who calls it, in which thread, is the driver's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch

from .. import nested
from ..nested import Nested
from .ambient import Ambient
from .behaviour import Behaviour, Group, Snapshot
from .bench import Bench, carry_over, deliver, make_benches
from .collect import collect
from .core import BaseActorModule, Episode, Fragment
from .crew import Crew
from .ends import stage_final
from .handoff import Gate
from .info import Entries
from .storage import Slot, blank, fields_to_leaves, outcome_layout, state_layout
from .trace import Progress, note
from .transfer import Lane, Place

__all__ = ["Collecting", "Collector", "Delivery", "Plan", "Token"]


class Token(NamedTuple):
    """The right to collect one fragment, and what it takes."""

    version: int
    """The number of the ask whose weights these are."""
    snapshot: Snapshot
    vessel: Fragment
    home: Any
    """The consumer's stream on which these were allocated."""
    asked: Any
    """The event behind the snapshot's copy and the vessel's allocation, on the consumer's stream."""


class Delivery(NamedTuple):
    """A fragment on its way to the consumer."""

    version: int | tuple[int, ...]
    """That of the token; of each part, if it is made of parts that were collected apart."""
    vessel: Fragment
    staged: Nested
    """A ``Final`` in memory of the collector's, or ``()``."""
    copied: Any
    """The event behind the copies into the vessel, on the collector's stream."""
    home: Any
    """As in the token."""
    snapshot: Snapshot
    steps: int
    """Transitions that were carried out."""
    episodes: list[Episode]
    complaint: str
    """What the user is to be warned of; mostly nothing."""


class Plan(NamedTuple):
    """What a feed was asked to do, checked."""

    n_steps: int
    groups: list[slice]
    """The environments of each group."""
    seed: int
    sticky: bool
    final: bool
    entries: Entries
    first: int = 0
    """The number of the first group, if there are others that somebody else collects."""


class Collecting(Protocol):
    """What a driver and a feed ask of a collector, wherever it is."""

    ambient: Ambient

    def prepare(self, ambient: Ambient) -> None:
        """Learn what the actor answers; in the calling thread, before the first token."""

    def vessel(self) -> Fragment:
        """Allocate blank memory of the consumer's for one fragment; in the consumer's thread, on its stream."""

    def snapshot(self, actor: BaseActorModule) -> Snapshot:
        """Take a snapshot of the learner's weights; in the consumer's thread."""

    def serve(self, token: Token) -> Delivery:
        """Collect one fragment with the token's weights, into its vessel; in the collector's thread."""

    def close(self) -> list[str]:
        """End; return what went wrong with it."""


class Collector:
    """The collector's side: environments, behaviour copy and benches, and the order of things between them."""

    def __init__(
        self,
        make: Callable[[], Crew],
        behaviour: Behaviour,
        lane: Lane,
        plan: Plan,
        progress: Progress,
        gate: Gate,
    ) -> None:
        """Make and reset the environments, in this very thread, and lay out the host's memory for them."""
        self._behaviour, self._lane, self._plan = behaviour, lane, plan
        self._progress, self._gate = progress, gate
        self.crew = make()
        try:
            self._lay_out()
        except BaseException as error:
            for complaint in self.crew.close():
                note(error, complaint)
            raise

    def _lay_out(self) -> None:
        plan, lane, crew = self._plan, self._lane, self.crew
        state = state_layout(fields_to_leaves(crew.obs), fields_to_leaves(crew.act))
        info = {entry.name: fields_to_leaves(entry.field) for entry in plan.entries.entries}
        absent = [entry.absent for entry in plan.entries.entries]
        self._state_layout, self._outcome_layout = state, outcome_layout(info)

        def allocate(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
            own = crew.memory(*shape)
            return lane.empty(Place.HOST, shape, dtype) if own is None else lane.lock(own)

        # while one is being copied away, another can be filled
        self._slots = [
            Slot(state, info, absent, plan.n_steps, crew.n_envs, allocate) for _ in range(1 + lane.asynchronous)
        ]
        crew.settle_in(self._slots)
        self._groups = [Group(i, columns, plan.seed, lane, key=plan.first + i) for i, columns in enumerate(plan.groups)]
        self._benches: list[Bench] = []
        self._previous: Bench | None = None
        self._turn = 0

    def prepare(self, ambient: Ambient) -> None:
        """Learn what the actor answers, by one virtual step; in the calling thread, before the first token.

        Raises
        ------
        TypeError, ValueError
            If the actor's answers are not of the form that the contract asks for.
        """
        self._progress.doing = "actor.step"
        with ambient.applied():
            here = self._lane.actor_device
            first = nested.map(lambda x: x[:1].to(here, copy=True), self._slots[0].state)
            info, hx = self._behaviour.probe(self._groups, first, self.crew.act)
            self.settle()  # the stream that fragments are asked for on may be another one
        self.ambient, self.layout = ambient, Fragment(self._state_layout, info, self._outcome_layout, hx)

    def vessel(self) -> Fragment:
        """Allocate blank memory of the consumer's for one fragment; in the consumer's thread, on its stream."""

        def allocate(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
            return self._lane.empty(Place.CONSUMER, shape, dtype)

        return blank(self.layout, self._plan.n_steps, self.crew.n_envs, allocate)

    def snapshot(self, actor: BaseActorModule) -> Snapshot:
        """Take a snapshot of the learner's weights; in the consumer's thread."""
        return self._behaviour.publish(actor)

    def serve(self, token: Token) -> Delivery:
        """Collect one fragment with the token's weights, into its vessel; in the collector's thread."""
        with self.ambient.applied(), self._lane.collecting():
            try:
                return self._serve(token)
            except BaseException:
                with suppress(Exception):  # which would hide what really happened
                    self.settle()  # dropped -> released
                raise

    def _serve(self, token: Token) -> Delivery:
        lane, plan, progress = self._lane, self._plan, self._progress
        progress.fragment, progress.row = self._turn, 0
        progress.begin("the hand-over")
        lane.wait(token.asked)  # asked -> first write
        if lane.shared(Place.ACTOR, Place.HOST):
            lane.host_wait(token.asked)  # the behaviour copy is the host's to read
        self._behaviour.adopt(token.snapshot)
        if not self._benches:
            self._benches = make_benches(
                self._slots, self.layout, self._groups, self.crew.turns, self.crew.n_envs, lane
            )
            lane.borrow([group.hx for group in self._groups])  # which the calling thread's stream has allocated
        bench = self._benches[self._turn % len(self._benches)]
        for group in self._groups:
            lane.launch(partial(self._behaviour.keep, group))
        lane.host_wait(bench.copied)  # copied -> refill
        carry_over(self._previous, bench, lane)
        if self._previous is None:
            progress.begin("actor.step")
            self._behaviour.settle_in(self._groups, bench.state, bench.actor)
        ends = collect(
            bench, self._behaviour, self._groups, self.crew, lane, progress, self._boundary,
            sticky=plan.sticky, final=plan.final,
        )  # fmt: skip
        progress.begin("the hand-over")
        deliver(bench, token.vessel, lane)
        staged = stage_final(ends, self.layout, lane) if plan.final else ()
        bench.copied = copied = lane.record()
        if lane.shared(Place.CONSUMER, Place.HOST):
            lane.host_wait(copied)
        self._previous, self._turn = bench, self._turn + 1
        steps = int(bench.slot.env.valid.sum())
        complaint, self._behaviour.unsaid = self._behaviour.unsaid, ""
        episodes = self.crew.episodes()
        return Delivery(
            token.version, token.vessel, staged, copied, token.home, token.snapshot, steps, episodes, complaint
        )

    def _boundary(self) -> None:
        if self._gate.shut:
            self._progress.begin("a pause")
            self._gate.stand(self._rest)

    def _rest(self) -> None:
        self.crew.rest()
        self.settle()

    def settle(self) -> None:
        """Wait until the current stream has done all that it was asked for."""
        self._lane.host_wait(self._lane.record())

    def close(self) -> list[str]:
        """End: close the environments that were made for this feed, and let nothing go that is still being used.

        Returns
        -------
        list of str
            What went wrong in closing: the consumer is to be warned about it.
        """
        try:
            with self._lane.collecting():
                self.settle()  # dropped -> released
        except Exception as error:
            return [f"waiting for the device failed: {error!r}.", *self.crew.close()]
        return self.crew.close()
