"""Collectors in processes of their own, seen from the consumer's process as one collector.

Each has a part of the environments, which is a group. A thread of the consumer's process sends them the weights, waits
for their parts of a fragment, and copies these side by side. It waits without the interpreter lock.
"""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from .. import nested
from ..nested import Nested
from . import space
from .ambient import Ambient
from .behaviour import Behaviour, Snapshot
from .core import BaseActorModule, Episode, Final, Fragment
from .handoff import Closed, Gate
from .outpost import Errand, Form, Region, Reply, serve
from .process import Child, Gone, Listener, map_memory, new_memory, unpacked
from .schedule import Delivery, Plan, Token
from .storage import blank
from .trace import Posted, Progress, note
from .transfer import Lane, Place

__all__ = ["RemoteCollector"]

_PATIENCE = 3.0
"""Seconds that the processes have, together, to close their environments: fewer than it is waited for themselves."""


class _Outpost:
    """A collector process, seen from here. Methods raise RuntimeError if it has died, which name it and the signal."""

    def __init__(self, number: int, errand: Errand) -> None:
        self.columns = errand.columns
        first, last = errand.columns.start, errand.columns.stop - 1
        which = f"environment {first}" if first == last else f"environments {first} to {last}"
        self.name = f"collector process {number} ({which})"
        fd = new_memory(Posted.SIZE)
        try:
            self.posted = Posted(map_memory(fd))
            self.child = Child(serve, errand, name=self.name)
            self.tell(None, fd)
        finally:
            os.close(fd)
        self.region: Region
        self.version: int | None = None
        """That of the snapshot which it has been given last, while the fragment of that has not been taken."""
        self.reply: Reply | None = None
        """What came with that fragment, once it is there."""

    def share(self, form: Form, lock: Callable[[Any], Tensor]) -> None:
        """Share the memory that fragments and weights travel in."""
        fd = new_memory(form.size)
        try:
            self.region = form.region(lock(map_memory(fd)))
            self.tell(("share", form), fd)
        finally:
            os.close(fd)

    def tell(self, thing: Any, *fds: int) -> None:
        """Tell it to do something."""
        try:
            self.child.link.send(thing, *fds)
        except Gone:
            raise RuntimeError(f"{self.child.epitaph()}.") from None

    def hear(self) -> tuple[str, Any]:
        """Wait for what it says: that something is ``done``, or ``standing``, when it stands still at a step."""
        try:
            (kind, answer), _ = self.child.link.receive()
        except Gone:
            raise RuntimeError(f"{self.child.epitaph()}.") from None
        if kind == "failed":
            raise unpacked(answer)
        return kind, answer


class RemoteCollector:
    """The face of a :class:`~rlplay.engine.schedule.Collector`; the collecting is done elsewhere.

    With ``n_taken`` less than the processes there are, a fragment is made of the parts that are there first.
    """

    def __init__(
        self,
        errands: Sequence[Errand],
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
        self._n_taken, self._width = n_taken, len(errands[0].sources)
        self._outposts: list[_Outpost] = []
        self._by_child: dict[Child, _Outpost] = {}
        self._listener = Listener()
        self._standing: set[_Outpost] = set()
        self._made = False
        self._copied: Any = None
        gate.hurry.append(self.kill)
        gate.told.append(self._halt)
        try:
            for number, errand in enumerate(errands):
                outpost = _Outpost(number, errand)
                self._outposts.append(outpost)
                self._by_child[outpost.child] = outpost
                self._listener.add(outpost.child)
                if gate.closed:  # which may have been a moment too early for this one to be killed
                    raise Closed
            progress.parts = [(outpost.name, outpost.posted) for outpost in self._outposts]
            self._look(self._asked(("make",)))
            self._made = True
        except BaseException as error:
            for complaint in self.close():
                note(error, complaint)
            raise

    def _look(self, looks: Sequence[Any]) -> None:
        self.act, spaces = looks[0]
        for outpost, (_, others) in zip(self._outposts, looks, strict=True):
            for name, mine, theirs in zip(("observation_space", "action_space"), spaces, others, strict=True):
                if not space.same(mine, theirs):
                    raise ValueError(
                        f"environments of one feed must have equal spaces: environment {outpost.columns.start} has the "
                        f"{name} {theirs}, environment 0 has {mine}."
                    )

    def prepare(self, ambient: Ambient) -> None:
        """Let the processes learn what the actor answers, and share memory with them.

        Raises
        ------
        TypeError, ValueError
            If the actor's answers are not of the form that the contract asks for.
        """
        (self.layout, self._behaviour.resets_by_mask, self._behaviour.eager_because), *_ = self._asked(
            ("prepare", ambient)
        )
        self.ambient = ambient
        weights = [(tuple(x.shape), x.dtype) for x in self._behaviour.weights]
        form = Form(self.layout, self._plan, self._width, weights)
        for outpost in self._outposts:
            outpost.share(form, self._lane.lock)
        self._heard(self._outposts)

    def vessel(self) -> Fragment:
        """Allocate blank memory of the consumer's for one fragment; in the consumer's thread, on its stream."""

        def allocate(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
            return self._lane.empty(Place.CONSUMER, shape, dtype)

        return blank(self.layout, self._plan.n_steps, self._n_taken * self._width, allocate)

    def snapshot(self, actor: BaseActorModule) -> Snapshot:
        """Take a snapshot of the learner's weights; in the consumer's thread."""
        return self._behaviour.publish(actor)

    def serve(self, token: Token) -> Delivery:
        """Let one fragment be collected with the token's weights, and copy it into its vessel."""
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
            for columns, outpost in zip(self._columns(token.vessel), taken, strict=True):
                lane.copy(columns, outpost.region.vessel)
            staged = self._staged(taken) if self._plan.final else ()
            self._copied = copied = lane.record()
            if lane.shared(Place.CONSUMER, Place.HOST):
                lane.host_wait(copied)
        return self._delivery(token, taken, staged, copied)

    def _columns(self, vessel: Fragment) -> list[Nested]:
        """Take a vessel apart, side by side: one part for each process that adds to it."""
        if self._n_taken == 1:
            return [vessel]
        leaves, spec = nested.flatten(vessel)
        return [spec.unflatten(parts) for parts in zip(*(x.split(self._width, dim=1) for x in leaves), strict=True)]

    def _send_out(self, token: Token) -> None:
        """Give the weights to all who have nothing to do."""
        for outpost in self._outposts:
            if outpost.version is None:
                if outpost.region.weights:
                    torch._foreach_copy_(outpost.region.weights, token.snapshot.weights)
                outpost.version = token.version
                outpost.tell(("collect", token.version, token.snapshot.modes))

    def _first_back(self) -> list[_Outpost]:
        """Wait for as many as are taken, those with the oldest weights first; return them in their order."""
        while True:
            back = [outpost for outpost in self._outposts if outpost.reply is not None]
            if len(back) >= self._n_taken:
                first = sorted(back, key=lambda outpost: outpost.version or 0)[: self._n_taken]
                return [outpost for outpost in back if outpost in first]
            for outpost, answer in self._some_of([o for o in self._outposts if o.reply is None]):
                outpost.reply = answer

    def _delivery(self, token: Token, taken: Sequence[_Outpost], staged: Nested, copied: Any) -> Delivery:
        replies, versions = [o.reply for o in taken if o.reply is not None], [o.version or 0 for o in taken]
        version = versions[0] if len(taken) == len(self._outposts) else tuple(versions)
        steps, episodes = sum(reply.steps for reply in replies), self._in_order(taken, replies)
        for outpost in taken:
            outpost.version = outpost.reply = None
        complaint = next((reply.complaint for reply in replies if reply.complaint), "")
        return Delivery(version, token.vessel, staged, copied, token.home, token.snapshot, steps, episodes, complaint)

    def _staged(self, taken: Sequence[_Outpost]) -> Final:
        """Gather the ends of all parts, by time and environment, in memory of the collector's."""
        parts = []
        for k, outpost in enumerate(taken):
            n = outpost.reply.n_ends if outpost.reply is not None else 0
            ended = nested.map(lambda x, n=n: x[:n], outpost.region.final)
            parts.append(ended._replace(b=ended.b + k * self._width))
        ended = nested.map(lambda *xs: torch.cat(xs), *parts)
        order = torch.argsort(ended.t * len(taken) * self._width + ended.b)
        ended = nested.map(lambda x: x[order], ended)
        if self._lane.shared(Place.CONSUMER, Place.HOST):
            return Final(*ended)
        staged = nested.map(lambda x: self._lane.empty(Place.CONSUMER, x.shape, x.dtype), ended)
        self._lane.copy(staged, ended)
        return Final(*staged)

    def _in_order(self, taken: Sequence[_Outpost], replies: Sequence[Reply]) -> list[Episode]:
        """Order the episodes of all parts by time and environment."""
        if len(replies) == 1:
            return [Episode(*told) for told in replies[0].episodes]
        of_env: dict[int, deque[Episode]] = defaultdict(deque)
        for reply in replies:
            for told in reply.episodes:
                of_env[told[0]].append(Episode(*told))
        ends = []
        for outpost in taken:
            env = outpost.region.vessel.env
            over = (env.terminated | env.truncated) & env.valid
            ends += [(t, outpost.columns.start + b) for t, b in over.nonzero().tolist()]
        return [of_env[b].popleft() for _, b in sorted(ends)]

    def _asked(self, thing: Any) -> list[Any]:
        """Ask all the processes at once, and wait for all their answers."""
        for outpost in self._outposts:
            outpost.tell(thing)
        return self._heard(self._outposts)

    def _heard(self, outposts: Sequence[_Outpost]) -> list[Any]:
        """Wait for the answers of all of them."""
        answers: dict[_Outpost, Any] = {}
        while len(answers) < len(outposts):
            answers.update(self._some_of([outpost for outpost in outposts if outpost not in answers]))
        return [answers[outpost] for outpost in outposts]

    def _some_of(self, waited_for: Sequence[_Outpost]) -> list[tuple[_Outpost, Any]]:
        """Wait until some have answered, or one has died: whoever does so is heard at once."""
        progress, answers = self._progress, []
        moving = [outpost for outpost in waited_for if outpost not in self._standing]
        if not moving:  # all that are under way stand still at a step's boundary
            progress.begin("a pause")
            self._gate.stand(lambda: None)
            progress.begin("its processes")
            while self._standing:
                self._standing.pop().tell("go on")
            return []
        progress.busy = [(outpost.name, outpost.posted) for outpost in moving]
        for child in self._listener.heard():
            outpost = self._by_child[child]
            try:
                kind, answer = outpost.hear()
            except BaseException:
                progress.busy = [(outpost.name, outpost.posted)]  # who is to blame
                raise
            if kind == "standing":
                self._standing.add(outpost)
            else:
                answers.append((outpost, answer))
        progress.busy = ()
        return answers

    def _halt(self, shut: bool) -> None:
        for outpost in list(self._outposts):
            outpost.posted.halted = shut
        if self._gate.closed and not self._made:
            self.kill()  # there is no boundary to come to in making an environment

    def settle(self) -> None:
        """Wait until the current stream has done all that it was asked for."""
        self._lane.host_wait(self._lane.record())

    def kill(self) -> None:
        """Give the processes up. Safe in any thread."""
        for outpost in list(self._outposts):
            outpost.child.kill()

    def close(self) -> list[str]:
        """Tell the processes to stop at their next step, to close their environments and to end; or kill them.

        Returns
        -------
        list of str
            What went wrong in closing: the consumer is to be warned about it.
        """
        complaints: list[str] = []
        self._halt(True)
        for outpost in self._outposts:
            with suppress(Gone):
                outpost.child.link.send(("close",))
        deadline = monotonic() + _PATIENCE
        for outpost in self._outposts:
            words = outpost.child.last_words(deadline - monotonic())
            if words is not None and words[0] == "closed":
                complaints += words[1]
            outpost.child.close()
        with self._lane.collecting():
            self.settle()  # dropped -> released
        # so that memory is let go now, and not when the garbage collector comes to it
        self._gate.hurry.remove(self.kill)
        self._gate.told.remove(self._halt)
        return complaints
