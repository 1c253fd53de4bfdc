"""Presents several collectors in Ray actors to the consumer's process as one collector.

Each collects the part of every fragment that belongs to its environments, which form a group. The collector's thread of
the consumer's process puts the weights of a snapshot into Ray's object store, once for all of them, and copies their
parts out of the store, side by side into the blank fragment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import nested
from ...nested import Nested
from ..acting.behaviour import Behaviour, Snapshot
from ..acting.torch_context import TorchContext
from ..collector.messages import Delivery, Plan, Token
from ..concurrency.gate import Gate
from ..concurrency.progress import Progress
from ..concurrency.service import unpickle_from
from ..core import BaseActorModule, Fragment
from ..memory.lane import Lane, Place
from ..memory.layout import blank_fragment
from ..remote.collector_process import CollectorSpec
from ..remote.parts import gather_finals, order_episodes, split_columns
from .object_store import PartForms, bytes_of
from .ray_collector import RayCollector
from .ray_collectors import RayCollectors

__all__ = ["NO_STATE", "ClusterCollector"]

NO_STATE = "`cluster` can neither save nor continue a stream yet: use `same`, or `threaded` without workers."


class ClusterCollector:
    """Has the interface of a :class:`~rlplay.engine.collector.collector.Collector`; Ray actors do the work.

    If ``n_taken`` is less than their number, a fragment is made of the parts that are finished first.
    """

    torch_context: TorchContext
    layout: Fragment

    def __init__(
        self,
        specs: Sequence[CollectorSpec],
        n_taken: int,
        behaviour: Behaviour,
        lane: Lane,
        plan: Plan,
        progress: Progress,
        gate: Gate,
        *,
        ray: Any,
        restart: bool,
        ray_options: Mapping[str, Any],
    ) -> None:
        """Start the Ray actors, as :class:`.ray_collectors.RayCollectors` does."""
        self._behaviour, self._lane, self._plan, self._progress = behaviour, lane, plan, progress
        self._n_taken, self._n_envs_each, self._ray = n_taken, len(specs[0].sources), ray
        self._weights: tuple[Snapshot | None, Any] = None, None
        """The snapshot that was put into the object store last, and Ray's reference to its weights."""
        self._collectors = RayCollectors(specs, progress, gate, ray, ray_options, restart=restart)

    def prepare(self, torch_context: TorchContext) -> None:
        """Have the collectors determine the shapes and dtypes of the actor's outputs.

        Raises TypeError or ValueError if the outputs are not of the form that the contract asks for, and TypeError if
        the environments are to be restarted and cannot be saved.
        """
        for collector in self._collectors:
            collector.prepare(torch_context)
        answers = self._collectors.receive_one_each()
        for collector, (packed, state) in zip(self._collectors, answers, strict=True):
            collector.state = state
            self.layout, self.warnings = unpickle_from(collector.name, packed)
        self._forms = PartForms(self.layout, self._plan.n_steps, self._n_envs_each)
        self.torch_context = torch_context

    def blank(self) -> Fragment:
        """Allocate a blank fragment: memory of the consumer's; in the consumer's thread, on its stream."""

        def allocate(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
            return self._lane.empty(Place.CONSUMER, shape, dtype)

        return blank_fragment(self.layout, self._plan.n_steps, self._n_taken * self._n_envs_each, allocate)

    def snapshot(self, actor: BaseActorModule) -> Snapshot:
        """Take a snapshot of the learner's weights; in the consumer's thread."""
        return self._behaviour.publish(actor)

    def pack_snapshot(self, snapshot: Snapshot) -> dict[str, Any]:
        """Return a snapshot in a form that can be saved."""
        return self._behaviour.pack_snapshot(snapshot)

    def unpack_snapshot(self, saved: Mapping[str, Any]) -> Snapshot:
        """Return the snapshot that :meth:`pack_snapshot` has packed."""
        return self._behaviour.unpack_snapshot(saved)

    def state_dict(self, *, whole: bool) -> dict[str, Any]:
        """Raise NotImplementedError: what collectors in Ray actors have cannot be saved yet."""
        raise NotImplementedError(NO_STATE)

    def serve(self, token: Token) -> Delivery:
        """Have one fragment collected with the token's weights, and copy it into the token's blank fragment."""
        lane, progress = self._lane, self._progress
        with torch.inference_mode(False), torch.no_grad(), lane.collecting():
            progress.begin("the hand-over")
            lane.wait(token.ready)  # edge: ready -> first write
            lane.host_wait(token.ready)  # the host reads the snapshot
            weights = self._put(token.snapshot)
            for collector in self._collectors:
                if collector.version is None:
                    collector.start_fragment(token, weights)
            progress.begin("its processes")
            taken = self._wait_for_parts()
            progress.begin("the hand-over")
            columns = split_columns(token.blank, self._n_taken, self._n_envs_each)
            for target, collector in zip(columns, taken, strict=True):
                lane.copy(target, collector.fragment)
            staged = self._stage_finals(taken) if self._plan.final else ()
            copied = lane.record()
            lane.host_wait(copied)  # edge: copied -> refill: then Ray may use the memory of the parts again
        return self._delivery(token, taken, staged, copied)

    def _put(self, snapshot: Snapshot) -> Any:
        """Put the weights of a snapshot into the object store, unless they are there; return Ray's reference to them.

        The tokens of the first ask share a snapshot.
        """
        last, weights = self._weights
        if snapshot is not last:
            weights = self._ray.put(bytes_of(snapshot.weights))
            self._weights = snapshot, weights
        return weights

    def _wait_for_parts(self) -> list[RayCollector]:
        """Wait until ``n_taken`` collectors have replied; return them in their order.

        If more have replied, those with the oldest weights are returned.
        """
        while True:
            finished = [one for one in self._collectors if one.reply is not None]
            if len(finished) >= self._n_taken:
                oldest = sorted(finished, key=lambda one: one.version or 0)[: self._n_taken]
                return [one for one in finished if one in oldest]
            for collector, part in self._collectors.receive([one for one in self._collectors if one.reply is None]):
                collector.receive_fragment(part, self._forms)

    def _delivery(self, token: Token, taken: Sequence[RayCollector], staged: Nested, copied: Any) -> Delivery:
        replies, versions = [one.reply for one in taken if one.reply is not None], [one.version or 0 for one in taken]
        outcomes, firsts = [one.fragment.env for one in taken], [one.columns.start for one in taken]
        episodes = order_episodes([reply.episodes for reply in replies], outcomes, firsts)
        for collector in taken:
            collector.take_fragment()
        for reply in replies:
            self._plan.entries.keep_untold(reply.untold)
        found = self._collectors.take_warnings() + [reply.warning for reply in replies if reply.warning][:1]
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

    def _stage_finals(self, taken: Sequence[RayCollector]) -> Nested:
        """Gather the finals of all parts, in memory of the collector's."""
        finals = gather_finals([one.finals for one in taken], self._n_envs_each)
        if self._lane.shared(Place.CONSUMER, Place.HOST):
            return finals
        staged = nested.map(lambda x: self._lane.empty(Place.CONSUMER, x.shape, x.dtype), finals)
        self._lane.copy(staged, finals)
        return staged

    def synchronize(self) -> None:
        """Wait until the current stream has finished the work that was launched on it."""
        self._lane.host_wait(self._lane.record())

    def close(self) -> list[str]:
        """End the Ray actors, as :meth:`.ray_collectors.RayCollectors.close` does, and wait for the copies.

        Returns
        -------
        list of str
            What went wrong in closing, to be shown to the user as warnings.
        """
        complaints = self._collectors.close()
        with self._lane.collecting():
            self.synchronize()  # edge: dropped -> released
        return complaints
