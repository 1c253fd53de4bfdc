"""Presents several collector processes to the consumer's process as one collector."""

from __future__ import annotations

from collections.abc import Sequence

from ..collector.messages import Token
from .handle import CollectorProcess
from .joined_collector import JoinedCollector
from .shared_fragment import SharedFragmentSpec

__all__ = ["RemoteCollector"]


class RemoteCollector(JoinedCollector[CollectorProcess]):
    """A collector whose work is done by collector processes; weights and fragments pass through shared memory."""

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
