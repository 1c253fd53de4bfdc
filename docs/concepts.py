"""Makes the pictures of the guide's page of concepts, in ``docs/pictures``: ``python docs/concepts.py``.

``fragment.png`` and ``lag.png`` are drawn; ``groups.png`` and ``engines.png`` are recorded. As in ``docs/timeline.py``,
environments and learners wait instead of computing, so that the pictures do not depend on the speed of the machine.
"""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from rlplay import plotting
from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import multi, same, single, threaded
from rlplay.zoo.envs import NarrowPath

FOLDER = Path(__file__).parent / "pictures"
BLUE, ORANGE, GREEN, GREY = "#c9dbef", "#fadcb8", "#4f9d57", "#666666"
STEPPING = "#3f73b0"
SECONDS = 0.002  # of a step of one environment


# what is drawn


def cell(axes: Axes, x: float, y: float, text: str, colour: str, width: float = 1.0, ink: str = "black") -> None:
    """Draw a box with a text in it."""
    axes.add_patch(Rectangle((x, y), width, 1, facecolor=colour, edgecolor="white", linewidth=2))
    axes.text(x + width / 2, y + 0.5, text, ha="center", va="center", color=ink, fontsize=10)


def empty_axes(figure: Figure, width: float, height: float) -> Axes:
    """Add axes without frame and ticks, whose second coordinate points down."""
    axes = figure.add_subplot()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    return axes


def fragment() -> Figure:
    """Draw the rows of one environment: the old episode blue, the new one orange."""
    figure = Figure(figsize=(9, 4.6), dpi=120, layout="constrained")
    axes = empty_axes(figure, 7.6, 9.4)
    rows = {
        "row": ["0", "1", "2", "3", "4 = T"],
        "state.obs": ["$x_5$", "$x_6$", "$y_0$", "$y_1$", "$y_2$"],
        "state.act": ["$a_4$", "$a_5$", "$a_6$", "$b_0$", "$b_1$"],
        "state.rew": ["$r_5$", "$r_6$", "$r_7$", "$q_1$", "$q_2$"],
        "state.fin": ["False", "False", "True", "False", "False"],
        "actor reacts to": ["$x_5$", "$x_6$", "$y_0$", "$y_1$", "$y_2$, virtual"],
    }
    for y, (name, texts) in enumerate(rows.items()):
        grey = name == "row"
        axes.text(1.5, y + 0.5, name, ha="right", va="center", fontsize=10, color=GREY if grey else "black")
        for k, text in enumerate(texts):
            if name == "row":
                axes.text(1.7 + 1.15 * k + 0.5, y + 0.5, text, ha="center", va="center", fontsize=10, color=GREY)
                continue
            old = k < 2 or (k == 2 and name in ("state.act", "state.rew"))
            cell(axes, 1.7 + 1.15 * k, y, text, BLUE if old else ORANGE)
    names = ["0", "1: terminated", "2", "3"]
    for k, name in enumerate(names):
        start, end = 1.7 + 1.15 * k + 0.5, 1.7 + 1.15 * (k + 1) + 0.5
        axes.add_patch(
            FancyArrowPatch((start, 6.3), (end, 6.3), arrowstyle="-|>", mutation_scale=12, shrinkA=4, shrinkB=4)
        )
        axes.text((start + end) / 2, 6.75, name, ha="center", va="center", fontsize=9)
    axes.text(1.5, 6.4, "transition", ha="right", va="center", fontsize=10)
    axes.text(1.5, 8.0, "env.final", ha="right", va="center", fontsize=10)
    cell(axes, 1.7 + 1.15, 7.5, "$x_7$", BLUE)
    axes.text(
        1.7 + 1.15 + 1.15, 8.0, "the true last observation of the old episode: it has no row", va="center", fontsize=9
    )
    for x, colour, name in ((1.7, BLUE, "old episode"), (3.4, ORANGE, "new episode")):
        axes.add_patch(Rectangle((x, 8.85), 0.2, 0.3, facecolor=colour))
        axes.text(x + 0.3, 9.0, name, va="center", fontsize=9, color=GREY)
    return figure


def lag() -> Figure:
    """Draw the schedules of lag 0 and lag 1: collecting a fragment takes as long as training on it."""
    figure = Figure(figsize=(9, 3.8), dpi=120, layout="constrained")
    axes = empty_axes(figure, 9.3, 7.4)
    for top, n, title in ((0.3, 0, "lag = 0"), (4.0, 1, "lag = 1")):
        axes.text(0.1, top + 0.2, title, fontsize=11, fontweight="bold", va="center")
        axes.text(1.2, top + 1.1, "collector", ha="right", va="center", fontsize=10)
        axes.text(1.2, top + 2.2, "learner", ha="right", va="center", fontsize=10)
        stride = 2 if n == 0 else 1
        for k in range(4 if n == 0 else 8):
            x = 1.3 + stride * k
            cell(axes, x, top + 0.6, f"fragment {k}\nweights {max(0, k - n)}", STEPPING, ink="white")
            if x + 1 < 9:
                cell(axes, x + 1, top + 1.7, f"train on {k}:\nweights {k + 1}", GREEN, ink="white")
    axes.annotate("", (9.2, 7.0), (1.3, 7.0), arrowprops={"arrowstyle": "->", "color": GREY})
    axes.text(5.2, 7.2, "time", color=GREY, fontsize=9, ha="center", va="center")
    for text in axes.texts:
        if "weights" in text.get_text():
            text.set_fontsize(8)
    return figure


# what is recorded


class Waiting(NarrowPath):
    """An environment whose step sleeps before it does anything."""

    def step(self, action: int) -> Any:
        """Sleep, then step."""
        time.sleep(SECONDS)
        return super().step(action)


class Actor(BaseActorModule):
    """An actor that sleeps for some seconds, as one that waits for a device does, and takes action 0."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seconds = seconds

    def forward(self, obs: torch.Tensor, *, hx: Any = None, **ignored: Any) -> Any:
        """Sleep, then act; ``obs`` is ``(n_seq, B, 4)``."""
        time.sleep(self.seconds)
        return torch.zeros(obs.shape[:2], dtype=torch.int64), hx, {}


def record(feed: Any, training: float, fragments: int) -> Any:
    """Record a run whose learner sleeps; return its trace."""
    with feed, feed.trace() as trace:
        for _ in islice(feed, fragments):
            time.sleep(training)
    return trace


def groups() -> Figure:
    """Record two worker threads with one group and with two."""
    traces = {}
    for n in (1, 2):
        options = {"workers": 2, "worker": "thread", "groups": n, "lag": 1}
        feed = threaded.rollout([Waiting] * 8, Actor(0.008 / n), 4, seed=0, **options)
        traces[f"groups={n}"] = record(feed, 0.02, 8)
    return plotting.timelines(traces, milliseconds=160)


def engines() -> Figure:
    """Record four engines at the same work: four environments, fragments of four steps."""
    actor, work = Actor(0.0), 16 * SECONDS
    traces = {
        "same": record(same.rollout([Waiting] * 4, actor, 4, seed=0), work, 8),
        "threaded": record(threaded.rollout([Waiting] * 4, actor, 4, seed=0), work, 12),
        "single": record(single.rollout(Waiting, actor, 4, 4, seed=0), work, 12),
        "multi, 2 processes": record(multi.rollout(Waiting, actor, 4, 2, 2, seed=0), work, 12),
    }
    return plotting.timelines(traces, milliseconds=160)


if __name__ == "__main__":
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    fragment().savefig(FOLDER / "fragment.png")
    lag().savefig(FOLDER / "lag.png")
    groups().savefig(FOLDER / "groups.png")
    engines().savefig(FOLDER / "engines.png")
