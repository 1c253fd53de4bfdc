"""Presents several collectors elsewhere to the consumer's process as one collector, however messages reach them.

Each collects the part of every fragment that belongs to its environments, which form a group. The collector's thread of
the consumer's process sends them the weights, waits for their parts without the interpreter lock, and copies the parts
side by side into the blank fragment.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import torch

from ...nested import Nested
from ..acting.behaviour import Behaviour
from ..acting.torch_context import TorchContext
from ..collector.messages import Delivery, Plan, Token
from ..collector.saving import all_forms, from_bytes, to_bytes
from ..collector.snapshots import SnapshotTaker
from ..concurrency.exceptions import unpack
from ..concurrency.gate import Gate
from ..concurrency.progress import Progress
from ..core import Fragment
from ..memory.lane import Lane, Place
from ..memory.layout import blank_fragment
from .elsewhere import CollectorElsewhere, Collectors
from .parts import gather_finals, order_episodes, split_columns
from .saving import merge_states, split_state

__all__ = ["JoinedCollector"]


C = TypeVar("C", bound=CollectorElsewhere)


class JoinedCollector(SnapshotTaker, ABC, Generic[C]):
    """Has the interface of a :class:`~rlplay.engine.collector.collector.Collector`; collectors elsewhere do the work.

    If ``n_taken`` is less than their number, a fragment is made of the parts that are finished first.
    """

    environments_are = "list"
    torch_context: TorchContext
    layout: Fragment
    warnings: list[str]

    def __init__(
        self,
        collectors: Collectors[C],
        n_taken: int,
        n_envs_each: int,
        behaviour: Behaviour,
        lane: Lane,
        plan: Plan,
        progress: Progress,
        gate: Gate,
    ) -> None:
        self._behaviour, self._lane, self._plan, self._progress, self._gate = behaviour, lane, plan, progress, gate
        self._n_taken, self._n_envs_each = n_taken, n_envs_each
        self._collectors = collectors
        self._copied: Any = None
        """The event behind the copies of the parts."""
        self._failure: BaseException | None = None
        """The error with which saving failed, after which the collectors answer no more; None if there is none."""

    @abstractmethod
    def _set_up(self) -> None:
        """Receive the shapes and dtypes of the actor's outputs, and have fragments of that form sent."""

    @abstractmethod
    def _start_fragments(self, collectors: Sequence[C], token: Token) -> None:
        """Request a fragment from each of these collectors. The host may read the token's weights by then."""

    def _news(self) -> list[str]:
        """Return warnings for the user, once."""
        return []

    def prepare(self, torch_context: TorchContext) -> None:
        """Have the collectors determine the shapes and dtypes of the actor's outputs.

        Raises TypeError or ValueError if the outputs are not of the form that the contract asks for.
        """
        for collector in self._collectors:
            collector.request("prepare", torch_context)
        self.torch_context = torch_context
        self._set_up()

    def resume(self, saved: Mapping[str, Any], torch_context: TorchContext) -> None:
        """Have the collectors go on from a saved stream; otherwise like :meth:`prepare`.

        Raises ValueError if environments or actor are others than those of the saved stream.
        """
        state, parts = saved["collector"], split_state(saved, len(self._collectors), self._n_envs_each)
        self._behaviour.load_watch_state(state["watched"])
        self._plan.entries.load_state_dict(state["untold"])
        for collector, part in zip(self._collectors, parts, strict=True):
            collector.request("resume", to_bytes(part), torch_context)
        self.torch_context = torch_context
        self._set_up()
        for collector, finished in zip(self._collectors, state.get("parts", ()), strict=False):
            collector.load_finished_part(finished)

    def blank(self) -> Fragment:
        """Allocate a blank fragment: memory of the consumer's; in the consumer's thread, on its stream."""
        allocate = partial(self._lane.empty, Place.CONSUMER)
        return blank_fragment(self.layout, self._plan.n_steps, self._n_taken * self._n_envs_each, allocate)

    @property
    def forms(self) -> dict[str, list[str]]:
        """Names, shapes and dtypes of what environments and actor have; after :meth:`prepare`."""
        groups = self._plan.groups * len(self._collectors)
        return all_forms(self.layout.state, groups, self._behaviour.forms, self.layout)

    def state_dict(self, *, whole: bool) -> dict[str, Any]:
        """Return what the next fragments depend on beside the tokens; in the collector's thread, between fragments.

        The collectors finish the parts that they are collecting, and give their states. The state has a form in which
        any engine can go on from it, unless fragments are made of the parts that finish first.
        """
        self._check_whole()
        try:
            self._receive_parts(lambda: True)
            for collector in self._collectors:
                collector.request("state_dict", whole)
            answers = self._collectors.receive_one_each()
        except BaseException as error:
            self._failure = error
            raise
        for answer in answers:
            if answer.error is not None:
                raise unpack(answer.error)
        untold, watched = self._plan.entries.state_dict(), self._behaviour.watch_state()
        state = merge_states([from_bytes(answer.state) for answer in answers], watched, untold)
        if self._n_taken < len(self._collectors):
            state["parts"] = [one.finished_part() for one in self._collectors]
        return state

    @property
    def under_way(self) -> bool:
        """Whether parts are being collected; between fragments only with ``n_per_batch`` below ``n_actors``."""
        return any(one.collecting for one in self._collectors)

    def stand_still(self) -> None:
        """While the feed is paused, let no collector step; between two fragments, in the collector's thread."""
        self._check_whole()
        self._receive_parts(lambda: self._gate.shut)
        self._collectors.resume_paused()

    def _check_whole(self) -> None:
        """Raise the error with which saving failed, if it did: a collector that has failed answers no more."""
        if self._failure is not None:
            raise self._failure

    def _receive_parts(self, goes_on: Callable[[], bool]) -> None:
        """Between two fragments, receive the parts that are still being collected, as long as ``goes_on()`` is True."""
        if not (self.under_way and goes_on()):
            return
        self._progress.begin("its processes")
        try:
            while self.under_way and goes_on():
                self._receive([one for one in self._collectors if one.collecting])
        finally:
            self._progress.begin("waiting for the learner")

    def serve(self, token: Token) -> Delivery:
        """Have one fragment collected with the token's weights, and copy it into the token's blank fragment."""
        self._check_whole()
        lane, progress = self._lane, self._progress
        with torch.inference_mode(False), torch.no_grad(), lane.collecting():
            progress.begin("the hand-over")
            lane.wait(token.ready)  # edge: ready -> first write
            lane.host_wait(token.ready)  # the host reads the snapshot
            lane.host_wait(self._copied)  # edge: copied -> refill
            self._start_fragments([one for one in self._collectors if one.version is None], token)
            progress.begin("its processes")
            taken = self._wait_for_parts()
            progress.begin("the hand-over")
            parts = split_columns(token.blank, self._n_taken, self._n_envs_each)
            for columns, collector in zip(parts, taken, strict=True):
                lane.copy(columns, collector.fragment)
            staged = self._stage_finals(taken) if self._plan.final else ()
            self._copied = copied = lane.record()
            if lane.shared(Place.CONSUMER, Place.HOST):
                lane.host_wait(copied)
        return self._delivery(token, taken, staged, copied)

    def _wait_for_parts(self) -> list[C]:
        """Wait until ``n_taken`` collectors have replied; return them in their order.

        If more have replied, those with the oldest weights are returned.
        """
        while True:
            finished = [one for one in self._collectors if one.reply is not None]
            if len(finished) >= self._n_taken:
                oldest = sorted(finished, key=lambda one: one.version or 0)[: self._n_taken]
                return [one for one in finished if one in oldest]
            self._receive([one for one in self._collectors if one.reply is None])

    def _receive(self, awaited: Sequence[C]) -> None:
        """Wait until some of these collectors have replied, or the gate has changed."""
        for collector, answer in self._collectors.receive(awaited):
            collector.receive_fragment(answer)

    def _delivery(self, token: Token, taken: Sequence[C], staged: Nested, copied: Any) -> Delivery:
        replies, versions = [one.reply for one in taken if one.reply is not None], [one.version or 0 for one in taken]
        outcomes, firsts = [one.fragment.env for one in taken], [one.columns.start for one in taken]
        episodes = order_episodes([reply.episodes for reply in replies], outcomes, firsts)
        for collector in taken:
            collector.take_fragment()
        for reply in replies:
            self._plan.entries.keep_untold(reply.untold)
        found = self._news() + [reply.warning for reply in replies if reply.warning][:1]
        found += [self._plan.entries.take_warning()] if episodes else []
        return Delivery(
            version=versions[0] if len(taken) == len(self._collectors) else tuple(versions),
            fragment=token.blank,
            final=staged,
            copied=copied,
            consumer_stream=token.consumer_stream,
            snapshot=token.snapshot,
            steps=sum(reply.steps for reply in replies),
            episodes=episodes,
            warning="\n".join(filter(None, found)),
        )

    def _stage_finals(self, taken: Sequence[C]) -> Nested:
        """Gather the finals of all parts, in memory of the collector's."""
        finals = gather_finals([one.finals for one in taken], self._n_envs_each)
        on_host = self._lane.shared(Place.CONSUMER, Place.HOST)
        return finals if on_host else self._lane.clone(finals, Place.CONSUMER)

    def synchronize(self) -> None:
        """Wait until the current stream has finished the work that was launched on it."""
        self._lane.host_wait(self._lane.record())

    def close(self) -> list[str]:
        """End the collectors elsewhere, and wait for the copies.

        Returns
        -------
        list of str
            What went wrong in closing, to be shown to the user as warnings.
        """
        complaints = self._collectors.close()
        with self._lane.collecting():
            self.synchronize()  # edge: dropped -> released
        return complaints
