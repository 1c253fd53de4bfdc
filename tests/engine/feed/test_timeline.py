"""Statistics, advice, traces and pictures of a feed: every moment is charged once."""

from __future__ import annotations

import gc
import itertools
import json
import re
import sys
import threading
import time
from functools import partial
from types import SimpleNamespace

import cloudpickle
import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlplay import interpreter, plotting
from rlplay.engine.concurrency import clock as clock_module
from rlplay.engine.concurrency.clock import COLLECTING, INFERENCE, KINDS, STEPPING, WAITING, Clock
from rlplay.engine.concurrency.progress import Progress, SharedProgress
from rlplay.engine.feed import timeline
from rlplay.engine.feed.stats import CollectorTime, LearnerTime, Stats, advice
from rlplay.engine.memory.lane import Place
from rlplay.engine.rollout import multi, same, single, threaded
from rlplay.plotting.timelines import _activity_shares
from rlplay.testing import LaggingLane
from rlplay.zoo.actors import ActorCritic, mlp
from tests.support.actors import AddsWeight
from tests.support.threads import LONG
from tests.support.workers import Space

cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(autouse=True)
def _several_cores(monkeypatch):
    """Have advice be that of a machine with several cores."""
    monkeypatch.setattr(interpreter, "usable_cores", lambda: 8)


T, B, N = 4, 2, 5
STEP = 0.002  # seconds that a slow environment, or a slow copy, sleeps


class SleepingEnv:
    observation_space, action_space = Space("float32"), Space("int64")

    def __init__(self, seconds=0.0):
        self.seconds = seconds

    def reset(self, *, seed=None):
        return np.float32(0), {}

    def step(self, action):
        time.sleep(self.seconds)
        return np.float32(1), 1.0, False, False, {}

    def close(self):
        pass


def train(feed, n=N, seconds=0.0):
    for _, _ in zip(range(n), feed, strict=False):
        for _ in range(T * B):  # as many sleeps as the environments make, so that each side wakes late as often
            time.sleep(seconds / (T * B))


def open_feed(rollout, seconds=0.0, **options):
    return rollout([partial(SleepingEnv, seconds) for _ in range(B)], AddsWeight(), T, seed=0, **options)


ENGINES = {
    "same": (partial(open_feed, same.rollout), []),
    "threaded": (partial(open_feed, threaded.rollout), []),
    "threads": (partial(open_feed, threaded.rollout, workers=2, worker="thread"), ["worker 0", "worker 1"]),
    "processes": (partial(open_feed, threaded.rollout, workers=2, groups=2), ["worker 0", "worker 1"]),
    "multi": (
        lambda: multi.rollout(SleepingEnv, AddsWeight(), T, 2, 1, seed=0),
        ["collector process 0", "collector process 1"],
    ),
}


def lanes_of(events):
    """Read the spans of each lane, by a way of the test's own: kind, start, end in microseconds."""
    names = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    spans = {tid: [] for tid in names}
    for e in events:
        if e["ph"] == "X":
            spans[e["tid"]].append((e["name"], e["ts"], e["ts"] + e["dur"]))
    return {names[tid].split(" (")[0]: found for tid, found in spans.items()}


def overlap(some, others):
    return sum(max(0.0, min(b, d) - max(a, c)) for _, a, b in some for _, c, d in others)


def spans_of(spans, *kinds):
    return [span for span in spans if span[0] in kinds]


BUSY = [kind for kind in KINDS if kind not in ("waiting", "collecting")]  # a trace has no "collecting"


# clocks


@given(st.lists(st.tuples(st.integers(0, len(KINDS) - 1), st.integers(1, 9)), min_size=1), st.booleans())
def test_a_clock_charges_every_moment_once_with_or_without_a_listener(turns, listening):
    now, log = 0, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock_module, "perf_counter", lambda: now)
        clock = Clock()
        clock.log_to(log if listening else None)
        expected = dict.fromkeys(range(len(KINDS)), 0)
        for k, (kind, lasting) in enumerate(turns):
            clock.switch_to(kind)
            now += lasting
            expected[kind] += lasting if k < len(turns) - 1 else 0
        clock.switch_to((turns[-1][0] + 1) % len(KINDS))
        expected[turns[-1][0]] += turns[-1][1]
    assert clock.seconds == list(expected.values())
    if listening:
        assert all(one[0] != other[0] and one[2] == other[1] for one, other in itertools.pairwise(log))
        assert sum(end - start for _, start, end in log) == now
    else:
        assert log == []


@given(st.lists(st.integers(0, 9)))
def test_spans_come_through_shared_memory_in_order_or_are_known_to_be_lost(bursts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SharedProgress, "_CAPACITY", 5)
        memory = np.zeros(SharedProgress.SIZE, np.uint8)
        there, here, log, sent, lost = SharedProgress(memory), SharedProgress(memory), [], [], 0
        there.append((STEPPING, -1.0, 0.0))  # before anybody listened
        assert there.log is None
        here.log_to(log)
        for k, n in enumerate(bursts):
            burst = [(i % len(KINDS), float(k), i + 0.5) for i in range(n)]
            for span in burst:
                there.log.append(span)
            lost += here.drain()
            sent += burst[-5:]
        here.log_to(None)
        assert there.log is None
    assert log == sent
    assert lost == sum(max(0, n - 5) for n in bursts)


@pytest.mark.parametrize("n_more", range(9))
@pytest.mark.parametrize("at", range(12))
def test_no_span_is_mixed_of_two_if_the_other_process_writes_while_they_are_read(at, n_more, monkeypatch):
    class Ring:
        def __init__(self, ring):
            self.ring, self.n_reads = ring, 0

        def __getitem__(self, place):
            self.n_reads += 1
            if self.n_reads == at + 1:
                write(4, 4 + n_more)
                there._ring[there._place(4 + n_more)] = -1.0  # half of a span that is not counted yet
            return self.ring[place]

    def write(start, stop):
        for k in range(start, stop):
            there.append((STEPPING, float(k), k + 0.5))

    monkeypatch.setattr(SharedProgress, "_CAPACITY", 4)
    memory, log = np.zeros(SharedProgress.SIZE, np.uint8), []
    there, here = SharedProgress(memory), SharedProgress(memory)
    here.log_to(log)
    write(0, 4)
    here._ring = Ring(here._ring)
    lost = here.drain()
    assert log == [(STEPPING, float(k), k + 0.5) for k in range(lost, 4)]
    assert lost == min(n_more, 4)
    here._ring = here._ring.ring
    lost += here.drain()
    assert lost + len(log) == 4 + n_more


def test_time_of_collecting_is_divided_as_the_processes_divided_theirs():
    progress, parts = Progress(), [Progress(), Progress()]
    progress.set_parts([SimpleNamespace(name="", progress=part) for part in parts])
    progress.seconds[COLLECTING], progress.seconds[WAITING] = 8.0, 3.0
    for part in parts:
        part.seconds[STEPPING], part.seconds[INFERENCE], part.seconds[WAITING] = 3.0, 1.0, 9.0
    assert progress.spent() == [6.0, 2.0, 0.0, 3.0]


# statistics


def test_the_times_of_learner_and_of_collector_each_add_up_to_all_of_the_time(monkeypatch):
    tick = partial(next, itertools.count(1.0))  # every look at the clock takes a second
    monkeypatch.setattr(clock_module, "perf_counter", tick)
    with open_feed(same.rollout) as feed:
        train(feed)
        stats = feed.stats
    assert sum(stats.learner) == stats.seconds
    assert sum(stats.collector) == stats.seconds
    assert stats.steps_per_second == stats.steps / stats.seconds == N * T * B / stats.seconds
    assert all(seconds > 0 for seconds in (*stats.collector, *stats.learner))


@pytest.mark.parametrize("rollout", [same.rollout, threaded.rollout])
def test_the_clock_of_a_feed_stops_after_a_loop_and_goes_on_with_the_next(rollout):
    with open_feed(rollout) as feed:
        assert "Nothing has been delivered yet" in str(feed.stats)
        for j, _ in enumerate(feed):
            if j == 3:
                break
        left = feed.stats
        time.sleep(STEP)
        assert feed.stats == left
        train(feed)
        gone_on = feed.stats
        assert gone_on.steps > left.steps
        assert gone_on.learner.training > left.learner.training + STEP
    time.sleep(STEP)
    assert feed.stats == gone_on


@pytest.mark.parametrize("engine", [threaded.rollout, lambda envs, *args, **options: single.rollout(envs[0], *args, B)])
def test_a_pause_counts_as_waiting_of_the_collector(engine):
    with open_feed(engine, STEP) as feed:
        next(feed)  # the next one is being collected
        with feed.pause():
            time.sleep(T * B * STEP)
        next(feed)
        assert feed.stats.collector.waiting > T * B * STEP


CASES = [  # stepping, inference, transfer, waiting; waiting, training
    ((0, 0, 0, 0), (0, 0), "nothing has been delivered yet"),
    (
        (60, 30, 10, 0),
        (62, 38),
        "the learner waits 62 % of the time: collection is the bottleneck, and most of it is s",
    ),
    ((60, 30, 10, 0), (62, 38), "`threaded` with `workers`"),
    ((20, 70, 10, 0), (90, 10), "most of it is inference: more environments"),
    ((20, 10, 70, 0), (90, 10), "most of it is transfer: smaller observations"),
    ((45, 30, 5, 20), (60, 40), "collection is the bottleneck"),
    ((10, 5, 5, 80), (1, 99), "training is the bottleneck"),
    ((10, 5, 5, 80), (20, 80), "training is the bottleneck"),  # by turns, but the one is next to nothing
    ((70, 5, 5, 20), (80, 20), "collection is the bottleneck"),
    ((30, 15, 5, 50), (50, 50), "the learner waits 50 % of the time and the collector 50 %: they take turns; let them"),
    ((20, 10, 5, 65), (35, 65), "they take turns"),
    ((30, 15, 5, 50), (45, 55), "they take turns"),
    ((60, 30, 5, 5), (4, 96), "neither is the bottleneck"),
    ((50, 20, 5, 25), (30, 70), "each waits for the other now and then; a larger `lag`"),
    ((60, 30, 10, 5), (1, 100), "both are busy"),  # clocks of two sides never agree quite
    ((0, 0, 0, 120), (0, 100), "the collector 100 %: training is the bottleneck"),
]


@pytest.mark.parametrize(("collector", "learner", "said"), CASES)
@pytest.mark.parametrize("scale", [1, 1e-3])
def test_the_advice_names_the_bottleneck(collector, learner, said, scale):
    times = CollectorTime(*(scale * x for x in collector)), LearnerTime(*(scale * x for x in learner))
    assert said in advice(*times)
    lines = str(Stats(100, sum(times[1]), 12_345.6, *times)).splitlines()
    assert lines[0] == "12,346 steps/s"
    assert [line.split()[0] for line in lines[1:3]] == ["collector:", "learner:"]
    assert " ".join(lines[3:]).lower() == f"{advice(*times)}.".lower()
    assert max(map(len, lines)) < 80


ENGINE_NAMES = ("same", "threaded", "workers", "processes")


@pytest.fixture
def no_lock(monkeypatch):
    monkeypatch.setattr(interpreter, "has_lock", lambda: False)


@pytest.fixture
def with_lock(monkeypatch):
    monkeypatch.setattr(interpreter, "has_lock", lambda: True)


@pytest.mark.parametrize("has_lock", [True, False])
@pytest.mark.parametrize(("collector", "learner"), sorted({(collector, learner) for collector, learner, _ in CASES}))
@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_the_advice_names_nothing_that_the_engine_lacks(engine, collector, learner, has_lock, monkeypatch):
    monkeypatch.setattr(interpreter, "has_lock", lambda: has_lock)
    said = advice(CollectorTime(*collector), LearnerTime(*learner), engine)
    assert max(map(len, str(Stats(1, 1.0, 1.0, CollectorTime(*collector), LearnerTime(*learner), engine)).split())) < 80
    if engine == "processes":
        assert "`workers`" not in said
    if engine == "same":
        assert "`lag=1`" not in said
        assert "`workers`" not in said.replace("`threaded` with `workers`", "")
    # what shares the lock is told apart from what does not
    assert ("share the interpreter lock" in said) <= (engine == "threaded" and has_lock)


STEPPING_IS_SLOW = CollectorTime(80, 10, 5, 5), LearnerTime(90, 10)
TURNS = CollectorTime(40, 5, 5, 50), LearnerTime(50, 50)


def test_without_the_lock_worker_threads_are_advised_for_slow_steps(no_lock):
    for engine in ("same", "threaded", "workers"):
        assert "`worker='thread'`" in advice(*STEPPING_IS_SLOW, engine)
    assert "`threaded` with worker threads" in advice(*STEPPING_IS_SLOW, "processes")
    assert "the interpreter lock is off" in advice(*STEPPING_IS_SLOW, "same")


def test_with_the_lock_worker_threads_are_not_advised_for_slow_steps(with_lock):
    for engine in ENGINE_NAMES:
        assert "thread" not in advice(*STEPPING_IS_SLOW, engine).replace("`threaded`", "")


def test_without_the_lock_threaded_is_advised_for_two_sides_that_take_turns(no_lock):
    assert advice(*TURNS, "same").endswith("let them overlap: `threaded`, whose thread shares no interpreter lock here")


def test_with_the_lock_threaded_is_advised_only_for_steps_that_release_it(with_lock):
    assert "`threaded` if steps release the interpreter lock" in advice(*TURNS, "same")


def test_without_the_lock_time_spent_on_work_is_taken_for_work(no_lock):
    said = advice(CollectorTime(48, 4, 0, 47), LearnerTime(3, 97), "threaded")
    assert "would change nothing" in said
    assert "lock" not in said


def test_time_spent_waiting_for_the_interpreter_lock_is_not_taken_for_a_bottleneck(with_lock):
    times = CollectorTime(48, 4, 0, 47), LearnerTime(3, 97)  # environments that compute in Python, `threaded`
    said = advice(*times, "threaded")
    assert "They share the interpreter lock" in said
    assert "would change nothing" not in said
    assert "would change nothing" in advice(*times, "processes")
    assert max(map(len, str(Stats(1, 100.0, 476.0, *times, "threaded")).splitlines())) < 80


def test_the_engine_of_a_feed_is_known():
    for (make, _), expected in zip(
        ENGINES.values(), ["same", "threaded", "workers", "workers", "processes"], strict=True
    ):
        with make() as feed:
            assert feed.stats.engine == expected


@pytest.mark.parametrize(
    ("step", "training", "said"),
    [
        (STEP, 0.0, "collection is the bottleneck, and most of it is s"),
        (0.0, 20 * STEP, "training is the bottleneck"),
    ],
)
def test_the_advice_names_the_bottleneck_of_real_feeds(step, training, said):
    with open_feed(threaded.rollout, step) as feed:
        train(feed, 8, training)
        assert said in " ".join(str(feed.stats).split())


@pytest.fixture
def pass_time(monkeypatch):
    """Have time pass only where this function is called, by as many seconds as it is given."""
    now = 0.0

    def pass_time(seconds):
        nonlocal now
        now += seconds

    monkeypatch.setattr(clock_module, "perf_counter", lambda: now)
    monkeypatch.setattr(time, "sleep", pass_time)
    return pass_time


def test_the_advice_says_of_two_sides_that_take_turns_that_they_do(pass_time):
    with open_feed(same.rollout, STEP) as feed:
        train(feed, 8, T * B * STEP)
        assert "they take turns" in " ".join(str(feed.stats).split())


@pytest.mark.parametrize("haste", [0.0, 1.0])
def test_the_advice_names_slow_transfer(haste, pass_time):
    class SlowCopies(LaggingLane):
        """A lagging device whose copies take a while, whenever they happen."""

        def copy(self, target, source):
            self._queue(partial(pass_time, 5 * STEP))
            super().copy(target, source)

    with open_feed(same.rollout, STEP, device=SlowCopies(haste=haste, actor_on_host=not haste)) as feed:
        train(feed, 8, STEP)
        assert "collection is the bottleneck, and most of it is transfer" in " ".join(str(feed.stats).split())


# traces


def assert_trace_events(document):
    """See that it is in the Trace Event Format, as far as complete and metadata events go."""
    assert set(document) <= {"traceEvents", "displayTimeUnit"}
    assert document["displayTimeUnit"] in ("ms", "ns")
    for event in document["traceEvents"]:
        assert {"name", "ph", "ts", "pid", "tid"} <= set(event)
        assert isinstance(event["name"], str)
        assert type(event["pid"]) is type(event["tid"]) is int
        assert isinstance(event["ts"], int | float)
        assert event["ts"] >= 0
        if event["ph"] == "M":
            key = {"process_name": "name", "thread_name": "name", "thread_sort_index": "sort_index"}[event["name"]]
            assert list(event["args"]) == [key]
        else:
            assert event["ph"] == "X"
            assert set(event) - {"args"} == {"name", "cat", "ph", "ts", "dur", "pid", "tid"}
            assert ("args" in event) == (event["cat"] == "learner")
            assert isinstance(event["dur"], int | float)
            assert event["dur"] >= 0


def assert_in_order(spans):
    assert all(one[2] <= other[1] + 0.01 for one, other in itertools.pairwise(spans))
    assert all(start <= end for _, start, end in spans)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_trace_has_a_lane_without_gaps_for_each_thread_and_process(engine, tmp_path):
    make, others = ENGINES[engine]
    with make() as feed:
        train(feed, 2)  # nobody listens yet
        with feed.trace(tmp_path / "run.json") as recorded:
            train(feed)
    document = json.loads((tmp_path / "run.json").read_text())
    assert_trace_events(document)
    assert document["traceEvents"] == recorded.events
    lanes = lanes_of(recorded.events)
    assert list(lanes) == ["learner", "collector", *others]
    for spans in lanes.values():
        assert_in_order(spans)
        assert all(abs(one[2] - other[1]) < 0.01 for one, other in itertools.pairwise(spans))
    assert len(spans_of(lanes["learner"], "waiting")) == N
    assert [kind for kind, *_ in lanes["learner"]][-2 * N :] == ["waiting", "training"] * N
    collectors = [lanes[name] for name in ("collector", *others) if not name.startswith("worker")]
    assert {kind for spans in collectors for kind, *_ in spans} >= {"stepping", "inference", "transfer", "waiting"}
    learners = [event for event in recorded.events if event.get("cat") == "learner"]
    lag = 0 if engine == "same" else 1
    numbers = [event["args"] for event in learners if event["name"] == "training"][-N:]
    assert numbers == [{"fragment": k, "snapshot": max(0, k - lag)} for k in range(2, 2 + N)]
    pids = {event["pid"] for event in recorded.events}
    assert len(pids) == 1 + len(others) * (engine in ("processes", "multi"))
    named = {event["args"]["name"] for event in recorded.events if event["name"] == "process_name"}
    assert len(named) == len(pids)
    for name in others:
        assert spans_of(lanes[name], "waiting")
        assert len(spans_of(lanes[name], "stepping")) >= T * (N - 1)  # of the groups' turns some may be one span


class MeetingEnv(SleepingEnv):
    """Waits in each step, from the second fragment on, for the learner to train."""

    def __init__(self, meet):
        super().__init__(STEP)
        self.meet, self.n_steps = meet, 0

    def step(self, action):
        self.n_steps += 1
        if self.n_steps > T:
            self.meet()
        return super().step(action)


@pytest.mark.parametrize(("rollout", "overlaps"), [(same.rollout, False), (threaded.rollout, True)])
def test_the_lanes_are_busy_side_by_side_in_threaded_and_take_turns_in_same(rollout, overlaps):
    """On a busy machine the share of each lane may be anything; what the two sides have slept is in it."""

    def train_beside_steps():
        for _ in range(T * B):
            meet()
            time.sleep(STEP)

    meet = partial(threading.Barrier(2).wait, LONG) if overlaps else lambda: None
    with rollout([partial(MeetingEnv, meet) for _ in range(B)], AddsWeight(), T, seed=0) as feed:
        next(feed)
        with feed.trace() as recorded:
            train_beside_steps()
            for _, _ in zip(range(N), feed, strict=False):
                train_beside_steps()
    lanes = lanes_of(recorded.events)
    training, working = spans_of(lanes["learner"], "training"), spans_of(lanes["collector"], *BUSY)
    stepping = spans_of(lanes["collector"], "stepping")
    assert len(training) == N + 1
    assert all((overlap([span], stepping) > 0) == overlaps for span in training)
    for spans in (training, stepping):
        assert sum(end - start for _, start, end in spans) > 1e6 * N * T * B * STEP
    if not overlaps:
        total = max(end for spans in lanes.values() for *_, end in spans)
        assert sum(end - start for _, start, end in training + working) <= 1.001 * total
    assert_is_picture(plotting.timeline(recorded), n_lanes=2)


def test_a_trace_ends_with_its_feed_and_with_the_last_delivery(tmp_path):
    feed = open_feed(threaded.rollout)
    train(feed, 2)
    recorded = feed.trace(tmp_path / "run.json")
    with pytest.raises(RuntimeError, match="recorded already"):
        feed.trace()
    assert not recorded.events
    train(feed)
    feed.close()
    assert lanes_of(recorded.events)["learner"][-1][0] == "waiting"
    assert (tmp_path / "run.json").stat().st_size > 1000
    with pytest.raises(RuntimeError, match="closed"):
        feed.trace()


def test_a_forgotten_feed_writes_its_trace(tmp_path):
    feed = open_feed(threaded.rollout)
    feed.trace(tmp_path / "run.json")
    train(feed)
    del feed
    gc.collect()
    assert_trace_events(json.loads((tmp_path / "run.json").read_text()))


def test_one_trace_may_follow_another_and_an_unwritable_file_is_an_error(tmp_path):
    with open_feed(same.rollout) as feed:
        with pytest.raises(FileNotFoundError):
            feed.trace(tmp_path / "nowhere" / "run.json")
        for _ in range(2):
            with feed.trace() as recorded:
                train(feed)
            assert len(spans_of(lanes_of(recorded.events)["learner"], "waiting")) == N
        assert feed._progress.log is feed._clock.log is None
        assert not feed._progress.traced


def test_a_trace_says_how_many_spans_were_lost(monkeypatch):
    with open_feed(threaded.rollout, workers=1, lag=0) as feed:
        monkeypatch.setattr(SharedProgress, "drain", lambda self: 3)
        with pytest.warns(RuntimeWarning, match="lacks 6 spans"), feed.trace():
            train(feed, 1)


# streams


class Streams:
    """Streams on which every mark is told in advance: made by the host at one time, reached at another."""

    def __init__(self, reached):
        self._reached = iter(reached)

    def stamp(self, side):
        return next(self._reached, None)

    def seconds(self, one, other):
        return None if one is None or other is None else other - one


@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(0, 9)), min_size=2))
def test_marks_of_a_stream_are_converted_to_the_clock_of_the_host(turns):
    made = np.cumsum([lasting for lasting, _ in turns])
    reached = np.maximum.accumulate(made + [late for _, late in turns])  # never before they are made
    log, lane = [], Streams(reached)
    stream = timeline._StreamLog(log, lane, Place.ACTOR, [INFERENCE])
    spans = [(INFERENCE if k % 2 else STEPPING, *span) for k, span in enumerate(itertools.pairwise(made))]
    for span in spans:
        stream.append(span)
    stream.append((INFERENCE, made[-1], made[-1] + 1))  # which is not reached, and nobody waits for it
    stream.resolve()
    assert log[:-1] == spans
    marks = [(k, k + 1) for k in range(1, len(spans), 2)]
    off = min((reached[k] - made[k] for k in itertools.chain(*marks)), default=0.0)  # 0 if the stream was once idle
    assert [kind for kind, *_ in stream.stream_spans] == [INFERENCE] * len(marks)
    for (_, start, end), (k, then) in zip(stream.stream_spans, marks, strict=True):
        assert (start, end) == pytest.approx((reached[k] - off, reached[then] - off))


class TimedLane(LaggingLane):
    """A lagging device that tells the time."""

    def stamp(self, side):
        stream, told = {Place.ACTOR: self.collector, Place.CONSUMER: self.current}[side], []
        with self._lock:
            stream.pending.append(lambda: told.append(time.perf_counter()))
        return told

    def seconds(self, one, other):
        return other[0] - one[0] if one and other else None


@pytest.mark.parametrize("haste", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("rollout", [same.rollout, threaded.rollout])
def test_streams_have_lanes_of_their_own_in_a_trace(rollout, haste):
    lane = TimedLane(haste=haste)
    with open_feed(rollout, device=lane) as feed, feed.trace() as recorded:
        for _, fragment in zip(range(N), feed, strict=False):
            lane.launch(lambda x=fragment.state.obs: x.sum())
    lanes = lanes_of(recorded.events)
    assert list(lanes) == ["learner", "collector", "learner's stream", "collector's stream"]
    for spans in lanes.values():
        assert_in_order(spans)
    assert len(spans_of(lanes["collector"], "transfer")) >= N * T  # rows are uploaded one by one
    assert {kind for kind, *_ in lanes["collector's stream"]} == {"inference", "transfer"}
    assert {kind for kind, *_ in lanes["learner's stream"]} <= {"training"}
    assert_is_picture(plotting.timeline(recorded), n_lanes=4)


# pictures


def test_a_collector_that_waits_for_its_process_is_waiting():
    with single.rollout(partial(SleepingEnv, STEP), AddsWeight(), T, B, seed=0) as feed:
        train(feed, 2)
        with feed.trace() as recorded:
            train(feed, 4, 3 * T * B * STEP)
    lanes = lanes_of(recorded.events)
    parent, process = lanes["collector"], lanes["collector process 0"]
    assert {kind for kind, *_ in parent} <= {"waiting", "transfer"}
    assert {kind for kind, *_ in process} >= {"waiting", "stepping"}
    stepping = spans_of(process, "stepping")
    # a process may begin to step before its parent, which has just sent the request, runs again
    stepped = sum(end - start for _, start, end in stepping)
    assert overlap(stepping, spans_of(parent, "waiting", "transfer")) == pytest.approx(stepped)
    assert overlap(stepping, spans_of(parent, "waiting")) > 0
    figure = plotting.timeline(recorded)
    assert_is_picture(figure, n_lanes=3)
    total = max(end for spans in lanes.values() for *_, end in spans)
    both = float(re.search(r"busy at once (\d+) %", figure.axes[0].get_title("left"))[1])
    busy = overlap(spans_of(lanes["learner"], "training"), spans_of(process, *BUSY))
    assert both == pytest.approx(100 * busy / total, abs=2)
    assert [text.get_text() for text in figure.axes[0].texts if text.get_position()[0] != 1.01] == [
        f" {k}" for k in range(2, 6)
    ]


@given(st.lists(st.tuples(st.sampled_from(BUSY), st.floats(0.1, 9), st.floats(0, 3)), min_size=1))
def test_a_picture_fills_lanes_in_proportion_to_time(parts):
    at, spans = 0.0, []
    for kind, lasting, gap in parts:
        spans.append((kind, at, at + lasting))
        at += lasting + gap
    edges = np.linspace(0, at, 8)
    filled = _activity_shares(spans, edges)
    np.testing.assert_allclose(sum(filled.values()), 1)
    for kind in BUSY:
        expected = [overlap(spans_of(spans, kind), [(kind, a, b)]) / (b - a) for a, b in itertools.pairwise(edges)]
        np.testing.assert_allclose(filled[kind], expected, atol=1e-9)


def assert_is_picture(figure, n_lanes):
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert len(axes.get_yticklabels()) == n_lanes
    boxes = [
        box.get_window_extent()
        for box in (
            figure._suptitle,
            axes._left_title,
            *figure.legends,
            *axes.get_yticklabels(),
            *(text for text in axes.texts if text.get_position()[0] == 1.01),
            axes.patch,
        )
    ]
    for one, other in itertools.combinations(boxes, 2):
        assert not (one.shrunk(0.99, 0.99).overlaps(other.shrunk(0.99, 0.99))), (
            "legend, names and lanes must not overlap"
        )
    assert all(figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1 + 1 for box in boxes)


def test_a_picture_can_be_drawn_of_a_trace_and_of_its_file(tmp_path):
    path = tmp_path / "run.json"
    with open_feed(threaded.rollout, workers=2, worker="thread") as feed:
        with feed.trace(path) as recorded:
            with pytest.raises(ValueError, match="must have ended"):
                plotting.timeline(recorded)
            train(feed)
        for given_, options in ((path, {}), (str(path), {"fragments": None}), (recorded, {"fragments": 1})):
            figure = plotting.timeline(
                given_, title="a title that is long enough to reach far over to the other side", **options
            )
            assert_is_picture(figure, n_lanes=4)
            lines = len(figure.axes[0].lines)
            assert lines == {None: N, 1: 1}.get(options.get("fragments", 4), 4)
            assert "busy at once" in figure.axes[0].get_title("left")


@pytest.mark.parametrize("on_device", [False, True])
def test_a_trace_has_counters_of_what_a_step_on_a_device_takes(on_device):
    device = LaggingLane() if on_device else None
    with same.rollout(
        [gymnasium.make("CartPole-v1")], ActorCritic(mlp(4, 8, 2), mlp(4, 8, 1)), 5, device=device
    ) as feed:
        next(feed)
        before = feed.stats.counters
        with feed.trace() as trace:
            for _ in range(3):
                next(feed)
        costs = feed.stats.counters.since(before)
    counters = [event for event in trace.events if event["ph"] == "C"]
    if not on_device:
        assert not counters
        return
    assert [event["name"] for event in counters] == ["a step on the device", "bytes of a step"] * 3
    assert {tuple(event["args"]) for event in counters[::2]} == {
        ("copies_up", "copies_down", "host_waits", "launches", "allocations")
    }
    for name in ("copies_up", "copies_down", "host_waits", "launches"):
        told = sum(5 * event["args"][name] for event in counters[::2])
        assert told == pytest.approx(getattr(costs, name), abs=3), name  # what the consumer asks for after a delivery
    assert all(0 <= a["ts"] <= b["ts"] for a, b in itertools.pairwise(counters))
    assert all(event["args"]["bytes_down"] >= 8 for event in counters[1::2])
