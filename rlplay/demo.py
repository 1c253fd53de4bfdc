"""The demo, an example to copy: an actor learns to balance a pole by advantage actor-critic (A2C).

``python -m rlplay demo`` runs it. Three parts: the actor, the training loop, and a log that only records. The loop
writes checkpoints, from which ``--resume`` goes on, bit for bit.
"""

from __future__ import annotations

import json
import math
import platform
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import rlplay
from rlplay import checkpoint, plotting, sampling
from rlplay.algo import a2c
from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import multi, same, single, threaded

from .engine.feed.feed import Feed
from .zoo.gym_or_gymnasium import gym

__all__ = ["N_COLLECTORS", "Actor", "ResumeError", "demo", "make_env"]

N_COLLECTORS = 2
"""The number of collector processes of ``multi``."""

SAVE_EVERY = 100
"""The number of updates from one checkpoint to the next."""

KEPT = ("n_envs", "n_steps", "lag", "device")
"""Options that a run which goes on from a checkpoint must share with the run that saved it. Not the number of steps:
the schedule of the learning rate stays that of the first run."""


class Actor(BaseActorModule):
    """Two small networks: the policy gives the logits of the actions, the critic estimates the value of a state."""

    def __init__(self, n_obs: int, n_act: int) -> None:
        super().__init__()
        self.policy = nn.Sequential(nn.Linear(n_obs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, n_act))
        self.critic = nn.Sequential(nn.Linear(n_obs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))

    def forward(self, obs: Tensor, *, hx: Any = None, **ignored: Any) -> tuple[Tensor, Any, dict[str, Tensor]]:
        """Return actions, the recurrent state as given, and info for the loss; ``obs`` is ``(n_seq, B, n_obs)``."""
        logits, value = self.policy(obs.float()), self.critic(obs.float()).squeeze(-1)
        return sampling.categorical(logits, generator=self.generator), hx, {"logits": logits, "value": value}


def demo(
    env: str = "CartPole-v1",
    engine: str = "threaded",
    lag: int = 1,
    device: str = "cpu",
    n_envs: int = 8,
    n_steps: int = 64,
    total_steps: int = 1_000_000,
    seed: int = 0,
    out: str | Path = "rlplay-demo",
    resume: bool = False,
) -> dict[str, Any]:
    """Train until the environment is solved, ``total_steps`` are done, or Ctrl-C; then write the curve and a summary.

    The environment is solved once the mean return of the last 100 episodes is at least its ``reward_threshold``.
    ``python -m rlplay demo --help`` describes the options. Returns the summary.

    Raises
    ------
    ResumeError
        The checkpoint to resume from cannot be read, or was written with other options or by another version of rlplay
        (the message names the difference).
    ValueError
        ``env`` is unknown, or has other spaces than a flat Box of observations and Discrete actions.
    """
    options = dict(locals())
    plotting.require()  # fails now rather than after the training
    Path(out).mkdir(parents=True, exist_ok=True)
    stem = str(Path(out) / f"{env}-{engine}-seed{seed}".replace("/", "-"))
    path = Path(f"{stem}.pt")
    saved = load_checkpoint(path, options) if resume else None

    torch.manual_seed(seed)
    torch.set_num_threads(1)  # for networks this small, one thread is the fastest
    example = make_env(env)
    actor = Actor(example.observation_space.shape[0], example.action_space.n).to(device)

    optim = torch.optim.Adam(actor.parameters(), lr=1e-3)
    n_updates, n_done = max(1, total_steps // (n_envs * n_steps)), 0
    decay = torch.optim.lr_scheduler.LinearLR(optim, 1.0, 0.05, total_iters=n_updates)

    learner: dict[str, Any] = {"actor": actor, "optim": optim, "decay": decay}
    if saved is not None:
        for name, part in learner.items():
            part.load_state_dict(saved[name])
        torch.set_rng_state(saved["generator"])
        n_done = saved["n_done"]

    # `final`: an episode that a time limit ends is bootstrapped from its true last observation
    shared: dict[str, Any] = {"lag": lag, "seed": seed, "final": True}
    if saved is None:
        feed = make_feed(engine, env, n_envs, actor, n_steps, **shared)
    else:
        try:
            feed = make_feed(engine, env, n_envs, actor, n_steps, **shared, state=saved["feed"])
        except ValueError as error:
            raise ResumeError(str(error)) from error
    can_save = can_be_saved(feed)
    log = Log(feed, example.spec.reward_threshold, n_updates * n_envs * n_steps, saved["episodes"] if saved else [])

    def save() -> None:
        """Write all that the rest of the training depends on into one file."""
        state = {name: part.state_dict() for name, part in learner.items()}
        state |= {"generator": torch.get_rng_state(), "n_done": n_done, "episodes": log.episodes}
        state["options"] = {name: options[name] for name in KEPT}
        checkpoint.save(path, state | {"feed": feed.state_dict()})

    with feed, log.bar:
        try:
            while n_done < n_updates and not log.solved:
                fragment = next(feed)
                loss, _ = a2c.loss(fragment, actor, gamma=0.99, C=0.95, entropy_weight=0.01, normalise=True)
                optim.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(actor.parameters(), 0.5)
                optim.step()
                decay.step()

                n_done += 1
                log.update()
                if can_save and (n_done % SAVE_EVERY == 0 or n_done == n_updates or log.solved):
                    save()
        except KeyboardInterrupt:
            log.interrupted = True
    return log.write(stem, options)


def make_feed(engine: str, env: str, n_envs: int, actor: Actor, n_steps: int, **shared: Any) -> Feed:
    """Make the feed of an engine; ``shared`` are the options that all engines have."""
    factory = partial(make_env, env)
    if engine == "multi":
        return multi.rollout(factory, actor, n_steps, N_COLLECTORS, n_envs // N_COLLECTORS, **shared)
    if engine == "single":
        return single.rollout(factory, actor, n_steps, n_envs, **shared)
    rollout = {"same": same.rollout, "threaded": threaded.rollout}[engine]
    return rollout([factory] * n_envs, actor, n_steps, **shared)


class ResumeError(ValueError):
    """A run cannot go on from its checkpoint."""


def load_checkpoint(path: Path, options: dict[str, Any]) -> dict[str, Any] | None:
    """Return the checkpoint that a run with these options goes on from, or None if there is none; print which."""
    try:
        saved = checkpoint.load(path)
    except FileNotFoundError:
        print(f"no checkpoint {path} yet: from the beginning")
        return None
    except RuntimeError as error:
        raise ResumeError(f"{error} Delete it, or use another --out.") from error
    check_options(options, saved)
    print(f"goes on from {path}")
    return saved


def check_options(options: dict[str, Any], saved: dict[str, Any]) -> None:
    """Raise ResumeError if a checkpoint was saved with other options of those that are :data:`KEPT`."""
    kept = saved.get("options", {})
    differ = [name for name, before in kept.items() if kind_of(before) != kind_of(options[name])]
    if differ:
        flags = [" ".join(f"--{name.replace('_', '-')} {one[name]}" for name in differ) for one in (kept, options)]
        raise ResumeError(f"use the saved run's {flags[0]}, or another --out; got {flags[1]}")


def kind_of(option: int | str) -> str:
    """Return an option as text; of a device the kind alone, since its number may differ."""
    return str(option).partition(":")[0]


def can_be_saved(feed: Feed) -> bool:
    """Return whether the state of the feed can be saved; print the reason if it cannot."""
    try:
        feed.state_dict()
    except (NotImplementedError, TypeError) as error:
        print(f"no checkpoints will be written: {error}")
        return False
    return True


def make_env(name: str) -> Any:
    """Make an environment; raise ValueError if the name is unknown, or if the actor is not made for its spaces."""
    try:
        env = gym.make(name)
    except (gym.error.Error, ImportError) as error:  # an ID such as `package:name` imports the package
        raise ValueError(str(error)) from error
    obs, act = env.observation_space, env.action_space
    if not (isinstance(obs, gym.spaces.Box) and len(obs.shape) == 1 and isinstance(act, gym.spaces.Discrete)):
        raise ValueError(f"the demo is for flat Box observations and Discrete actions; {name} has {obs} and {act}.")
    return env


class Log:
    """Records the returns of episodes, shows a progress bar, and writes the results. Never waits for the device."""

    def __init__(self, feed: Feed, goal: float | None, n_steps: int, episodes: list[tuple[int, float]]) -> None:
        self.feed, self.stats, self.goal, self.n_steps = feed, feed.stats, goal, n_steps
        self.steps = self.first_step = feed.steps  # above zero if the feed goes on from a checkpoint
        self.episodes = episodes  # of each: steps at its delivery, and its return
        self.interrupted = False
        # the bar is full where the training stops: at the goal, which may lie above or below zero, or at the last step
        form = "{percentage:3.0f}%|{bar:10}|{desc}"
        self.bar = tqdm(total=1.0, bar_format=form, miniters=0, dynamic_ncols=True)

    def update(self) -> None:
        """Record the episodes that have ended, and update the progress bar."""
        self.stats, self.steps = self.feed.stats, self.feed.steps
        self.episodes += [(self.steps, episode.ret) for episode in self.feed.episodes()]
        (wait, _), goal = self.stats.learner, "" if self.goal is None else f" of {self.goal:g}"
        rate, waiting = human(self.stats.steps_per_second), f"{100 * wait / self.stats.seconds:.0f} %"
        steps = f"{human(self.steps)} steps, {rate}/s"
        self.bar.set_description_str(
            f" return {self.mean:.0f}{goal} | {steps} | learner waits {waiting}", refresh=False
        )
        self.bar.update(self.progress - self.bar.n)

    @property
    def progress(self) -> float:
        """The share of the way: to the goal by the mean return, or to the last step, whichever is nearer to its end."""
        steps = self.steps / self.n_steps
        if self.goal is None or not self.episodes:
            return min(1.0, steps)
        first = sum(ret for _, ret in self.episodes[:100]) / len(self.episodes[:100])
        gained = (self.mean - first) / (self.goal - first) if self.goal > first else 1.0
        return min(1.0, max(steps, gained))

    @property
    def mean(self) -> float:
        """The mean return of the last 100 episodes, or of all if there are fewer; NaN if there are none."""
        last = [ret for _, ret in self.episodes[-100:]]
        return sum(last) / len(last) if last else math.nan

    @property
    def solved(self) -> bool:
        """Whether the mean return of the last 100 episodes reaches the goal."""
        return self.goal is not None and len(self.episodes) >= 100 and self.mean >= self.goal

    def write(self, stem: str, options: dict[str, Any]) -> dict[str, Any]:
        """Write the learning curve and the summary, print their paths, and return the summary."""
        stats, solved = self.stats, self.solved
        steps, returns = [step for step, _ in self.episodes], [ret for _, ret in self.episodes]
        means = plotting.moving_mean(returns, 100).round(2).tolist()
        summary = {
            "outcome": "solved" if solved else "interrupted" if self.interrupted else "not solved",
            "options": {**options, "out": str(options["out"])},
            "steps": self.steps,
            "resumed at step": self.first_step or None,
            "seconds": round(stats.seconds, 1),
            "steps per second": round(stats.steps_per_second),
            "episodes": len(returns),
            "best mean return over 100 episodes": max(means, default=None),
            "last mean return over 100 episodes": means[-1] if means else None,
            "mean return to reach": self.goal,
            "solved at step": self.steps if solved else None,
            "collector's seconds": {name: round(spent, 1) for name, spent in stats.collector._asdict().items()},
            "learner's seconds": {name: round(spent, 1) for name, spent in stats.learner._asdict().items()},
            "versions": {"python": platform.python_version()}
            | {x.__name__: x.__version__ for x in (rlplay, torch, np, gym)},
        }
        run = "{engine}, lag {lag}, on {device}; {n_envs} environments, fragments of {n_steps} steps; seed {seed}"
        caption = f"{run.format(**options)}; {stats.steps_per_second:,.0f} steps/s"
        figure = plotting.learning_curve(steps, returns, threshold=self.goal, title=options["env"], caption=caption)

        figure.savefig(f"{stem}.png")
        Path(f"{stem}.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        took = f"{stats.seconds:.1f} s" + (" since it was resumed" if self.first_step else "")
        print(f"{summary['outcome']} after {self.steps:,} steps, {took}: mean return {self.mean:.1f}")
        print(f"learning curve: {stem}.png\nsummary: {stem}.json")
        return summary


def human(number: float) -> str:
    """Write a number with three digits, in thousands (k) or millions (M) if it is that large."""
    text: str = tqdm.format_sizeof(number)
    return text
