"""Makes the picture of the README, ``docs/timeline.png``: ``python docs/timeline.py``.

Two engines do the same work. The environments wait at each step, as they would for a simulator in another process, and
training takes as long as collection. Training waits too instead of computing, so that the picture does not depend on
the speed of the machine.
"""

from __future__ import annotations

import time
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import torch
from matplotlib.figure import Figure

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


def timeline(rollout: Any, title: str, fragments: int) -> Figure:
    """Record a run, and draw its last fragments."""
    actor = ActorCritic(mlp(4, 64, 3), mlp(4, 64, 1))
    with rollout([Waiting() for _ in range(B)], actor, n_steps=T, seed=0) as feed:
        with feed.trace() as trace:
            for _ in islice(feed, 4 + fragments):
                for _ in range(B * T):
                    time.sleep(SECONDS)  # "training"
        print(f"{title}: {feed.stats}")
    return plotting.timeline(trace, fragments=fragments, title=title)


def pixels(figure: Figure) -> Any:
    """Render a figure into an array."""
    file = BytesIO()
    figure.savefig(file, format="png")
    file.seek(0)
    return matplotlib.image.imread(file)


if __name__ == "__main__":
    torch.set_num_threads(1)
    one = timeline(same.rollout, "same: by turns", 3)
    two = timeline(threaded.rollout, "threaded: at once", 6)
    picture = np.concatenate([pixels(one), pixels(two)])
    matplotlib.image.imsave(Path(__file__).with_suffix(".png"), picture)
