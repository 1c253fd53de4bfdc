"""Presents several collector processes to the consumer's process as one collector."""

from __future__ import annotations

from collections.abc import Sequence

from ..acting.behaviour import Behaviour
from ..collector.messages import Plan, Token
from ..concurrency.gate import Gate
from ..concurrency.progress import Progress
from ..memory.lane import Lane
from .collector_process import CollectorSpec
from .handle import CollectorProcess
from .joined_collector import JoinedCollector
from .processes import CollectorProcesses
from .shared_fragment import SharedFragmentSpec

__all__ = ["RemoteCollector"]


class RemoteCollector(JoinedCollector[CollectorProcess]):
    """A collector whose work is done by collector processes; weights and fragments pass through shared memory."""

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
        processes = CollectorProcesses(specs, progress, gate)
        super().__init__(processes, n_taken, len(specs[0].sources), behaviour, lane, plan, progress, gate)

    def _set_up(self) -> None:
        """Receive the shapes and dtypes of the actor's outputs, and share memory for fragments of that form."""
        self.layout, self.warnings = self._collectors.receive_one_each()[0]
        weight_forms = [(tuple(x.shape), x.dtype) for x in self._behaviour.weights]
        spec = SharedFragmentSpec(self.layout, self._plan, self._n_envs_each, weight_forms)
        for process in self._collectors:
            process.share(spec, self._lane.lock)
        self._collectors.receive_one_each()

    def _start_fragments(self, collectors: Sequence[CollectorProcess], token: Token) -> None:
        for process in collectors:
            process.start_fragment(token)
