"""Presents several collector processes to the consumer's process as one collector.

Each process collects the part of every fragment that belongs to its environments, which form a group. The collector's
thread of the consumer's process sends them the weights, waits for their parts without the interpreter lock, and copies
the parts side by side into the blank fragment.
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
from ..collector.saving import all_forms
from ..concurrency.exceptions import unpack
from ..concurrency.gate import Gate
from ..concurrency.progress import Progress
from ..core import BaseActorModule, Fragment
from ..memory.lane import Lane, Place
from ..memory.layout import blank_fragment
from .collector_process import CollectorSpec
from .handle import CollectorProcess
from .parts import gather_finals, order_episodes, split_columns
from .processes import CollectorProcesses
from .saving import merge_states, split_state
from .shared_fragment import SharedFragmentSpec

__all__ = ["RemoteCollector"]


class RemoteCollector:
    """Has the interface of a :class:`~rlplay.engine.collector.collector.Collector`; collector processes do the work.

    If ``n_taken`` is less than the number of processes, a fragment is made of the parts that are finished first.
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
    ) -> None:
        """Start the processes, as :class:`.processes.CollectorProcesses` does."""
        self._behaviour, self._lane, self._plan, self._progress, self._gate = behaviour, lane, plan, progress, gate
        self._n_taken, self._n_envs_each = n_taken, len(specs[0].sources)
        self._copied: Any = None
        """The event behind the copies out of shared memory."""
        self._failure: BaseException | None = None
        """Why the processes cannot be asked for anything any more, if saving has found that out."""
        self._processes = CollectorProcesses(specs, progress, gate)

    def prepare(self, torch_context: TorchContext) -> None:
        """Have the processes determine the shapes and dtypes of the actor's outputs, and share memory with them.

        Raises TypeError or ValueError if the outputs are not of the form that the contract asks for.
        """
        for process in self._processes:
            process.service.request("prepare", torch_context)
        self._share_memory(torch_context)

    def resume(self, saved: Mapping[str, Any], torch_context: TorchContext) -> None:
        """Have the processes go on from a saved stream; otherwise like :meth:`prepare`.

        Raises ValueError if environments or actor are others than those of the saved stream.
        """
        state, parts = saved["collector"], split_state(saved, len(self._processes), self._n_envs_each)
        self._behaviour.load_watch_state(state["watched"])
        self._plan.entries.load_state_dict(state["untold"])
        for process, part in zip(self._processes, parts, strict=True):
            process.service.request("resume", part, torch_context)
        self._share_memory(torch_context)
        for process, finished in zip(self._processes, state.get("parts", ()), strict=False):
            process.load_finished_part(finished)

    def _share_memory(self, torch_context: TorchContext) -> None:
        """Receive the shapes and dtypes of the actor's outputs, and share memory for fragments of that form."""
        self.layout, self.warnings = self._processes.receive_one_each()[0]
        self.torch_context = torch_context
        weight_forms = [(tuple(x.shape), x.dtype) for x in self._behaviour.weights]
        spec = SharedFragmentSpec(self.layout, self._plan, self._n_envs_each, weight_forms)
        for process in self._processes:
            process.share(spec, self._lane.lock)
        self._processes.receive_one_each()

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

    @property
    def forms(self) -> dict[str, list[str]]:
        """Names, shapes and dtypes of what environments and actor have; after :meth:`prepare`."""
        groups = self._plan.groups * len(self._processes)
        return all_forms(self.layout.state, groups, self._behaviour.forms, self.layout)

    def state_dict(self, *, whole: bool) -> dict[str, Any]:
        """Return what the next fragments depend on beside the tokens; in the collector's thread, between fragments.

        The processes finish the parts that they are collecting, and give their states. The state has a form in which
        any engine can go on from it, but if fragments are made of the parts that finish first.
        """
        try:
            self._finish_parts()
            for process in self._processes:
                process.service.request("state_dict", whole)
            answers = self._processes.receive_one_each()
        except BaseException as error:
            self._failure = error
            raise
        for answer in answers:
            if answer.error is not None:
                raise unpack(answer.error)
        untold, watched = self._plan.entries.state_dict(), self._behaviour.watch_state()
        state = merge_states([answer.state for answer in answers], watched, untold)
        if self._n_taken < len(self._processes):
            state["parts"] = [process.finished_part() for process in self._processes]
        return state

    def _finish_parts(self) -> None:
        """Wait for the parts that are being collected; there are none if every process contributes to each fragment."""
        if not any(process.collecting for process in self._processes):
            return
        self._gate.enter()  # collecting goes on: a pause has to wait for it
        self._progress.begin("its processes")
        try:
            while awaited := [process for process in self._processes if process.collecting]:
                for process, reply in self._processes.receive(awaited):
                    process.reply = reply
        finally:
            self._progress.begin("waiting for the learner")
            self._gate.leave()

    def serve(self, token: Token) -> Delivery:
        """Have one fragment collected with the token's weights, and copy it into the token's blank fragment."""
        if self._failure is not None:
            raise self._failure
        lane, progress = self._lane, self._progress
        with torch.inference_mode(False), torch.no_grad(), lane.collecting():
            progress.begin("the hand-over")
            lane.wait(token.ready)  # edge: ready -> first write
            lane.host_wait(token.ready)  # the host reads the snapshot
            lane.host_wait(self._copied)  # edge: copied -> refill
            for process in self._processes:
                if process.version is None:
                    process.start_fragment(token)
            progress.begin("its processes")
            taken = self._wait_for_parts()
            progress.begin("the hand-over")
            parts = split_columns(token.blank, self._n_taken, self._n_envs_each)
            for columns, process in zip(parts, taken, strict=True):
                lane.copy(columns, process.shared.fragment)
            staged = self._stage_finals(taken) if self._plan.final else ()
            self._copied = copied = lane.record()
            if lane.shared(Place.CONSUMER, Place.HOST):
                lane.host_wait(copied)
        return self._delivery(token, taken, staged, copied)

    def _wait_for_parts(self) -> list[CollectorProcess]:
        """Wait until ``n_taken`` processes have replied; return them in their order.

        If more have replied, those with the oldest weights are returned.
        """
        while True:
            finished = [process for process in self._processes if process.reply is not None]
            if len(finished) >= self._n_taken:
                oldest = sorted(finished, key=lambda process: process.version or 0)[: self._n_taken]
                return [process for process in finished if process in oldest]
            for process, reply in self._processes.receive([p for p in self._processes if p.reply is None]):
                process.reply = reply

    def _delivery(self, token: Token, taken: Sequence[CollectorProcess], staged: Nested, copied: Any) -> Delivery:
        replies, versions = [p.reply for p in taken if p.reply is not None], [p.version or 0 for p in taken]
        version = versions[0] if len(taken) == len(self._processes) else tuple(versions)
        steps = sum(reply.steps for reply in replies)
        outcomes = [process.shared.fragment.env for process in taken]
        firsts = [process.columns.start for process in taken]
        episodes = order_episodes([reply.episodes for reply in replies], outcomes, firsts)
        for process in taken:
            process.take_fragment()
        for reply in replies:
            self._plan.entries.keep_untold(reply.untold)
        found = [reply.warning for reply in replies if reply.warning][:1]
        found += [self._plan.entries.take_warning()] if episodes else []
        return Delivery(
            version=version,
            fragment=token.blank,
            final=staged,
            copied=copied,
            consumer_stream=token.consumer_stream,
            snapshot=token.snapshot,
            steps=steps,
            episodes=episodes,
            warning="\n".join(filter(None, found)),
        )

    def _stage_finals(self, taken: Sequence[CollectorProcess]) -> Nested:
        """Gather the finals of all parts, in memory of the collector's."""
        parts = []
        for process in taken:
            n = process.reply.n_finals if process.reply is not None else 0
            parts.append(nested.map(lambda x, n=n: x[:n], process.shared.final))
        finals = gather_finals(parts, self._n_envs_each)
        if self._lane.shared(Place.CONSUMER, Place.HOST):
            return finals
        staged = nested.map(lambda x: self._lane.empty(Place.CONSUMER, x.shape, x.dtype), finals)
        self._lane.copy(staged, finals)
        return staged

    def synchronize(self) -> None:
        """Wait until the current stream has finished the work that was launched on it."""
        self._lane.host_wait(self._lane.record())

    def close(self) -> list[str]:
        """End the processes, as :meth:`.processes.CollectorProcesses.close` does, and wait for the copies.

        Returns
        -------
        list of str
            What went wrong in closing, to be shown to the user as warnings.
        """
        complaints = self._processes.close()
        with self._lane.collecting():
            self.synchronize()  # edge: dropped -> released
        return complaints
