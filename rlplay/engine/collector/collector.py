"""One turn of the law: a token goes in, a fragment comes out.

Collector and learner are two sequential processes joined by two queues: tokens flow one way, fragments the other.
Asking for fragment ``k`` puts token ``k`` on the one queue and takes fragment ``k`` from the other, and the first ask
puts ``lag`` tokens more. Each token carries a snapshot of the weights as they were when it was put, and blank memory
of the consumer's, so fragment ``k`` is collected with the weights of ask ``max(0, k - lag)``, and at most ``lag + 1``
fragments are under way. Whatever was allocated on the consumer's stream returns there: the blank as the fragment,
the snapshot beside it, to be let go behind the copies that the consumer's stream has waited for.

This is the collector's side. Who calls it, in which thread, is the driver's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import torch

from ... import nested
from ..acting.behaviour import Behaviour, Snapshot
from ..acting.group import Group
from ..acting.torch_context import TorchContext
from ..concurrency.exceptions import add_note
from ..concurrency.gate import Gate
from ..concurrency.progress import Progress
from ..core import BaseActorModule, Fragment
from ..memory.lane import Lane, Place
from ..memory.layout import blank_fragment, fields_to_leaves, outcome_layout, state_layout
from ..memory.slot import Slot
from ..stepping.stepper import Stepper
from .finals import stage_final
from .loop import collect
from .messages import Delivery, Plan, Token
from .staging import Staging, carry_over, deliver, make_stagings

__all__ = ["Collector"]


class Collector:
    """The collector's side: environments, behaviour copy and stagings, and the order of things between them."""

    def __init__(
        self,
        make: Callable[[], Stepper],
        behaviour: Behaviour,
        lane: Lane,
        plan: Plan,
        progress: Progress,
        gate: Gate,
    ) -> None:
        """Make and reset the environments, in this very thread, and lay out the host's memory for them."""
        self._behaviour, self._lane, self._plan = behaviour, lane, plan
        self._progress, self._gate = progress, gate
        self.stepper = make()
        try:
            self._lay_out()
        except BaseException as error:
            for complaint in self.stepper.close():
                add_note(error, complaint)
            raise

    def _lay_out(self) -> None:
        plan, lane, stepper = self._plan, self._lane, self.stepper
        state = state_layout(fields_to_leaves(stepper.obs), fields_to_leaves(stepper.act))
        info = {entry.name: fields_to_leaves(entry.field) for entry in plan.entries.entries}
        absent = [entry.absent for entry in plan.entries.entries]
        self._state_layout, self._outcome_layout = state, outcome_layout(info)

        def allocate(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
            own = stepper.memory(*shape)
            return lane.empty(Place.HOST, shape, dtype) if own is None else lane.lock(own)

        # while one is being copied away, another can be filled
        self._slots = [
            Slot(state, info, absent, plan.n_steps, stepper.n_envs, allocate) for _ in range(1 + lane.asynchronous)
        ]
        stepper.attach(self._slots)
        self._groups = [Group(i, columns, plan.seed, lane, key=plan.first + i) for i, columns in enumerate(plan.groups)]
        self._stagings: list[Staging] = []
        self._previous: Staging | None = None
        self._turn = 0

    def prepare(self, torch_context: TorchContext) -> None:
        """Learn what the actor answers, by one virtual step; in the calling thread, before the first token.

        Raises
        ------
        TypeError, ValueError
            If the actor's answers are not of the form that the contract asks for.
        """
        self._progress.doing = "actor.step"
        with torch_context.applied():
            here = self._lane.actor_device
            first = nested.map(lambda x: x[:1].to(here, copy=True), self._slots[0].state)
            info, hx = self._behaviour.probe(self._groups, first, self.stepper.act)
            self.synchronize()  # the stream that fragments are asked for on may be another one
        self.torch_context, self.layout = torch_context, Fragment(self._state_layout, info, self._outcome_layout, hx)

    def blank(self) -> Fragment:
        """Allocate blank memory of the consumer's for one fragment; in the consumer's thread, on its stream."""

        def allocate(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
            return self._lane.empty(Place.CONSUMER, shape, dtype)

        return blank_fragment(self.layout, self._plan.n_steps, self.stepper.n_envs, allocate)

    def snapshot(self, actor: BaseActorModule) -> Snapshot:
        """Take a snapshot of the learner's weights; in the consumer's thread."""
        return self._behaviour.publish(actor)

    def serve(self, token: Token) -> Delivery:
        """Collect one fragment with the token's weights, into its blank; in the collector's thread."""
        with self.torch_context.applied(), self._lane.collecting():
            try:
                return self._serve(token)
            except BaseException:
                with suppress(Exception):  # which would hide what really happened
                    self.synchronize()  # dropped -> released
                raise

    def _serve(self, token: Token) -> Delivery:
        lane, plan, progress = self._lane, self._plan, self._progress
        progress.fragment, progress.row = self._turn, 0
        progress.begin("the hand-over")
        lane.wait(token.asked)  # asked -> first write
        if lane.shared(Place.ACTOR, Place.HOST):
            lane.host_wait(token.asked)  # the behaviour copy is the host's to read
        self._behaviour.adopt(token.snapshot)
        if not self._stagings:
            self._stagings = make_stagings(
                self._slots, self.layout, self._groups, self.stepper.turns, self.stepper.n_envs, lane
            )
            lane.borrow([group.hx for group in self._groups])  # which the calling thread's stream has allocated
        staging = self._stagings[self._turn % len(self._stagings)]
        for group in self._groups:
            lane.launch(partial(self._behaviour.keep, group))
        lane.host_wait(staging.copied)  # copied -> refill
        carry_over(self._previous, staging, lane)
        if self._previous is None:
            progress.begin("actor.step")
            self._behaviour.bind_rows(self._groups, staging.state, staging.actor)
        finals = collect(
            staging, self._behaviour, self._groups, self.stepper, lane, progress, self._boundary,
            sticky=plan.sticky, final=plan.final,
        )  # fmt: skip
        progress.begin("the hand-over")
        deliver(staging, token.blank, lane)
        staged = stage_final(finals, self.layout, lane) if plan.final else ()
        staging.copied = copied = lane.record()
        if lane.shared(Place.CONSUMER, Place.HOST):
            lane.host_wait(copied)
        self._previous, self._turn = staging, self._turn + 1
        steps = int(staging.slot.env.valid.sum())
        complaint, self._behaviour.unsaid = self._behaviour.unsaid, ""
        episodes = self.stepper.episodes()
        return Delivery(
            token.version, token.blank, staged, copied, token.home, token.snapshot, steps, episodes, complaint
        )

    def _boundary(self) -> None:
        if self._gate.shut:
            self._progress.begin("a pause")
            self._gate.wait_while_shut(self._rest)

    def _rest(self) -> None:
        self.stepper.finish_all()
        self.synchronize()

    def synchronize(self) -> None:
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
                self.synchronize()  # dropped -> released
        except Exception as error:
            return [f"waiting for the device failed: {error!r}.", *self.stepper.close()]
        return self.stepper.close()
