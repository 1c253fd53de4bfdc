"""An interrupt at any moment of a call leaves channels and gates usable for all threads."""

from __future__ import annotations

import threading

import pytest

from rlplay.engine.concurrency.channel import Channel
from rlplay.engine.concurrency.gate import Gate
from tests.support.threads import LONG, InThread


class Interrupted(threading.Condition):
    """A condition whose ``with`` block is interrupted once: when it has taken the lock, or before it releases it."""

    def __init__(self, lock, moment):
        super().__init__(lock)
        self.moment = moment

    def _interrupt_at(self, moment):
        if self.moment == moment:
            self.moment = None
            raise KeyboardInterrupt

    def __enter__(self):
        super().__enter__()
        self._interrupt_at("begin")

    def __exit__(self, *error):
        self._interrupt_at("end")
        super().__exit__(*error)


CALLS = {"get": Channel.get, "drain": Channel.drain, "put": lambda channel: channel.put(1), "close": Channel.close}


@pytest.mark.parametrize("moment", ["begin", "end"])
@pytest.mark.parametrize("call", CALLS)
def test_an_interrupt_of_a_call_leaves_no_other_thread_waiting(call, moment):
    channel = Channel()
    channel.put(0)
    inner = channel._queue
    inner.not_empty, inner.not_full = Interrupted(inner.mutex, moment), Interrupted(inner.mutex, moment)
    with pytest.raises(KeyboardInterrupt):
        CALLS[call](channel)
    inner.not_empty.moment = inner.not_full.moment = None
    InThread(lambda: channel.put(2)).wait()
    channel.drain()


class NeverEntered(threading.Condition):
    """A condition that no ``with`` block may enter: an interrupt could leave the block with the lock taken."""

    __enter__ = __exit__ = None


def test_a_gate_enters_its_lock_itself_which_no_interrupt_leaves_taken():
    gate = Gate()
    gate._change = NeverEntered(gate._lock)
    gate.on_change(bool)
    with gate.held(LONG, str):
        assert gate.is_held_by_this_thread()
    gate.close()
    InThread(gate.leave).wait()
