"""Messages between processes: of any length, in parts, in time that grows with their length alone."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

from rlplay.engine.concurrency.link import Disconnected, Link
from tests.support.threads import LONG, InThread


@pytest.fixture
def ends():
    sockets = socket.socketpair()
    yield [Link(end) for end in sockets]
    for end in sockets:
        end.close()


def receive(link):
    """Receive an object as it arrives, part by part."""
    while (data := link.receive_pickled()) is None:
        pass
    return pickle.loads(data)


@pytest.mark.parametrize("n", [0, 1, 2**18 - 1, 2**18, 2**18 + 1, 2**22 + 3])
def test_an_object_of_any_length_arrives_whole(n, ends):
    one, other = ends
    sent = np.arange(n, dtype=np.uint8)
    for take in (lambda: other.read_object(), lambda: receive(other)):
        taker = InThread(take)
        one.write_object(sent)
        assert np.array_equal(taker.wait().value, sent)


def test_reading_a_long_message_copies_each_byte_a_few_times_at_most(ends, monkeypatch):
    """Counts the bytes of all concatenations: of bytes that are joined anew for each part there would be many."""
    one, other = ends
    n_calls = []
    monkeypatch.setattr(os, "read", lambda fd, n, read=os.read: n_calls.append(n) or read(fd, n))
    taker = InThread(other.read_object)
    one.write_object(bytes(2**24))
    assert len(taker.wait().value) == 2**24
    assert len(n_calls) <= 2  # the length, and the first part; the rest goes into memory that was allocated once


def test_parts_of_a_message_are_counted_on_both_sides_while_it_is_under_way(ends):
    one, other = ends
    sent, received = [], []
    part_arrived = threading.Event()

    def note_sent(n):
        sent.append(n)
        assert part_arrived.wait(LONG)  # so that the message is under way until a part of it has been received

    one.on_transfer, other.on_transfer = note_sent, received.append
    writer = InThread(lambda: one.write_object(bytes(2**22)))
    while (data := other.receive_pickled()) is None:
        if sum(received) > 8:  # more than the number that says how long the message is
            part_arrived.set()
    writer.wait()
    assert pickle.loads(data) == bytes(2**22)
    assert part_arrived.is_set()
    assert sum(sent) > 2**22
    assert sum(received) > 2**22
    assert len(sent) > 10
    assert len(received) > 10


def test_an_interrupt_in_the_middle_of_a_message_loses_nothing(ends):
    class Interrupted(BaseException):
        pass

    def interrupt(n):
        raise Interrupted

    one, other = ends
    other.on_transfer = interrupt
    sent = os.urandom(2**20)
    writer = InThread(lambda: one.write_object(sent))
    interrupts = 0
    while True:
        try:
            data = other.receive_pickled()
        except Interrupted:
            interrupts += 1
        else:
            if data is not None:
                break
    assert pickle.loads(data) == sent
    assert interrupts > 4
    writer.wait()


def test_the_end_of_the_other_side_in_the_middle_of_a_message_is_noticed(ends):
    one, other = ends
    one.write(b"\0" * 8 + b"\1" * 3)  # an empty object, and a part of a length
    assert other.receive_pickled() == b""
    one.close()
    with pytest.raises(Disconnected):
        other.receive_pickled()
    with pytest.raises(Disconnected):
        other.read(1)


LEAK = """
import os, resource, tempfile
from rlplay.engine.concurrency.child import Child

os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
def count():
    return len(os.listdir("/proc/self/fd"))

tempfile.gettempdir()  # looks for a folder at its first call, which takes descriptors
before = count()
for spare in range({spare}):
    limit = max(map(int, os.listdir("/proc/self/fd"))) + 1 + spare
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    try:
        child = Child(id, name="a child")
    except OSError as error:
        assert "Too many open files" in str(error), error
        assert count() == before, (spare, count(), before)
    else:
        child.close()
        assert count() == before, (spare, count(), before)
        print("started with", spare)
        break
"""


def test_a_child_that_cannot_be_started_for_want_of_descriptors_leaves_none_open():
    """Whatever the number of descriptors that are left: each step of the start fails once."""
    script = LEAK.format(spare=30)
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("started with"), done
    assert int(done.stdout.split()[-1]) > 5
