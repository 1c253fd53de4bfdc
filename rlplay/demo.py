"""Train an actor-critic on an environment of gym: a whole training script on one page, to be copied and changed.

``python -m rlplay demo`` runs it. What belongs to reinforcement learning is here; rlplay collects, and sums up returns.
"""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Any

import gym
import torch
from torch import Tensor, nn
from tqdm import tqdm

from rlplay import plotting, sampling
from rlplay.algo import a2c
from rlplay.engine import BaseActorModule, Episode
from rlplay.engine.rollout import same, threaded


class Actor(BaseActorModule):
    """A policy and its critic, two small networks side by side."""

    def __init__(self, n_inputs: int, n_actions: int, width: int = 64) -> None:
        super().__init__()

        def network(n_outputs: int) -> nn.Module:
            hidden = nn.Linear(n_inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()
            return nn.Sequential(*hidden, nn.Linear(width, n_outputs))

        self.policy, self.critic = network(n_actions), network(1)

    def forward(self, obs: Tensor, *, hx: Any = None, **ignored: Any) -> tuple[Tensor, Any, dict[str, Tensor]]:
        """Draw an action; return what the loss needs beside it."""
        logits, value = self.policy(obs), self.critic(obs).squeeze(-1)
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
    out: str = "rlplay-demo",
) -> dict[str, Any]:
    """Train until the environment counts as solved, for ``total_steps`` at most, or until Ctrl-C.

    Writes ``curve.png`` and ``summary.json`` into the folder ``out``, and returns the summary.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # for networks as small as these more threads only get in each other's way
    envs = [gym.make(env) for _ in range(n_envs)]
    n_inputs, n_actions = sizes(envs[0])
    goal = envs[0].spec.reward_threshold

    actor = Actor(n_inputs, n_actions).to(device)
    optim = torch.optim.Adam(actor.parameters(), lr=1e-3)
    n_fragments = max(1, total_steps // (n_envs * n_steps))
    decay = torch.optim.lr_scheduler.LinearLR(optim, 1.0, 0.05, total_iters=n_fragments)

    rollout = {"same": same.rollout, "threaded": threaded.rollout}[engine]
    feed = rollout(envs, actor, n_steps, lag=lag, seed=seed, final=True)
    history: list[tuple[int, Episode]] = []  # at which step an episode was delivered, and what it was
    recent: deque[float] = deque(maxlen=100)
    best, solved_at, interrupted = float("-inf"), None, False

    with feed, tqdm(total=n_fragments * n_envs * n_steps, unit=" steps", unit_scale=True) as bar:
        try:
            for _, fragment in zip(range(n_fragments), feed, strict=False):
                loss, _ = a2c.loss(fragment, actor, gamma=0.99, C=0.95, entropy_weight=0.01, normalise=True)
                optim.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(actor.parameters(), 0.5)
                optim.step()
                decay.step()

                for episode in feed.episodes():
                    history.append((feed.steps, episode))
                    recent.append(episode.ret)
                mean = sum(recent) / max(1, len(recent))
                bar.set_postfix_str(f"return {mean:.1f}; {shares(feed)}", refresh=False)
                bar.update(feed.steps - bar.n)
                if len(recent) == 100:
                    best = max(best, mean)
                    if goal is not None and mean >= goal:
                        solved_at = feed.steps
                        break
        except KeyboardInterrupt:
            interrupted = True

    summary = {
        "environment": env,
        "options": {"engine": engine, "lag": lag, "device": device, "n_envs": n_envs, "n_steps": n_steps, "seed": seed},
        "steps": feed.steps,
        "episodes": len(history),
        "mean return of the last 100 episodes": sum(recent) / max(1, len(recent)),
        "best mean return of 100 episodes": best if len(history) >= 100 else None,
        "solved at step": solved_at,
        "interrupted": interrupted,
        "steps per second": round(feed.stats.steps_per_second),
        "where the time went": str(feed.stats),
    }
    report(Path(out), summary, history, goal)
    return summary


def sizes(env: Any) -> tuple[int, int]:
    """Tell how many numbers the actor sees, and among how many actions it chooses."""
    n_inputs, n_actions = env.observation_space.shape, getattr(env.action_space, "n", None)
    if n_inputs is None or len(n_inputs) != 1 or n_actions is None:
        raise SystemExit(
            f"this demo needs flat observations and a Discrete action space, got {env.observation_space} and "
            f"{env.action_space}: copy rlplay/demo.py, and change the actor."
        )
    return int(n_inputs[0]), int(n_actions)


def shares(feed: Any) -> str:
    """Say where the time goes: in the collector, and in the learner beside it."""
    _, seconds, _, collector, learner = feed.stats
    parts = {"stepping": collector.stepping, "inference": collector.inference, "training": learner.training}
    return ", ".join(f"{name} {spent / seconds:.0%}" for name, spent in parts.items())


def report(folder: Path, summary: dict[str, Any], history: list[tuple[int, Episode]], goal: float | None) -> None:
    """Leave the curve and the summary in a folder, and say so."""
    folder.mkdir(parents=True, exist_ok=True)
    steps, returns = [step for step, _ in history], [episode.ret for _, episode in history]
    figure = plotting.learning_curve(steps, returns, goal=goal, title=summary["environment"], note=caption(summary))
    figure.savefig(folder / "curve.png", dpi=150)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    solved = summary["solved at step"]
    print("interrupted" if summary["interrupted"] else f"solved at step {solved}" if solved else "not solved", end="; ")
    print(f"the curve and a summary are in {folder}{'/'}")


def caption(summary: dict[str, Any]) -> str:
    """Say under the picture how it came about."""
    options = summary["options"]
    return (
        f"{options['engine']}, lag {options['lag']}, {options['n_envs']} environments, fragments of "
        f"{options['n_steps']} steps, seed {options['seed']}; {summary['steps per second']:,} steps/s"
    )
