"""The arrows between the rooms point one way, and what only one room may know is known in one room."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import rlplay

ROOT = Path(rlplay.__file__).parent

FACES = {
    "nested",
    "engine.space",
    "engine.info",
    "engine.mend",
    "engine.rows",
    "engine.trace",
}

# each room may import these rooms of the package, and no others
MAY_IMPORT = {
    "nested": set(),
    "sampling": set(),
    "plotting": set(),
    "doctor": {
        "engine",
        "engine.process",
        *(f"engine.rollout.{name}" for name in ("same", "threaded", "single", "multi")),
    },
    "engine.rows": set(),
    "engine.process": set(),
    "engine.core": {"nested", "engine.rows"},
    "engine.info": {"engine.space"},
    "engine.trace": set(),
    "engine.stats": set(),
    "engine.timeline": {"engine.trace", "engine.transfer"},
    "engine.mend": set(),
    "engine.ambient": set(),
    "engine.handoff": set(),
    "engine.space": {"nested"},
    "engine.transfer": {"nested"},
    "engine.storage": {"nested", "engine.core", "engine.rows"},
    "engine.environment": FACES,
    "engine.autoreset": {"nested"},
    "engine.vector": FACES | {"engine.autoreset"},
    "engine.inspection": {"nested", "engine.core", "engine.space"},
    "engine.lean": set(),
    "engine.behaviour": {
        "nested",
        "sampling",
        "engine.lean",
        "engine.core",
        "engine.space",
        "engine.inspection",
        "engine.storage",
        "engine.transfer",
    },
    "engine.rehearsal": {"sampling"},
    "engine.traced": {"engine.rehearsal"},
    "engine.program": {"engine.traced"},
    "engine.compiled": {
        "nested",
        "engine.ambient",
        "engine.behaviour",
        "engine.core",
        "engine.program",
        "engine.rehearsal",
        "engine.traced",
        "engine.transfer",
    },
    "engine.captured": {
        "nested",
        "engine.behaviour",
        "engine.compiled",
        "engine.core",
        "engine.rehearsal",
        "engine.transfer",
    },
    "engine.bench": {"nested", "engine.behaviour", "engine.core", "engine.storage", "engine.transfer"},
    "engine.crew": {"nested", "engine.rows"},
    "engine.worker": FACES | {"engine.crew", "engine.environment", "engine.process"},
    "engine.team": FACES | {"engine.crew", "engine.worker"},
    "engine.threads": FACES | {"engine.crew", "engine.environment", "engine.handoff", "engine.team", "engine.worker"},
    "engine.processes": FACES | {"engine.crew", "engine.process", "engine.team", "engine.worker"},
    "engine.ends": {
        "nested",
        "engine.behaviour",
        "engine.bench",
        "engine.core",
        "engine.rows",
        "engine.storage",
        "engine.transfer",
    },
    "engine.collect": {
        "nested",
        "engine.behaviour",
        "engine.bench",
        "engine.crew",
        "engine.ends",
        "engine.trace",
        "engine.transfer",
    },
    "replay": {"nested", "engine", "replay"},
    "algo": {"nested", "engine", "replay", "algo"},
    "zoo.actors": {"nested", "sampling", "engine"},
    "zoo.envs": {"zoo"},
    "benchmark": {
        "plotting",
        "engine",
        "engine.feed",
        "engine.rollout.multi",
        "engine.rollout.same",
        "engine.rollout.single",
        "engine.rollout.threaded",
        "engine.transfer",
        "algo",
        "zoo",
        "benchmark",
    },
    "benchmark.environments": {"engine.mend"},
    "benchmark.measure": set(),
    "benchmark.spec": set(),
    "benchmark.table": set(),
}

# who may import what, of all the package
ALONE = {
    "optree": {"nested"},
    "queue": {"engine.handoff"},
    "threading": {
        "engine.handoff",
        "engine.driver",
        "engine.feed",
        "engine.threads",
        "engine.process",
        "engine.timeline",
        "testing.lagging",
    },
    "gym": {"demo", "zoo.envs", "benchmark.environments"},
    "gymnasium": {"benchmark.environments"},
    "matplotlib": {"plotting"},
    "tqdm": {"demo", "benchmark.command"},
}


def rooms():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path


def imports(room, path):
    """Yield what a module imports: rooms of the package by their name, others as ``top-level name`` with a star."""
    package = (room.split(".") if path.name == "__init__.py" else room.split(".")[:-1]) if room else []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0], None
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - (node.level - 1)] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                full = [*base, alias.name]
                known = (ROOT.joinpath(*full).with_suffix(".py")).exists() or ROOT.joinpath(*full).is_dir()
                yield None, ".".join(full if known else base)


@pytest.mark.parametrize(("room", "path"), list(rooms()), ids=lambda x: x if isinstance(x, str) else "")
def test_every_room_imports_only_what_it_may(room, path):
    for outside, inside in imports(room, path):
        if outside in ALONE:
            assert {room, room.rpartition(".")[0]} & ALONE[outside], f"{room or 'rlplay'} must not import {outside}"
        key = next((k for k in (room, room.rpartition(".")[0]) if k in MAY_IMPORT), None)
        if inside is not None and key is not None:
            allowed = MAY_IMPORT[key]
            assert inside in allowed or inside.split(".")[0] in allowed - {"engine"}, f"{room} must not import {inside}"


@pytest.mark.parametrize(("room", "path"), list(rooms()), ids=lambda x: x if isinstance(x, str) else "")
def test_only_the_transfer_names_streams_and_events(room, path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr == "cuda" and getattr(node.value, "id", "") == "torch":
            assert room in ("engine.transfer", "doctor"), f"{room} must not name torch.cuda"


def test_all_public_names_exist_and_are_listed_once():
    for room, _ in rooms():
        if room == "__main__":
            continue
        module = importlib.import_module(f"rlplay.{room}" if room else "rlplay")
        names = getattr(module, "__all__", [])
        assert len(set(names)) == len(names)
        for name in names:
            assert hasattr(module, name), f"{room}.{name}"


def test_importing_the_package_is_light():
    code = (
        "import sys, rlplay, rlplay.algo, rlplay.engine.rollout.threaded, rlplay.engine.rollout.same\n"
        "print([name for name in ('gym', 'gymnasium', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
