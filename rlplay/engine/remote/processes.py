"""Several collector processes: starts them together, waits for the answers of any, pauses and ends them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from time import monotonic
from typing import Any

from ..concurrency.child import Listener
from ..concurrency.gate import Gate
from ..concurrency.progress import Progress
from ..concurrency.service import PARTIAL, PAUSED, ServiceProcess
from .collector_process import CollectorSpec
from .elsewhere import Collectors
from .handle import CollectorProcess

__all__ = ["CollectorProcesses"]


class CollectorProcesses(Collectors[CollectorProcess]):
    """A sequence of collector processes. If one of them has died, methods raise RuntimeError, which names it."""

    def __init__(self, specs: Sequence[CollectorSpec], progress: Progress, gate: Gate) -> None:
        """Start all processes at once, and wait until they have made and reset their environments.

        Raises ValueError if the environments of different processes have different spaces, and RuntimeError if a
        process has died (the message names the process and the signal), or if the system is not POSIX.
        """
        super().__init__(progress, gate)
        self._listener = Listener[CollectorProcess]()
        self._paused: set[CollectorProcess] = set()
        gate.on_close(self._listener.allow_waking(), ServiceProcess.grace)
        self._start(specs)

    def _add(self, number: int, spec: CollectorSpec) -> None:
        process = CollectorProcess(number, spec)
        self._collectors.append(process)
        self._listener.add(process.service, process)

    def receive(self, awaited: Sequence[CollectorProcess]) -> list[tuple[CollectorProcess, Any]]:
        """Wait until some of the awaited processes have answered, or any process has failed.

        The list may be empty, as after a change of the gate. If all of them have paused, stop at the gate, and resume
        them when it opens.
        """
        progress, answers = self._progress, []
        running = [process for process in awaited if process not in self._paused]
        if not running:
            progress.begin("a pause")
            self._gate.wait_while_shut(lambda: None)
            progress.begin("its processes")
            self.resume_paused()
            return []
        progress.set_awaited(running)
        for process in self._listener.wait():
            try:
                kind, answer = process.service.receive()
            except BaseException:
                progress.set_awaited([process])  # the message names the one that has failed
                raise
            if kind == PAUSED:
                self._paused.add(process)
            elif kind != PARTIAL:
                answers.append((process, answer))
        progress.set_awaited(())
        self.resume_paused()  # if the gate was opened: that has ended the wait, too
        return answers

    def resume_paused(self) -> None:
        """Resume the processes that have paused, unless the feed is still paused (the gate is shut)."""
        while self._paused and not self._gate.shut:
            self._paused.pop().service.resume()

    def _on_gate_change(self, shut: bool) -> None:
        for process in self:
            process.progress.halt(shut)
        self._listener.wake()

    def kill(self) -> None:
        """Kill the processes and their process groups. May be called in any thread."""
        for process in self:
            process.service.kill()

    def close(self) -> list[str]:
        """Stop the processes at their next step, have them close their environments and end; kill those that do not.

        Returns
        -------
        list of str
            What went wrong in closing, to be shown to the user as warnings.
        """
        complaints: list[str] = []
        self._gate.remove_change(self._on_gate_change)  # else the end of a pause would let the processes go on
        self._on_gate_change(True)
        for process in self:
            process.service.request_end()
        deadline = monotonic() + ServiceProcess.grace
        for process in self:
            complaints += process.service.close(deadline, doing=partial(str, process.progress))
        self._listener.close()
        self._gate.remove_give_up(self.kill)  # else the gate would keep the memory alive
        return complaints
