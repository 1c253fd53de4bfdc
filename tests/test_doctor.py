"""The doctor judges made-up machines, and examines this one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from rlplay import interpreter
from rlplay.__main__ import main
from rlplay.doctor import command, trials, verdicts
from rlplay.doctor.verdicts import Check

MADE_UP = [
    (
        verdicts.python((3, 11, 7), free_threaded=False, has_lock=True),
        "ok",
        "3.11.7, with the interpreter lock",
        "",
    ),
    (
        verdicts.python((3, 14, 0), free_threaded=True, has_lock=False),
        "ok",
        "3.14.0, free-threaded: the interpreter lock is off",
        "",
    ),
    (
        verdicts.python((3, 14, 0), free_threaded=True, has_lock=True),
        "warn",
        "the interpreter lock is on",
        "`-X gil=1` and `PYTHON_GIL=1`",
    ),
    (
        verdicts.python((3, 14, 0), free_threaded=True, has_lock=True, switched_on_by="envpool.atari.ext"),
        "warn",
        "the import of envpool.atari.ext has switched it on",
        "a version of envpool that declares",
    ),
    (verdicts.python((3, 9, 18), free_threaded=False, has_lock=True), "fail", "3.9.18", "3.10"),
    (verdicts.package("torch", "2.13.0+cpu", (2, 4), "rlplay needs it"), "ok", "2.13.0+cpu", ""),
    (verdicts.package("torch", "2.3.1", (2, 4), "rlplay needs it"), "fail", "older than 2.4", '"torch>=2.4"'),
    (verdicts.package("torch", None, (2, 4), "rlplay needs it"), "fail", "not there", "pip install"),
    (verdicts.package("numpy", "2.0.0rc1", (1, 24), "rlplay needs it"), "ok", "2.0.0rc1", ""),
    (
        verdicts.package("gymnasium", "0.29.1", (1, 1), "for its environments"),
        "warn",
        "older than 1.1",
        "gymnasium>=1.1",
    ),
    (verdicts.package("envpool", None, (0,), "for its environments"), "ok", "not there", ""),
    (verdicts.cores(8, 4), "ok", "torch.set_num_threads(1)", ""),
    (verdicts.cores(8, 1), "ok", "8 usable, torch works with 1 thread", ""),
    (verdicts.cores(4, 16), "warn", "16 threads", "torch.set_num_threads(4)"),
    (verdicts.cores(1, 1), "warn", "1 usable", "`same`"),
    (verdicts.no_cuda(None, False), "ok", "no device", ""),
    (verdicts.no_cuda(None, True), "warn", "cannot use it", "built for the CPU only"),
    (verdicts.no_cuda("12.8", True), "warn", "no device that torch can use", "12.8"),
    (verdicts.memory("cuda:0", 40 * 10**9, 80 * 10**9), "ok", "40.0 of 80.0 GB", ""),
    (verdicts.memory("cuda:0", 10**8, 80 * 10**9), "warn", "0.1 of 80.0 GB", "another device"),
    (verdicts.bandwidth("cuda:0", 25e9, 6e9), "ok", "25.0 GB/s pinned, 6.0 GB/s pageable", ""),
    (verdicts.bandwidth("cuda:0", 1e9, 0.9e9), "warn", "1.0 GB/s pinned", "uint8"),
    (verdicts.bandwidth("cuda:0", 5e9, 6e9), "warn", "5.0 GB/s pinned", "virtual machine"),
    (verdicts.environments({"gym": True, "gymnasium": True}), "ok", "those of gym and gymnasium work", ""),
    (verdicts.environments({"gym": False, "gymnasium": True}), "ok", "those of gymnasium work", ""),
    (verdicts.environments({"gym": False}), "fail", "gym cannot be used", "pip install gymnasium"),
    (verdicts.environments({}), "warn", "neither", "pip install gymnasium"),
]


@pytest.mark.parametrize(("check", "verdict", "found", "remedy"), MADE_UP)
def test_the_doctor_judges_made_up_machines(check, verdict, found, remedy):
    assert check.verdict == verdict
    assert found in check.found
    assert remedy in check.remedy
    assert bool(check.remedy) == (verdict != "ok")
    first, *others = command.line(check).splitlines()
    assert first.split()[0] == verdict
    assert check.found in first
    assert [check.remedy in line for line in others] == [True] * (verdict != "ok")


@pytest.mark.parametrize(
    ("free_threaded", "has_lock", "found"),
    [
        (False, True, "with the interpreter lock"),
        (True, False, "the interpreter lock is off"),
        (True, True, "the import of some.extension has switched it on"),
    ],
)
def test_the_doctor_tells_apart_the_builds_of_python(free_threaded, has_lock, found, monkeypatch):
    monkeypatch.setattr(interpreter, "is_free_threaded_build", lambda: free_threaded)
    monkeypatch.setattr(interpreter, "has_lock", lambda: has_lock)
    monkeypatch.setattr(trials, "find_lock_switch", lambda packages: "some.extension" if "torch" in packages else "")
    check = next(command.examine())
    assert check.name == "python"
    assert found in check.found


SWITCHES_THE_LOCK_ON = """
import sys, warnings
warnings.warn("The global interpreter lock (GIL) has been enabled to load module 'extension._c', which", RuntimeWarning)
sys._is_gil_enabled = lambda: True
"""


@pytest.mark.parametrize(
    ("code", "found"),
    [
        (SWITCHES_THE_LOCK_ON, "extension._c"),
        (SWITCHES_THE_LOCK_ON.replace("warnings.warn(", "dict.fromkeys("), "extension"),
        ("", ""),
        ("raise ImportError", ""),
    ],
)
def test_the_module_that_switches_the_lock_on_is_found(code, found, tmp_path, monkeypatch):
    (tmp_path / "extension.py").write_text(code)
    (tmp_path / "harmless.py").write_text("")
    (tmp_path / "sitecustomize.py").write_text("import sys; sys._is_gil_enabled = lambda: False")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert trials.find_lock_switch(["harmless", "extension", "harmless"]) == found


def broke():
    raise RuntimeError("it is broken")


@pytest.mark.parametrize(
    ("checks", "code"),
    [
        ([Check("a", "ok", "there")], 0),
        ([Check("a", "ok", "there"), Check("b", "warn", "slow", "make it fast")], 0),
        ([trials.attempt("a", broke, "mend it"), Check("b", "ok", "there")], 1),
        ([trials.attempt("a", broke, "mend it", "warn"), Check("b", "ok", "there")], 0),
    ],
)
def test_the_exit_code_of_the_doctor_says_whether_something_needed_is_broken(checks, code, monkeypatch, capsys):
    monkeypatch.setattr(command, "examine", lambda: iter(checks))
    assert main(["doctor"]) == code
    printed = capsys.readouterr().out
    assert ("rlplay works here." in printed) == (not code)
    assert all(check.found in printed and check.remedy in printed for check in checks)
    assert main(["doctor", "--json"]) == code
    assert json.loads(capsys.readouterr().out) == [check._asdict() for check in checks]


def test_a_check_that_raises_does_not_end_the_examination(monkeypatch):
    for name in ("share_memory", "start_child"):
        monkeypatch.setattr(trials, name, broke)
    monkeypatch.setattr(trials, "_collect", lambda feed: broke())
    checks = {check.name: check for check in command.examine()}
    assert checks["shared memory"].found == checks["child process"].found == "RuntimeError: it is broken"
    assert checks["child process"].verdict == checks["environments"].verdict == "fail"
    assert checks["same, gym"].verdict == checks["same, gymnasium"].verdict == "warn"
    assert "threaded" not in checks  # there is nothing to try it with


def test_a_device_that_does_not_answer_does_not_end_the_examination(monkeypatch):
    for name, found in (("is_available", True), ("device_count", 1), ("get_device_name", "a GPU")):
        monkeypatch.setattr(trials.torch.cuda, name, lambda *args, found=found: found)
    monkeypatch.setattr(trials.torch.cuda, "mem_get_info", lambda index: broke())
    found = {check.name: check for check in trials.check_cuda()}
    assert found["cuda:0"][1:3] == ("fail", "RuntimeError: it is broken")
    assert "the device is not full" in found["cuda:0"].remedy


@pytest.mark.soak
def test_the_doctor_examines_this_machine():
    done = subprocess.run([sys.executable, "-m", "rlplay", "doctor", "--json"], capture_output=True, text=True)
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout
    assert not [check for check in checks.values() if check["verdict"] == "fail"]
    assert {"python", "torch", "cores", "shared memory", "child process", "same, gym", "single", "multi"} <= set(checks)
    assert "8 steps" in checks["threaded, worker processes"]["found"]
    assert "unmaintained" not in done.stderr  # the notice of gym's import, here or in a child process


def test_a_doctor_that_cannot_be_imported_gives_a_remedy(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rlplay.doctor.command", None)  # as if one of its imports had failed
    with pytest.raises(SystemExit) as end:
        main(["doctor"])
    assert end.value.code == 1
    assert "pip install" in capsys.readouterr().err
