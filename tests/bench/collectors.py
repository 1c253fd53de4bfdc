"""Measure the collectors of rlplay and of other libraries, on the CPU with one thread; print a Markdown table.

Not a test: pytest does not collect this file. Only this script needs the other libraries; install them in a separate
virtual environment. A library that is not installed is left out, with a message:

    python3 -m venv /tmp/bench && /tmp/bench/bin/pip install torch==2.13.0
    /tmp/bench/bin/pip install -e ".[gymnasium]"
    /tmp/bench/bin/pip install stable-baselines3==2.9.2 torchrl==0.14.1 tianshou==2.0.1 envpool==1.2.5
    /tmp/bench/bin/python tests/bench/collectors.py

All collectors do the same work: fragments of 128 steps of gymnasium's CartPole-v1, an actor 4-64-64-2 and a critic
4-64-64-1 (tanh, nothing shared, the same weights for all), actions drawn from the policy. They record observation,
action, log-probability, value, reward and how the step ended. The process that collects steps the environments itself.
Of several ways that a library has, the fastest on this machine is used; the docstrings of the functions name it, and
the differences to the other libraries.

Speeds are multiples of limit b: a plain loop that steps the environments with actions drawn in advance and evaluates
both networks once per step, but samples and records nothing. In each round every collector is measured once, in one
process, in a random order. "Learning" is with one A2C update per fragment, with a learning rate of 0, so that the
length of the episodes stays the same. EnvPool has its own CartPole, in C++, so its figures cannot be compared with the
rest.

PufferLib 3.0 is missing: its source package downloads a library when it is built.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution

from rlplay import sampling
from rlplay.algo import a2c
from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import same, single
from rlplay.zoo.actors import mlp

T = 128
GAMMA, LAMBDA = 0.99, 0.95
PACKAGES = "torch", "numpy", "gymnasium", "stable-baselines3", "torchrl", "tianshou", "envpool"


class Collector(NamedTuple):
    """A collector, and the learner that goes with it."""

    collect: Callable[[], Any]
    """Collects a fragment."""
    learn: Callable[[Any], object] | None = None
    """Makes an update with a fragment."""
    pause: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Makes a context in which the collector does nothing; entered while other collectors are measured."""
    close: Callable[[], object] = lambda: None


def cartpole() -> gymnasium.Env:
    """Make the environment: with its time limit, without the checker, which only authors of environments need."""
    return gymnasium.make("CartPole-v1", disable_env_checker=True)


def networks() -> tuple[nn.Sequential, nn.Sequential]:
    """Make the actor and the critic, with the same weights for every collector."""
    torch.manual_seed(0)
    return mlp(4, 64, 64, 2), mlp(4, 64, 64, 1)


# loops written by hand


def limit_b(n_envs: int) -> Collector:
    """A loop that steps the environments and evaluates the networks, and does nothing else."""
    actor, critic = networks()
    envs = [cartpole() for _ in range(n_envs)]
    obs = [env.reset(seed=j)[0] for j, env in enumerate(envs)]
    actions = [list(row) for row in np.random.default_rng(0).integers(2, size=(1024, n_envs))]
    steps = iter(range(sys.maxsize))

    @torch.no_grad()
    def collect() -> None:
        for _ in range(T):
            x = torch.from_numpy(np.stack(obs))
            actor(x), critic(x)
            ready = actions[next(steps) % len(actions)]
            for j, env in enumerate(envs):
                obs[j], _, terminated, truncated, _ = env.step(ready[j])
                if terminated or truncated:
                    obs[j], _ = env.reset()

    return Collector(collect)


def by_hand(n_envs: int) -> Collector:
    """A loop that records into new tensors through NumPy views of them: what an expert could write."""
    actor, critic = networks()
    envs = [cartpole() for _ in range(n_envs)]
    now = np.stack([env.reset(seed=j)[0] for j, env in enumerate(envs)])

    @torch.no_grad()
    def collect() -> dict[str, Tensor]:
        act, rows = torch.empty(T, n_envs, dtype=torch.int64), torch.empty(3, T, n_envs)
        obs, end = torch.empty(T + 1, n_envs, 4), torch.zeros(2, T, n_envs, dtype=torch.bool)
        log_prob, val, rew = rows
        see, reward, (terminations, truncations) = obs.numpy(), rew.numpy(), end.numpy()
        see[0] = now
        for t in range(T):
            logits = actor(obs[t]).log_softmax(-1)
            action = (logits - torch.empty_like(logits).exponential_().log_()).argmax(-1, keepdim=True)
            val[t], act[t] = critic(obs[t])[:, 0], action[:, 0]
            log_prob[t] = logits.gather(-1, action)[:, 0]
            following = see[t + 1]
            for j, (env, a) in enumerate(zip(envs, act[t].tolist(), strict=True)):
                seen, reward[t, j], terminated, truncated, _ = env.step(a)
                if terminated or truncated:
                    terminations[t, j], truncations[t, j] = terminated, truncated
                    seen, _ = env.reset()
                following[j] = seen
        now[:] = see[T]
        return {"obs": obs, "act": act, "log_prob": log_prob, "val": val, "rew": rew, "end": end}

    return Collector(collect)


def cleanrl(n_envs: int, envs: Any = None) -> Collector:
    """The loop of CleanRL's ``ppo.py`` (with EnvPool: of ``ppo_atari_envpool.py``), without its logging.

    It steps a vector environment, overwrites the same float32 tensors in each fragment, and computes the entropy of the
    policy with each action.
    """
    actor, critic = networks()
    if envs is None:  # SAME_STEP: gymnasium reset in the same step when CleanRL's script was written
        envs = SyncVectorEnv([cartpole] * n_envs, autoreset_mode=AutoresetMode.SAME_STEP)
        first, _ = envs.reset(seed=0)
    else:
        first, _ = envs.reset()
    obs, actions = torch.zeros(T, n_envs, 4), torch.zeros(T, n_envs)
    log_probs, rewards, dones, values = torch.zeros(4, T, n_envs)
    state = [torch.Tensor(first), torch.zeros(n_envs)]

    def react(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        policy = Categorical(logits=actor(x))
        action = policy.sample()
        return action, policy.log_prob(action), policy.entropy(), critic(x)

    def collect() -> None:
        next_obs, next_done = state
        for t in range(T):
            obs[t], dones[t] = next_obs, next_done
            with torch.no_grad():
                action, log_prob, _, value = react(next_obs)
                values[t] = value.flatten()
            actions[t], log_probs[t] = action, log_prob
            seen, reward, terminations, truncations, _ = envs.step(action.cpu().numpy())
            rewards[t] = torch.tensor(reward).view(-1)
            next_obs, next_done = torch.Tensor(seen), torch.Tensor(np.logical_or(terminations, truncations))
        state[:] = next_obs, next_done

    return Collector(collect, close=envs.close)


# rlplay


class Actor(BaseActorModule):
    """The two networks; returns the log-probability of the action as well, because the other libraries record it."""

    def __init__(self) -> None:
        super().__init__()
        self.policy, self.value = networks()

    def forward(self, obs: Tensor, *, hx: Any = None, **ignored: Any) -> tuple[Tensor, Any, dict[str, Tensor]]:
        logits = self.policy(obs).log_softmax(dim=-1)
        act = sampling.categorical(logits, generator=self.generator)
        log_prob = logits.gather(-1, act.unsqueeze(-1)).squeeze(-1)
        return act, hx, {"logits": logits, "log_prob": log_prob, "value": self.value(obs).squeeze(-1)}


def rlplay_engine(n_envs: int, engine: str, envs: Any = None, **options: Any) -> Collector:
    """Fragments of one of rlplay's engines; the update uses :func:`rlplay.algo.a2c.loss`."""
    actor = Actor()
    if engine == "same":
        feed = same.rollout([cartpole] * n_envs if envs is None else envs, actor, T, seed=0, **options)
    else:
        feed = single.rollout(cartpole, actor, T, n_envs, seed=0, threads=1, **options)
    optim = torch.optim.RMSprop(actor.parameters(), lr=0.0)

    def learn(fragment: Any) -> None:
        loss, _ = a2c.loss(fragment, actor, gamma=GAMMA, C=LAMBDA)
        optim.zero_grad()
        loss.backward()
        optim.step()

    return Collector(partial(next, feed), learn, feed.pause, feed.close)


# other libraries


def sb3(n_envs: int) -> Collector:
    """``A2C.collect_rollouts`` and ``A2C.train``, on a ``DummyVecEnv``, as the documentation advises for CartPole.

    The default policy has exactly these networks. There is no ``Monitor``. ``collect_rollouts`` also computes GAE and
    the values of states at which a time limit ended an episode; ``train`` clips gradients and logs.
    """
    from stable_baselines3 import A2C
    from stable_baselines3.common.vec_env import DummyVecEnv

    model = A2C(
        "MlpPolicy", DummyVecEnv([cartpole] * n_envs), n_steps=T, learning_rate=0.0, gamma=GAMMA, gae_lambda=LAMBDA,
        ent_coef=0.01, device="cpu", seed=0, policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [64, 64]}},
    )  # fmt: skip
    policy = model.policy
    for theirs, network in zip(
        ((policy.mlp_extractor.policy_net, policy.action_net), (policy.mlp_extractor.value_net, policy.value_net)),
        networks(),
        strict=True,
    ):
        nn.Sequential(*theirs).load_state_dict(renamed(network, nn.Sequential(*theirs)))
    _, callback = model._setup_learn(sys.maxsize)
    return Collector(
        lambda: model.collect_rollouts(model.env, callback, model.rollout_buffer, T),
        lambda _: model.train(),
        close=model.env.close,
    )


def renamed(source: nn.Module, like: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of ``source`` under the names of ``like``, a module with the same layers."""
    return dict(zip(like.state_dict(), source.state_dict().values(), strict=True))


def torchrl(n_envs: int, serial: bool = False, compiled: bool = False) -> Collector:
    """TorchRL's ``Collector``, which yields new tensordicts ``B x T``.

    On a ``SyncVectorEnv`` without autoreset it is at least twice as fast as on ``SerialEnv``. Trajectory numbers are
    switched off. ``compact_obs``, ``use_buffers`` and ``return_same_td`` made no difference.
    """
    from tensordict.nn import TensorDictModule, TensorDictSequential
    from torchrl.collectors import Collector as Theirs
    from torchrl.envs import GymWrapper, SerialEnv
    from torchrl.modules import ProbabilisticActor, ValueOperator

    actor, critic = networks()
    policy = TensorDictSequential(
        ProbabilisticActor(
            TensorDictModule(actor, ["observation"], ["logits"]),
            in_keys=["logits"],
            distribution_class=Categorical,
            return_log_prob=True,
        ),
        ValueOperator(critic, in_keys=["observation"]),
    )
    if serial:
        env = SerialEnv(n_envs, lambda: GymWrapper(cartpole(), categorical_action_encoding=True))
    else:
        envs = SyncVectorEnv([cartpole] * n_envs, autoreset_mode=AutoresetMode.DISABLED)
        env = GymWrapper(envs, categorical_action_encoding=True)
    collector = Theirs(
        env, policy, frames_per_batch=T * n_envs, total_frames=-1, compile_policy=compiled or None,
        track_traj_ids=False, auto_register_policy_transforms=False,
    )  # fmt: skip
    return Collector(partial(next, iter(collector)), close=collector.shutdown)


def tianshou(n_envs: int) -> Collector:
    """Tianshou's ``Collector`` on a ``DummyVectorEnv``, with Tianshou's buffer.

    The collector records neither values nor log-probabilities: as in Tianshou's A2C and PPO, they are computed from the
    whole fragment, and this is part of the measured time. ``ignore_obs_next`` made no difference.
    """
    from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy
    from tianshou.data import Collector as Theirs
    from tianshou.data import VectorReplayBuffer
    from tianshou.env import DummyVectorEnv
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic

    envs = DummyVectorEnv([cartpole] * n_envs)
    bodies = [Net(state_shape=(4,), hidden_sizes=(64, 64), activation=nn.Tanh) for _ in range(2)]
    actor = DiscreteActor(preprocess_net=bodies[0], action_shape=(2,), softmax_output=False)
    critic = DiscreteCritic(preprocess_net=bodies[1])
    for theirs, network in zip((actor, critic), networks(), strict=True):
        theirs.load_state_dict(renamed(network, theirs))
    policy = DiscreteActorPolicy(actor=actor, action_space=envs.action_space[0])
    collector = Theirs(policy, envs, VectorReplayBuffer(T * n_envs, n_envs))
    collector.reset()

    def collect() -> Any:
        collector.reset_buffer(keep_statistics=True)
        collector.collect(n_step=T * n_envs)
        batch, _ = collector.buffer.sample(0)
        with torch.no_grad():
            batch.v_s = critic(batch.obs)
            batch.logp_old = policy(batch).dist.log_prob(torch.as_tensor(batch.act))
        return batch

    return Collector(collect, close=collector.close)


def pool(n_envs: int) -> Any:
    """EnvPool's CartPole with one thread; two threads, or EnvPool's default number, were no faster."""
    import envpool

    return envpool.make("CartPole-v1", env_type="gymnasium", num_envs=n_envs, num_threads=1, seed=0)


COLLECTORS: dict[str, tuple[str, Callable[[int], Collector]]] = {
    "limit-b": ("limit b", limit_b),
    "by-hand": ("a loop written by hand", by_hand),
    "same": ("rlplay, `same`", partial(rlplay_engine, engine="same")),
    "same-compiled": ("rlplay, `same(compile=True)`", partial(rlplay_engine, engine="same", compile=True)),
    "single": ("rlplay, `single`", partial(rlplay_engine, engine="single")),
    "single-compiled": ("rlplay, `single(compile=True)`", partial(rlplay_engine, engine="single", compile=True)),
    "cleanrl": ("CleanRL's loop, `SyncVectorEnv`", cleanrl),
    "sb3": ("Stable-Baselines3, `DummyVecEnv`", sb3),
    "tianshou": ("Tianshou, `DummyVectorEnv`", tianshou),
    "torchrl-serial": ("TorchRL, `SerialEnv`", partial(torchrl, serial=True)),
    "torchrl": ("TorchRL, `SyncVectorEnv`", torchrl),
    "torchrl-compiled": ("TorchRL, the same, `compile_policy=True`", partial(torchrl, compiled=True)),
    "cleanrl-envpool": ("CleanRL's loop, EnvPool", lambda n: cleanrl(n, pool(n))),
    "same-envpool": ("rlplay, `same`, EnvPool", lambda n: rlplay_engine(n, "same", pool(n))),
    "same-compiled-envpool": (
        "rlplay, `same(compile=True)`, EnvPool",
        lambda n: rlplay_engine(n, "same", pool(n), compile=True),
    ),
}


class Case:
    """A collector and its measurements; paused except while it is measured."""

    def __init__(self, collector: Collector, rows: int, seconds: float) -> None:
        """Warm up, and choose how many fragments a measurement has."""
        self._collector, self._rows = collector, rows
        self._pause = ExitStack()
        self.rates: dict[str, list[float]] = {"alone": []} | ({"learning": []} if collector.learn else {})
        self._counts = dict.fromkeys(self.rates, 1)
        self._fragment = collector.collect()
        for how in self.rates:
            self._measure(how)
            self._counts[how] = max(1, round(seconds * self._measure(how) / rows))

    def measure(self) -> None:
        """Measure once more, alone and with learning."""
        for how, rates in self.rates.items():
            rates.append(self._measure(how))

    def _measure(self, how: str) -> float:
        """Return the rows per second of one measurement."""
        collect, learn = self._collector.collect, self._collector.learn if how == "learning" else None
        count = self._counts[how]
        self._pause.close()
        if self._collector.pause is not nullcontext:
            self._fragment = collect()  # not measured: the pause interrupted its collection
        started = time.perf_counter()
        for _ in range(count):
            if learn is not None:
                learn(self._fragment)
            self._fragment = collect()
        seconds = time.perf_counter() - started
        self._pause.enter_context(self._collector.pause())
        return count * self._rows / seconds

    def close(self) -> None:
        """End the pause, and close the collector."""
        self._pause.close()
        self._collector.close()


def measure_interleaved(
    n_envs: int, names: list[str], repeats: int, seconds: float
) -> dict[str, dict[str, list[float]]]:
    """Measure all installed collectors, interleaved; return rows per second by name."""
    cases: dict[str, Case] = {}
    with ExitStack() as stack:
        for name in names:
            try:
                collector = COLLECTORS[name][1](n_envs)
            except ImportError as error:
                print(f"{name} is left out: {error}", flush=True)
                continue
            cases[name] = Case(collector, T * n_envs, seconds)
            stack.callback(cases[name].close)
        gc.freeze()  # so that no garbage collection scans the objects of all collectors
        order = random.Random(0)
        for _ in range(repeats):
            for case in order.sample(list(cases.values()), len(cases)):
                case.measure()
    return {name: case.rates for name, case in cases.items()}


def versions() -> dict[str, str]:
    """Return the version of each package."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-envs", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--turn", type=float, default=0.2, help="approximate seconds of one measurement")
    parser.add_argument("--only", nargs="+", choices=list(COLLECTORS), default=list(COLLECTORS))
    parser.add_argument("--json", metavar="FILE", help="write all measurements to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    Distribution.set_default_validate_args(False)  # as importing Stable-Baselines3 does: off for every collector
    names = ["limit-b", *(name for name in args.only if name != "limit-b")]
    print(", ".join(f"{package} {number}" for package, number in versions().items()), flush=True)
    found = {n_envs: measure_interleaved(n_envs, names, args.repeats, args.turn) for n_envs in args.n_envs}
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"versions": versions(), "args": vars(args), "rates": found}, file, indent=1)
    print("\n| collector | environments | steps/s, median | range | of limit b | learning, of limit b |")
    print("| --- | --- | --- | --- | --- | --- |")
    for n_envs, rates in found.items():
        limit = statistics.median(rates["limit-b"]["alone"])
        for name, measured in rates.items():
            alone = measured["alone"]
            median, spread = statistics.median(alone), f"{min(alone):.0f} .. {max(alone):.0f}"
            learning = f"{statistics.median(measured['learning']) / limit:.2f}" if "learning" in measured else ""
            label = COLLECTORS[name][0]
            print(f"| {label} | {n_envs} | {median:.0f} | {spread} | {median / limit:.2f} | {learning} |")


if __name__ == "__main__":
    main()
