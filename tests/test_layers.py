"""Imports point one way, for every module; what only one module may know is imported by that one alone."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import rlplay

ROOT = Path(rlplay.__file__).parent

LAYERS = """
    nested interpreter contexts lazy_imports
    engine.concurrency
    engine.envs
    engine.stepping
    dtypes sampling checkpoint process_state
    engine.core
    engine.memory
    engine.acting
    engine.collector
    engine.tensors
    engine.remote
    engine.cluster
    engine.feed
    engine.evaluation
    engine.rollout engine
    replay
    algo
    zoo plotting testing
    doctor benchmark demo
    __main__
"""
"""One layer a line. A module imports from its own package and from the lines above it, never from those below."""

WITHOUT_TORCH = (
    *("nested", "interpreter", "contexts", "lazy_imports", "engine.concurrency", "engine.envs", "engine.stepping"),
)
"""A process that only steps environments loads no PyTorch."""

ONLY_IN = {
    "optree": {"nested"},
    "queue": {"engine.concurrency.channel"},
    "threading": {
        *("process_state", "checkpoint", "engine.concurrency", "engine.memory.lane", "engine.stepping.thread_pool"),
        *("engine.cluster.reported_progress", "engine.evaluation.examiner", "engine.feed", "testing"),
    },
    "gym": {"zoo.gym_or_gymnasium"},
    "gymnasium": {"zoo.gym_or_gymnasium", "benchmark.works"},
    "matplotlib": {"plotting"},
    "ray": {"engine.cluster"},
    "tqdm": {"demo", "benchmark.command"},
}
"""Imported nowhere else in the package."""


ON_CUDA = ("engine.memory.cuda", "engine.memory.cuda_graphs", "doctor.trials", "zoo.ddp")
"""The only modules that name ``torch.cuda``."""


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path


MODULES = pytest.mark.parametrize(("module", "path"), [pytest.param(*one, id=one[0] or "rlplay") for one in modules()])


def is_in(module, package):
    return module == package or module.startswith(f"{package}.")


def layer_of(module):
    """Return the package that a module belongs to, and the number of its layer: the longest name that fits."""
    named = [(name, number) for number, line in enumerate(LAYERS.strip().splitlines()) for name in line.split()]
    fitting = [(name, number) for name, number in named if is_in(module, name)]
    return max(fitting, key=lambda one: len(one[0]))


def imports(module, path):
    """Yield ``(name, False)`` for each library that a module imports, ``(name, True)`` for each module of rlplay."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0], False
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - (node.level - 1)] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                full = [*base, alias.name]
                exists = ROOT.joinpath(*full).with_suffix(".py").exists() or ROOT.joinpath(*full).is_dir()
                yield ".".join(full if exists else base), True


@MODULES
def test_a_module_imports_from_the_layers_above_it_alone(module, path):
    if not module:
        return
    package, layer = layer_of(module)
    for name, inside in imports(module, path):
        if inside and name:
            other, above = layer_of(name)
            assert other == package or above < layer, f"{module} must not import {name}"


@MODULES
def test_some_libraries_are_imported_in_one_place_alone(module, path):
    for name, inside in imports(module, path):
        if not inside and name in ONLY_IN:
            assert any(is_in(module, place) for place in ONLY_IN[name]), f"{module} must not import {name}"


@MODULES
def test_layers_that_say_so_do_not_import_torch(module, path):
    if any(is_in(module, package) for package in WITHOUT_TORCH):
        assert ("torch", False) not in set(imports(module, path))


@pytest.mark.parametrize(
    "modules",
    [
        "rlplay.engine.stepping.process_pool",
        "rlplay.testing, rlplay.zoo.envs, rlplay.doctor.in_processes",  # have environments that processes step
    ],
)
def test_a_process_that_steps_environments_loads_no_torch(modules):
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", ["rlplay.engine", "rlplay.testing", "rlplay.zoo.envs"])
def test_names_that_are_imported_on_first_use_are_listed(name):
    module = importlib.import_module(name)
    assert set(module.__all__) <= set(dir(module))
    assert all(hasattr(module, one) for one in module.__all__)
    assert not hasattr(module, "no_such_name")


@MODULES
def test_only_the_cuda_lane_names_streams_and_events(module, path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr == "cuda" and getattr(node.value, "id", "") == "torch":
            assert module in ON_CUDA, f"{module} must not name torch.cuda"


@MODULES
def test_context_managers_are_made_in_the_way_that_lets_every_exception_pass(module, path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "contextlib":
            assert "contextmanager" not in {alias.name for alias in node.names}, "use `rlplay.contexts`"


@MODULES
def test_no_folder_and_no_module_is_too_long(module, path):
    assert len(path.read_text().splitlines()) <= 300
    assert len(list(path.parent.glob("*.py"))) <= 13


def test_all_public_names_exist_and_are_listed_once():
    for name, _ in modules():
        if name == "__main__":
            continue
        module = importlib.import_module(f"rlplay.{name}" if name else "rlplay")
        public = getattr(module, "__all__", [])
        assert len(set(public)) == len(public)
        for one in public:
            assert hasattr(module, one), f"{name}.{one}"


def test_importing_the_package_is_light():
    code = (
        "import sys, rlplay, rlplay.algo, rlplay.engine.rollout.threaded, rlplay.engine.rollout.same\n"
        "print([name for name in ('gym', 'gymnasium', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
