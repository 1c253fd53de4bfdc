"""An environment and an actor that follow scripts: at a chosen call they do what a test has them do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from gym.spaces import Box, Discrete
from torch import nn

from rlplay.engine import BaseActorModule

T, B = 5, 2  # of the fragments that `is_scripted_fragment` checks
LENGTH = 3  # steps in an episode of a `ScriptedEnv`, by default


class Script:
    """Counts calls by name, and calls a function at a chosen one. Copies of an actor share its script."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._acts: dict[tuple[str, int], Callable[[], object]] = {}

    def at(self, name: str, n: int, act: Callable[[], object]) -> Script:
        """Have `act` called at the ``n``-th call from now on; return the script."""
        self._acts[name, self.counts[name] + n] = act
        return self

    def __call__(self, name: str) -> None:
        self.counts[name] += 1
        self._acts.get((name, self.counts[name]), bool)()

    def __deepcopy__(self, memo: object) -> Script:
        return self


class ScriptedEnv:
    """Observes ``(episode, step)``, counted from 0. An episode ends after ``length`` steps.

    Calls its script with "reset", "step" and "close".
    """

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Discrete(2)

    def __init__(self, script: Script | None = None, length: int = LENGTH) -> None:
        self.script = Script() if script is None else script
        self.length = length
        self._now = [-1, 0]

    @property
    def counts(self) -> Counter[str]:
        return self.script.counts

    def reset(self, *, seed=None):
        self.script("reset")
        self._now = [self._now[0] + 1, 0]
        return self._obs(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.script("step")
        self._now[1] += 1
        return self._obs(), float(self.counts["step"]), self._now[1] == self.length, False, {}

    def close(self):
        self.script("close")

    def _obs(self):
        return np.array(self._now, np.float32)


class ScriptedActor(BaseActorModule):
    """Repeats the last action; its info holds its weight and its recurrent state, which counts steps.

    Calls its script with "act" at a step, "look" at a virtual step, and "forget" at a reset of its recurrent state.
    """

    def __init__(self, script: Script | None = None) -> None:
        super().__init__()
        self.script = Script() if script is None else script
        self.weight = nn.Parameter(torch.zeros(()))

    def reset(self, hx, at):
        self.script("forget")
        hx = hx.clone()
        hx[:, at] = 0
        return hx

    def step(self, stepno, obs, act, rew, fin, /, *, hx, virtual):
        self.script("look" if virtual else "act")
        if hx is None:
            hx = torch.zeros(1, fin.shape[1])
        return act.clone(), hx + 1, {"weight": self.weight.expand(fin.shape), "hx": hx.clone()}


class ActorWithSlowReset(ScriptedActor):
    """Its `reset` changes a copy where it is given a mask; so it is called for each environment, with a warning."""

    def reset(self, hx, at):
        hx = hx.clone()
        hx[:, at].zero_()
        return hx


def is_scripted_fragment(k, fragment):
    """Return whether this is fragment ``k`` of `B` environments of `ScriptedEnv`, every number of it."""
    g = torch.arange(k * T, (k + 1) * T + 1)[:, None].expand(1 + T, B)
    state, env = fragment.state, fragment.env
    return (
        torch.equal(state.obs, torch.stack([g // LENGTH, g % LENGTH], -1).float())
        and torch.equal(state.stepno, g % LENGTH)
        and torch.equal(state.rew, g.float())
        and torch.equal(state.fin, g % LENGTH == 0)
        and torch.equal(env.terminated, g[1:] % LENGTH == 0)
        and not env.truncated.any()
        and env.valid.all()
        and torch.equal(fragment.actor["hx"], (g % LENGTH).float())
    )
