"""Makes the picture of the README, ``docs/timeline.png``: ``python docs/timeline.py``.

Two engines do the same work. The environments wait at each step, as they would for a simulator in another process, and
training takes as long as collection. Training waits too instead of computing, so that the picture does not depend on
the speed of the machine.
"""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from rlplay import plotting
from rlplay.engine.rollout import same, threaded
from rlplay.zoo.actors import ActorCritic, mlp
from rlplay.zoo.envs import NarrowPath

B, T, SECONDS = 4, 4, 0.002  # environments, steps in a fragment, seconds of a step of one environment


class Waiting(NarrowPath):
    """An environment whose step sleeps before it does anything."""

    def step(self, action: int) -> Any:
        """Sleep, then step."""
        time.sleep(SECONDS)
        return super().step(action)


def record(rollout: Any, fragments: int) -> Any:
    """Record a run; return its trace."""
    actor = ActorCritic(mlp(4, 64, 3), mlp(4, 64, 1))
    with rollout([Waiting() for _ in range(B)], actor, n_steps=T, seed=0) as feed:
        with feed.trace() as trace:
            for _ in islice(feed, fragments):
                for _ in range(B * T):
                    time.sleep(SECONDS)  # "training"
        print(feed.stats)
    return trace


if __name__ == "__main__":
    torch.set_num_threads(1)
    traces = {
        "same: learner and collector take turns": record(same.rollout, 8),
        "threaded: both at once": record(threaded.rollout, 12),
    }
    plotting.timelines(traces, milliseconds=200).savefig(Path(__file__).with_suffix(".png"))
