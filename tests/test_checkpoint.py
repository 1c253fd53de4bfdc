"""Checkpoints: whole whenever the program is killed, and the latest one is read."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from rlplay import checkpoint
from rlplay.engine import Episode
from tests.support.threads import InThread, TellingLock, until

SAVES_FOR_EVER = """
import sys, torch
from rlplay import checkpoint
k = checkpoint.load(sys.argv[1])["k"] if len(sys.argv) > 2 else 0
while True:
    k += 1
    checkpoint.save(sys.argv[1], {"k": k, "x": torch.full((100_000,), float(k))})
    print(k, flush=True)
"""


def names_in(folder):
    return sorted(file.name for file in folder.iterdir())


def test_what_is_saved_is_loaded(tmp_path):
    actor = torch.nn.Linear(2, 3)
    optim = torch.optim.Adam(actor.parameters())
    actor(torch.rand(4, 2)).sum().backward()
    optim.step()
    state = {"actor": actor.state_dict(), "optim": optim.state_dict(), "name": "a", "n": [1, (2.5, None)], "raw": b"x"}
    checkpoint.save(tmp_path / "run.pt", state)
    loaded = checkpoint.load(tmp_path / "run.pt")
    assert {name: loaded[name] for name in ("name", "n", "raw")} == {"name": "a", "n": [1, (2.5, None)], "raw": b"x"}
    assert torch.equal(loaded["actor"]["weight"], actor.weight)
    optim.load_state_dict(loaded["optim"])
    assert names_in(tmp_path) == ["run.pt"]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_so_many_are_kept(tmp_path, keep):
    path = tmp_path / "run.pt"
    (tmp_path / "run.pt.txt").touch()
    for k in range(6):
        checkpoint.save(str(path), {"k": k}, keep=keep)
        kept = [path, *(tmp_path / f"run.pt.{n}" for n in range(1, keep))][: k + 1]
        assert names_in(tmp_path) == sorted([file.name for file in kept] + ["run.pt.txt"])
        assert [checkpoint.load(file)["k"] for file in kept] == list(range(k, k - len(kept), -1))
    checkpoint.save(path, {"k": 6}, keep=1)
    assert names_in(tmp_path) == ["run.pt", "run.pt.txt"]


def test_a_path_is_no_pattern(tmp_path):
    for k in range(3):
        checkpoint.save(tmp_path / "run[1].pt", {"k": k})
    assert names_in(tmp_path) == ["run[1].pt", "run[1].pt.1", "run[1].pt.2"]
    (tmp_path / "run[1].pt").unlink()
    assert checkpoint.load(tmp_path / "run[1].pt")["k"] == 1


def test_files_that_the_user_has_numbered_otherwise_stay(tmp_path):
    path = tmp_path / "run.pt"
    checkpoint.save(path, {"k": 0})
    milestone = tmp_path / "run.pt.20261128"
    milestone.write_bytes(path.read_bytes())
    for k in range(1, 6):
        checkpoint.save(path, {"k": k}, keep=1 + k % 3)
    assert names_in(tmp_path) == ["run.pt", "run.pt.1", "run.pt.2", "run.pt.20261128"]
    assert checkpoint.load(milestone) == {"k": 0}


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_number_that_a_kill_has_left_out_is_closed_up(missing, tmp_path):
    path = tmp_path / "run.pt"
    for k in range(4):
        checkpoint.save(path, {"k": k}, keep=4)
    (tmp_path / f"run.pt.{missing}").unlink()
    for k in range(4, 6):
        checkpoint.save(path, {"k": k}, keep=3)
    assert names_in(tmp_path) == ["run.pt", "run.pt.1", "run.pt.2"]
    assert [checkpoint.load(tmp_path / name)["k"] for name in names_in(tmp_path)] == [5, 4, 3]


def test_without_hard_links_the_old_one_is_renamed(tmp_path, monkeypatch):
    def refuse(*paths):
        raise PermissionError("operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "run.pt"
    for k in range(5):
        checkpoint.save(path, {"k": k})
    assert [checkpoint.load(tmp_path / name)["k"] for name in names_in(tmp_path)] == [4, 3, 2]
    (tmp_path / "run.pt").unlink()  # as after a kill before the new one has its name
    assert checkpoint.load(path) == {"k": 3}


def test_if_the_latest_cannot_be_read_the_one_before_is(tmp_path):
    path = tmp_path / "run.pt"
    for k in range(3):
        checkpoint.save(path, {"k": k})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(RuntimeWarning, match=r"run\.pt cannot be read .* so .*run\.pt\.1 was read"):
        assert checkpoint.load(path)["k"] == 1
    path.unlink()
    assert checkpoint.load(path)["k"] == 1
    for file in tmp_path.iterdir():
        file.write_bytes(b"nothing")
    with pytest.raises(RuntimeError, match="no checkpoint of"):
        checkpoint.load(path)


def test_what_cannot_be_saved_leaves_the_old_one(tmp_path):
    path = tmp_path / "run.pt"
    checkpoint.save(path, {"k": 0})
    with pytest.raises(Exception, match=r"pickle|local object"):
        checkpoint.save(path, {"k": lambda: 0})
    assert names_in(tmp_path) == ["run.pt"]
    assert checkpoint.load(path) == {"k": 0}


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (np.float32(0.5), "scalar"),
        ({"returns": [np.arange(3)]}, "numpy.ndarray"),
        (Episode(0, 1.0, 2), "Episode"),
        (torch.nn.Linear(1, 1), "Linear"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(value, named, tmp_path):
    path = tmp_path / "run.pt"
    checkpoint.save(path, {"k": 0})
    with pytest.raises(TypeError, match=rf"`load` could not read this checkpoint again, .*{named}.* `x.item\(\)`"):
        checkpoint.save(path, {"best": value})
    assert names_in(tmp_path) == ["run.pt"]
    assert checkpoint.load(path) == {"k": 0}


def test_two_threads_that_save_to_one_path_leave_both_checkpoints(tmp_path, monkeypatch):
    def save_slowly(state, file):
        if not others:  # another thread begins to save while the file of this one is half written
            others.append(InThread(lambda: checkpoint.save(path, {"k": 1})))
            until(lambda: lock.awaited.is_set() or not others[0].is_alive())
        really(state, file)

    path, others, lock, really = tmp_path / "run.pt", [], TellingLock(), torch.save
    monkeypatch.setattr(checkpoint, "_saving", lock)
    monkeypatch.setattr(torch, "save", save_slowly)
    checkpoint.save(path, {"k": 0})
    assert others[0].wait().error is None
    assert names_in(tmp_path) == ["run.pt", "run.pt.1"]
    assert checkpoint.load(path) == {"k": 1}
    assert checkpoint.load(tmp_path / "run.pt.1") == {"k": 0}


def test_wrong_arguments_are_refused(tmp_path):
    path = tmp_path / "run.pt"
    with pytest.raises(TypeError, match="a checkpoint is a dict, got list"):
        checkpoint.save(path, [1])
    with pytest.raises(TypeError, match="`keep` must be an integer"):
        checkpoint.save(path, {}, keep=1.0)
    with pytest.raises(ValueError, match="at least 1"):
        checkpoint.save(path, {}, keep=0)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        checkpoint.load(path)
    with pytest.raises(FileNotFoundError):
        checkpoint.save(tmp_path / "nowhere" / "run.pt", {})
    assert not names_in(tmp_path)


def test_a_folder_in_the_place_of_the_file_is_refused_and_stays(tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(IsADirectoryError, match=r"is a folder: write .*runs/run\.pt"):
        checkpoint.save(tmp_path / "runs", {"n": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    """The one that was told, or the next one."""
    path, dice, told = tmp_path / "run.pt", random.Random(0), 0
    for attempt in range(4):
        arguments = [sys.executable, "-c", SAVES_FOR_EVER, str(path), *(["resume"] if attempt else [])]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
            for _ in range(dice.randrange(1, 10)):
                told = int(process.stdout.readline())
            time.sleep(0.01 * dice.random())  # whenever it is
            os.kill(process.pid, signal.SIGKILL)
            rest = process.stdout.read().split()
        told = max([told, *map(int, rest)])
        loaded = checkpoint.load(path)
        assert loaded["k"] in (told, told + 1)
        assert (loaded["x"] == loaded["k"]).all()
    checkpoint.save(path, {"k": 0})
    assert names_in(tmp_path) == ["run.pt", "run.pt.1", "run.pt.2"]
