"""Runs that are saved in the middle and go on elsewhere, in this process or in a new one."""

from __future__ import annotations

import io
import subprocess
import sys
from functools import partial

import gym
import gymnasium
import numpy as np
import pytest
import torch

from rlplay import checkpoint, nested, sampling
from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import same, threaded
from rlplay.replay import Prioritized
from rlplay.zoo.envs import Recall
from tests.support.noisy import Noisy

ENGINES = {
    "same": same.rollout,
    "threaded": threaded.rollout,
    "threads": partial(threaded.rollout, worker="thread"),
    "processes": threaded.rollout,
}
"""The workers of the last two are numbered in a case, as in "threads-2"."""


def make_recall():
    return Recall(3)


def vector_of(mode, n):
    modes = gymnasium.vector.AutoresetMode
    return gymnasium.vector.SyncVectorEnv([Noisy] * n, autoreset_mode=modes[mode])


def vector_for_a_thread(n):
    env = vector_of("SAME_STEP", n)
    env.releases_interpreter_lock = True
    return env


def breakout():
    pytest.importorskip("ale_py")
    env = gymnasium.make("ALE/Breakout-v5", frameskip=1)
    env = gymnasium.wrappers.AtariPreprocessing(env, noop_max=2, screen_size=21)
    return gymnasium.wrappers.TimeLimit(gymnasium.wrappers.FrameStackObservation(env, 2), 9)


ENVIRONMENTS = {
    "gym": lambda n: [gym.make("CartPole-v1") for _ in range(n)],
    "gymnasium": lambda n: [gymnasium.make("CartPole-v1") for _ in range(n)],
    "noisy": lambda n: [Noisy() for _ in range(n)],
    "recall": lambda n: [make_recall() for _ in range(n)],
    "breakout": lambda n: [breakout() for _ in range(n)],
    "autoreset": lambda n: [gymnasium.wrappers.Autoreset(Noisy()) for _ in range(n)],
    "factories": lambda n: [Noisy] * n,
    "SAME_STEP": partial(vector_of, "SAME_STEP"),
    "NEXT_STEP": partial(vector_of, "NEXT_STEP"),
    "DISABLED": partial(vector_of, "DISABLED"),
    "vectors": lambda n: [vector_for_a_thread(1 + k) for k in range(n)],
}


class Changing(BaseActorModule):
    """A recurrent actor whose behaviour copy changes in every way: by snapshots, and by itself."""

    def __init__(self, n_obs, n_act, *, counts=True):
        super().__init__()
        self.core, self.head = torch.nn.GRU(n_obs, 5), torch.nn.Linear(5, n_act)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("first", None)
        self.epsilon, self.counts, self.n_calls = 0.5, counts, 0
        self.memory, self.own = [torch.zeros(())], torch.Generator().manual_seed(1)

    def forward(self, obs, *, hx=None, virtual=False, **ignored):
        flat = obs.reshape(*obs.shape[:2], -1).float() / 9
        out, hx = self.core(flat, hx)
        logits = self.head(out) * (1 + self.epsilon) + self.seen
        act = sampling.categorical(logits, generator=self.generator)
        act = torch.where(torch.rand(act.shape, generator=self.generator) < 0.1, 0 * act, act)
        info = {"logits": logits, "seen": self.seen.expand(act.shape).clone()}
        if self.counts:
            if not virtual:
                self.n_calls += 1
                self.memory[0].add_(logits.detach().mean())
                if self.first is None:
                    self.first = logits.detach().mean()
            drawn = torch.rand((), generator=self.own)
            first = drawn if self.first is None else self.first
            told = torch.stack([drawn, self.memory[0], torch.tensor(float(self.n_calls)), first])
            info["own"] = told.expand(*act.shape, 4).clone()
        return act, hx, info


class Learner:
    """An actor, its optimiser and a replay buffer: what a user saves beside the feed."""

    def __init__(self, kind, **options):
        env = ENVIRONMENTS[kind](1)
        (one,) = [env] if not isinstance(env, list) else [x() if isinstance(x, type) else x for x in env]
        space = getattr(one, "single_observation_space", one.observation_space)
        actions = getattr(one, "single_action_space", one.action_space)
        n_obs = int(np.prod(space.shape)) if space.shape else 1
        torch.manual_seed(1)
        self.actor = Changing(n_obs, int(actions.n), **options)
        self.optim = torch.optim.Adam(self.actor.parameters(), lr=1e-2)
        self.replay = Prioritized(200, keep="actor")

    def update(self, fragment):
        """Draw from the global generator, change weights, the buffers, the mode and a plain attribute."""
        self.replay.commit(fragment)
        batch = self.replay.sample(8, gamma=0.9, beta=0.5)
        self.replay.update(batch.ids, batch.actor["logits"].sum(-1).abs().flatten())
        scale = fragment.state.rew.mean() + (batch.rew * batch.weight * batch.actor["logits"].sum(-1)).mean()
        loss = scale * sum((x * torch.rand_like(x)).sum() for x in self.actor.parameters())
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()
        self.actor.seen.add_(torch.rand(()))
        self.actor.train(not self.actor.training)
        if torch.rand(()) < 0.5:
            self.actor.epsilon *= 0.9
        self.actor.n_calls = 100  # flows once; from then on the copy goes on counting

    def state_dict(self):
        actor = self.actor
        return {
            "actor": actor.state_dict(), "optim": self.optim.state_dict(), "replay": self.replay.state_dict(),
            "epsilon": actor.epsilon, "n_calls": actor.n_calls,
            "training": actor.training, "generator": torch.get_rng_state(),
        }  # fmt: skip

    def load_state_dict(self, state):
        self.actor.load_state_dict(state["actor"])
        self.optim.load_state_dict(state["optim"])
        self.replay.load_state_dict(state["replay"])
        self.actor.epsilon, self.actor.n_calls = state["epsilon"], state["n_calls"]
        self.actor.train(state["training"])
        torch.set_rng_state(state["generator"])


def collect(feed, learner, n):
    """Collect ``n`` fragments, training in between; return copies of their leaves, and the delivered at each.

    The episodes that the last fragments have ended are left in the feed.
    """
    found = []
    for k in range(n):
        fragment = next(feed)
        leaves = [x.clone() for x in nested.leaves(fragment)]
        episodes = [list(one) for one in feed.episodes()] if k < n - 2 else []
        found.append([feed.version, feed.steps, episodes, leaves])
        learner.update(fragment)
    return found


def open_feed(case, learner, engine, **more):
    envs = ENVIRONMENTS[case["kind"]](case["n_envs"])
    name, _, n_workers = engine.partition("-")
    workers = {"workers": int(n_workers)} if n_workers else {}
    return ENGINES[name](envs, learner.actor, **case["options"], **workers, **more)


def case_of(kind="noisy", n_envs=3, before=2, after=3, to="same", n_steps=5, actor=None, **options):
    """Describe a run that is saved after ``before`` fragments, and continued in the engine ``to``."""
    start_in = options.pop("start_in", "same")
    options = {"n_steps": n_steps, "lag": 0, **options}
    return {
        "kind": kind, "n_envs": n_envs, "before": before, "after": after, "from": start_in, "to": to,
        "options": options, "actor": actor or {},
    }  # fmt: skip


def check(case):
    """Save a run in the middle, continue it, and compare it with the run that was not interrupted."""
    saved, *expected = start(case)
    assert_goes_on(expected, go_on(case, saved))


def start(case):
    """Run ``case["before"]`` fragments, save, and run ``case["after"]`` more; return the state and these."""
    learner = Learner(case["kind"], **case.get("actor", {}))
    with open_feed(case, learner, case["from"], seed=3) as feed:
        collect(feed, learner, case["before"])
        saved = through_torch({"feed": feed.state_dict(), "learner": learner.state_dict()})
        return saved, collect(feed, learner, case["after"]), learner.state_dict()


def go_on(case, saved):
    """Continue from a state in ``case["to"]``; return the fragments, and the learner at the end."""
    learner = Learner(case["kind"], **case.get("actor", {}))
    learner.load_state_dict(saved["learner"])
    with open_feed(case, learner, case["to"], state=saved["feed"]) as feed:
        return collect(feed, learner, case["after"]), learner.state_dict()


def through_torch(value):
    """Save and load, as a checkpoint does."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_goes_on(expected, got):
    """Compare the results of :func:`go_on` and of the run that was not interrupted, to the last bit."""
    (fragments, learner), (others, other) = expected, got
    for k, (one, two) in enumerate(zip(fragments, others, strict=True)):
        assert one[:3] == two[:3], f"delivered of fragment {k}"
        for x, y in zip(one[3], two[3], strict=True):
            assert (x.dtype, x.shape) == (y.dtype, y.shape)
            assert x.numpy().tobytes() == y.numpy().tobytes(), f"fragment {k}"
    for x, y in zip(nested.leaves(learner), nested.leaves(other), strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


def go_on_in_new_process(path):
    """Continue the cases in a file, with their states, in a new process; return what :func:`go_on` returns."""
    code = f"from tests.support.saving import *; go_on_from_file({str(path)!r})"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    return torch.load(path, weights_only=True)


def go_on_from_file(path):
    torch.set_num_threads(1)
    cases = checkpoint.load(path)["cases"]
    torch.save([go_on(case, saved) for case, saved in cases], path)
