"""Threads that environments have started in child processes, and that are not daemonic: they are waited for."""

from __future__ import annotations

import sys
import threading
from functools import partial

import cloudpickle
import numpy as np
import pytest
import torch

from rlplay.engine import BaseActorModule
from rlplay.engine.concurrency.child import Child
from rlplay.engine.rollout import evaluate, multi, single, threaded
from tests.support.processes import child_processes

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Space:
    shape = ()

    def __init__(self, dtype="float32"):
        self.dtype = np.dtype(dtype)

    def __eq__(self, other):
        return self.dtype == other.dtype


class StartsThread:
    """Starts a thread that waits for `close` and the end of the main thread, or for ever, and then writes a file."""

    observation_space, action_space = Space(), Space("int64")

    def __init__(self, folder, *, ends):
        self._closed, self._ends, self._n = threading.Event(), ends, 0
        threading.Thread(target=self._write, args=[folder], daemon=False).start()

    def _write(self, folder):
        self._closed.wait()
        threading.main_thread().join()
        (folder / f"{id(self)}").write_text("")

    def reset(self, *, seed=None):
        return np.float32(0), {}

    def step(self, action):
        self._n += 1
        return np.float32(0), 1.0, self._n % 3 == 0, False, {}

    def close(self):
        if self._ends:
            self._closed.set()


class Zero(BaseActorModule):
    def forward(self, obs, **ignored):
        return torch.zeros(obs.shape, dtype=torch.int64), (), ()


ENGINES = {
    "threaded": lambda env: threaded.rollout([env], Zero(), 5, workers=1),
    "single": lambda env: single.rollout(env, Zero(), 5, 1),
    "multi": lambda env: multi.rollout(env, Zero(), 5, 1, 1),
    "evaluate.background": lambda env: evaluate.background(env, Zero(), 1),
}
engines = pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)


@engines
def test_a_thread_that_ends_after_close_is_waited_for(engine, tmp_path):
    feed = engine(partial(StartsThread, tmp_path, ends=True))
    feed.close()
    assert list(tmp_path.iterdir())
    assert not child_processes()


@engines
def test_a_thread_that_does_not_end_is_killed_with_its_process_and_a_warning_tells_of_it(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(Child, "grace", 0.2)
    feed = engine(partial(StartsThread, tmp_path, ends=False))
    with pytest.warns(RuntimeWarning, match=r"process \d+\) .*was killed"):
        feed.close()
    assert not list(tmp_path.iterdir())
    assert not child_processes()
