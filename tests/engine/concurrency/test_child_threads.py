"""How child processes start, and what two threads do with one of them at once."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from pathlib import Path

import pytest

from rlplay.engine.concurrency.channel import Closed
from rlplay.engine.concurrency.child import Child, Listener
from rlplay.engine.concurrency.gate import Gate
from rlplay.engine.concurrency.link import Disconnected

from ...support.threads import LONG, InThread


def return_at_once(link):
    pass


def send_path(link):
    link.write_object(sys.path)


def test_what_is_no_string_in_sys_path_is_left_out_as_python_does(monkeypatch):
    monkeypatch.setattr(sys, "path", [Path.cwd(), b"bytes", *sys.path, "it's"])
    child = Child(send_path, name="a child")
    assert child.link.read_object() == [one for one in sys.path if isinstance(one, str)]
    assert child.close() == []


def test_a_process_is_watched_by_its_link_where_a_descriptor_of_it_cannot_be_had(monkeypatch):
    def refuse(pid):
        raise OSError(errno.ENOSYS, "not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    child = Child(return_at_once, name="a child")
    with pytest.raises(Disconnected):
        child.link.read_object()
    assert child._exit_code(LONG) == 0
    assert child.close() == []


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="memory without a file needs memfd_create")
def test_a_process_starts_where_no_temporary_file_can_be_made(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    assert Child(return_at_once, name="a child").close() == []


def is_free(lock):
    """Return whether another thread could take the lock now."""

    def try_it():
        got = lock.acquire(blocking=False)
        if got:
            lock.release()
        return got

    return InThread(try_it).wait().value


def test_no_signal_can_be_sent_while_a_process_that_has_ended_is_waited_for(monkeypatch):
    child, could_kill = Child(return_at_once, name="a child"), []
    assert child._exit_code(LONG) == 0
    wait = child._process.wait

    def looked_at_wait(*args):
        could_kill.append(is_free(child._reaping))
        return wait(*args)

    monkeypatch.setattr(child._process, "wait", looked_at_wait)
    assert child.close() == []
    child.kill()  # does nothing: the number may belong to another process
    assert not child._killed
    assert could_kill == [False]


def test_a_process_that_has_ended_by_itself_does_not_count_as_killed():
    child = Child(return_at_once, name="a child")
    assert child._exit_code(LONG) == 0
    child.kill()
    assert child.close() == []


def test_whoever_kills_does_not_wait_for_another_thread_that_waits_for_the_process():
    child = Child(return_at_once, name="a child")
    assert child._exit_code(LONG) == 0
    with child._reaping:
        InThread(child.kill).wait()
    assert child.close() == []


def test_a_listener_is_not_woken_while_its_sockets_are_closed():
    listener, could_wake = Listener(), []
    wake = listener.allow_waking()

    class Looked:
        def __init__(self, waker):
            self.waker = waker

        def close(self):
            could_wake.append(is_free(listener._waking))
            self.waker.close()

        def send(self, data):
            self.waker.send(data)

    listener._wakers = tuple(map(Looked, listener._wakers))
    listener.close()
    wake()  # does nothing
    assert could_wake == [False, False]


def test_a_wait_that_was_woken_can_be_repeated_until_it_is_ended_for_good():
    listener = Listener()
    end = listener.allow_waking()
    listener.wake()
    listener.wake()
    assert listener.wait() == []
    assert listener.wait(0.0) == []
    listener.wake()
    end()
    for _ in range(2):
        with pytest.raises(Closed):
            listener.wait()
    listener.close()


def test_threads_and_callbacks_are_registered_with_the_lock_of_the_gate():
    could_register = []

    class Looked(list):
        def append(self, callback):
            could_register.append(is_free(gate._lock))
            super().append(callback)

    gate = Gate()
    gate._close_callbacks = Looked()
    called = []
    gate.on_close(lambda: called.append(1), 2.0)
    gate.close()
    gate.on_close(lambda: called.append(2), 1.0)
    assert could_register == [False, False]
    assert called == [1, 2]
    assert gate.closing_time == 2.0
