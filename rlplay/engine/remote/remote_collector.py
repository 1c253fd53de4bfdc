"""Presents several collector processes to the consumer's process as one collector.

Each process collects the part of every fragment that belongs to its environments, which form a group. The collector's
thread of the consumer's process sends them the weights, waits for their parts without the interpreter lock, and copies
the parts side by side into the blank fragment.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from functools import partial
from operator import itemgetter
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from ... import nested
from ...dtypes import move
from ...nested import Nested
from ..acting.behaviour import Behaviour, Snapshot
from ..acting.torch_context import TorchContext
from ..collector.messages import Delivery, Plan, Token
from ..concurrency.channel import Closed
from ..concurrency.child import Listener
from ..concurrency.exceptions import add_note
from ..concurrency.gate import Gate
from ..concurrency.progress import Progress
from ..concurrency.service import PARTIAL, PAUSED, ServiceProcess
from ..core import BaseActorModule, Episode, Final, Fragment
from ..memory.lane import Lane, Place
from ..memory.layout import blank_fragment
from ..stepping.shares import check_equal_spaces
from .collector_process import CollectorSpec, Reply
from .handle import CollectorProcess
from .shared_fragment import SharedFragmentSpec

__all__ = ["NO_STATE", "RemoteCollector"]

NO_STATE = "`single` and `multi` can neither save nor continue yet: use `same`, or `threaded` without workers."


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
        """Start all processes at once, and wait until they have made and reset their environments.

        Raises ValueError if the environments of different processes have different spaces, and RuntimeError if a
        process has died (the message names the process and the signal), or if the system is not POSIX.
        """
        self._behaviour, self._lane, self._plan, self._progress, self._gate = behaviour, lane, plan, progress, gate
        self._n_taken, self._n_envs_each = n_taken, len(specs[0].sources)
        self._processes: list[CollectorProcess] = []
        self._listener = Listener[CollectorProcess]()
        self._paused: set[CollectorProcess] = set()
        self._copied: Any = None
        """The event behind the copies out of shared memory."""
        gate.on_give_up(self.kill)
        gate.on_change(self._on_gate_change)
        gate.on_close(self._listener.allow_waking(), ServiceProcess.grace)
        try:
            for number, spec in enumerate(specs):
                process = CollectorProcess(number, spec)
                self._processes.append(process)
                self._listener.add(process.service, process)
                if gate.closed:
                    raise Closed
            progress.set_parts([(process.name, process.progress) for process in self._processes])
            check_equal_spaces([process.columns.start for process in self._processes], self._receive_one_each())
        except BaseException as error:
            for complaint in self.close():
                add_note(error, complaint)
            raise

    def prepare(self, torch_context: TorchContext) -> None:
        """Have the processes determine the shapes and dtypes of the actor's outputs, and share memory with them.

        Raises TypeError or ValueError if the outputs are not of the form that the contract asks for.
        """
        for process in self._processes:
            process.service.request("prepare", torch_context)
        self.layout, self.warnings = self._receive_one_each()[0]
        self.torch_context = torch_context
        weight_forms = [(tuple(x.shape), x.dtype) for x in self._behaviour.weights]
        spec = SharedFragmentSpec(self.layout, self._plan, self._n_envs_each, weight_forms)
        for process in self._processes:
            process.share(spec, self._lane.lock)
        self._receive_one_each()

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
        """Raise NotImplementedError: what collector processes have cannot be saved yet."""
        raise NotImplementedError(NO_STATE)

    def serve(self, token: Token) -> Delivery:
        """Have one fragment collected with the token's weights, and copy it into the token's blank fragment."""
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
            for columns, process in zip(self._split_columns(token.blank), taken, strict=True):
                lane.copy(columns, process.shared.fragment)
            staged = self._stage_finals(taken) if self._plan.final else ()
            self._copied = copied = lane.record()
            if lane.shared(Place.CONSUMER, Place.HOST):
                lane.host_wait(copied)
        return self._delivery(token, taken, staged, copied)

    def _split_columns(self, blank: Fragment) -> list[Nested]:
        """Split a blank fragment by environments, into one part for each process that contributes to it."""
        if self._n_taken == 1:
            return [blank]
        leaves, spec = nested.flatten(blank)
        parts = zip(*(x.split(self._n_envs_each, dim=1) for x in leaves), strict=True)
        return [spec.unflatten(part) for part in parts]

    def _wait_for_parts(self) -> list[CollectorProcess]:
        """Wait until ``n_taken`` processes have replied; return them in their order.

        If more have replied, those with the oldest weights are returned.
        """
        while True:
            finished = [process for process in self._processes if process.reply is not None]
            if len(finished) >= self._n_taken:
                oldest = sorted(finished, key=lambda process: process.version or 0)[: self._n_taken]
                return [process for process in finished if process in oldest]
            for process, reply in self._receive([p for p in self._processes if p.reply is None]):
                process.reply = reply

    def _delivery(self, token: Token, taken: Sequence[CollectorProcess], staged: Nested, copied: Any) -> Delivery:
        replies, versions = [p.reply for p in taken if p.reply is not None], [p.version or 0 for p in taken]
        version = versions[0] if len(taken) == len(self._processes) else tuple(versions)
        steps, episodes = sum(reply.steps for reply in replies), self._order_episodes(taken, replies)
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

    def _stage_finals(self, taken: Sequence[CollectorProcess]) -> Final:
        """Gather the finals of all parts, ordered by time and environment, in memory of the collector's."""
        parts = []
        for k, process in enumerate(taken):
            n = process.reply.n_finals if process.reply is not None else 0
            part = nested.map(lambda x, n=n: x[:n], process.shared.final)
            parts.append(part._replace(b=part.b + k * self._n_envs_each))
        finals = nested.map(partial(move, lambda *xs: torch.cat(xs)), *parts)
        order = torch.argsort(finals.t * len(taken) * self._n_envs_each + finals.b)
        finals = nested.map(partial(move, itemgetter(order)), finals)
        if self._lane.shared(Place.CONSUMER, Place.HOST):
            return Final(*finals)
        staged = nested.map(lambda x: self._lane.empty(Place.CONSUMER, x.shape, x.dtype), finals)
        self._lane.copy(staged, finals)
        return Final(*staged)

    def _order_episodes(self, taken: Sequence[CollectorProcess], replies: Sequence[Reply]) -> list[Episode]:
        """Return the episodes of all parts, ordered by time and environment."""
        if len(replies) == 1:
            return [Episode(*fields) for fields in replies[0].episodes]
        by_environment: dict[int, deque[Episode]] = defaultdict(deque)
        for reply in replies:
            for fields in reply.episodes:
                by_environment[fields[0]].append(Episode(*fields))
        ends = []
        for process in taken:
            env = process.shared.fragment.env
            over = (env.terminated | env.truncated) & env.valid
            ends += [(t, process.columns.start + b) for t, b in over.nonzero().tolist()]
        return [by_environment[b].popleft() for _, b in sorted(ends)]

    def _receive_one_each(self) -> list[Any]:
        """Wait for one answer of each process; return the answers in the order of the processes."""
        answers: dict[CollectorProcess, Any] = {}
        while len(answers) < len(self._processes):
            answers.update(self._receive([process for process in self._processes if process not in answers]))
        return [answers[process] for process in self._processes]

    def _receive(self, awaited: Sequence[CollectorProcess]) -> list[tuple[CollectorProcess, Any]]:
        """Wait until some of the awaited processes have answered, or any process has failed.

        If all of them have paused, stop at the gate and resume them when it opens; the list is empty then.
        """
        progress, answers = self._progress, []
        running = [process for process in awaited if process not in self._paused]
        if not running:
            progress.begin("a pause")
            self._gate.wait_while_shut(lambda: None)
            progress.begin("its processes")
            while self._paused:
                self._paused.pop().service.resume()
            return []
        progress.set_awaited([(process.name, process.progress) for process in running])
        for process in self._listener.wait():
            try:
                kind, answer = process.service.receive()
            except BaseException:
                progress.set_awaited([(process.name, process.progress)])  # the message names the one that has failed
                raise
            if kind == PAUSED:
                self._paused.add(process)
            elif kind != PARTIAL:
                answers.append((process, answer))
        progress.set_awaited(())
        return answers

    def _on_gate_change(self, shut: bool) -> None:
        for process in list(self._processes):
            process.progress.halt(shut)

    def synchronize(self) -> None:
        """Wait until the current stream has finished the work that was launched on it."""
        self._lane.host_wait(self._lane.record())

    def kill(self) -> None:
        """Kill the processes and their process groups. May be called in any thread."""
        for process in list(self._processes):
            process.service.kill()

    def close(self) -> list[str]:
        """Stop the processes at their next step, have them close their environments and end; kill those that do not.

        Returns
        -------
        list of str
            What went wrong in closing, to be shown to the user as warnings.
        """
        complaints: list[str] = []
        self._on_gate_change(True)
        for process in self._processes:
            process.service.request_end()
        deadline = monotonic() + ServiceProcess.grace
        for process in self._processes:
            complaints += process.service.close(deadline, doing=partial(str, process.progress))
        self._listener.close()
        with self._lane.collecting():
            self.synchronize()  # edge: dropped -> released
        self._gate.remove_callbacks(self.kill, self._on_gate_change)  # else the gate would keep the memory alive
        return complaints
