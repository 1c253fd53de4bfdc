"""Scripts that run in a Python process of their own, with a small environment and actor at hand."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

PREAMBLE = """
import atexit, signal, sys, threading

@atexit.register  # the first one registered is the last one called
def report():
    print("left:", *(thread.name for thread in threading.enumerate()), flush=True)

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs with it ignored

import numpy as np
import torch
from rlplay.engine import BaseActorModule
from rlplay.engine.concurrency.child import Child
from rlplay.engine.feed.driver import Driver
from rlplay.engine.rollout import same, threaded

Driver.stop_timeout = Child.grace = 50.0  # seconds: the machine may be busy


class Space:  # no library of environments is imported: it would take long, and has things to say
    def __init__(self, dtype):
        self.shape, self.dtype = (), np.dtype(dtype)

    def __eq__(self, other):
        return self.dtype == other.dtype


class Env:
    observation_space, action_space = Space("float32"), Space("int64")

    def __init__(self, on_step=bool):
        self.on_step = on_step

    def reset(self, *, seed=None):
        return np.float32(0), {}

    def step(self, action):
        self.on_step()
        return np.float32(1), 1.0, False, False, {}


class Actor(BaseActorModule):
    def __init__(self, on_act=bool):
        super().__init__()
        self.weight, self.on_act = torch.nn.Parameter(torch.zeros(())), on_act

    def forward(self, obs, *, virtual, **ignored):
        if not virtual:
            self.on_act()
        return torch.zeros(obs.shape, dtype=torch.int64), (), obs + self.weight


def same_or_threaded(name):
    engine, lag = name.split("-")
    rollout = {"same": same, "threaded": threaded}[engine].rollout
    return lambda envs, actor, n_steps=5: rollout(envs, actor, n_steps, lag=int(lag))


ENGINES = [same_or_threaded(name) for name in sys.argv[1:]]
torch.set_num_threads(1)
"""


def start_script(script, *engines):
    """Start `PREAMBLE` and a script, with names of engines like "threaded-1" as arguments."""
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + dedent(script), *engines],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def is_traceback(err, last):
    """Return whether `err` is one traceback with this last line, and nothing else."""
    lines = err.splitlines()
    return lines[0].startswith("Traceback") and lines[-1] == last and all(line.startswith(" ") for line in lines[1:-1])
