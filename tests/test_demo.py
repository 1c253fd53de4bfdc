"""The demo, run by its command line."""

import json
import os
import re
import signal
import subprocess
import sys
import threading

import pytest
import torch

import rlplay
import rlplay.demo
from rlplay import checkpoint, nested
from rlplay.__main__ import main

SHORT = ["--n-envs", "4", "--n-steps", "16"]

LONG = "threaded", "single", "multi"
"""Engines that are left to the long tests, since each run of the demo takes seconds."""


def command(*options):
    return [sys.executable, "-m", "rlplay", "demo", *options]


def run(*options, **settings):
    return subprocess.run(command(*options), capture_output=True, text=True, timeout=110, **settings)


def assert_is_png(path):
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000


@pytest.mark.parametrize("engine", ["same", *(pytest.param(x, marks=pytest.mark.soak) for x in LONG)])
def test_the_demo_leaves_a_curve_and_a_summary_in_the_folder_it_names(tmp_path, engine):
    done = run(*SHORT, "--engine", engine, "--total-steps", "4000", "--seed", "1", "--out", str(tmp_path / "there"))
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "there") in done.stdout
    summary = json.loads((tmp_path / "there" / f"CartPole-v1-{engine}-seed1.json").read_text())
    assert summary["steps"] == 3968  # the whole fragments of 64 that fit
    assert summary["options"]["engine"] == engine
    assert summary["episodes"] > 50
    assert 10 < summary["last mean return over 100 episodes"] < 200
    assert summary["outcome"] == "not solved"
    assert "unmaintained" not in done.stderr  # gym's notice: gymnasium is installed, so gym is not imported
    bars = [line for line in re.split(r"[\r\n]", done.stderr) if "learner waits" in line]
    assert max(map(len, bars)) <= 80, bars  # not on a terminal, whose width it would take
    assert re.search(r"100%\|█+\| return \d+ of 475 \| 3.97k steps, ", bars[-1]), bars[-1]
    assert_is_png(tmp_path / "there" / f"CartPole-v1-{engine}-seed1.png")


@pytest.mark.parametrize("engine", ["same", pytest.param("threaded", marks=pytest.mark.soak)])
def test_an_interrupt_ends_the_demo_with_the_curve_so_far(tmp_path, engine):
    options = command("--engine", engine, "--total-steps", "100000000", "--env", "Acrobot-v1", "--out", str(tmp_path))
    # Acrobot is not solved within seconds; the bar is on standard error
    child = subprocess.Popen(
        options,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # shells start background jobs with it ignored, and a child would take that over
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    seen = ""
    while "learner waits" not in seen:
        one = child.stderr.read(1)
        assert one, seen
        seen += one
    os.kill(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "interrupted" in out
    assert "Traceback" not in seen + err
    summary = json.loads((tmp_path / f"Acrobot-v1-{engine}-seed0.json").read_text())
    assert summary["outcome"] == "interrupted"
    assert summary["steps"] > 0
    assert_is_png(tmp_path / f"Acrobot-v1-{engine}-seed0.png")


@pytest.fixture
def no_monitor(monkeypatch):
    """Keep tqdm from starting a thread that outlives the demo."""
    monkeypatch.setattr(rlplay.demo.tqdm, "monitor_interval", 0)


def interrupted_at(update, monkeypatch):
    """Let the demo be interrupted inside of an update, once."""
    loss, numbers = rlplay.demo.a2c.loss, iter(range(1, 1000))

    def interrupts(*args, **options):
        if next(numbers) == update:
            raise KeyboardInterrupt
        return loss(*args, **options)

    monkeypatch.setattr(rlplay.demo.a2c, "loss", interrupts)


@pytest.mark.parametrize(
    "engine", ["threaded", *(pytest.param(x, marks=pytest.mark.soak) for x in ("same", "single", "multi"))]
)
def test_a_demo_that_is_resumed_ends_as_one_that_was_not_interrupted(tmp_path, monkeypatch, no_monitor, capsys, engine):
    options = [*SHORT, "--engine", engine, "--total-steps", "1600"]  # 25 updates
    monkeypatch.setattr(rlplay.demo, "SAVE_EVERY", 7)
    whole, name = tmp_path / "whole", f"CartPole-v1-{engine}-seed0"
    assert main(["demo", *options, "--out", str(whole), "--resume"]) == 0
    printed = capsys.readouterr().out
    assert f"no checkpoint {whole / name}.pt yet" in printed
    assert re.search(r"not solved after 1,600 steps, \d+\.\d s: mean return", printed)

    resumed = tmp_path / "resumed"
    options += ["--out", str(resumed)]
    interrupted_at(20, monkeypatch)
    assert main(["demo", *options]) == 130
    assert checkpoint.load(resumed / f"{name}.pt")["n_done"] == 14
    for name_of, other, said in (("--lag", "3", "--lag 1"), ("--n-envs", "2", "--n-envs 4")):
        with pytest.raises(SystemExit, match="2"):
            main(["demo", *options, "--resume", name_of, other])
        told = capsys.readouterr().err
        assert f"argument --resume: use the saved run's {said}, or another --out; got {name_of} {other}\n" in told
    done = run(*options, "--resume")
    assert done.returncode == 0, done.stderr
    assert re.search(r"not solved after 1,600 steps, \d+\.\d s since it was resumed: mean return", done.stdout)
    assert f"goes on from {resumed / name}.pt" in done.stdout

    states = [checkpoint.load(folder / f"{name}.pt") for folder in (whole, resumed)]
    assert states[0]["n_done"] == 25
    for state in states:  # the same environments may be pickled in several ways
        del state["feed"]["collector"]["environments"]
    assert_equal(*states)
    summaries = [json.loads((folder / f"{name}.json").read_text()) for folder in (whole, resumed)]
    assert [one["resumed at step"] for one in summaries] == [None, 14 * 64]
    for key in ("outcome", "steps", "episodes", "best mean return over 100 episodes"):
        assert summaries[0][key] == summaries[1][key]


def assert_equal(expected, got):
    assert nested.names(got) == nested.names(expected)
    for name, x, y in zip(nested.names(got), nested.leaves(got), nested.leaves(expected), strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, name


def test_a_demo_that_was_solved_is_not_trained_further(tmp_path, monkeypatch, no_monitor):
    options = {"engine": "same", "n_envs": 4, "n_steps": 64, "total_steps": 100_000, "out": tmp_path}
    monkeypatch.setattr(rlplay.demo.Log, "solved", property(lambda log: log.steps >= 512))
    first = rlplay.demo.demo(**options)
    again = rlplay.demo.demo(**options, resume=True)
    assert [one["outcome"] for one in (first, again)] == ["solved", "solved"]
    assert first["steps"] == again["steps"] == 512


def test_a_demo_whose_environments_cannot_be_saved_says_so_and_goes_on(tmp_path, monkeypatch, no_monitor, capsys):
    make = rlplay.demo.gym.make

    def makes_what_cannot_be_saved(name):
        env = make(name)
        env.lock = threading.Lock()
        return env

    monkeypatch.setattr(rlplay.demo.gym, "make", makes_what_cannot_be_saved)
    summary = rlplay.demo.demo(engine="same", n_envs=2, n_steps=16, total_steps=64, out=tmp_path, resume=True)
    assert summary["steps"] == 64
    assert "no checkpoints will be written: environment 0 cannot be saved: `env.lock`" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.pt"))


def test_a_demo_that_cannot_be_resumed_says_why(tmp_path, monkeypatch, no_monitor, capsys):
    options = {"engine": "same", "n_envs": 2, "n_steps": 16, "total_steps": 64, "out": tmp_path}
    rlplay.demo.demo(**options)
    arguments = ["demo", *(f"--{name.replace('_', '-')}={value}" for name, value in options.items()), "--resume"]
    monkeypatch.setattr("rlplay.engine.feed.saved_stream.__version__", "9.9")
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert f"argument --resume: `state` was saved by rlplay {rlplay.__version__}," in capsys.readouterr().err
    (tmp_path / "CartPole-v1-same-seed0.pt").write_bytes(b"nothing")
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert re.search(r"--resume: no checkpoint of .* can be read\. Delete it", capsys.readouterr().err)


def test_an_error_of_a_resumed_training_is_not_told_as_one_of_resuming(tmp_path, monkeypatch, no_monitor):
    def fails(*_, **__):
        raise ValueError("of the loss")

    options = ["demo", "--engine", "same", *SHORT, "--total-steps", "128", "--out", str(tmp_path), "--resume"]
    monkeypatch.setattr(rlplay.demo.a2c, "loss", fails)
    with pytest.raises(ValueError, match="of the loss"):
        main(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lag", "-1"], "must be at least 0"),
        (["--n-envs", "0"], "must be at least 1"),
        (["--n-steps", "many"], "--n-steps: must be an integer, got 'many'"),
        (["--engine", "quantum"], "invalid choice"),
        (["--engine", "multi", "--n-envs", "3"], "--n-envs: multi divides"),
        (["--env", "Pendulum-v1"], "Discrete"),
        (["--env", "CartPole-v99"], "--env"),
        (["--device", "cuda:99"], "cuda:99"),
    ],
)
def test_the_demo_refuses_bad_options_with_a_message(tmp_path, options, message):
    done = run(*options, cwd=tmp_path)
    assert done.returncode not in (0, 130)
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--env", "nothing:CartPole-v1"], "--env: No module named 'nothing'"),
        (["--out", "/proc"], "--out: no file can be written into the folder '/proc': "),
    ],
)
def test_what_would_fail_later_is_refused_at_once(options, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["demo", *options])
    assert message in capsys.readouterr().err


def test_the_command_line_tells_its_version():
    done = subprocess.run([sys.executable, "-m", "rlplay", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"rlplay {rlplay.__version__}\n"


def test_the_command_line_and_the_pictures_are_light_to_import():
    code = (
        "import sys, rlplay.__main__, rlplay.plotting\n"
        "print([name for name in ('gym', 'gymnasium', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_demo_solves_cartpole_by_default(tmp_path, seed):
    done = run("--seed", str(seed), "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / f"CartPole-v1-threaded-seed{seed}.json").read_text())
    assert summary["best mean return over 100 episodes"] >= 475
