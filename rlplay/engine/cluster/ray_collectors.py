"""Several collectors in Ray actors: starts them, waits for the answers of any, pauses, restarts and ends them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Any

from ..concurrency.channel import Channel, Closed
from ..concurrency.gate import Gate
from ..concurrency.progress import Progress
from ..remote.collector_process import CollectorSpec
from ..remote.elsewhere import Collectors
from .ray_collector import Inbox, RayCollector

__all__ = ["RayCollectors"]


class RayCollectors(Collectors[RayCollector]):
    """A sequence of collectors in Ray actors."""

    grace = 5.0
    """Seconds that the Ray actors have to close their environments, and to end."""

    def __init__(
        self,
        specs: Sequence[CollectorSpec],
        progress: Progress,
        gate: Gate,
        ray: Any,
        ray_options: Mapping[str, Any],
        *,
        restart: bool,
    ) -> None:
        """Ask for all Ray actors at once, and wait until they have made and reset their environments.

        Raises ValueError if the environments of different Ray actors have different spaces.
        """
        super().__init__(progress, gate)
        self._ray, self._options, self._restart = ray, ray_options, restart
        self._deaths: list[str] = []
        self._inbox: Inbox = Channel(reentrant=True)
        gate.on_close(partial(self._inbox.put, None), self.grace)
        self._start(specs)

    def _add(self, number: int, spec: CollectorSpec) -> None:
        collector = RayCollector(self._ray, number, spec, self._inbox, self._options, restart=self._restart)
        self._collectors.append(collector)

    def receive(self, awaited: Sequence[RayCollector]) -> list[tuple[RayCollector, Any]]:
        """Wait for the next answer of one of the awaited collectors, or until the gate has changed.

        The list has that answer, or is empty. A collector that has died is made anew if that is possible.
        """
        progress = self._progress
        progress.set_awaited(awaited)
        message = self._inbox.get()
        progress.set_awaited(())
        if message is None:
            self._pass_gate()
            return []
        collector, future = message
        progress.set_awaited([collector])  # the message of an error names it
        death = collector.death_of(future)
        if death is not None:
            collector.start_again(death)
            self._deaths.append(f"{death} It was made anew, and collects this fragment from the state before it.")
        answers = [] if death is not None else [(collector, collector.read(future))]
        progress.set_awaited(())
        return answers

    def _on_gate_change(self, shut: bool) -> None:
        self._inbox.put(None)

    def _pass_gate(self) -> None:
        """Let all collectors stand still while the gate is shut. Raises ``Closed``."""
        if self._gate.closed:
            raise Closed
        if self._gate.shut:
            held = [one.tell("hold") for one in self]
            self._progress.set_awaited(self)
            self._ray.wait(held, num_returns=len(held))
            self._progress.set_awaited(())
            self._progress.begin("a pause")
            self._gate.wait_while_shut(lambda: None)
            self._progress.begin("its processes")
            for one in self:
                one.tell("release")

    def resume_paused(self) -> None:
        """Do nothing, since :meth:`receive` resumes the collectors as soon as the pause is over."""

    def put(self, value: Any) -> Any:
        """Put a value into the object store; return Ray's reference to it."""
        return self._ray.put(value)

    def take_warnings(self) -> list[str]:
        """Return, once, a warning for each collector that has died and was made anew."""
        deaths, self._deaths = self._deaths, []
        return deaths

    def kill(self) -> None:
        """Kill the Ray actors. May be called in any thread."""
        if self._ray.is_initialized():  # else they have ended with Ray
            for one in self:
                self._ray.kill(one.actor)

    def close(self) -> list[str]:
        """Stop the collectors at their next step, have them close their environments, and end their Ray actors.

        Returns
        -------
        list of str
            What went wrong in closing, to be shown to the user as warnings.
        """
        self._gate.remove_change(self._on_gate_change)
        self._gate.remove_give_up(self.kill)  # else the gate would keep the memory alive
        if not self._ray.is_initialized():
            return []
        deadline, complaints = monotonic() + self.grace, []
        closing = {one.request_end(): one for one in self}
        closed, late = self._wait(list(closing), deadline)
        for reference in late:
            complaints.append(
                f"{closing[reference].name} had not closed its environments {self.grace:g} s after it was requested "
                f"to, and was killed: {closing[reference].progress}."
            )
        for reference in closed:
            complaints += closing[reference].complaints(reference)
        self._wait([closing[reference].exit() for reference in closed], deadline)
        self.kill()
        return complaints

    def _wait(self, references: list[Any], deadline: float) -> tuple[list[Any], list[Any]]:
        """Wait until Ray has all answers, or that there will be none; return the references with and without."""
        if not references:
            return [], []
        found: tuple[list[Any], list[Any]]
        found = self._ray.wait(references, num_returns=len(references), timeout=max(0.0, deadline - monotonic()))
        return found
