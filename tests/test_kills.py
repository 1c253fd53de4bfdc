"""A training that is killed again and again, and resumed each time, ends as one that nobody has killed."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from rlplay import checkpoint, nested
from tests.support.killed import EACH, train

ENGINES = ["same", "threaded"]


def train_in_new_process(path, engine, n_fragments):
    command = [sys.executable, "-m", "tests.support.killed", str(path), engine, str(n_fragments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def train_until_killed(path, dice):
    """Train in a new process and kill it, at a random moment; return which fragment the last told checkpoint is of."""
    n_lines, told = dice.randrange(12), []
    with train_in_new_process(path, dice.choice(ENGINES), 10**9) as process:
        try:
            told += [process.stdout.readline() for _ in range(n_lines)]
            time.sleep(0.02 * dice.random())  # whatever it is doing then: each outcome must be right
        finally:
            os.kill(process.pid, signal.SIGKILL)
        told += process.stdout.readlines()
    assert process.returncode == -signal.SIGKILL
    return max((int(line.split()[1]) for line in told if line.startswith("saved")), default=0)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("n_kills", [3, pytest.param(100, marks=pytest.mark.soak)])
def test_a_training_that_is_killed_and_resumed_ends_as_one_that_was_not(tmp_path, n_kills):
    dice, done = random.Random(n_kills), 0
    path = tmp_path / "killed" / "run.pt"
    path.parent.mkdir()
    for _ in range(n_kills):
        told = train_until_killed(path, dice)
        found = sorted(path.parent.glob("run.pt*"))
        numbers = [torch.load(file, weights_only=True)["done"] for file in found]  # all of them are whole
        assert numbers == list(range(numbers[0], 0, -EACH))[: len(numbers)] if numbers else not told
        before, done = done, numbers[0] if numbers else 0
        assert done in (max(told, before), max(told, before) + EACH)

    end = done + 3 * EACH  # so that all three files have been written
    with train_in_new_process(path, "same", end) as process:
        process.communicate()
    assert process.returncode == 0
    assert sorted(file.name for file in path.parent.iterdir()) == ["run.pt", "run.pt.1", "run.pt.2"]

    whole = tmp_path / "whole.pt"
    train(whole, "same", end)
    expected, got = (checkpoint.load(file)["learner"] for file in (whole, path))
    assert nested.names(got) == nested.names(expected)
    for name, x, y in zip(nested.names(got), nested.leaves(got), nested.leaves(expected), strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, name
