"""The command ``python -m rlplay bench``: measures each work, prints a table, and writes a JSON file and a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from tqdm import tqdm

from ..engine.memory.cuda import lane_between
from .gpu import DeviceProfiler, peak_upload_rate
from .measure import Case, Limit, forward_pass, measure_interleaved
from .report import Row, draw, gpu_row, legend, limit_row, machine_row, run_row, table
from .runs import EngineRun, Settings, make_actor
from .spec import DEFAULT_ENGINES, ON_CUDA, Engine, parse_engine
from .works import Work, make_work, missing_packages

__all__ = ["LIMIT_NAMES", "bench", "nothing_to_measure"]

LIMIT_NAMES = ("stepping alone", "stepping, network")

_JSON_FILE, _PICTURE_FILE = "bench.json", "bench.png"


def bench(
    works: Sequence[str],
    engines: Sequence[Engine] | None,
    n_envs: Sequence[int],
    groups: Sequence[int] = (),
    *,
    repeats: int,
    window_seconds: float,
    learner_cost: float | str | None,
    cost: float,
    n_steps: int | None,
    threads: int,
    device: str,
    out: Path,
    brief: bool,
    command: str,
) -> Row:
    """Measure the works with the engines, print a table of each, and write ``bench.json`` and ``bench.png``.

    Parameters
    ----------
    works : sequence of str
        Keys of :data:`rlplay.benchmark.spec.WORKS`.
    engines : sequence of Engine, optional
        By default those that ``spec`` lists for each work.
    n_envs : sequence of int
        Each work is measured with each of these numbers of environments.
    groups : sequence of int
        Engines that can have several groups are measured with each of these numbers of them as well.
    repeats : int
        Number of rounds: each round measures every limit and every engine once.
    window_seconds : float
        Approximate duration of one window.
    learner_cost : float, ``equal`` or None
        See :attr:`rlplay.benchmark.runs.Settings.learner_cost`.
    cost : float
        Milliseconds of a step of ``pixels``.
    n_steps : int, optional
        Steps in a fragment; by default a number for each work.
    threads : int
        Number of torch threads in each process.
    device : str
        Where to act and to learn.
    out : Path
        Folder for both files.
    brief : bool
        Whether the printed tables leave out ranges, and where the collector's time went, to fit into 80 columns.
    command : str
        The command line, which is noted in the JSON file.

    Returns
    -------
    dict
        The content of the JSON file.
    """
    torch.set_num_threads(threads)
    settings = Settings(lane_between(device, None, torch.device(device)), threads, window_seconds, learner_cost)
    noted = {
        "repeats": repeats, "turn": window_seconds, "learner_cost": learner_cost, "cost": cost, "threads": threads,
    }  # fmt: skip
    rows: list[Row] = []
    summary = {"command": command, "machine": machine_row(settings.lane.device), "settings": noted, "rows": rows}
    for name in works:
        missing = missing_packages(name)
        if missing is not None:
            print(f"{name}: not available: {missing}\n", flush=True)
            rows.append({"work": name, "not available": missing})
        else:
            work = make_work(name, cost=1e-3 * cost, n_steps=n_steps)
            texts = DEFAULT_ENGINES[name] + (ON_CUDA if settings.lane.asynchronous else [])
            chosen = [parse_engine(text) for text in texts] if engines is None else list(engines)
            more = (engine.in_groups(n) for engine in chosen for n in groups)
            chosen += [engine for engine in more if engine is not None and engine not in chosen]
            for rows_of_n_envs in _measure_work(work, chosen, n_envs, repeats, settings):
                print(table(rows_of_n_envs, brief=brief), end="\n\n", flush=True)
                rows += rows_of_n_envs
        _write(summary, out)  # after each work, so that an interrupt loses only the present work
    print(f"{legend(rows, brief=brief)}\nall figures: {out / _JSON_FILE}\npicture: {out / _PICTURE_FILE}")
    return summary


def nothing_to_measure(works: Sequence[str]) -> str:
    """Return what each of the works lacks, if none can be measured; else an empty string."""
    missing = {name: missing_packages(name) for name in works}
    return "; ".join(f"{name}: {packages}" for name, packages in missing.items()) if all(missing.values()) else ""


def _measure_work(
    work: Work, engines: Sequence[Engine], n_envs: Sequence[int], repeats: int, settings: Settings
) -> list[list[Row]]:
    """Measure one work; return the rows of each number of environments."""
    with ExitStack() as stack:
        comparisons = [_Comparison(work, engines, n, settings, stack) for n in n_envs]
        cases = [case for comparison in comparisons for case in comparison.cases]
        bar = stack.enter_context(
            _ProgressBar(
                total=len(cases) * (1 + repeats), desc=work.name, unit="measurement", leave=False, disable=None
            )
        )
        measure_interleaved(cases, repeats, bar.update)
        return [comparison.rows() for comparison in comparisons]


def _write(summary: Row, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / _JSON_FILE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    draw(summary, out / _PICTURE_FILE)


class _ProgressBar(tqdm):  # type: ignore[misc]
    """A progress bar without tqdm's monitor thread, which would disturb the measurements."""

    monitor_interval = 0


class _Comparison:
    """The two limits and the engines, all with the same environments and the same number of them."""

    def __init__(
        self, work: Work, engines: Sequence[Engine], n_envs: int, settings: Settings, stack: ExitStack
    ) -> None:
        """Open the limits' environments and the engines' feeds; ``stack`` closes all of them."""
        n_steps, lane = work.n_steps(n_envs), settings.lane
        self._common = {"work": work.name, "n_envs": n_envs, "n_steps": n_steps}
        self._lane, self._engines = lane, engines
        forward = forward_pass(make_actor(work).to(lane.device), lane)
        self._limits = [
            Limit(work, n_envs, n_steps, before_step, settings.window_seconds) for before_step in (None, forward)
        ]
        for limit in self._limits:
            stack.callback(limit.close)
        self._runs: dict[Engine, EngineRun] = {}
        self._obstacles: dict[Engine, str] = {}
        for engine in engines:
            try:
                obstacle = engine.obstacle(n_envs, vector=work.vector)
                if obstacle is not None:
                    raise NotImplementedError(obstacle)
                self._runs[engine] = EngineRun(engine, work, n_envs, n_steps, settings)
            except NotImplementedError as error:
                self._obstacles[engine] = str(error)
            else:
                stack.callback(self._runs[engine].close)

    @property
    def cases(self) -> list[Case]:
        """The limits, and the engines that can be measured."""
        return [*self._limits, *self._runs.values()]

    def rows(self) -> list[Row]:
        """Return the rows of the limits, then those of the engines in the order of the command line."""
        limit_a, limit_b = self._limits
        rows = [limit_row(limit, limit_a, limit_b) for limit in (limit_a, limit_b)]
        if self._lane.asynchronous:
            rows[0]["gpu"] = {"alone": {"bytes per second while copying up": peak_upload_rate(self._lane)}}
        for engine in self._engines:
            if engine in self._obstacles:
                rows.append({"not available": self._obstacles[engine]})
                continue
            run = self._runs[engine]
            rows.append(run_row(run, limit_a, limit_b))
            if self._lane.asynchronous:
                rows[-1]["gpu"] = _profile(run, engine)
        names = [*LIMIT_NAMES, *(engine.text for engine in self._engines)]
        return [{**self._common, "engine": name, **row} for name, row in zip(names, rows, strict=True)]


def _profile(run: EngineRun, engine: Engine) -> Row:
    """Run each window once more with the device's profiler; return the device's figures of each window."""
    complete = engine.name in ("same", "threaded")
    windows = [("alone", run.measure_collection, run.collection)]
    if run.both:
        windows.append(("learner", run.measure_both, run.both))
    rows = {}
    for name, measure, timed in windows:
        profiler = DeviceProfiler()
        profiled = measure(profiler)
        rows[name] = gpu_row(profiler.activity, profiled, timed, complete=complete)
    return rows
