"""What ``python -m rlplay bench`` does: work by work, measure, tell, and write it all down."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from tqdm import tqdm

from ..engine.memory.cuda import lane_between
from .gpu import Watch, copy_ceiling
from .measure import Contestant, Limit, forward_pass, race
from .report import LEGEND, Row, draw, gpu_row, limit_row, machine, run_row, table
from .runs import Run, Settings, make_actor
from .spec import DEFAULT_ENGINES, ON_CUDA, Engine, parse_engine
from .works import Work, make_work, missing

__all__ = ["bench"]

FIGURES, PICTURE = "bench.json", "bench.png"

LIMITS = ("limit a: stepping", "limit b: and forward")


def bench(
    works: Sequence[str],
    engines: Sequence[Engine] | None,
    n_envs: Sequence[int],
    *,
    repeats: int,
    turn: float,
    learner_cost: float | str | None,
    cost: float,
    n_steps: int | None,
    threads: int,
    device: str,
    out: Path,
    command: str,
) -> Row:
    """Measure works with engines, tell of each on stdout, and write ``bench.json`` and ``bench.png`` into ``out``.

    The options are those of the command line; ``turn`` and ``learner_cost`` in seconds, ``cost`` in milliseconds, and
    without ``engines`` each work has its own. ``command`` is noted. Returns what is in the JSON file.
    """
    torch.set_num_threads(threads)
    settings = Settings(lane_between(device, None, torch.device(device)), threads, turn, learner_cost)
    rows: list[Row] = []
    told = {"repeats": repeats, "turn": turn, "learner_cost": learner_cost, "cost": cost, "threads": threads}
    summary = {"command": command, "machine": machine(settings.lane.device), "settings": told, "rows": rows}
    for name in works:
        lacking = missing(name)
        if lacking is not None:
            print(f"{name}: not available: {lacking}\n", flush=True)
            rows.append({"work": name, "not available": lacking})
        else:
            work = make_work(name, cost=1e-3 * cost, n_steps=n_steps)
            texts = DEFAULT_ENGINES[name] + (ON_CUDA if settings.lane.asynchronous else [])
            chosen = [parse_engine(text) for text in texts] if engines is None else engines
            for part in _measured(work, chosen, n_envs, repeats, settings):
                print(table(part), end="\n\n", flush=True)
                rows += part
        _write(summary, out)  # after each work, for an interrupt would else take all of them
    print(f"{LEGEND}\nall figures: {out / FIGURES}\npicture: {out / PICTURE}")
    return summary


def _measured(
    work: Work, engines: Sequence[Engine], n_envs: Sequence[int], repeats: int, settings: Settings
) -> list[list[Row]]:
    """Measure one work: the rows of each number of environments."""
    with ExitStack() as stack:
        fields = [_Field(work, engines, n, settings, stack) for n in n_envs]
        contestants = [contestant for field in fields for contestant in field.contestants]
        bar = stack.enter_context(
            _Bar(total=len(contestants) * (1 + repeats), desc=work.name, unit="turn", leave=False, disable=None)
        )
        race(contestants, repeats, bar.update)
        return [field.rows() for field in fields]


class _Bar(tqdm):  # type: ignore[misc]
    """A progress bar without a thread that looks after it: nothing is to run beside what is measured."""

    monitor_interval = 0


class _Field:
    """Those who are measured with the same environments: the two limits, and the engines."""

    def __init__(
        self, work: Work, engines: Sequence[Engine], n_envs: int, settings: Settings, stack: ExitStack
    ) -> None:
        """Open all of them; ``stack`` closes them."""
        n_steps, lane = work.n_steps(n_envs), settings.lane
        self._common = {"work": work.name, "n_envs": n_envs, "n_steps": n_steps}
        self._lane, self._engines = lane, engines
        forward = forward_pass(make_actor(work).to(lane.device), lane)
        self._limits = [Limit(work, n_envs, n_steps, react, settings.seconds) for react in (None, forward)]
        for limit in self._limits:
            stack.callback(limit.close)
        self._runs: dict[Engine, Run] = {}
        self._hindrances: dict[Engine, str] = {}
        for engine in engines:
            try:
                hindrance = engine.hindrance(n_envs)
                if hindrance is not None:
                    raise NotImplementedError(hindrance)
                self._runs[engine] = Run(engine, work, n_envs, n_steps, settings)
            except NotImplementedError as error:
                self._hindrances[engine] = str(error)
            else:
                stack.callback(self._runs[engine].close)

    @property
    def contestants(self) -> list[Contestant]:
        """Those who take turns."""
        return [*self._limits, *self._runs.values()]

    def rows(self) -> list[Row]:
        """Tell what has been measured, in the order of asking."""
        a, b = self._limits
        rows = [limit_row(limit, a, b) for limit in (a, b)]
        if self._lane.asynchronous:
            rows[0]["gpu"] = {"alone": {"bytes per second while copying up": copy_ceiling(self._lane)}}
        for engine in self._engines:
            if engine in self._hindrances:
                rows.append({"not available": self._hindrances[engine]})
                continue
            run = self._runs[engine]
            rows.append(run_row(run, a, b) | ({"gpu": _traced(run, engine)} if self._lane.asynchronous else {}))
        names = [*LIMITS, *(engine.text for engine in self._engines)]
        return [{**self._common, "engine": name, **row} for name, row in zip(names, rows, strict=True)]


def _traced(run: Run, engine: Engine) -> Row:
    """Go through the windows once more, and tell what the GPU did in them."""
    complete = engine.name in ("same", "threaded")
    with_learner = [("learner", run.collect_and_train, run.both)] if run.both else []
    told = {}
    for window, measure, timed in [("alone", run.collect, run.collecting), *with_learner]:
        watch = Watch()
        traced = measure(watch)
        told[window] = gpu_row(watch.activity, traced, timed, complete=complete)
    return told


def _write(summary: Row, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / FIGURES).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    draw(summary, out / PICTURE)
