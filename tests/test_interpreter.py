"""Whether the interpreter has its lock; child processes make the same choice."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from textwrap import dedent

import pytest

from rlplay import interpreter

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
WITHOUT_LOCK = pytest.mark.skipif(not FREE_THREADED, reason="this interpreter is no free-threaded build")


@pytest.mark.parametrize("on", [True, False])
def test_the_interpreter_is_asked_whether_the_lock_is_on(on, monkeypatch):
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: on, raising=False)
    assert interpreter.has_lock() is on


def test_an_interpreter_that_cannot_tell_has_the_lock(monkeypatch):
    monkeypatch.delattr(sys, "_is_gil_enabled", raising=False)
    assert interpreter.has_lock() is True


def test_the_cores_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert interpreter.usable_cores() == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert interpreter.usable_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert interpreter.usable_cores() == 1


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, []),
        ({"gil": "0"}, ["-X", "gil=0"]),
        ({"gil": "1"}, ["-X", "gil=1"]),
        ({"utf8": True, "gil": True}, ["-X", "utf8", "-X", "gil"]),
    ],
)
def test_a_child_gets_the_options_of_this_interpreter(given, options, monkeypatch):
    monkeypatch.setattr(sys, "_xoptions", {})
    others = interpreter.options_for_children()
    monkeypatch.setattr(sys, "_xoptions", given)
    assert interpreter.options_for_children() == others + options


SCRIPT = """
    import os, sys
    import numpy as np
    import torch
    from rlplay import interpreter
    from rlplay.engine import BaseActorModule
    from rlplay.engine.rollout import single, threaded


    class Space:
        def __init__(self, dtype):
            self.shape, self.dtype = (3,) if dtype == "float32" else (), np.dtype(dtype)

        def __eq__(self, other):
            return self.dtype == other.dtype


    class Env:  # observes its own process's choice
        observation_space, action_space = Space("float32"), Space("int64")

        def reset(self, *, seed=None):
            chosen = sys._xoptions.get("gil", -1), os.environ.get("PYTHON_GIL", -1), interpreter.has_lock()
            return np.array(chosen, np.float32), {}

        def step(self, action):
            return self.reset()[0], 0.0, False, False, {}


    class Actor(BaseActorModule):
        def forward(self, obs, **ignored):
            return torch.zeros(obs.shape[:2], dtype=torch.int64), (), ()


    torch.set_num_threads(1)
    for feed in (threaded.rollout([Env], Actor(), 1, workers=1), single.rollout(Env, Actor(), 1, 1)):
        with feed:
            print(*next(feed).state.obs[0, 0].tolist())
"""


def seen_in_children(*options, **variables):
    """Return what environments see in a worker process and in a collector process: option, variable, lock."""
    code = dedent(SCRIPT)
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHON_GIL"}
    done = subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, env={**inherited, **variables}
    )
    assert done.returncode == 0, done.stderr
    return [tuple(map(float, line.split())) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("options", "variables", "seen"),
    [
        (["-X", "gil=1"], {}, (1, -1, 1)),
        pytest.param([], {"PYTHON_GIL": "1"}, (-1, 1, 1), marks=pytest.mark.soak),
        pytest.param(["-X", "gil=0"], {}, (0, -1, 0), marks=WITHOUT_LOCK),
        pytest.param([], {"PYTHON_GIL": "0"}, (-1, 0, 0), marks=WITHOUT_LOCK),
        pytest.param(["-X", "gil=0"], {"PYTHON_GIL": "1"}, (0, 1, 0), marks=WITHOUT_LOCK),
    ],
)
def test_workers_and_collectors_make_the_choice_of_their_parent(options, variables, seen):
    assert seen_in_children(*options, **variables) == [seen, seen]
