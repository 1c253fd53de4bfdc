"""A stream that was saved goes on as if nothing had happened: in another feed, another engine, another process."""

import threading
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlplay import checkpoint
from rlplay.engine.rollout import same, single, threaded
from rlplay.testing import LaggingLane
from rlplay.zoo.actors import ActorCritic, mlp
from tests.support.assertions import assert_same_bytes
from tests.support.noisy import Noisy
from tests.support.saving import (
    ENVIRONMENTS,
    Changing,
    Learner,
    assert_goes_on,
    case_of,
    check,
    collect,
    go_on,
    go_on_in_new_process,
    open_feed,
    start,
    through_torch,
)

LISTS = ["gym", "noisy", "recall", "autoreset", "factories"]
VECTORS = ["SAME_STEP", "NEXT_STEP", "DISABLED"]

pytestmark = pytest.mark.filterwarnings("ignore:.*reset.*mask:RuntimeWarning")


def single_rollout(envs, *args, **options):
    return single.rollout(envs[0], *args, n_envs=len(envs), **options)


@st.composite
def cases(draw):
    kind = draw(st.sampled_from(LISTS + VECTORS))
    n_envs = draw(st.integers(1, 4))
    engines = st.sampled_from(["same", "threaded"])
    options = {
        "lag": draw(st.integers(0, 3)),
        "groups": draw(st.integers(1, min(n_envs, 2))),
        "final": draw(st.booleans()),
        "sticky": kind in LISTS and draw(st.booleans()),
        "info": ("hint",) if kind == "noisy" and draw(st.booleans()) else (),
    }
    return case_of(
        kind, n_envs, draw(st.integers(0, 5)), 4, draw(engines), draw(st.integers(1, 12)), start_in=draw(engines),
        **options,
    )  # fmt: skip


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases())
def test_a_saved_stream_goes_on_bit_for_bit_in_either_engine(case):
    check(case)


@pytest.mark.parametrize("kind", ["autoreset", *VECTORS])
def test_environments_that_reset_themselves_go_on_from_every_row(kind):
    """Fragments of one step: the stream is saved right at an end, right after it, and in between."""
    for before in range(1, 7):
        check(case_of(kind, before=before, n_steps=1, final=True, after=4))


@pytest.mark.soak
def test_saved_streams_go_on_in_a_new_process(tmp_path):
    some = [
        case_of("gym", lag=0, final=True),
        case_of("gymnasium", lag=1, to="threaded", groups=2),
        case_of("recall", lag=2, start_in="threaded", before=1),
        case_of("noisy", lag=1, start_in="threaded", to="threaded", sticky=True),
        case_of("NEXT_STEP", lag=2, to="threaded", n_steps=15),
        case_of("factories", lag=1, start_in="processes-2", to="processes-1", groups=2, final=True),
    ]
    if find_spec("ale_py"):
        some.append(case_of("breakout", lag=1, n_envs=2))
    started = [start(case) for case in some]
    path = tmp_path / "cases.pt"
    checkpoint.save(path, {"cases": [(case, saved) for case, (saved, *_) in zip(some, started, strict=True)]})
    for (_, *expected), got in zip(started, go_on_in_new_process(path), strict=True):
        assert_goes_on(expected, got)


@pytest.fixture(scope="module")
def saved():
    return start(case_of(lag=1, n_envs=4, info=("hint",)))[0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"lag": 2}, r"`lag`: saved with 1, now 2"),
        ({"n_steps": 4}, r"`n_steps`: saved with 5, now 4"),
        ({"groups": 2}, r"`groups`, or `n_actors`: saved with 1, now 2"),
        ({"sticky": True}, r"`sticky`: saved with False, now True"),
        ({"final": True}, r"`final`"),
        ({"info": {"hint": int}}, r"`info`: saved with hint: .*, now hint: "),
        ({"shard": (0, 2), "seed": 1}, r"`shard`"),
        ({"device": LaggingLane()}, r"the actor's device: saved with the host, now a device"),
    ],
)
def test_another_option_is_refused_by_naming_it(saved, change, told):
    case = case_of(lag=1, n_envs=4, info=("hint",))
    case["options"] |= change
    with pytest.raises(ValueError, match=told):
        go_on(case, saved)


def test_other_environments_and_another_actor_are_refused_by_naming_the_difference(saved):
    options = {"lag": 1, "info": ("hint",)}
    with pytest.raises(ValueError, match="environments in each group: saved with 4, now 3"):
        go_on(case_of(n_envs=3, **options), saved)
    actor, envs = Changing(4, 2), ENVIRONMENTS["gym"](4)
    with pytest.raises(ValueError, match=r"observations: saved with obs: float32 \(3,\), now obs: float32 \(4,\)"):
        same.rollout(envs, actor, 5, state=saved["feed"], **options)
    envs = [gymnasium.wrappers.TimeLimit(Noisy(), 9) for _ in range(4)]
    with pytest.raises(ValueError, match=r"environment 0 was .*Noisy, and is .*TimeLimit > .*Noisy"):
        same.rollout(envs, Changing(3, 2), 5, state=saved["feed"], **options)
    other = Changing(3, 2)
    other.head = torch.nn.Linear(5, 2, bias=False)
    with pytest.raises(ValueError, match=r"parameters and buffers of the actor: saved with head.bias: float32 \(2,\)"):
        same.rollout(ENVIRONMENTS["noisy"](4), other, 5, state=saved["feed"], **options)

    class TellsLess(Changing):
        def forward(self, obs, **others):
            act, hx, info = super().forward(obs, **others)
            return act, hx, {"logits": info["logits"]}

    with pytest.raises(ValueError, match=r"infos of the actor: saved with info\['own'\]: float32 \(4,\)"):
        same.rollout(ENVIRONMENTS["noisy"](4), TellsLess(3, 2), 5, state=saved["feed"], **options)


@pytest.mark.parametrize("mode", ["SAME_STEP", "DISABLED"])
def test_another_autoreset_mode_is_refused(mode):
    saved = start(case_of("NEXT_STEP", n_envs=2, lag=1))[0]
    with pytest.raises(ValueError, match=f"had the autoreset mode NEXT_STEP, and has {mode}"):
        go_on(case_of(mode, n_envs=2, lag=1), saved)


def test_what_is_no_state_and_another_version_are_refused(saved):
    for wrong in (7, {"actor": {}}):
        with pytest.raises(TypeError, match=r"`state` must be what `feed.state_dict\(\)` has returned"):
            same.rollout(ENVIRONMENTS["noisy"](4), Changing(3, 2), 5, state=wrong)
    with pytest.raises(ValueError, match=r"saved by rlplay 0\.0\.9, and this is rlplay"):
        same.rollout(ENVIRONMENTS["noisy"](4), Changing(3, 2), 5, state=saved["feed"] | {"rlplay": "0.0.9"})


def test_a_refused_state_leaves_environments_usable_and_those_of_factories_closed(saved):
    closed = []

    class Closes(Noisy):
        def close(self):
            closed.append(self)

    with pytest.raises(ValueError, match=r"is .*Closes"):
        same.rollout([Closes] * 4, Changing(3, 2), 5, state=saved["feed"], lag=1, info=("hint",))
    assert len(closed) == 4


def test_restarted_environments_begin_new_episodes_with_other_seeds_and_all_else_goes_on():
    case = case_of(lag=0, n_envs=4, after=2, final=True)
    learner = Learner("noisy")
    with open_feed(case, learner, "same", seed=3) as feed:
        collect(feed, learner, 2)
        saved, last = through_torch(feed.state_dict(environments="restart")), next(feed)
        assert saved["collector"]["environments"][0]["env"] is None
    first = []
    for seed in (1, 2):  # the seed is not used
        with open_feed(case, Learner("noisy"), "same", state=saved, seed=seed) as feed:
            first.append(next(feed))
            assert feed.version == 2
            assert {one.length for one in feed.episodes() if one.env in first[-1].env.final.b} <= set(range(1, 6))
    state = first[0].state
    assert state.fin[0].all()
    assert (state.stepno[0] == 0).all()
    assert torch.equal(state.act[0], last.state.act[0])
    assert torch.equal(state.rew[0], last.state.rew[0])
    assert (first[0].hx == 0).all()
    assert_same_bytes(*first)
    with open_feed(case, Learner("noisy"), "same", seed=3) as feed:
        assert not torch.equal(next(feed).state.obs[0], state.obs[0])  # not the seeds of the beginning


@pytest.mark.parametrize("asked", [0, 1])
@pytest.mark.parametrize(
    "open_feed", [same.rollout, threaded.rollout, pytest.param(single_rollout, marks=pytest.mark.soak)]
)
def test_the_actor_goes_on_under_the_autocast_of_the_first_ask_wherever_the_feed_is_made(open_feed, asked):
    """As in the guide's program for mixed precision: the feed is made before the block, and asked inside of it."""
    actor, envs, options = ActorCritic(mlp(3, 4, 2), mlp(3, 4, 1)), [Noisy, Noisy], {"n_steps": 5, "lag": 1}
    mixed = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    with open_feed(envs, actor, seed=3, **options) as feed, mixed():
        for _ in range(asked):
            next(feed)
        saved, expected = through_torch(feed.state_dict()), [next(feed) for _ in range(3)]
    assert expected[0].actor["logits"].dtype == torch.bfloat16
    for made_in, asked_in in ((nullcontext, mixed), (mixed, nullcontext if asked else mixed)):
        with made_in():
            feed = open_feed(envs, actor, state=saved, **options)
        with feed, asked_in():
            assert_same_bytes([next(feed) for _ in range(3)], expected)


def test_a_state_draws_nothing_from_the_global_generator(saved):
    before = torch.get_rng_state()
    actor = Changing(3, 2)
    torch.set_rng_state(before)
    same.rollout(ENVIRONMENTS["noisy"](4), actor, 5, state=saved["feed"], lag=1, info=("hint",)).close()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("engine", ["same", "threaded"])
def test_saving_twice_before_the_first_fragment_of_a_resumed_feed_changes_nothing(engine):
    case = case_of(lag=2, to=engine, start_in=engine)
    saved, *expected = start(case)
    learner = Learner("noisy")
    learner.load_state_dict(saved["learner"])
    with open_feed(case, learner, engine, state=saved["feed"]) as feed:
        again = through_torch({"feed": feed.state_dict(), "learner": saved["learner"]})
    for one in [through_torch(again) for _ in range(2)]:
        assert_goes_on(expected, go_on(case, one))


@pytest.mark.parametrize("engine", ["same", "threaded"])
def test_the_feed_goes_on_as_if_nothing_had_been_asked(engine):
    case, found = case_of(lag=2, n_envs=2), []
    for saves in (False, True):
        learner = Learner("noisy")
        with open_feed(case, learner, engine, seed=3) as feed:
            one = []
            for _ in range(5):
                one += collect(feed, learner, 1)
                if saves:
                    feed.state_dict()
            found.append((one, learner.state_dict()))
    assert_goes_on(*found)


@pytest.mark.parametrize("engine", [same, threaded])
def test_an_environment_that_cannot_be_saved_is_named_and_the_feed_goes_on(engine):
    envs = [Noisy(), Noisy()]
    envs[1].lock = threading.Lock()
    with engine.rollout(envs, Changing(3, 2), 5, lag=1) as feed:
        next(feed)
        with pytest.raises(TypeError, match=r"environment 1 cannot be saved: `env\.lock`"):
            feed.state_dict()
        assert feed.state_dict(environments="restart")["environments"] == "restart"
        next(feed)
        with pytest.raises(ValueError, match="'save' or 'restart'"):
            feed.state_dict(environments="all")
    with pytest.raises(RuntimeError, match="closed"):
        feed.state_dict()


def test_fragments_completed_before_an_error_are_still_delivered_after_a_vain_attempt_to_save():
    class Fails(Noisy):
        n = 0

        def step(self, action):
            self.n += 1
            if self.n > 12:
                raise OSError("gone")
            return super().step(action)

    with threaded.rollout([Fails()], Changing(3, 2), 5, lag=3) as feed:
        next(feed)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="collecting has failed"):
                feed.state_dict()
        next(feed)
        with pytest.raises(OSError, match="gone"):
            next(feed)
        with pytest.raises(RuntimeError, match="ended"):
            feed.state_dict()


@pytest.mark.parametrize("engine", [same, threaded])
def test_saving_inside_of_a_step_is_refused(engine):
    class Saves(Noisy):
        def step(self, action):
            feed.state_dict()

    feed = engine.rollout([Saves()], Changing(3, 2), 5)
    with feed, pytest.raises(RuntimeError, match=r"was called (inside|by)"):
        next(feed)


def test_environments_are_saved_in_the_thread_that_steps_them():
    threads = set()

    class Bound(Noisy):
        def step(self, action):
            threads.add(threading.current_thread())
            return super().step(action)

        def get_state(self):
            threads.add(threading.current_thread())

        def set_state(self, state):
            threads.add(threading.current_thread())

    with threaded.rollout([Bound], Changing(3, 2), 5) as feed:
        next(feed)
        feed.state_dict()
    assert len(threads) == 1


def test_options_that_are_numbers_of_numpy_are_saved_as_those_of_python():
    options = {"lag": np.int8(1), "groups": np.int32(2), "sticky": np.True_, "shard": (np.int64(0), np.int64(2))}
    feed = same.rollout(ENVIRONMENTS["noisy"](4), Changing(3, 2), np.int64(5), seed=np.uint8(3), **options)
    next(feed)
    saved = through_torch(feed.state_dict())
    expected = next(feed)
    options = {"lag": 1, "groups": 2, "sticky": True, "shard": (0, 2)}
    resumed = same.rollout(ENVIRONMENTS["noisy"](4), Changing(3, 2), 5, seed=3, state=saved, **options)
    assert torch.equal(next(resumed).state.obs, expected.state.obs)


def test_a_shard_goes_on_with_the_seed_of_its_state():
    actor = Changing(3, 2)
    feed = same.rollout([Noisy], actor, 5, seed=3, shard=(1, 2))
    next(feed)
    saved, expected = through_torch(feed.state_dict()), next(feed)
    resumed = same.rollout([Noisy], actor, 5, state=saved, shard=(1, 2))
    assert_same_bytes([next(resumed)], [expected])


class WithAnAttributeMore(Changing):
    def __init__(self, *args):
        super().__init__(*args)
        self.temperature = 1.0

    def forward(self, obs, **others):
        return super().forward(obs / self.temperature, **others)


@pytest.mark.parametrize(("engine", "lag"), [(same, 0), (threaded, 1)])
def test_a_stream_goes_on_with_an_actor_that_has_got_another_plain_attribute(engine, lag):
    actor, others = Changing(3, 2), WithAnAttributeMore(3, 2)
    others.load_state_dict(actor.state_dict())
    with engine.rollout([Noisy], actor, 5, seed=3, lag=lag) as feed:
        next(feed)
        saved, expected = through_torch(feed.state_dict()), [next(feed) for _ in range(3)]
    with engine.rollout([Noisy], others, 5, state=saved, lag=lag) as feed:
        assert_same_bytes([next(feed) for _ in range(3)], expected)
