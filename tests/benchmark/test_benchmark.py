"""The benchmark: what it measures, in which order, and how it reports numbers. Speed itself is not tested."""

import json
import time
from functools import partial
from itertools import count
from types import SimpleNamespace

import gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlplay.__main__ import main
from rlplay.benchmark import command, works
from rlplay.benchmark.gpu import DeviceActivity, covered_length, peak_upload_rate, read_trace
from rlplay.benchmark.measure import (
    Limit,
    Measurement,
    Spread,
    forward_pass,
    fragments_per_window,
    measure_interleaved,
    overlap_efficiency,
    seconds_per_fragment,
    steps_per_second,
)
from rlplay.benchmark.report import gpu_row, legend, limit_row, panel, run_row, table
from rlplay.benchmark.runs import EngineRun, Learner, Settings
from rlplay.benchmark.spec import DEFAULT_ENGINES, WORKS, Engine, parse_cost, parse_engine
from rlplay.benchmark.works import Work, make_work
from rlplay.engine.memory.counters import Counters
from rlplay.engine.memory.lane import Lane
from rlplay.plotting import Panel, multiples

CPU = torch.device("cpu")
LANE = Lane(CPU, CPU)


class Counting(gym.Env):
    """Notes what is done to it, and ends its episodes after three steps."""

    observation_space = gym.spaces.Box(-1000, 1000, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, log=None):
        self.log = [] if log is None else log

    def reset(self, *, seed=None, options=None):
        self.log.append("reset")
        self.t = 0
        return np.full(4, 0.0, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.log.append("step")
        self.t += 1
        return np.full(4, self.t, np.float32), 1.0, self.t == 3, False, {}


def counting_work(log=None):
    return make_work("sleep")._replace(name="counting", make_env=partial(Counting, log))


# what can be asked for


@pytest.mark.parametrize(
    ("text", "engine"),
    [
        ("same", Engine("same", "same")),
        ("same+compile", Engine("same+compile", "same", compile=True)),
        ("same+groups2", Engine("same+groups2", "same", groups=2)),
        ("threaded+workers2+groups3", Engine("threaded+workers2+groups3", "threaded", workers=2, groups=3)),
        ("threaded+threads12", Engine("threaded+threads12", "threaded", threads=12)),
        ("single+compile", Engine("single+compile", "single", compile=True)),
        ("multi", Engine("multi", "multi", workers=2)),
        ("multi+workers4+compile", Engine("multi+workers4+compile", "multi", workers=4, compile=True)),
    ],
)
def test_engine_names_are_parsed(text, engine):
    assert parse_engine(text) == engine


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quantum", "no engine 'quantum'"),
        ("", "no engine ''"),
        ("same+", "none of"),
        ("same+groups", "none of"),
        ("same+groups0", "none of"),
        ("same+compile2", "none of"),
        ("threaded+wings2", "none of"),
        ("same+workers2", r"no option \+workers"),
        ("single+groups2", r"no option \+groups"),
        ("multi+threads2", r"no option \+threads"),
        ("same+groups2+groups3", "twice"),
        ("threaded+workers2+threads2", "exclude"),
    ],
)
def test_wrong_engine_names_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_engine(text)


@pytest.mark.parametrize(
    ("text", "n_envs", "hindered"),
    [
        ("threaded+workers8", 8, False),
        ("threaded+workers9", 8, True),
        ("threaded+threads9", 8, True),
        ("same+groups9", 8, True),
        ("multi+workers3", 9, False),
        ("multi+workers3", 8, True),
    ],
)
def test_an_engine_says_when_environments_cannot_be_dealt_out(text, n_envs, hindered):
    assert (parse_engine(text).obstacle(n_envs) is not None) == hindered


@pytest.mark.parametrize(("text", "cost"), [("none", None), ("equal", "equal"), ("0", 0.0), ("2.5", 2.5)])
def test_costs_are_parsed(text, cost):
    assert parse_cost(text) == cost


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "much"])
def test_wrong_costs_are_refused(text):
    with pytest.raises(ValueError, match=text):
        parse_cost(text)


def test_the_default_engines_of_each_work_exist():
    assert WORKS.keys() == DEFAULT_ENGINES.keys()
    assert all(parse_engine(text).obstacle(8) is None for texts in DEFAULT_ENGINES.values() for text in texts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--work", "juggling"], "juggling"),
        (["--engine", "quantum"], "no engine 'quantum'"),
        (["--engine", "same+workers2"], "no option +workers"),
        (["--learner-cost", "-1"], "not negative"),
        (["--cost", "nan"], "must be at least 0, got nan"),
        (["--turn", "-1"], "must be at least 0, got -1"),
        (["--turn", "x"], "must be a number, got 'x'"),
        (["--n-envs", "0"], "at least 1"),
        (["--repeats", "0"], "at least 1"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--out", __file__], "--out"),
    ],
)
def test_the_command_refuses_wrong_options_with_a_message(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refusal:
        main(["bench", *options])
    assert refusal.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# the environments


def test_a_busy_step_lasts_by_the_cpu_time_of_its_thread(monkeypatch):
    ticks = count(step=1e-4)
    monkeypatch.setattr(time, "thread_time", lambda: next(ticks))
    for env in works.Busy(), works.Pixels(cost=1e-3):
        env.reset()
        before = next(ticks)
        env.step(0)
        assert 1e-3 <= next(ticks) - before <= 1.5e-3


@pytest.mark.parametrize("work", ["cartpole", "pixels", "busy", "sleep"])
def test_environments_of_the_works_reset_and_step(work):
    env = make_work(work).make_env()
    obs, _ = env.reset(seed=0)
    for _ in range(201):
        assert env.observation_space.contains(obs)
        obs, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        assert reward == 1.0
        if terminated or truncated:
            break
    assert terminated
    env.close()


@pytest.mark.parametrize(
    ("lacking", "said"), [((), None), (("ale_py", "cv2"), 'ale_py, cv2 not installed: pip install -e ".[atari]"')]
)
def test_a_library_that_is_not_installed_is_named(monkeypatch, lacking, said):
    monkeypatch.setattr(works, "find_spec", lambda name: None if name in lacking else name)
    assert works.missing_packages("breakout") == said
    assert works.missing_packages("cartpole") is None


# the limits


@pytest.mark.parametrize("reacting", [False, True])
def test_a_limit_steps_every_environment_and_resets_it_at_its_end(reacting):
    log, seen = [], []

    def react(obs):
        seen.append([int(part[0]) for part in obs])
        log.append("react")

    limit = Limit(counting_work(log), 2, 5, react if reacting else None, seconds=0.0)
    assert log == ["reset"] * 2
    limit.warm_up()
    assert limit.measurements == []
    del log[:], seen[:]
    limit.measure()
    limit.measure()
    assert [(turn.fragments, turn.steps) for turn in limit.measurements] == [(1, 10), (1, 10)]
    # ten steps were made in warming up: the episodes are one step old
    both = [["step"] * 2, ["step", "reset"] * 2]
    rounds = [both[t % 3 == 2] for t in range(10, 20)]
    assert log == [word for part in rounds for word in (["react"] * reacting + part)]
    assert seen == [[t % 3] * 2 for t in range(10, 20)] * reacting
    limit.close()


def test_a_turn_of_a_limit_lasts_as_long_as_it_should():
    limit = Limit(counting_work(), 1, 5, None, seconds=1.0)
    limit._step_fragments = lambda count: Measurement(count, 5 * count, 0.1 * count, {})
    limit.warm_up()
    limit.measure()
    assert limit.measurements == [Measurement(10, 50, 1.0, {})]


def test_the_bare_forward_pass_is_that_of_the_actors_networks():
    actor = make_work("pixels").make_actor(6)
    obs = list(np.random.default_rng(0).integers(256, size=(3, 4, 84, 84), dtype=np.uint8))
    policy, value = forward_pass(actor, LANE)(obs)
    _, _, info = actor(torch.from_numpy(np.stack(obs))[None])
    assert not policy.requires_grad
    assert torch.equal(policy, info["logits"])
    assert torch.equal(value[..., 0], info["value"])


# taking turns, and what comes of it


def test_all_runs_warm_up_and_then_alternate():
    log = []

    def contestant(name):
        return SimpleNamespace(warm_up=lambda: log.append(name + "0"), measure=lambda: log.append(name))

    measure_interleaved([contestant(name) for name in "abc"], 2, lambda: log.append("."))
    assert "".join(log) == "a0.b0.c0." + "a.b.c." * 2


@pytest.mark.parametrize(("seconds", "each", "n"), [(1.0, 0.1, 10), (1.0, 0.4, 2), (1.0, 3.0, 1), (0.0, 1.0, 1)])
def test_the_number_of_calls_in_a_measurement(seconds, each, n):
    assert fragments_per_window(seconds, each) == n


def turns(*seconds, fragments=2, steps=100, **places):
    return [Measurement(fragments, steps, each, places) for each in seconds]


def test_medians_and_ranges_of_measurements():
    spread = steps_per_second(turns(1.0, 10.0, 2.0))
    assert spread == Spread([100.0, 10.0, 50.0])
    assert (spread.median, spread.low, spread.high) == (50.0, 10.0, 100.0)
    assert seconds_per_fragment(turns(1.0, 10.0, 2.0)).median == 1.0


def made_up():
    """Return limits of 200 and 100 steps a second, and an engine of 50 that overlaps perfectly with its learner."""
    a, b = SimpleNamespace(measurements=turns(0.5, 0.5, 9.0)), SimpleNamespace(measurements=turns(1.0, 1.0, 0.1))
    run = SimpleNamespace(
        collection=turns(2.0, 2.0, 4.0, stepping=1e-3, inference=2e-3),
        training=turns(6.0, fragments=6, steps=0),
        both=turns(2.0, 2.5, 2.5, stepping=1e-3, inference=2e-3),
        feed=SimpleNamespace(stats=SimpleNamespace(counters=Counters())),
    )
    return run, a, b


def test_ratios_are_ratios_of_medians():
    run, a, b = made_up()
    row = run_row(run, a, b)
    assert row["alone"]["steps per second"] == {"median": 50.0, "low": 25.0, "high": 50.0, "all": [50.0, 50.0, 25.0]}
    assert row["alone"]["ratio to a"] == 0.25
    assert row["alone"]["ratio to b"] == 0.5
    assert row["alone"]["microseconds per step"] == pytest.approx({"stepping": 10, "inference": 20})
    assert row["learner"]["ratio to b"] == 0.4
    assert row["learner"]["seconds of training alone"]["median"] == 1.0
    assert row["learner"]["overlap efficiency"] == 0.8
    assert limit_row(a, a, b)["alone"]["ratio to b"] == 2.0


@pytest.mark.parametrize(
    ("collecting", "training", "both", "result"), [(1, 1, 1, 1.0), (1, 1, 2, 0.5), (1, 3, 4, 0.75)]
)
def test_efficiency_of_overlap_is_the_longer_side_over_the_whole(collecting, training, both, result):
    assert overlap_efficiency(turns(collecting), turns(training), turns(both)) == result


def test_the_table_and_the_picture_show_the_rows():
    run, a, b = made_up()
    common = {"work": "juggling", "n_envs": 8, "n_steps": 16}
    rows = [limit_row(a, a, b), limit_row(b, a, b), run_row(run, a, b), {"not available": "too hard"}]
    rows = [
        {**common, "engine": name, **row} for name, row in zip(("a", "b", "same", "same+groups2"), rows, strict=True)
    ]
    title, head, *_, same, missing = table(rows).splitlines()
    assert title == "juggling: 8 environments, fragments of 16 steps"
    assert "learning" in head
    assert "idle" not in head
    assert same.split()[:7] == ["same", "50.0", "25.0..50.0", "0.25", "0.50", "10.0", "20.0"]
    assert same.split()[7:] == ["40.0", "40.0..50.0", "0.40", "1000.0", "0.80"]
    assert missing.split(maxsplit=1) == ["same+groups2", "not available: too hard"]
    _, head, *_, same, missing = table(rows, brief=True).splitlines()
    assert head.split() == ["steps/s", "/step", "/net", "learning", "/net", "update", "overlap"]
    assert same.split() == ["same", "50.0", "0.25", "0.50", "40.0", "0.40", "1000.0", "0.80"]
    assert missing.split(maxsplit=1) == ["same+groups2", "not available: too hard"]
    assert panel(rows) == (
        "juggling, 8 environments",
        ["same", "same+groups2"],
        {"collection alone": [(0.25, 0.5, 0.5), None], "with a learner": [(0.4, 0.4, 0.5), None]},
        {"collection alone": ["0.50   50.0/s", ""], "with a learner": ["0.40   40.0/s", ""]},
        2.0,
    )


def test_the_legend_explains_the_columns_that_are_there():
    run, a, b = made_up()
    rows = [limit_row(a, a, b), limit_row(b, a, b), run_row(run, a, b)]
    assert "learning  steps/s" in legend(rows)
    assert "idle" not in legend(rows)
    rows[2].pop("learner")
    assert "learning  steps/s" not in legend(rows)
    assert "idle" in legend([*rows, {"gpu": {}}])
    assert "us: env" in legend(rows)
    assert "us: env" not in legend(rows, brief=True)
    assert max(map(len, legend([*rows, {"gpu": {}, "learner": {}}]).splitlines())) <= 80


def test_a_third_series_is_refused():
    bars, labels = {name: [(1.0, 1.0, 1.0)] for name in "abc"}, {name: [""] for name in "abc"}
    with pytest.raises(ValueError, match="at most two series may have bars, got 3: a, b, c"):
        multiples([[Panel("one", ["same"], bars, labels, 1.5)]], lines=("", ""))


def test_panels_have_one_scale_and_no_label_over_a_line():
    bars = {"collection alone": [(0.4, 0.5, 0.6), None], "with a learner": [(1.9, 2.0, 2.1), None]}
    labels = {"collection alone": ["0.50   1.00k/s", ""], "with a learner": ["2.00   4.00k/s", ""]}
    one = Panel("one", ["same", "threaded"], bars, labels, 1.5)
    lower = {name: [(0.1, 0.2, 0.3), None] for name in bars}
    figure = multiples([[one, one._replace(bars=lower, ceiling=40.0)]], lines=("a plain loop", "stepping alone"))
    figure.draw_without_rendering()
    scales = {axes.get_xlim() for axes in figure.axes}
    assert len(scales) == 1
    assert scales.pop()[1] > 2.1
    assert "stepping alone is at 40" in figure.axes[1].get_title("left")
    for axes in figure.axes:
        for text in axes.texts:
            if text.get_text() != "not available":
                assert text.get_window_extent().x0 > axes.bbox.x1


# the engines


def settings(cost=None, seconds=0.0):
    return Settings(LANE, 1, seconds, cost)


@pytest.mark.parametrize("text", ["same", "threaded", "threaded+threads2+groups2"])
def test_a_window_has_the_steps_of_its_fragments(text):
    run = EngineRun(parse_engine(text), counting_work(), 2, 3, settings(0.0))
    run.warm_up()
    assert not run.collection
    run.measure()
    run.measure()
    run.close()
    assert [(turn.fragments, turn.steps) for turn in run.collection + run.both] == [(1, 6)] * 4
    assert [(turn.fragments, turn.steps) for turn in run.training] == [(1, 0)] * 2
    assert all(turn.collector_seconds.keys() == {"stepping", "inference", "transfer", "waiting"} for turn in run.both)


def test_a_feed_stands_still_while_others_are_measured():
    log, others = [], []
    run = EngineRun(parse_engine("threaded"), counting_work(log), 2, 1000, settings())
    other = EngineRun(parse_engine("threaded"), counting_work(others), 2, 10, settings())
    run.warm_up()
    run.measure()
    at = len(log)
    other.warm_up()
    other.measure()
    assert len(others) > 60
    assert len(log) == at
    run.close()
    other.close()


def test_each_fragment_is_trained_on_before_the_next_one_is_asked_for(monkeypatch):
    learnt = []
    monkeypatch.setattr(Learner, "learn", lambda self, fragment: learnt.append(int(fragment.state.stepno[0, 0])))
    run = EngineRun(parse_engine("same"), counting_work(), 1, 2, settings(0.0))
    run.warm_up()
    run._n_fragments = {"collection": 3, "training": 2, "both": 3}
    del learnt[:]
    first = run.feed.steps
    run.measure()
    run.close()
    alone = first + 2 * (1 + 3)  # one that is not measured, and three that are
    received = [(steps - 2) % 3 for steps in range(alone + 2, alone + 8, 2)]
    assert learnt == [(alone - 2) % 3] * 2 + received
    assert run.feed.steps == alone + 2 * (1 + 3)


@pytest.mark.parametrize(("cost", "beside"), [(0.0, 0.0), (0.25, 0.25), ("equal", 0.9)])
def test_the_learner_costs_the_given_time(monkeypatch, cost, beside):
    run = EngineRun(parse_engine("same"), counting_work(), 2, 3, settings(cost, seconds=3.0))
    burdens = []
    monkeypatch.setattr(run, "measure_collection", lambda: Measurement(2, 12, 2.0, {}))
    monkeypatch.setattr(run, "_measure_training", lambda learner: Measurement(2, 0, 0.2, {}))
    monkeypatch.setattr(run, "measure_both", lambda: None)
    monkeypatch.setattr(run._learner, "set_extra_cost", burdens.append)
    run.warm_up()
    assert burdens == pytest.approx([beside])
    assert run._n_fragments["collection"] == 3
    assert run._n_fragments["training"] == round(3 / (0.1 + beside))
    assert run._n_fragments["both"] == round(3 / (1.1 + beside))
    run.close()


def test_the_learner_works_and_changes_nothing():
    run = EngineRun(parse_engine("same"), counting_work(), 2, 3, settings(0.0))
    run.warm_up()
    learner, actor = run._learner, run._learner._actor
    before = [x.clone() for x in actor.parameters()]
    done = []
    learner._multiply = done.append
    learner.learn(run.latest)
    assert any(x.grad.abs().sum() > 0 for x in actor.parameters())
    assert all(torch.equal(x, y) for x, y in zip(before, actor.parameters(), strict=True))
    assert done == [0]
    run.close()


def test_the_cost_on_a_gpu_is_a_number_of_matrix_products():
    learner = Learner(make_work("busy").make_actor(2), LANE)
    assert learner._n_products == 0
    learner.set_extra_cost(1.0)
    many = learner._n_products
    learner.set_extra_cost(0.0)
    assert many > 0 == learner._n_products


# the GPU, without one


def event(cat, ts, dur, name="", **args):
    return {"cat": cat, "ts": ts, "dur": dur, "name": name, "args": args}


def test_activity_is_read_from_a_profiler_trace():
    events = [
        {"ph": "M", "name": "process_name", "ts": 0},
        event("cuda_runtime", 0, 500),
        event("kernel", 100, 50),
        event("kernel", 120, 10),
        event("gpu_memcpy", 140, 20, "Memcpy HtoD (Pinned -> Device)", bytes=3000),
        event("gpu_memcpy", 200, 10, "Memcpy DtoH (Device -> Pinned)", bytes=5),
        event("gpu_memset", 300, 5),
    ]
    seen = read_trace(events)
    assert seen == pytest.approx(DeviceActivity(busy_seconds=75e-6, upload_seconds=20e-6, uploaded_bytes=3000))
    row = gpu_row(seen, Measurement(3, 0, 9.0, {}), turns(1e-4), complete=True)  # 25 us a fragment of 50 us
    assert row == pytest.approx({"idle": 0.5, "bytes per second while copying up": 1.5e8})
    row = gpu_row(DeviceActivity(1.0, 0.0, 0), Measurement(1, 0, 9.0, {}), turns(1.0), complete=False)
    assert row == {"idle": None, "bytes per second while copying up": None}


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted).map(tuple)))
def test_overlapping_activity_is_counted_once(intervals):
    assert covered_length(intervals) == len({x for start, end in intervals for x in range(start, end)})


def test_the_copy_ceiling_is_that_of_the_lane(monkeypatch):
    monkeypatch.setattr("rlplay.benchmark.gpu._COPY_BYTES", 1000)
    copied = []
    lane = SimpleNamespace(
        empty=LANE.empty,
        copy=lambda target, source: copied.append(len(source)),
        record=lambda: 7,
        host_wait=copied.append,
    )
    assert peak_upload_rate(lane) > 0
    assert copied == [1000, 7] * 11


# all of it


def test_the_command_measures_prints_and_writes(tmp_path, capsys):
    arguments = ["--work", "cartpole", "--work", "sleep", "--n-steps", "4", "--n-envs", "2", "--turn", "0"]
    arguments += ["--engine", "same", "--engine", "threaded", "--engine", "same+groups3", "--engine", "same"]
    arguments += ["--repeats", "3", "--out", str(tmp_path / "there")]
    assert main(["bench", *arguments]) == 0
    told = capsys.readouterr().out
    assert str(tmp_path / "there" / "bench.json") in told
    assert "more groups than the 2 environments" in told

    summary = json.loads((tmp_path / "there" / "bench.json").read_text())
    assert summary["command"].startswith("python -m rlplay bench --work cartpole --work sleep --n-steps 4")
    assert {"cpu", "cores", "device", "date", "versions"} <= summary["machine"].keys()
    assert {"python", "torch", "numpy", "gym"} <= summary["machine"]["versions"].keys()
    engines = [*command.LIMIT_NAMES, "same", "threaded", "same+groups3"]
    rows = summary["rows"]
    assert [(row["work"], row["engine"]) for row in rows] == [(w, e) for w in ("cartpole", "sleep") for e in engines]
    for row in rows:
        assert (row["n_envs"], row["n_steps"]) == (2, 4)
        if row["engine"] == "same+groups3":
            assert row.keys() == {"work", "engine", "n_envs", "n_steps", "not available"}
            continue
        assert len(row["alone"]["steps per second"]["all"]) == 3
        assert ("learner" in row) == (row["engine"] not in command.LIMIT_NAMES)
        if "learner" in row:
            assert row["learner"]["overlap efficiency"] > 0
            assert len(row["learner"]["seconds of training alone"]["all"]) == 3
    picture = (tmp_path / "there" / "bench.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert 20_000 < len(picture) < 1_000_000


def test_works_and_engines_that_are_not_available_are_reported_and_not_raised(tmp_path, capsys, monkeypatch):
    def unbuilt(*args, compile, **options):
        raise NotImplementedError("some day")

    monkeypatch.setattr("rlplay.engine.rollout.same.rollout", unbuilt)
    monkeypatch.setattr(
        command, "missing_packages", lambda work: "nothing to break out of" if work == "breakout" else None
    )
    options = ["--work", "breakout", "--work", "sleep", "--engine", "same+compile", "--learner-cost", "none"]
    assert main(["bench", *options, "--quick", "--n-steps", "2", "--turn", "0", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "breakout: not available: nothing to break out of" in told
    assert "not available: some day" in told
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [row.get("not available") for row in rows] == ["nothing to break out of", None, None, "some day"]
    assert "learner" not in rows[1]


def test_works_of_which_none_is_available_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(works, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "--work", "breakout", "--work", "atari-vector"])
    told = capsys.readouterr().err
    assert "argument --work: breakout: ale_py, gymnasium, cv2 not installed: pip install" in told
    assert "; atari-vector: ale_py, gymnasium not installed: pip install" in told
    assert not list(tmp_path.iterdir())


def test_the_options_reach_the_engines(monkeypatch):
    asked = []
    for name in ("same", "threaded", "single", "multi"):
        monkeypatch.setattr(
            f"rlplay.engine.rollout.{name}.rollout", lambda *args, **options: asked.append((args, options))
        )
    work = Work("toy", Counting, make_work("sleep").make_actor, lambda n: n)
    for text in ("same+groups2+compile", "threaded+workers2", "threaded+threads3+groups2", "single", "multi+workers4"):
        EngineRun(parse_engine(text), work, 8, 5, settings())
    (envs, _, n_steps), same = asked[0]
    assert (envs, n_steps, same["groups"], same["compile"]) == ([Counting] * 8, 5, 2, True)
    assert [(options["workers"], options["worker"], options["groups"]) for _, options in asked[1:3]] == [
        (2, "process", 1),
        (3, "thread", 2),
    ]
    assert asked[3][0][2:] == (5, 8)
    assert asked[4][0][2:] == (5, 4, 2)
    assert all(options["threads"] == 1 for _, options in asked[3:])
    assert all(options["compile"] is False for _, options in asked[1:])


@pytest.mark.parametrize(
    ("options", "works", "engines", "n_envs", "repeats"),
    [
        ([], list(WORKS), None, [8, 64], 5),
        (["--quick"], ["cartpole", "sleep"], ["same", "threaded", "single"], [8], 2),
        (
            ["--quick", "--engine", "single", "--n-envs", "3", "--repeats", "4", "--work", "busy"],
            ["busy"],
            ["single"],
            [3],
            4,
        ),
    ],
)
def test_quick_changes_the_options_that_were_not_given(tmp_path, monkeypatch, options, works, engines, n_envs, repeats):
    asked = []
    monkeypatch.setattr(
        command, "bench", lambda *args, **options: asked.append((*args, options["repeats"], options["brief"]))
    )
    assert main(["bench", *options, "--out", str(tmp_path)]) == 0
    engines = engines and [parse_engine(text) for text in engines]
    assert asked == [(works, engines, n_envs, [], repeats, "--quick" in options)]


def test_the_help_has_lines_of_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 80
    assert all(name in told for name in WORKS)


def test_an_interrupt_closes_all_feeds_and_the_results_before_it_are_written(tmp_path, monkeypatch, capsys):
    opened, begun = [], []

    def measure(run):
        opened.append(run.feed)
        raise KeyboardInterrupt

    def race_once(contestants, repeats, tick):
        begun.append(contestants)
        measure_interleaved(contestants, repeats, tick)
        if len(begun) == 1:
            monkeypatch.setattr(EngineRun, "measure", measure)

    monkeypatch.setattr(command, "measure_interleaved", race_once)
    options = [
        "--work",
        "cartpole",
        "--work",
        "sleep",
        "--quick",
        "--turn",
        "0",
        "--n-steps",
        "2",
        "--out",
        str(tmp_path),
    ]
    assert main(["bench", *options]) == 130
    assert [feed.open for feed in opened] == [False]
    assert {row["work"] for row in json.loads((tmp_path / "bench.json").read_text())["rows"]} == {"cartpole"}
