"""The collector: for each token, one fragment.

Collector and learner are two sequential processes joined by two queues: tokens flow one way, fragments the other.
Asking for fragment ``k`` puts token ``k`` on the one queue and takes fragment ``k`` from the other, and the first ask
puts ``lag`` tokens more. Each token carries a snapshot of the weights as they were when it was put, and a blank
fragment. So fragment ``k`` is collected with the weights of ask ``max(0, k - lag)``, and at most ``lag + 1`` fragments
are under way.

Memory that was allocated on the consumer's stream goes back to the consumer with the delivery: the blank fragment,
filled, and the snapshot. The consumer's stream waits for the copies into the fragment, so memory that the consumer
releases afterwards is not used again too early.

This module must not know which thread the collector runs in, nor how tokens and deliveries are passed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from ..acting.behaviour import Behaviour
from ..acting.group import Group
from ..acting.torch_context import TorchContext, TorchDefaults
from ..concurrency.exceptions import closed_on_error, repr_of
from ..concurrency.gate import Gate
from ..concurrency.progress import Progress
from ..core import Episode, Fragment
from ..memory.lane import Lane, Place
from ..memory.layout import blank_tensors, whole_layout
from ..memory.slot import Blocks
from ..stepping.stepper import Stepper
from .finals import stage_final
from .laid_out import LaidOut, Probed, lay_out
from .loop import Loop
from .messages import Delivery, Plan, Token
from .saving import all_forms, pack_row, unpack_row
from .snapshots import SnapshotTaker
from .staging import Staging, carry_over, deliver, make_stagings
from .views import split_blocks

__all__ = ["Collector"]


class Collector(SnapshotTaker):
    """Steps the environments with the behaviour copy, and delivers one fragment for each token.

    It is made in two steps: ``Collector(...)`` takes the environments, and :meth:`prepare` runs the actor once.
    """

    under_way = False  # nothing is collected between two fragments

    def __init__(
        self,
        stepper: Stepper,
        behaviour: Behaviour,
        lane: Lane,
        plan: Plan,
        progress: Progress,
        gate: Gate,
        defaults: TorchDefaults,
    ) -> None:
        """Take environments that have been reset, and allocate memory for them; close them if that fails."""
        self._defaults = defaults
        self._behaviour, self._lane, self._plan = behaviour, lane, plan
        self._progress, self._gate = progress, gate
        self.stepper, self.environments_are = stepper, stepper.environments_are
        with closed_on_error(self._close_environments):
            self._environments = self._lay_out()
            self._groups = [
                Group(i, columns, plan.seed, lane, key=plan.first_group + i)
                for i, columns in enumerate(self.stepper.groups)
            ]
        self._probed: Probed | None = None
        self._stagings: list[Staging] = []  # made with the first fragment, in the collector's thread
        self._previous: Staging | None = None
        self._starts_later = [False for _ in stepper.turns]  # for each turn, as `Loop` takes and returns it
        self._n_collected = 0
        self._resumed: Mapping[str, Any] | None = None  # what each `prepare` is to go on from

    def _lay_out(self) -> LaidOut:
        """Allocate the slots, and let the stepper write the very first row."""
        return lay_out(self.stepper, self._plan, self._lane)

    def prepare(self, torch_context: TorchContext) -> None:
        """Find the form of the actor's answers by one virtual step; before the first token, in any thread.

        Runs on the collector's stream. May be called again before the first token, if the torch context has changed.

        Raises
        ------
        TypeError, ValueError
            If the actor's answers do not have the form that the contract requires.
        """
        self._progress.doing = "actor.step"
        state, outcome, _ = self._environments
        with torch_context.applied(), self._lane.collecting():
            inputs = split_blocks(self._first_rows(), self._groups, self.stepper.turns)
            info, hx = self._behaviour.probe(self._groups, inputs, self.stepper.act)
            self._check_actor()
            if self._resumed is not None:
                self._behaviour.load_state_dict(self._resumed["copies"][0])  # the virtual step may have changed it
                for group, saved in zip(self._groups, self._resumed["groups"], strict=True):
                    group.load_hx(saved, self._lane)
            self._lane.host_wait(self._lane.record())  # what the caller does next is on another stream
        layout, n_envs = Fragment(state, info, outcome, hx), self.stepper.groups[-1].stop
        self._probed = Probed(torch_context, layout, whole_layout(layout, self._plan.n_steps, n_envs))

    def _first_rows(self) -> list[Blocks]:
        """Copy the very first row of each turn to the actor's device, for a trial step."""
        device, (first, *_) = self._lane.actor_device, self._environments.slots
        return [Blocks(one.memory[:1].to(device, copy=True), one.layout) for one in first.blocks]

    def _check_actor(self) -> None:
        """Check what the environments need of an actor beside the form of its answers; a subclass may raise."""

    @property
    def torch_context(self) -> TorchContext:
        """The torch context that the actor runs in; after :meth:`prepare`."""
        return self._prepared().torch_context

    @property
    def layout(self) -> Fragment:
        """The layout of a fragment, with ``Leaf`` instead of tensors; after :meth:`prepare`."""
        return self._prepared().layout

    @property
    def warnings(self) -> list[str]:
        """What the user is to be warned of at the call; after :meth:`prepare`."""
        return self._behaviour.warnings

    def _prepared(self) -> Probed:
        if self._probed is None:
            raise RuntimeError("the collector is not prepared yet: call `prepare` first.")
        return self._probed

    def blank(self) -> Fragment:
        """Allocate a blank fragment; in the consumer's thread, on its current stream."""
        allocate = partial(self._lane.empty, Place.CONSUMER)
        return blank_tensors(self._prepared().whole, allocate)  # type: ignore[no-any-return]

    def serve(self, token: Token) -> Delivery:
        """Collect one fragment with the token's weights, into its blank fragment; in the collector's thread."""
        with self.torch_context.applied(), self._lane.collecting():
            try:
                return self._serve(token)
            except BaseException:
                with suppress(Exception):  # the first error is the one to report
                    self.synchronize()  # edge: dropped -> released
                raise

    def _adopt(self, token: Token) -> None:
        """Begin a fragment: load the token's snapshot, and copy the recurrent states into memory of their own."""
        lane, progress = self._lane, self._progress
        progress.fragment, progress.row = self._n_collected, 0
        progress.begin("the hand-over")
        lane.wait(token.ready)  # edge: ready -> first write
        if lane.shared(Place.ACTOR, Place.HOST):
            lane.host_wait(token.ready)  # the host itself reads the snapshot
        self._behaviour.adopt(token.snapshot)
        for group in self._groups:
            lane.launch(partial(self._behaviour.copy_recurrent_state, group))

    def _serve(self, token: Token) -> Delivery:
        lane, plan, progress, behaviour = self._lane, self._plan, self._progress, self._behaviour
        self._adopt(token)
        staging, previous = self._next_staging(), self._previous
        lane.host_wait(staging.copied)  # edge: copied -> refill
        carry_over(previous, staging, lane)
        if previous is None:
            progress.begin("actor.step")
            rows, answers = [one.part for one in staging.groups], [one.answers[0] for one in staging.groups]
            behaviour.bind_rows(self._groups, rows, answers, staging.actor)

        loop = Loop(
            staging, behaviour, self._groups, self.stepper, lane, progress, self.torch_context,
            starts_later=self._starts_later, sticky=plan.sticky, final=plan.final,
        )  # fmt: skip
        self._starts_later = loop.run(self._pass_gate)

        progress.begin("the hand-over")
        deliver(staging, token.blank, lane)
        staged = stage_final(loop.finals, self.layout, lane) if plan.final else ()
        copied = lane.record()  # the consumer's stream waits for this event (edge: copied -> read)
        staging.mark_copied(copied)
        if lane.shared(Place.CONSUMER, Place.HOST):
            lane.host_wait(copied)
        self._previous, self._n_collected = staging, self._n_collected + 1
        episodes = self.stepper.episodes()
        return Delivery(
            version=token.version,
            fragment=token.blank,
            final=staged,
            copied=copied,
            consumer_stream=token.consumer_stream,
            snapshot=token.snapshot,
            steps=loop.n_transitions,
            warning=self._take_warning(episodes),
            episodes=episodes,
        )

    def _take_warning(self, episodes: Collection[Episode]) -> str:
        """Return the warning for the user that is due with a fragment in which these episodes ended."""
        found = [self._behaviour.take_pending_warning(), self._plan.entries.take_warning() if episodes else ""]
        return "\n".join(filter(None, found))

    def _next_staging(self) -> Staging:
        """Return the staging buffers for the next fragment. They are allocated at the first, on this stream."""
        if not self._stagings:
            slots, n_steps = self._environments.slots, self._plan.n_steps
            self._stagings = make_stagings(slots, self.layout, n_steps, self._groups, self.stepper.turns, self._lane)
        previous = self._previous.number if self._previous is not None else -1
        return self._stagings[(previous + 1) % len(self._stagings)]

    @property
    def forms(self) -> dict[str, list[str]]:
        """Names, shapes and dtypes of what environments and actor have; of its answers after :meth:`prepare` only."""
        layout = None if self._probed is None else self.layout
        return all_forms(self._environments.state, self.stepper.groups, self._behaviour.forms, layout)

    def state_dict(self, *, whole: bool) -> dict[str, Any]:
        """Return what the next fragments depend on beside the tokens; in the collector's thread, between two fragments.

        With ``whole`` the states of the environments are part of it.
        """
        with self.torch_context.applied(), self._lane.collecting():
            self.synchronize()
            with self._defaults.for_environments():
                environments = self.stepper.save_state(whole=whole)
            last = self._previous
            row = (self._environments.slots[0], 0) if last is None else (last.slot, last.host_row(last.n_steps))
            return {
                "n_collected": self._n_collected,
                "row": pack_row(*row),
                "groups": [group.state_dict() for group in self._groups],
                "copies": [self._behaviour.state_dict()],
                "watched": self._behaviour.watch_state(),
                "untold": self._plan.entries.state_dict(),
                "environments": environments,
            }

    def load_state_dict(self, state: Mapping[str, Any], *, whole: bool) -> None:
        """Continue from what :meth:`state_dict` returned; in the collector's thread and stream, before :meth:`prepare`.

        Raises ValueError if the state is of another actor or of other environments.
        """
        self._behaviour.load_state_dict(state["copies"][0], before_trial=True)
        self._behaviour.load_watch_state(state["watched"])
        with self._defaults.for_environments():
            if whole:
                self.stepper.load_state(state["environments"])
        unpack_row(state["row"], self._environments.slots[0], whole=whole)
        for group, saved in zip(self._groups, state["groups"], strict=True):
            group.load_generators(saved)
        self._resumed = state
        self._plan.entries.load_state_dict(state["untold"])
        self._n_collected = state["n_collected"]

    def _pass_gate(self) -> None:
        """Stop at the gate if it is shut: for a pause, or for good by an exception."""
        if self._gate.shut:
            self._gate.wait_while_shut(self._come_to_rest)

    def _come_to_rest(self) -> None:
        self._progress.begin("env.step")
        self.torch_context.call_environments(self.stepper.finish_all)
        self._progress.begin("a pause")
        self.synchronize()

    def synchronize(self) -> None:
        """Let the host wait until all work of the collector is done; in the collector's thread."""
        self._lane.synchronize_collector()

    def stand_still(self) -> None:
        """Do nothing, since nothing is under way between two fragments."""

    def close(self) -> list[str]:
        """Wait for the device, so that memory can be released, and close the environments that this feed has made.

        Returns
        -------
        list of str
            What went wrong in closing, as warnings for the consumer.
        """
        try:
            with self._lane.collecting():
                self.synchronize()  # edge: dropped -> released
        except Exception as error:
            return [f"waiting for the device failed: {repr_of(error)}.", *self._close_environments()]
        return self._close_environments()

    def _close_environments(self) -> list[str]:
        with self._defaults.for_environments():
            return self.stepper.close()
