"""How the host waits for events of CUDA, on a stand-in for torch whose clock stands still but in waits."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from rlplay.engine.memory import cuda
from rlplay.engine.memory.cuda import CudaLane

GPU = torch.device("cuda", 0)


class StandIn:
    """What the lane uses of torch, and a clock."""

    def __init__(self):
        self.now, self.made, self.waits = 0.0, 0, []
        this = self

        class Event:
            def __init__(self, blocking=False):
                self.blocking, self.lasts = blocking, 0.0
                this.made += 1

            def record(self, stream):
                self.lasts = this.next_wait

            def synchronize(self):
                this.waits.append("asleep" if self.blocking else "busy")
                this.now += self.lasts

            def query(self):
                return not self.lasts

        stream = SimpleNamespace(wait_stream=lambda other: None, wait_event=lambda event: None)
        self.cuda = SimpleNamespace(
            Event=Event,
            Stream=lambda device, priority=0: stream,
            current_stream=lambda device: stream,
            default_stream=lambda device: stream,
            stream=lambda stream: nullcontext(),
        )
        self.device = torch.device


@pytest.fixture
def stand_in(monkeypatch):
    made = StandIn()
    monkeypatch.setattr(cuda, "torch", made)
    monkeypatch.setattr(cuda, "perf_counter", lambda: made.now)
    return made


def waits_of(stand_in, lane, seconds):
    """Wait for an event again and again, so many seconds each; return how."""
    event = None
    for stand_in.next_wait in seconds:
        event = lane.record(spent=event)
        lane.host_wait(event)
    return stand_in.waits


def test_a_wait_keeps_the_core_busy_if_the_one_before_was_short(stand_in):
    lane = CudaLane(GPU, GPU, spin=1.0)
    waits = waits_of(stand_in, lane, [0.5, 0.5, 2.0, 3.0, 0.9, 0.0])
    assert waits == ["busy", "busy", "busy", "asleep", "asleep", "busy"]
    assert lane.counters.host_waits == 6


def test_without_a_core_to_spare_all_waits_are_asleep(stand_in):
    assert set(waits_of(stand_in, CudaLane(GPU, GPU, spin=0.0), [0.5, 0.0, 0.0])) == {"asleep"}


@pytest.mark.parametrize(("n_cores", "wait"), [(2, "asleep"), (16, "busy")])
def test_a_machine_with_many_cores_has_one_to_spare(n_cores, wait, stand_in, monkeypatch):
    monkeypatch.setattr(cuda.os, "cpu_count", lambda: n_cores)
    assert waits_of(stand_in, CudaLane(GPU, GPU), [0.0]) == [wait]


def test_an_event_is_used_again_unless_the_next_wait_is_of_the_other_kind(stand_in):
    waits_of(stand_in, CudaLane(GPU, GPU, spin=1.0), [0.5, 0.5, 0.5])
    assert stand_in.made == 1
    stand_in.made = 0
    waits_of(stand_in, CudaLane(GPU, GPU, spin=1.0), [2.0, 0.5, 2.0])
    assert stand_in.made == 3
