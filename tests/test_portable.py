"""Without the modules that only POSIX has, the engines import, and those that start no process run."""

from __future__ import annotations

import subprocess
import sys

PREAMBLE = """
import os, select, socket, sys

for name in ("fcntl", "resource", "pwd", "termios"):
    sys.modules[name] = None  # import raises ImportError
for module, names in ((os, ("memfd_create", "pidfd_open", "fork")), (select, ("poll",)), (socket, ("send_fds",))):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)

import numpy as np
import torch
from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import evaluate, multi, same, single, threaded


class Space:
    def __init__(self, dtype):
        self.shape, self.dtype = (), np.dtype(dtype)


class Env:
    observation_space, action_space = Space("float32"), Space("int64")

    def reset(self, *, seed=None):
        return np.float32(0), {}

    def step(self, action):
        return np.float32(0), 1.0, False, False, {}


class Actor(BaseActorModule):
    def forward(self, obs, **ignored):
        return torch.zeros(obs.shape, dtype=torch.int64), (), ()


def steps(feed):
    with feed:
        return int(next(feed).env.valid.sum())


def refusal(call):
    try:
        call()
    except RuntimeError as error:
        return str(error)
"""


def printed(code):
    command = [sys.executable, "-c", PREAMBLE + code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")


def test_engines_without_processes_run_where_there_is_no_fcntl():
    code = """
print(steps(same.rollout([Env(), Env()], Actor(), 3)))
print(steps(threaded.rollout([Env(), Env()], Actor(), 3)))
print(steps(threaded.rollout([Env, Env], Actor(), 3, workers=2, worker="thread")))
"""
    assert printed(code)[:3] == ["6", "6", "6"]


def test_engines_with_processes_say_what_they_lack():
    code = """
print(refusal(lambda: threaded.rollout([Env, Env], Actor(), 3, workers=2)))
print(refusal(lambda: single.rollout(Env, Actor(), 3, 2)))
print(refusal(lambda: multi.rollout(Env, Actor(), 3, 2, 1)))
print(refusal(lambda: evaluate.background(Env, Actor(), 1)))
"""
    for said in printed(code)[:4]:
        assert "fcntl, select.poll, socket.send_fds" in said
        assert "`same`" in said
