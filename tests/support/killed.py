"""A training that writes a checkpoint every few fragments, for a process that is killed at any moment.

python -m tests.support.killed run.pt same 100
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from rlplay import checkpoint
from tests.support.saving import Learner, case_of, open_feed

EACH = 3
"""Fragments from one checkpoint to the next."""

CASE = case_of("noisy", n_envs=2, n_steps=5, lag=1, final=True)


def tell(line):
    """Write a line at once, so that a kill leaves the whole line or nothing."""
    os.write(1, f"{line}\n".encode())


def train(path, engine, n_fragments):
    """Go on from the checkpoint, if there is one, and train until so many fragments; tell what has been done."""
    learner, done, begin = Learner(CASE["kind"]), 0, {"seed": 3}
    if path.exists():
        saved = checkpoint.load(path)
        learner.load_state_dict(saved["learner"])
        done, begin = saved["done"], {"state": saved["feed"]}
    with open_feed(CASE, learner, engine, **begin) as feed:
        while done < n_fragments:
            learner.update(next(feed))
            done += 1
            tell(f"trained {done}")
            if done % EACH == 0:
                checkpoint.save(path, {"done": done, "learner": learner.state_dict(), "feed": feed.state_dict()})
                tell(f"saved {done}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
