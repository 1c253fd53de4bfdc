"""Captures after one that failed, on a stand-in for CUDA that counts the graphs of each memory pool, as torch does.

test_cuda.py has the same on a GPU.
"""

from contextlib import nullcontext
from itertools import count
from types import SimpleNamespace

import pytest

from rlplay.engine.memory import cuda_graphs
from rlplay.engine.memory.cuda_graphs import GraphCapture


class StandIn:
    """What `cuda_graphs` uses of torch.

    A pool dies with the last of its graphs: torch then refuses a capture into it, by an assertion of the allocator. A
    capture whose work has raised is invalid: its end raises, and leaves the pool to whoever abandons the capture.
    """

    def __init__(self):
        self.n_graphs, numbers = {}, count()
        self.streams = []
        this = self

        class Graph:
            pool, ended = None, False

            def capture_begin(self, pool=None, capture_error_mode="global"):
                self.pool = next(numbers) if pool is None else pool
                if this.n_graphs.setdefault(self.pool, None) == 0:
                    raise RuntimeError("INTERNAL ASSERT FAILED: use_count > 0")
                this.n_graphs[self.pool] = (this.n_graphs[self.pool] or 0) + 1
                this.valid = True

            def capture_end(self):
                if not this.valid:
                    raise RuntimeError("operation failed due to a previous error during capture")
                self.ended = True

            def reset(self):
                if self.ended:
                    this.release(None, self.pool)
                self.ended = False

            __del__ = reset

            def replay(self):
                pass

        class Stream:
            def __init__(self, device=None, priority=0):
                this.streams.append(self)

            def wait_stream(self, other):
                pass

        here = Stream()
        self.cuda = SimpleNamespace(
            current_stream=lambda device: here,
            Stream=Stream,
            CUDAGraph=Graph,
            stream=lambda stream: nullcontext(),
            graph_pool_handle=lambda: next(numbers),
        )
        self._C = SimpleNamespace(_cuda_endAllocateToPool=lambda *args: None, _cuda_releasePool=self.release)

    def release(self, device, pool):
        self.n_graphs[pool] -= 1

    def zeros(self, n, device):
        pass


@pytest.fixture
def stand_in(monkeypatch):
    made = StandIn()
    monkeypatch.setattr(cuda_graphs, "torch", made)
    return made


def works():
    pass


@pytest.mark.parametrize("key", [0, 1])
def test_a_capture_works_after_one_that_failed(stand_in, key):
    """With the key of the failed capture, and with that of an earlier graph, which is dropped after the failure."""
    graphs = GraphCapture(SimpleNamespace(index=0), -1)

    def fails():
        stand_in.valid = False
        raise ArithmeticError("not to be captured")

    earlier = graphs.capture(works, [], 0)
    with pytest.raises(ArithmeticError, match="not to be captured"):
        graphs.capture(fails, [], 1)
    del earlier
    kept = [graphs.capture(works, [], key) for _ in range(2)]
    assert sorted(stand_in.n_graphs.values())[-1] == len(kept)  # they share a pool
    assert sum(stand_in.n_graphs.values()) == len(kept)
    assert len(stand_in.streams) == 1 + 3  # the current one, and a new one for each key and after the failure
