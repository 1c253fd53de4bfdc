"""Collectors in processes of their own, seen from the consumer's process as one collector.

Each has a part of the environments, which is a group. A thread of the consumer's process sends them the weights, waits
for their parts of a fragment, and copies these side by side. It waits without the interpreter lock.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from ... import nested
from ...nested import Nested
from ..acting.behaviour import Behaviour, Snapshot
from ..acting.torch_context import TorchContext
from ..collector.messages import Delivery, Plan, Token
from ..concurrency.channel import Closed
from ..concurrency.child import Child, Listener
from ..concurrency.exceptions import add_note
from ..concurrency.gate import Gate
from ..concurrency.link import Gone
from ..concurrency.progress import Progress
from ..core import BaseActorModule, Episode, Final, Fragment
from ..envs.spaces import equal_spaces
from ..memory.lane import Lane, Place
from ..memory.layout import blank_fragment
from .collector_process import CollectorSpec, Reply
from .handle import CollectorProcess
from .shared_fragment import SharedFragmentSpec

__all__ = ["RemoteCollector"]

_PATIENCE = 3.0
"""Seconds that the processes have, together, to close their environments: fewer than it is waited for themselves."""


class RemoteCollector:
    """The face of a :class:`~rlplay.engine.collector.collector.Collector`; the collecting is done elsewhere.

    With ``n_taken`` less than the processes there are, a fragment is made of the parts that are there first.
    """

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
        """Start the processes, all at once, and wait until their environments are made and reset.

        Raises
        ------
        ValueError
            The environments of different processes have different spaces.
        """
        self._behaviour, self._lane, self._plan, self._progress, self._gate = behaviour, lane, plan, progress, gate
        self._n_taken, self._width = n_taken, len(specs[0].sources)
        self._processes: list[CollectorProcess] = []
        self._by_child: dict[Child, CollectorProcess] = {}
        self._listener = Listener()
        self._standing: set[CollectorProcess] = set()
        self._made = False
        self._copied: Any = None
        gate.hurry.append(self.kill)
        gate.told.append(self._halt)
        try:
            for number, spec in enumerate(specs):
                process = CollectorProcess(number, spec)
                self._processes.append(process)
                self._by_child[process.child] = process
                self._listener.add(process.child)
                if gate.closed:  # which may have been a moment too early for this one to be killed
                    raise Closed
            progress.parts = [(process.name, process.progress) for process in self._processes]
            self._look(self._asked(("make",)))
            self._made = True
        except BaseException as error:
            for complaint in self.close():
                add_note(error, complaint)
            raise

    def _look(self, looks: Sequence[Any]) -> None:
        self.act, spaces = looks[0]
        for process, (_, others) in zip(self._processes, looks, strict=True):
            for name, mine, theirs in zip(("observation_space", "action_space"), spaces, others, strict=True):
                if not equal_spaces(mine, theirs):
                    raise ValueError(
                        f"environments of one feed must have equal spaces: environment {process.columns.start} has the "
                        f"{name} {theirs}, environment 0 has {mine}."
                    )

    def prepare(self, torch_context: TorchContext) -> None:
        """Let the processes learn what the actor answers, and share memory with them.

        Raises
        ------
        TypeError, ValueError
            If the actor's answers are not of the form that the contract asks for.
        """
        (self.layout, self.warnings), *_ = self._asked(("prepare", torch_context))
        self.torch_context = torch_context
        weights = [(tuple(x.shape), x.dtype) for x in self._behaviour.weights]
        form = SharedFragmentSpec(self.layout, self._plan, self._width, weights)
        for process in self._processes:
            process.share(form, self._lane.lock)
        self._heard(self._processes)

    def blank(self) -> Fragment:
        """Allocate blank memory of the consumer's for one fragment; in the consumer's thread, on its stream."""

        def allocate(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
            return self._lane.empty(Place.CONSUMER, shape, dtype)

        return blank_fragment(self.layout, self._plan.n_steps, self._n_taken * self._width, allocate)

    def snapshot(self, actor: BaseActorModule) -> Snapshot:
        """Take a snapshot of the learner's weights; in the consumer's thread."""
        return self._behaviour.publish(actor)

    def serve(self, token: Token) -> Delivery:
        """Let one fragment be collected with the token's weights, and copy it into its blank."""
        lane, progress = self._lane, self._progress
        with torch.inference_mode(False), torch.no_grad(), lane.collecting():
            progress.begin("the hand-over")
            lane.wait(token.asked)  # asked -> first write
            lane.host_wait(token.asked)  # the snapshot is the host's to read
            lane.host_wait(self._copied)  # copied -> refill
            self._send_out(token)
            progress.begin("its processes")
            taken = self._first_back()
            progress.begin("the hand-over")
            for columns, process in zip(self._columns(token.blank), taken, strict=True):
                lane.copy(columns, process.region.blank)
            staged = self._staged(taken) if self._plan.final else ()
            self._copied = copied = lane.record()
            if lane.shared(Place.CONSUMER, Place.HOST):
                lane.host_wait(copied)
        return self._delivery(token, taken, staged, copied)

    def _columns(self, blank: Fragment) -> list[Nested]:
        """Take a blank apart, side by side: one part for each process that adds to it."""
        if self._n_taken == 1:
            return [blank]
        leaves, spec = nested.flatten(blank)
        return [spec.unflatten(parts) for parts in zip(*(x.split(self._width, dim=1) for x in leaves), strict=True)]

    def _send_out(self, token: Token) -> None:
        """Give the weights to all who have nothing to do."""
        for process in self._processes:
            if process.version is None:
                if process.region.weights:
                    torch._foreach_copy_(process.region.weights, token.snapshot.weights)
                process.version = token.version
                process.tell(("collect", token.version, token.snapshot.modes))

    def _first_back(self) -> list[CollectorProcess]:
        """Wait for as many as are taken, those with the oldest weights first; return them in their order."""
        while True:
            back = [process for process in self._processes if process.reply is not None]
            if len(back) >= self._n_taken:
                first = sorted(back, key=lambda process: process.version or 0)[: self._n_taken]
                return [process for process in back if process in first]
            for process, answer in self._some_of([o for o in self._processes if o.reply is None]):
                process.reply = answer

    def _delivery(self, token: Token, taken: Sequence[CollectorProcess], staged: Nested, copied: Any) -> Delivery:
        replies, versions = [o.reply for o in taken if o.reply is not None], [o.version or 0 for o in taken]
        version = versions[0] if len(taken) == len(self._processes) else tuple(versions)
        steps, episodes = sum(reply.steps for reply in replies), self._in_order(taken, replies)
        for process in taken:
            process.version = process.reply = None
        complaint = next((reply.complaint for reply in replies if reply.complaint), "")
        return Delivery(version, token.blank, staged, copied, token.home, token.snapshot, steps, episodes, complaint)

    def _staged(self, taken: Sequence[CollectorProcess]) -> Final:
        """Gather the ends of all parts, by time and environment, in memory of the collector's."""
        parts = []
        for k, process in enumerate(taken):
            n = process.reply.n_ends if process.reply is not None else 0
            ended = nested.map(lambda x, n=n: x[:n], process.region.final)
            parts.append(ended._replace(b=ended.b + k * self._width))
        ended = nested.map(lambda *xs: torch.cat(xs), *parts)
        order = torch.argsort(ended.t * len(taken) * self._width + ended.b)
        ended = nested.map(lambda x: x[order], ended)
        if self._lane.shared(Place.CONSUMER, Place.HOST):
            return Final(*ended)
        staged = nested.map(lambda x: self._lane.empty(Place.CONSUMER, x.shape, x.dtype), ended)
        self._lane.copy(staged, ended)
        return Final(*staged)

    def _in_order(self, taken: Sequence[CollectorProcess], replies: Sequence[Reply]) -> list[Episode]:
        """Order the episodes of all parts by time and environment."""
        if len(replies) == 1:
            return [Episode(*told) for told in replies[0].episodes]
        of_env: dict[int, deque[Episode]] = defaultdict(deque)
        for reply in replies:
            for told in reply.episodes:
                of_env[told[0]].append(Episode(*told))
        ends = []
        for process in taken:
            env = process.region.blank.env
            over = (env.terminated | env.truncated) & env.valid
            ends += [(t, process.columns.start + b) for t, b in over.nonzero().tolist()]
        return [of_env[b].popleft() for _, b in sorted(ends)]

    def _asked(self, thing: Any) -> list[Any]:
        """Ask all the processes at once, and wait for all their answers."""
        for process in self._processes:
            process.tell(thing)
        return self._heard(self._processes)

    def _heard(self, processes: Sequence[CollectorProcess]) -> list[Any]:
        """Wait for the answers of all of them."""
        answers: dict[CollectorProcess, Any] = {}
        while len(answers) < len(processes):
            answers.update(self._some_of([process for process in processes if process not in answers]))
        return [answers[process] for process in processes]

    def _some_of(self, waited_for: Sequence[CollectorProcess]) -> list[tuple[CollectorProcess, Any]]:
        """Wait until some have answered, or one has died: whoever does so is heard at once."""
        progress, answers = self._progress, []
        moving = [process for process in waited_for if process not in self._standing]
        if not moving:  # all that are under way stand still at a step's boundary
            progress.begin("a pause")
            self._gate.stand(lambda: None)
            progress.begin("its processes")
            while self._standing:
                self._standing.pop().tell("go on")
            return []
        progress.busy = [(process.name, process.progress) for process in moving]
        for child in self._listener.heard():
            process = self._by_child[child]
            try:
                kind, answer = process.hear()
            except BaseException:
                progress.busy = [(process.name, process.progress)]  # who is to blame
                raise
            if kind == "standing":
                self._standing.add(process)
            else:
                answers.append((process, answer))
        progress.busy = ()
        return answers

    def _halt(self, shut: bool) -> None:
        for process in list(self._processes):
            process.progress.halted = shut
        if self._gate.closed and not self._made:
            self.kill()  # there is no boundary to come to in making an environment

    def synchronize(self) -> None:
        """Wait until the current stream has done all that it was asked for."""
        self._lane.host_wait(self._lane.record())

    def kill(self) -> None:
        """Give the processes up. Safe in any thread."""
        for process in list(self._processes):
            process.child.kill()

    def close(self) -> list[str]:
        """Tell the processes to stop at their next step, to close their environments and to end; or kill them.

        Returns
        -------
        list of str
            What went wrong in closing: the consumer is to be warned about it.
        """
        complaints: list[str] = []
        self._halt(True)
        for process in self._processes:
            with suppress(Gone):
                process.child.link.send(("close",))
        deadline = monotonic() + _PATIENCE
        for process in self._processes:
            words = process.child.last_words(deadline - monotonic())
            if words is not None and words[0] == "closed":
                complaints += words[1]
            process.child.close()
        with self._lane.collecting():
            self.synchronize()  # dropped -> released
        # so that memory is let go now, and not when the garbage collector comes to it
        self._gate.hurry.remove(self.kill)
        self._gate.told.remove(self._halt)
        return complaints
