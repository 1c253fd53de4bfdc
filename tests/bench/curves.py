"""Learning curves of the pages `ppo` and `sac` beside Stable-Baselines3, with the same hyperparameters.

In a virtual environment of its own (`swig` is there to build Box2D, where pip finds no wheel)::

    python -m venv /tmp/curves
    /tmp/curves/bin/pip install torch==2.13.0 swig
    /tmp/curves/bin/pip install stable-baselines3 "gymnasium[box2d,mujoco]" optree cloudpickle tqdm gym matplotlib
    /tmp/curves/bin/python -m tests.bench.curves run FOLDER --task cartpole --library rlplay --seed 0
    /tmp/curves/bin/python -m tests.bench.curves draw FOLDER --out learning_curves.png

`run` trains once, by one thread of PyTorch, and writes `FOLDER/cartpole-rlplay-0.json`; without `--task`, `--library`
or `--seed` it makes all such runs, one process after the other, and leaves out those whose file is there. `draw` draws
the picture and prints a table. Processor time is that of all threads of the process; on a machine that is shared it
says more than wall time.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from torch import nn

from rlplay.plotting import Curves, learning_curves

PPO: dict[str, Any] = {
    "learning_rate": 3e-4, "clip_range": 0.2, "last": 1.0, "vf_coef": 0.5, "max_grad_norm": 0.5,
    "hidden": (64, 64), "activation_fn": nn.Tanh, "ortho_init": True, "log_std_init": 0.0, "normalize": False,
}  # fmt: skip
"""Stable-Baselines3's defaults. `last`: the fraction of learning rate and clip range that is left at the end."""

TASKS: dict[str, dict[str, Any]] = {
    "cartpole": {
        "algorithm": "ppo", "env": "CartPole-v1", "steps": 100_000, "window": 20,
        "options": PPO | {
            "n_envs": 8, "n_steps": 32, "batch_size": 256, "n_epochs": 20, "gamma": 0.98, "gae_lambda": 0.8,
            "ent_coef": 0.0, "learning_rate": 1e-3, "last": 0.0,
        },
    },
    "pendulum": {
        "algorithm": "sac", "env": "Pendulum-v1", "steps": 15_000, "window": 10,
        "options": {
            "learning_rate": 1e-3, "buffer_size": 1_000_000, "learning_starts": 100, "batch_size": 256, "tau": 0.005,
            "gamma": 0.99, "hidden": (256, 256),
        },
    },
    "lunarlander": {
        "algorithm": "ppo", "env": "LunarLander-v3", "steps": 300_000, "window": 100,
        "options": PPO | {
            "n_envs": 16, "n_steps": 1024, "batch_size": 64, "n_epochs": 4, "gamma": 0.999, "gae_lambda": 0.98,
            "ent_coef": 0.01,
        },
    },
    "hopper": {
        "algorithm": "ppo", "env": "Hopper-v5", "steps": 1_000_000, "window": 100,
        "options": PPO | {
            "n_envs": 1, "n_steps": 512, "batch_size": 32, "n_epochs": 5, "gamma": 0.999, "gae_lambda": 0.99,
            "ent_coef": 0.00229519, "learning_rate": 9.80828e-05, "max_grad_norm": 0.7, "vf_coef": 0.835671,
            "hidden": (256, 256), "activation_fn": nn.ReLU, "ortho_init": False, "log_std_init": -2.0,
            "normalize": True,
        },
    },
}  # fmt: skip
"""The hyperparameters of rl-baselines3-zoo, by their names there: `hyperparams/ppo.yml` at commit 208b6fd (CartPole-v1,
LunarLander-v2, Hopper-v4) and `hyperparams/sac.yml` at c94924e (Pendulum-v1), and the defaults of Stable-Baselines3."""

Record = Callable[[int, list[float]], None]
"""Takes the number of environment steps, and the returns of the episodes that have ended since it was called last."""


def rlplay_ppo(x: dict[str, Any]) -> dict[str, Any]:
    """Translate to the options of the page."""
    names = {
        "n_envs": "n_envs", "n_steps": "n_steps", "n_epochs": "n_epochs", "gamma": "gamma", "gae_lambda": "gae_lambda",
        "lr": "learning_rate", "clip": "clip_range", "last": "last", "entropy_weight": "ent_coef",
        "value_weight": "vf_coef", "max_norm": "max_grad_norm", "hidden": "hidden", "activation": "activation_fn",
        "orthogonal": "ortho_init", "log_std": "log_std_init", "normalise": "normalize",
    }  # fmt: skip
    n_minibatches = x["n_envs"] * x["n_steps"] // x["batch_size"]
    return {ours: x[theirs] for ours, theirs in names.items()} | {"n_minibatches": n_minibatches, "max_kl": None}


def rlplay_sac(x: dict[str, Any]) -> dict[str, Any]:
    """Translate to the options of the page."""
    names = {
        "lr": "learning_rate", "capacity": "buffer_size", "warm_up": "learning_starts", "batch_size": "batch_size",
        "tau": "tau", "gamma": "gamma", "hidden": "hidden",
    }  # fmt: skip
    return {ours: x[theirs] for ours, theirs in names.items()} | {"n_steps": 1}


def train_rlplay(task: dict[str, Any], seed: int, record: Record) -> None:
    """Train by a page."""
    page = importlib.import_module(f"rlplay.zoo.pages.{task['algorithm']}")
    options = {"ppo": rlplay_ppo, "sac": rlplay_sac}[task["algorithm"]](task["options"])
    for steps, ended in page.train(task["env"], seed, task["steps"], **options):
        record(steps, ended)


def train_sb3(task: dict[str, Any], seed: int, record: Record) -> None:
    """Train by Stable-Baselines3."""
    import stable_baselines3
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    class Recorder(BaseCallback):
        def _on_step(self) -> bool:
            ended = [float(info["episode"]["r"]) for info in self.locals["infos"] if "episode" in info]
            if ended:
                record(self.num_timesteps, ended)
            return True

    options = dict(task["options"])
    envs: Any = make_vec_env(task["env"], options.pop("n_envs", 1), seed=seed)
    if options.pop("normalize", False):
        envs = VecNormalize(envs, gamma=options["gamma"])
    policy = {name: options.pop(name) for name in ("activation_fn", "ortho_init", "log_std_init") if name in options}
    policy["net_arch"] = list(options.pop("hidden"))
    last = options.pop("last", 1.0)
    for name in ("learning_rate", "clip_range"):
        if last != 1.0:
            options[name] = partial(_decayed, options[name], last)
    algorithm = getattr(stable_baselines3, task["algorithm"].upper())
    model = algorithm("MlpPolicy", envs, seed=seed, device="cpu", policy_kwargs=policy, **options)
    model.learn(task["steps"], callback=Recorder())


def _decayed(first: float, last: float, left: float) -> float:
    return first * (last + (1 - last) * max(left, 0.0))


LIBRARIES = {"rlplay": train_rlplay, "sb3": train_sb3}


def run(folder: Path, name: str, library: str, seed: int, steps: int | None) -> None:
    """Train once in this process, and write what was recorded; from time to time what there is, to a file `.part`."""
    task = TASKS[name] | ({} if steps is None else {"steps": steps})
    path = path_of(folder, name, library, seed)
    torch.set_num_threads(1)
    importlib.import_module({"rlplay": "rlplay.zoo.pages.ppo", "sb3": "stable_baselines3"}[library])  # takes seconds
    rows: list[tuple[int, float, float, list[float]]] = []
    began = perf_counter(), process_time()

    def save() -> None:
        wall, cpu = perf_counter() - began[0], process_time() - began[1]
        found = {"task": name, "library": library, "seed": seed, "wall": wall, "cpu": cpu, "rows": rows}
        path.with_suffix(".part").write_text(json.dumps(found))

    def record(steps: int, ended: list[float]) -> None:
        if ended:
            rows.append((steps, perf_counter() - began[0], process_time() - began[1], ended))
            if len(rows) % 10 == 0:
                save()

    LIBRARIES[library](task, seed, record)
    save()
    path.with_suffix(".part").rename(path)
    print(f"{name}, {library}, seed {seed}: {rows[-1][1]:.0f} s, {rows[-1][2]:.0f} s of the processor", flush=True)


def path_of(folder: Path, name: str, library: str, seed: int) -> Path:
    return folder / f"{name}-{library}-{seed}.json"


def run_all(folder: Path, names: list[str], libraries: list[str], seeds: list[int], steps: int | None) -> None:
    """Make each run in a process of its own, unless its file is there."""
    folder.mkdir(parents=True, exist_ok=True)
    runs = list(product(names, seeds, libraries))
    if len(runs) == 1:
        ((name, seed, library),) = runs
        run(folder, name, library, seed, steps)
        return
    for name, seed, library in runs:
        if not path_of(folder, name, library, seed).exists():
            one = ["--task", name, "--library", library, "--seed", str(seed)]
            one += [] if steps is None else ["--steps", str(steps)]
            subprocess.run([sys.executable, "-m", "tests.bench.curves", "run", str(folder), *one], check=True)


def load(folder: Path, name: str, library: str) -> list[dict[str, Any]]:
    """Read the runs of all seeds; make a list of episodes of the rows.

    The pages say after each fragment which episodes have ended: for both libraries an episode ends with its fragment.
    """
    options = TASKS[name]["options"]
    unit = options.get("n_envs", 1) * options.get("n_steps", 1)
    found = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}-{library}-*.json"))]
    for one in found:
        ends = [-(-row[0] // unit) * unit for row in one["rows"]]
        one["steps"] = np.repeat(ends, [len(row[3]) for row in one["rows"]])
        one["returns"] = np.concatenate([row[3] for row in one["rows"]])
    return found


def draw(folder: Path, out: Path) -> None:
    """Draw the picture, and print the table."""
    panels = []
    print("| task | library | seeds | return, last tenth | over the whole run | wall, s | processor, s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, task in TASKS.items():
        runs = {library: load(folder, name, library) for library in LIBRARIES}
        for library, found in runs.items():
            if found:
                print(row_of(name, library, found, task["steps"]))
        if any(runs.values()):
            curves = {TITLES[x]: [(one["steps"], one["returns"]) for one in found] for x, found in runs.items()}
            title = f"{task['algorithm'].upper()}, {task['env']}, {seeds_of([len(found) for found in runs.values()])}"
            panels.append(Curves(title, {x: found for x, found in curves.items() if found}, task["window"]))
    names = " and ".join(TITLES.values())
    learning_curves(panels, title=f"{names}, the same hyperparameters").savefig(out)


def seeds_of(counts: list[int]) -> str:
    """Say how many seeds each library has: "5 seeds each", or "5 and 3 seeds"."""
    if len(set(counts)) == 1:
        return f"{counts[0]} seed{'s' * (counts[0] != 1)} each"
    return f"{' and '.join(map(str, counts))} seeds"


def row_of(name: str, library: str, found: list[dict[str, Any]], steps: int) -> str:
    """Return a line of the table: means over seeds, with the range."""
    seeds = ", ".join(str(one["seed"]) for one in found)
    last = [one["returns"][one["steps"] > 0.9 * steps].mean() for one in found]
    whole = [np.interp(np.linspace(0, steps, 200), one["steps"], one["returns"]).mean() for one in found]
    figures = [last, whole, [one["wall"] for one in found], [one["cpu"] for one in found]]
    cells = [f"{np.mean(x):.0f} ({min(x):.0f} .. {max(x):.0f})" for x in figures]
    return f"| {name} | {TITLES[library]} | {seeds} | {' | '.join(cells)} |"


TITLES = {"rlplay": "rlplay", "sb3": "Stable-Baselines3"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="train")
    running.add_argument("folder", type=Path)
    running.add_argument("--task", choices=TASKS, nargs="+", default=list(TASKS))
    running.add_argument("--library", choices=LIBRARIES, nargs="+", default=list(LIBRARIES))
    running.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    running.add_argument("--steps", type=int, help="fewer or more steps than the task has")
    drawing = commands.add_parser("draw", help="draw the picture, print the table")
    drawing.add_argument("folder", type=Path)
    drawing.add_argument("--out", type=Path, default=Path("learning_curves.png"))
    args = parser.parse_args()
    if args.command == "run":
        run_all(args.folder, args.task, args.library, args.seed, args.steps)
    else:
        draw(args.folder, args.out)


if __name__ == "__main__":
    main()
