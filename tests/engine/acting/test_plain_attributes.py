"""Plain attributes of the learner's actor flow with the snapshots, in every engine, and what the copy changes stays."""

from __future__ import annotations

import functools
import math
import random
import warnings

import gymnasium.spaces
import numpy as np
import pytest
import torch
from torch import nn

from rlplay.engine import BaseActorModule
from rlplay.engine.acting.compile import attribute_reads, compiled, inductor
from rlplay.engine.acting.compile.captured_step import StepTrials
from rlplay.engine.rollout import evaluate, multi, same, single, threaded
from rlplay.testing import LaggingLane, make_ledger

pytestmark = pytest.mark.usefixtures("no_monitor")

factory = functools.partial(make_ledger, gymnasium.spaces, 0)


def opened(engine, actor, n_steps=3, lag=0, **options):
    if engine is single:
        return single.rollout(factory, actor, n_steps, 2, lag=lag, seed=0, **options)
    return engine.rollout(
        [make_ledger(gymnasium.spaces, j) for j in range(2)], actor, n_steps, lag=lag, seed=0, **options
    )


class Reports(BaseActorModule):
    """Reports a number that it makes of its attributes."""

    def __init__(self, **attributes):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.part = nn.Identity()
        vars(self).update(attributes)

    def number(self):
        return self.eps

    def forward(self, obs, *, fin, hx=None, **ignored):
        shown = torch.full(fin.shape, float(self.number())) + 0 * self.weight
        return torch.zeros_like(fin, dtype=torch.int64), (), {"shown": shown.double()}


@pytest.mark.parametrize("engine", [same, threaded, single])
@pytest.mark.parametrize("lag", [0, 2])
def test_a_schedule_in_an_attribute_keeps_the_exact_lag(engine, lag):
    actor = Reports(eps=1.0)
    with opened(engine, actor, lag=lag) as feed:
        actor.eps = 0.0  # between the call and the first ask
        for k in range(6):
            assert (next(feed).actor["shown"] == max(0, k - lag)).all()
            actor.eps = k + 1.0


VALUES = [1, np.float32(2), np.int64(3), True, 0.5, math.nan, 1.0, -0.0]


def test_every_kind_of_plain_value_flows_with_its_type():
    class Kinds(Reports):
        def number(self):
            kinds = [type(value) for value in [*VALUES, "text", None]]
            return kinds.index(type(self.eps)) + (isinstance(self.eps, float) and math.copysign(1, self.eps) < 0) * 100

    actor = Kinds(eps=0)
    with opened(same, actor) as feed:
        next(feed)
        for value in [*VALUES, "text", None, False, "text"]:
            actor.eps = value
            actor_shows = float(actor.number())
            assert (next(feed).actor["shown"] == actor_shows).all(), value


class Counts(Reports):
    """Changes its attribute itself at each step that is carried out."""

    def forward(self, obs, *, virtual, **others):
        answer = super().forward(obs, **others)
        if not virtual:
            self.eps += 1
        return answer


@pytest.mark.parametrize("engine", [same, threaded, single])
def test_what_the_copy_changes_itself_stays_until_the_learner_changes_it(engine):
    actor = Counts(eps=0)
    with opened(engine, actor) as feed:
        assert next(feed).actor["shown"][:, 0].tolist() == [0, 1, 2, 3]
        assert next(feed).actor["shown"][:, 0].tolist() == [3, 4, 5, 6]
        actor.eps = 100
        assert next(feed).actor["shown"][:, 0].tolist() == [100, 101, 102, 103]
        actor.eps = 100  # no change
        assert next(feed).actor["shown"][:, 0].tolist() == [103, 104, 105, 106]


def test_a_snapshot_that_is_repeated_does_not_undo_what_the_copy_changes():
    actor = Counts(eps=0)
    with opened(same, actor, lag=2) as feed:
        actor.eps = 10  # part of the first snapshot, which three fragments are collected with
        firsts = [next(feed).actor["shown"][0, 0].item() for _ in range(3)]
        assert firsts == [10, 13, 16]


def test_new_attributes_flow_and_deleted_ones_are_deleted_in_submodules_too():
    class Has(Reports):
        def number(self):
            return getattr(self.part, "extra", -1)

    actor = Has()
    shown = []
    with opened(same, actor) as feed:
        for change in (lambda: None, lambda: setattr(actor.part, "extra", 5), lambda: delattr(actor.part, "extra")):
            change()
            shown.append(next(feed).actor["shown"][0, 0].item())
    assert shown == [-1, 5, -1]


@pytest.mark.parametrize("engine", [same, threaded, single])
@pytest.mark.parametrize("value", [[1.0], torch.tensor(1.0), {"a": 1}, max])
def test_an_attribute_that_is_no_longer_plain_is_refused_and_the_feed_goes_on(engine, value):
    actor = Reports(eps=1.0)
    actor.part.rate = 2
    with opened(engine, actor) as feed:
        next(feed)
        actor.part.rate = value
        actor.eps = 3.0
        with torch.no_grad():
            actor.weight += 1
        with pytest.raises(ValueError, match=r"'part\.rate' was 2 and is now a "):
            next(feed)
        actor.part.rate = 2
        fragment = next(feed)
        assert (fragment.actor["shown"] == 3).all()
        assert feed.version == 1


def test_torchs_own_attributes_and_the_generator_do_not_flow():
    class Own(Reports):
        def number(self):
            return float(self.generator is not None)

    actor = Own()
    with opened(same, actor) as feed:
        next(feed)
        actor.generator = None
        assert (next(feed).actor["shown"] == 1).all()


def test_processes_that_skip_snapshots_miss_no_change():
    actor = Reports(eps=0.0)
    with multi.rollout(factory, actor, 3, 3, 1, n_per_batch=1, seed=0) as feed:
        for k in range(1, 10):
            (version,) = (fragment := next(feed)) and feed.version
            assert (fragment.actor["shown"] == version).all()
            actor.eps = float(k)


def test_an_evaluation_in_the_background_has_the_attributes_of_its_moment():
    class Score(Reports):
        def step(self, stepno, obs, act, rew, fin, /, *, hx, virtual):
            if self.eps:
                raise RuntimeError(f"eps is {self.eps}")
            return torch.zeros_like(fin, dtype=torch.int64), (), ()

    actor = Score(eps=0)
    with evaluate.background(factory, actor, 1, n_steps=2) as examiner:
        actor.eps = 7
        next(examiner)
        with pytest.raises(RuntimeError, match="eps is 7"):
            next(examiner)


# ---- compiled and captured steps


@pytest.fixture
def traced(monkeypatch):
    """Return a list to which each traced graph is added, and one for each that is compiled."""
    graphs, programs, make, compile_graph = [], [], compiled.make_graph, inductor.compile_graph
    monkeypatch.setattr(compiled, "make_graph", lambda *args: graphs.append(make(*args)) or graphs[-1])
    monkeypatch.setattr(inductor, "compile_graph", lambda graph: programs.append(graph) or compile_graph(graph))
    return graphs, programs


class Steps(Reports):
    """Has a counter of the learner's, one of the class's, a threshold, and an epsilon."""

    n_updates = 0

    def __init__(self):
        super().__init__(eps=0.5, count=0, threshold=0.0)

    def update(self):
        self.n_updates += 1

    def number(self):
        return self.eps * (2 if self.threshold > 1 else 1)


LANES = ["compiled", "captured"]


def opened_fast(where, actor, lag=0):
    options = {} if where == "compiled" else {"device": LaggingLane(consumer_on_host=True), "lag": lag}
    return same.rollout([make_ledger(gymnasium.spaces, j) for j in range(2)], actor, 3, seed=0, compile=True, **options)


@pytest.mark.parametrize("where", LANES)
def test_counters_that_the_step_does_not_read_cost_nothing(where, traced):
    graphs, programs = traced
    actor = Steps()
    with opened_fast(where, actor) as feed:
        for k in range(4):
            next(feed)
            actor.count += 1
            actor.update()
            if k == 1:
                so_far = len(graphs), len(programs)
        assert (len(graphs), len(programs)) == so_far
        assert feed._driver.collector._behaviour._module.count == 3
        assert feed._driver.collector._behaviour.eager_because == ""


@pytest.mark.parametrize("where", LANES)
def test_a_change_that_alters_the_step_is_never_frozen(where, traced):
    _, programs = traced
    actor, shown = Steps(), []
    with warnings.catch_warnings(record=True) as caught, opened_fast(where, actor) as feed:
        warnings.simplefilter("always")
        for change in ({}, {"threshold": 0.5}, {"eps": 0.25}, {"threshold": 2.0}, {"eps": 0.5, "threshold": 0.5}):
            vars(actor).update(change)
            shown.append(next(feed).actor["shown"].unique().item())
    assert shown == [0.5, 0.5, 0.25, 0.5, 0.5]
    complaints = [str(w.message) for w in caught if "compile=" in str(w.message)]
    if where == "compiled":
        assert not complaints
        assert len({str(graph.code) for graph in programs}) == len(programs)  # none was compiled twice
    else:
        assert len(complaints) == 1
        assert "`eps`" in complaints[0]
        assert "register_buffer" in complaints[0]


def complaints_of_a_schedule(where):
    """Return the warnings of a step that a schedule changes in each fragment; check that it uses the present values."""
    actor = Steps()
    with warnings.catch_warnings(record=True) as caught, opened_fast(where, actor) as feed:
        warnings.simplefilter("always")
        for k in range(12):
            actor.eps = k / 8
            assert (next(feed).actor["shown"] == k / 8).all()
    return [str(w.message) for w in caught if "compile=" in str(w.message)]


def test_a_schedule_that_alters_a_compiled_step_again_and_again_makes_it_eager_with_one_warning(traced):
    _graphs, programs = traced
    complaints = complaints_of_a_schedule("compiled")
    assert len(complaints) == 1
    assert "`eps`" in complaints[0]
    assert "register_buffer" in complaints[0]
    assert len(programs) <= 7


def test_a_schedule_that_alters_a_captured_step_again_and_again_makes_it_eager_and_is_no_longer_tried_out(monkeypatch):
    tried, judge = [], attribute_reads.Alterations.judge

    def counted(self, *args):
        tried.append(args)
        return judge(self, *args)

    monkeypatch.setattr(attribute_reads.Alterations, "judge", counted)
    complaints = complaints_of_a_schedule("captured")
    assert ["from now on" in one for one in complaints] == [False, True]
    assert all("`eps`" in one for one in complaints)
    assert len(tried) <= 7


class Explores(Reports):
    """Reads an epsilon only while it explores."""

    def __init__(self, read):
        super().__init__(explore=False, epsilon=1.0)
        self.read = read

    @property
    def current(self):
        return self.epsilon if self.explore else 0.0

    def number(self):
        return self.read(self)


def by_missing_attribute(actor):
    try:
        return actor.epsilon + (0.5 if actor.explore else 0.0)
    except AttributeError:
        return 8.0


CONDITIONS = {
    "if": lambda actor: getattr(actor, "epsilon", 7.0) if actor.explore else 0.0,
    "or": lambda actor: float(bool(actor.explore or getattr(actor, "epsilon", 0.0) > 0.5)),
    "getattr": lambda actor: 2.0 if getattr(actor, "explore", False) else getattr(actor, "epsilon", 0.0) // 1,
    "hasattr": lambda actor: 3.0 if hasattr(actor, "epsilon") else float(actor.explore),
    "vars": lambda actor: vars(actor).get("epsilon", 4.0) if vars(actor).get("explore", False) else 0.0,
    "in vars": lambda actor: 5.0 if "epsilon" in vars(actor) else float(actor.explore),
    "try": by_missing_attribute,
    "property": lambda actor: actor.current if hasattr(actor, "epsilon") else 6.0,
    "type": lambda actor: getattr(actor, "epsilon", 0.5) if type(actor) is Explores else -1.0,
}


@pytest.fixture
def no_compiler(monkeypatch):
    """Run graphs as they were traced, and let no number of changes make the step eager."""
    monkeypatch.setattr(inductor, "compile_graph", lambda graph: lambda operands: graph(*operands))
    monkeypatch.setattr(attribute_reads, "_MOST_ALTERED", 1000)
    monkeypatch.setattr(attribute_reads, "_MOST_TRACED", 1000)


def numbers_shown(changes, actor, feed):
    """Return the number that the actor reports in each fragment, one after each change of its attributes."""
    shown = [next(feed).actor["shown"].unique().item()]
    for change in changes:
        for name, value in change.items():
            if value is None:
                vars(actor).pop(name, None)
            else:
                setattr(actor, name, value)
        shown.append(next(feed).actor["shown"].unique().item())
    return shown


QUICK = "if", "getattr", "vars"


@pytest.mark.parametrize(
    "form", [one if one in QUICK else pytest.param(one, marks=pytest.mark.soak) for one in CONDITIONS]
)
@pytest.mark.parametrize("where", LANES)
@pytest.mark.usefixtures("no_compiler")
@pytest.mark.filterwarnings("ignore:`compile=True`. the actor's step runs eagerly")
def test_an_attribute_that_is_read_only_under_a_condition_is_never_frozen(where, form):
    rng = random.Random(form)
    some = [{"epsilon": 0.75}, {"explore": True}, {"epsilon": 0.25}, {"explore": False}, {"epsilon": 0.5}]
    explore = [False, True, None] if form in ("getattr", "vars") else [False, True]
    some += [
        {name: rng.choice(values)}
        for _ in range(20)
        for name, values in [rng.choice([("explore", explore), ("epsilon", [None, 0.25, 1.0, 1.5])])]
    ]
    expected, got = Explores(CONDITIONS[form]), Explores(CONDITIONS[form])
    with opened(same, expected) as feed, opened_fast(where, got) as fast:
        assert fast._driver.collector._behaviour.eager_because == ""
        assert numbers_shown(some, got, fast) == numbers_shown(some, expected, feed)


@pytest.mark.parametrize("where", LANES)
@pytest.mark.usefixtures("no_compiler")
@pytest.mark.filterwarnings("ignore:`compile=True`. the actor's step runs eagerly")
def test_a_schedule_that_is_not_read_at_the_moment_costs_nothing(where, traced, monkeypatch):
    graphs, trials, operations = traced[0], [], StepTrials.operations
    monkeypatch.setattr(StepTrials, "operations", lambda *args: trials.append(None) or operations(*args))
    actor, counted = Explores(CONDITIONS["if"]), []
    with opened_fast(where, actor) as feed:
        for explore in (False, True, False):
            actor.explore = explore
            assert numbers_shown([{"epsilon": 3.0}], actor, feed)[1] == 3.0 * explore
            before = len(graphs), len(trials)
            numbers_shown([{"epsilon": k / 64} for k in range(30 * (not explore))], actor, feed)
            counted.append((len(graphs) - before[0], len(trials) - before[1]))
    assert counted[0] == counted[2] == (0, 0)


def test_a_refused_step_is_tried_again_only_if_an_attribute_that_it_reads_changes(traced):
    class Refused(Steps):
        def number(self):
            tried.append(None)
            return super().number() + (1.0 if self.weight > 1 else 0.0)

    tried, actor = [], Refused()
    with pytest.warns(RuntimeWarning, match="runs eagerly"):
        feed = opened_fast("compiled", actor)
    with feed:
        next(feed)
        actor.count += 1
        next(feed)
        so_far = len(tried)
        next(feed)
        steps = len(tried) - so_far
        for _ in range(5):
            actor.count += 1
            next(feed)
        assert len(tried) == so_far + 6 * steps
        for k in range(30):
            actor.eps = k / 32
            assert (next(feed).actor["shown"] == k / 32).all()
            if k == 25:
                so_far = len(tried)
        assert len(tried) == so_far + 4 * steps


@pytest.mark.soak
def test_a_compiled_step_in_another_process_is_not_frozen_either():
    actor = Steps()
    with single.rollout(factory, actor, 3, 2, lag=1, seed=0, compile=True) as feed:
        for k in range(4):
            assert (next(feed).actor["shown"] == (0.5 if k < 3 else 0.25)).all()
            if k == 1:
                actor.eps = 0.25
