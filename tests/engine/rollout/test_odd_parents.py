"""Programs whose standard streams are closed, that change their folder, or that have arguments and options."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import evaluate, single, threaded

class Env:
    observation_space, action_space = Box(-1, 1, (1,), np.float32), Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        for fd in (1, 2):  # as libraries in other languages do, also if the stream is closed
            try:
                os.write(fd, b"a banner\\n")
            except OSError:
                pass
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(1, np.float32), 1.0, self.t == 3, False, {}

class Actor(BaseActorModule):
    def forward(self, obs, *, fin, hx=None, **ignored):
        return torch.zeros(fin.shape, dtype=torch.int64), hx, {}

def check():
    for feed in (threaded.rollout([Env] * 2, Actor(), 5, workers=1), single.rollout(Env, Actor(), 5, 2)):
        with feed:
            for _ in range(2):
                assert next(feed).env.valid.all()
    with evaluate.background(Env, Actor(), 2) as examiner:
        assert next(examiner).tolist() == [3.0, 3.0]
"""


@pytest.mark.parametrize("closed", ["1>&-", "<&- 1>&- 2>&-"])
def test_processes_start_where_standard_streams_are_closed(closed, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM + "check()\nos._exit(7)\n")  # whatever the end of the interpreter says of its streams
    done = subprocess.run(f"exec {sys.executable} -W ignore {program} {closed}", shell=True, check=False)
    assert done.returncode == 7


MOVED = """
import os, sys
import told  # in the folder that the program was started in
os.chdir("/")
told.check()
print("ok")
"""


TOLD = """
assert sys.argv == ["-c", "--level", "7"], sys.argv
assert sys.warnoptions == ["ignore", "error::ResourceWarning"], sys.warnoptions
"""


def test_processes_find_modules_of_the_folder_of_the_start_the_arguments_and_the_options_of_the_program(tmp_path):
    (tmp_path / "told.py").write_text(PROGRAM + TOLD)
    command = [sys.executable, "-W", "ignore", "-W", "error::ResourceWarning", "-c", MOVED, "--level", "7"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("ok\n"), done.stderr
    assert "ResourceWarning" not in done.stderr
