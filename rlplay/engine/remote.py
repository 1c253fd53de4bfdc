"""Collectors in processes of their own, seen from the consumer's process as one collector.

Each has a part of the environments, which is a group. A thread of the consumer's process sends them the weights, waits
for their parts of a fragment, and copies these side by side. It waits without the interpreter lock.
"""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from .. import nested
from . import space
from .ambient import Ambient
from .behaviour import Behaviour, Snapshot
from .core import BaseActorModule, Episode, Final, Fragment
from .handoff import Gate
from .outpost import Carver, Errand, Region, Reply, serve
from .process import Child, Gone, map_memory, new_memory, unpacked
from .schedule import Delivery, Plan, Token
from .storage import blank
from .trace import Posted, Progress, note
from .transfer import Lane, Place

__all__ = ["RemoteCollector"]


class RemoteCollector:
    """The face of a :class:`~rlplay.engine.schedule.Collector`; the collecting is done elsewhere."""

    def __init__(
        self, errands: Sequence[Errand], behaviour: Behaviour, lane: Lane, plan: Plan, progress: Progress, gate: Gate
    ) -> None:
        """Start the processes, all at once, and wait until their environments are made and reset.

        Raises
        ------
        ValueError
            The environments of different processes have different spaces.
        """
        self._errands, self._behaviour, self._lane, self._plan = errands, behaviour, lane, plan
        self._progress, self._gate = progress, gate
        self._posts: list[Posted] = []
        self._children: list[Child] = []
        self._regions: list[Region] = []
        self._copied: Any = None
        gate.hurry.append(self.kill)
        gate.told.append(self._halt)
        try:
            for number, errand in enumerate(errands):
                self._start(number, errand)
            self._look(self._asked("make"))
        except BaseException as error:
            for complaint in self.close():
                note(error, complaint)
            raise

    def _start(self, number: int, errand: Errand) -> None:
        columns = errand.columns
        name = f"collector process {number} (environments {columns.start} to {columns.stop - 1})"
        child = Child(serve, errand, name=name)
        self._children.append(child)
        fd = new_memory(Posted.SIZE)
        try:
            self._posts.append(Posted(map_memory(fd)))
            with _blaming(child):
                child.link.send(None, fd)
        finally:
            os.close(fd)

    def _look(self, looks: Sequence[Any]) -> None:
        self.act, spaces = looks[0]
        for errand, (_, others) in zip(self._errands, looks, strict=True):
            for name, mine, theirs in zip(("observation_space", "action_space"), spaces, others, strict=True):
                if not space.same(mine, theirs):
                    raise ValueError(
                        f"environments of one feed must have equal spaces: environment {errand.columns.start} has the "
                        f"{name} {theirs}, environment 0 has {mine}."
                    )

    def prepare(self, ambient: Ambient) -> None:
        """Let the processes learn what the actor answers, and share memory with them.

        Raises
        ------
        TypeError, ValueError
            If the actor's answers are not of the form that the contract asks for.
        """
        answers = self._asked("prepare", ambient)
        self.ambient, (self.layout, self._behaviour.resets_by_mask) = ambient, answers[0]
        forms = [(tuple(x.shape), x.dtype) for x in self._behaviour.weights]
        common = new_memory(max(1, sum(-(-x.nbytes // 64) * 64 for x in self._behaviour.weights)))
        fds = [common]
        try:
            shared = torch.from_numpy(map_memory(common))
            self._weights = list(map(Carver(shared), *zip(*forms, strict=True))) if forms else []
            self._regions.clear()
            for child, errand in zip(self._children, self._errands, strict=True):
                n_envs = len(errand.sources)
                fds.append(new_memory(Region.size(self.layout, self._plan, n_envs)))
                memory = self._lane.lock(map_memory(fds[-1]))
                self._regions.append(Region.carved(memory, self.layout, self._plan, n_envs))
                with _blaming(child):
                    child.link.send(("share", forms), fds[-1], common)
            self._answers()
        finally:
            for fd in fds:
                os.close(fd)

    def vessel(self) -> Fragment:
        """Allocate blank memory of the consumer's for one fragment; in the consumer's thread, on its stream."""

        def allocate(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
            return self._lane.empty(Place.CONSUMER, shape, dtype)

        return blank(self.layout, self._plan.n_steps, self._errands[-1].columns.stop, allocate)

    def snapshot(self, actor: BaseActorModule) -> Snapshot:
        """Take a snapshot of the learner's weights; in the consumer's thread."""
        return self._behaviour.publish(actor)

    def serve(self, token: Token) -> Delivery:
        """Let one fragment be collected with the token's weights, and copy it into its vessel."""
        lane, progress = self._lane, self._progress
        with torch.inference_mode(False), torch.no_grad(), lane.collecting():
            progress.doing = "the hand-over"
            lane.wait(token.asked)  # asked -> first write
            lane.host_wait(token.asked)  # the snapshot is the host's to read
            lane.host_wait(self._copied)  # copied -> refill
            if self._weights:
                torch._foreach_copy_(self._weights, token.snapshot.weights)
            replies: list[Reply] = self._asked("collect", token.version, token.snapshot.modes)
            started, progress.doing = perf_counter(), "the hand-over"
            for errand, region in zip(self._errands, self._regions, strict=True):
                part = errand.columns
                lane.copy(nested.map(lambda x, part=part: x[:, part], token.vessel), region.vessel)
            staged = self._staged(replies) if self._plan.final else ()
            self._copied = copied = lane.record()
            if lane.shared(Place.CONSUMER, Place.HOST):
                lane.host_wait(copied)
            self._account(perf_counter() - started)
        steps, episodes = sum(reply.steps for reply in replies), self._in_order(replies)
        return Delivery(token.version, token.vessel, staged, copied, token.home, token.snapshot, steps, episodes)

    def _staged(self, replies: Sequence[Reply]) -> Final:
        """Gather the ends of all parts, by time and environment, in memory of the collector's."""
        parts = []
        for errand, region, reply in zip(self._errands, self._regions, replies, strict=True):
            ended = nested.map(lambda x, k=reply.n_ends: x[:k], region.final)
            parts.append(ended._replace(b=ended.b + errand.columns.start))
        ended = nested.map(lambda *xs: torch.cat(xs), *parts)
        order = torch.argsort(ended.t * self._errands[-1].columns.stop + ended.b)
        ended = nested.map(lambda x: x[order], ended)

        def there(x: Tensor) -> Tensor:
            return self._lane.empty(Place.CONSUMER, x.shape, x.dtype)

        if self._lane.shared(Place.CONSUMER, Place.HOST):
            return Final(*ended)
        staged = nested.map(there, ended)
        self._lane.copy(staged, ended)
        return Final(*staged)

    def _in_order(self, replies: Sequence[Reply]) -> list[Episode]:
        """Order the episodes of all parts by time and environment."""
        of_env: dict[int, deque[Episode]] = defaultdict(deque)
        for reply in replies:
            for episode in reply.episodes:
                of_env[episode.env].append(episode)
        ends = []
        for errand, region in zip(self._errands, self._regions, strict=True):
            env = region.vessel.env
            over = (env.terminated | env.truncated) & env.valid
            ends += [(t, errand.columns.start + b) for t, b in over.nonzero().tolist()]
        return [of_env[b].popleft() for _, b in sorted(ends)]

    def _account(self, transfer: float) -> None:
        progress, n = self._progress, len(self._posts)
        progress.transfer += transfer
        progress.stepping = sum(post.stepping for post in self._posts) / n
        progress.inference = sum(post.inference for post in self._posts) / n

    def _asked(self, what: str, *args: Any) -> list[Any]:
        """Ask all the processes at once, and wait for all their answers."""
        for child in self._children:
            with _blaming(child):
                child.link.send((what, *args))
        return self._answers()

    def _answers(self) -> list[Any]:
        progress, answers = self._progress, []
        progress.busy = [(child.name, post) for child, post in zip(self._children, self._posts, strict=True)]
        for child, post in zip(self._children, self._posts, strict=True):
            try:
                answers.append(self._answer(child))
            except BaseException:
                progress.busy = [(child.name, post)]  # who is to blame
                raise
            progress.busy = progress.busy[1:]
        return answers

    def _answer(self, child: Child) -> Any:
        while True:
            with _blaming(child):
                (kind, answer), _ = child.link.receive()
            if kind == "failed":
                raise unpacked(answer)
            if kind == "done":
                return answer
            self._gate.stand(lambda: None)  # the process stands at a step's boundary
            with _blaming(child):
                child.link.send("go on")

    def _halt(self, shut: bool) -> None:
        for post in self._posts:
            post.halted = shut

    def settle(self) -> None:
        """Wait until the current stream has done all that it was asked for."""
        self._lane.host_wait(self._lane.record())

    def kill(self) -> None:
        """Give the processes up. Safe in any thread."""
        for child in list(self._children):
            child.kill()

    def close(self) -> list[str]:
        """Tell the processes to close their environments and to end; kill those that do not."""
        complaints: list[str] = []
        for child in self._children:
            with suppress(Gone):
                child.link.send(("close",))
        for child in self._children:
            words = child.last_words()
            complaints += words[1] if words is not None and words[0] == "done" else []
            child.close()
        with self._lane.collecting():
            self.settle()  # dropped -> released
        return complaints


@contextmanager
def _blaming(child: Child) -> Iterator[None]:
    try:
        yield
    except Gone:
        raise RuntimeError(f"{child.epitaph()}.") from None
