"""`compile=True` on a device: captured steps equal eager ones bit for bit, or the step runs eagerly.

The lagging device records the operations of a capture, and repeats them without Python. For a GPU see test_cuda.py.
"""

import re
import warnings
from functools import partial
from operator import attrgetter

import gym
import pytest
import torch
from torch import nn

from rlplay.engine import BaseActorModule
from rlplay.engine.acting.behaviour import Behaviour
from rlplay.engine.acting.compile import step_checks
from rlplay.engine.acting.compile.captured import CapturedBehaviour
from rlplay.engine.acting.compile.compiled import CompiledBehaviour
from rlplay.engine.acting.make import make_behaviour
from rlplay.engine.memory.lane import Lane, Place
from rlplay.engine.rollout import same, threaded
from rlplay.testing import CountingActor, LaggingLane, LedgerEnv
from rlplay.zoo.actors import ActorCritic, GaussianActorCritic, QNetwork, mlp
from tests.support import collecting
from tests.support.actors import (
    AdvancesStateInPlace,
    AnswerActor,
    AssignsBuffer,
    BranchesOnData,
    ChangesBuffers,
    ChangesTensorAttribute,
    Convolves,
    CountsInAttribute,
    DrawsFirstState,
    DrawsFromNumpyRandom,
    DrawsFromOwnGenerator,
    DrawsFromPythonRandom,
    DrawsFromTorchGenerator,
    KeepsStateFromVirtualSteps,
    RemembersObservation,
    ReportsModes,
    SwapsState,
    TiedWeights,
)
from tests.support.assertions import assert_identical
from tests.support.collecting import (
    REAL_GRAPHS,
    VIRTUAL_GRAPHS,
    collected,
    collected_seeded,
    compile_warnings_of,
    ledgers,
    shift_weights,
    switch_mode,
)
from tests.support.training import GruWithBuffer, run_training

# eager steps on the host are the reference, so the host has to draw noise call by call, too
pytestmark = pytest.mark.usefixtures("no_stock")

cartpole = partial(gym.make, "CartPole-v1")


def cartpoles():
    return [cartpole() for _ in range(5)]


@pytest.fixture
def steps(monkeypatch):
    """Count captures, and replays of what was captured."""
    counts, really = {"captured": 0, "taken": 0}, LaggingLane.capture

    def capture(lane, work, generators, key=0):
        again = really(lane, work, generators, key)
        counts["captured"] += 1

        def counted():
            counts["taken"] += 1
            again()

        return counted

    monkeypatch.setattr(LaggingLane, "capture", capture)
    return counts


# ---- captured steps equal eager ones


@pytest.mark.parametrize("engine", [same, threaded])
@pytest.mark.parametrize("haste", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("lag", "groups"), [(0, 1), (1, 2), (2, 3)])
def test_captured_steps_are_the_eager_ones_bit_for_bit(engine, haste, lag, groups, steps):
    expected, _ = run_training(same, lag=lag, groups=groups)
    got, _ = run_training(engine, lag=lag, groups=groups, compile=True, device=LaggingLane(haste=haste))
    assert_identical(expected, got)
    assert steps["captured"] == 2 * (REAL_GRAPHS + VIRTUAL_GRAPHS) * groups  # in train and in eval mode
    assert steps["taken"] >= 7 * 12 * groups


@pytest.mark.parametrize("options", [{"sticky": True}, {"n_steps": 1}, {"n_steps": 2, "sticky": True}], ids=str)
def test_captured_steps_of_sticky_and_short_fragments_are_the_eager_ones(options, steps):
    expected, _ = run_training(same, lag=1, **options)
    for place in ({}, {"consumer_on_host": True}):
        assert_identical(
            expected, run_training(threaded, lag=1, compile=True, device=LaggingLane(**place), **options)[0]
        )
    assert steps["taken"]


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("lag", [0, 1, 2, 3])
@pytest.mark.parametrize("options", [{"groups": 2}, {"sticky": True}, {"n_steps": 1}, {"groups": 5}], ids=str)
def test_captured_steps_are_the_eager_ones_for_many_options(lag, options):
    expected, _ = run_training(same, lag=lag, **options)
    for engine in (same, threaded):
        for haste in (0.0, 0.3, 1.0):
            for place in ({}, {"consumer_on_host": True}):
                lane = LaggingLane(haste=haste, **place)
                assert_identical(expected, run_training(engine, lag=lag, compile=True, device=lane, **options)[0])


def test_where_the_actor_is_on_the_host_the_step_is_compiled_and_not_captured():
    for lane, kind in (
        (LaggingLane(actor_on_host=True), CompiledBehaviour),
        (LaggingLane(), CapturedBehaviour),
    ):
        assert type(make_behaviour(GruWithBuffer(), lane, compile=True)) is kind
        assert type(make_behaviour(GruWithBuffer(), lane, compile=False)) is Behaviour


# ---- for many kinds of actors


class LstmActorCritic(ActorCritic):
    def __init__(self, width):
        super().__init__(nn.Linear(8, 5), nn.Linear(8, 1), core=nn.LSTM(width, 8))


class SeveralDtypes(BaseActorModule):
    """Bytes, and a head for each entry; info of other dtypes than float32."""

    def __init__(self):
        super().__init__()
        self.layer, self.table = nn.Linear(4, 2), nn.Embedding(2, 3)

    def forward(self, obs, *, act, rew, fin, stepno, hx=None, **ignored):
        out = self.layer(obs).double() + self.table(act).sum(-1, keepdim=True)
        return out.argmax(-1).int(), hx, {"out": out, "half": out.half(), "bytes": (out > 0).byte(), "last": stepno}


def boxes(n=4):
    return [LedgerEnv(gym.spaces, j, action="box") for j in range(n)]


ACTORS = {
    "feed-forward": (lambda: ActorCritic(mlp(6, 8, 5), mlp(6, 8, 1)), ledgers),
    "an LSTM": (lambda: LstmActorCritic(6), ledgers),
    "real-valued actions": (lambda: GaussianActorCritic(mlp(6, 8, 2), mlp(6, 8, 1), 2), boxes),
    "epsilon-greedy": (lambda: QNetwork(mlp(6, 8, 5), epsilon=0.5), ledgers),
    "its own generator": (DrawsFromOwnGenerator, ledgers),
    "casts": (SeveralDtypes, cartpoles),
    "buffers": (ChangesBuffers, ledgers),
    "a buffer assigned": (AssignsBuffer, ledgers),
    "tied weights": (TiedWeights, ledgers),
    "hx that goes round": (SwapsState, ledgers),
    "hx that is the observation": (RemembersObservation, ledgers),
    "hx in place": (AdvancesStateInPlace, ledgers),
    "no hx in virtual steps": (KeepsStateFromVirtualSteps, ledgers),
    "a convolution": (Convolves, ledgers),
}


@pytest.mark.parametrize("haste", [0.0, 1.0])
@pytest.mark.parametrize(("make_actor", "envs"), ACTORS.values(), ids=ACTORS)
def test_captured_steps_equal_eager_ones(make_actor, envs, haste, steps):
    options = {"envs": envs, "update": shift_weights, "groups": 2}
    got = collected(make_actor, compile=True, device=LaggingLane(haste=haste), **options)
    assert_identical(collected(make_actor, **options), got)
    assert steps["taken"] == 3 * (7 + 1) * 2  # the virtual step, too


@pytest.mark.parametrize("sampled", [False, True])
def test_captured_steps_take_nested_observations_actions_and_states(sampled, steps):
    def envs():
        return [LedgerEnv(gym.spaces, j, form="dict", action="dict") for j in range(4)]

    options = {"envs": envs, "groups": 3, "sticky": sampled}
    make_actor = partial(CountingActor, "dict", sampled=sampled)
    assert_identical(
        collected(make_actor, **options), collected(make_actor, compile=True, device=LaggingLane(), **options)
    )
    assert steps["taken"]


def test_autocast_is_in_the_captured_step(steps):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        eager = collected(GruWithBuffer, envs=cartpoles, groups=2)
        got = collected(GruWithBuffer, envs=cartpoles, groups=2, compile=True, device=LaggingLane())
    assert got[0].actor["logits"].dtype == torch.bfloat16
    assert_identical(eager, got)
    assert steps["taken"]


def test_autocast_and_modes_at_the_first_next_hold_in_captured_steps(steps):
    def first(**options):
        torch.manual_seed(0)
        actor = GruWithBuffer()
        with threaded.rollout(cartpoles(), actor, 5, seed=0, lag=0, **options) as feed:
            actor.eval()
            actor.core.train()  # which nobody could expect
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return [next(feed), next(feed)]

    got = first(compile=True, device=LaggingLane())
    assert got[0].actor["logits"].dtype == torch.bfloat16
    assert_identical(first(), got)
    assert steps["captured"] == 3 * (REAL_GRAPHS + VIRTUAL_GRAPHS)


def test_a_feed_with_captured_steps_can_be_paused_and_closed():
    expected, got = [], []
    for fragments, options in ((expected, {}), (got, {"compile": True, "device": LaggingLane(haste=0.5)})):
        torch.manual_seed(0)
        with threaded.rollout(cartpoles(), GruWithBuffer(), 5, seed=0, lag=2, **options) as feed:
            for _ in range(4):
                fragments.append(next(feed))
                with feed.pause():
                    torch.rand(2)
    assert_identical(expected, got)


@pytest.mark.parametrize(
    ("make_actor", "captured"), [(GruWithBuffer, 2 * (REAL_GRAPHS + VIRTUAL_GRAPHS)), (DrawsFromTorchGenerator, 0)]
)
def test_trial_runs_of_a_step_draw_nothing_from_the_global_generator(make_actor, captured, steps):
    actor, state = make_actor(), torch.get_rng_state()
    feed, _ = compile_warnings_of(
        lambda: same.rollout(cartpoles(), actor, 3, seed=0, compile=True, device=LaggingLane())
    )
    assert torch.equal(state, torch.get_rng_state())
    with feed:
        next(feed)
    assert steps["captured"] == captured
    assert captured == 0 or torch.equal(state, torch.get_rng_state())


# ---- precautions around a captured step


def index_is_not_reset(monkeypatch):
    monkeypatch.setattr(
        CapturedBehaviour, "start_fragment", lambda self, *rest: super(CapturedBehaviour, self).start_fragment(*rest)
    )


def state_is_not_kept_in_place(monkeypatch):
    monkeypatch.setattr(CapturedBehaviour, "_move_hx", lambda self, group: setattr(group, "hx", group.hx))


def buffers_are_not_kept_in_place(monkeypatch):
    monkeypatch.setattr("rlplay.engine.acting.compile.captured.replaced_weights", lambda places: [])


def modes_are_switched_at_once(monkeypatch):
    really = CapturedBehaviour.adopt

    def adopt(self, snapshot):
        self._activate(tuple(snapshot.modes))
        really(self, snapshot)
        self._activate = lambda modes: None

    monkeypatch.setattr(CapturedBehaviour, "adopt", adopt)


def actions_are_not_waited_for(monkeypatch):
    really = LaggingLane.host_wait
    monkeypatch.setattr(
        LaggingLane, "host_wait", lambda self, event: None if self.current is not self.consumer else really(self, event)
    )


def virtual_steps_are_not_undone(monkeypatch):
    monkeypatch.setattr(
        CapturedBehaviour, "_may_be_replaced", property(lambda self: False, lambda self, x: None), raising=False
    )


def memory_is_released(monkeypatch):
    really = CapturedBehaviour.bind_rows

    def bind_rows(self, *rest):
        really(self, *rest)
        for memory in self._memory.values():
            memory.index = memory.index.clone()

    monkeypatch.setattr(CapturedBehaviour, "bind_rows", bind_rows)


PRECAUTIONS = {
    "the index begins anew": (index_is_not_reset, GruWithBuffer, cartpoles),
    "the recurrent state is kept in its place": (state_is_not_kept_in_place, GruWithBuffer, cartpoles),
    "buffers stay in their places": (buffers_are_not_kept_in_place, AssignsBuffer, ledgers),
    "virtual steps count, too": (virtual_steps_are_not_undone, AssignsBuffer, ledgers),
    "modes are switched at the first step of their fragment": (modes_are_switched_at_once, GruWithBuffer, cartpoles),
    "actions have come down": (actions_are_not_waited_for, GruWithBuffer, cartpoles),
    "memory stays where it is": (memory_is_released, GruWithBuffer, cartpoles),
}


@pytest.mark.parametrize(("take_out", "make_actor", "envs"), PRECAUTIONS.values(), ids=PRECAUTIONS)
def test_captured_steps_go_wrong_without_one_of_their_precautions(take_out, make_actor, envs, monkeypatch):
    def fragments(**options):
        return collected(make_actor, envs=envs, update=switch_mode, n_fragments=4, n_steps=20, groups=2, **options)

    expected = fragments()
    assert_identical(expected, fragments(compile=True, device=LaggingLane()))
    take_out(monkeypatch)
    try:
        got = fragments(compile=True, device=LaggingLane())
    except Exception:  # garbage for an action or an index may well be noticed
        return
    with pytest.raises(AssertionError):
        assert_identical(expected, got)


# ---- virtual steps


class BranchesInVirtualSteps(AnswerActor):
    """Looks at the data, in virtual steps alone."""

    def forward(self, obs, *, virtual, **inputs):
        if virtual and obs.sum().item() < 0:
            obs = -obs
        return super().forward(obs, **inputs)

    def answer(self, obs, fin):
        return obs


class MarksVirtualSteps(AnswerActor):
    """Does something else in virtual steps, by an attribute that the learner may change."""

    factor = 1.0

    def __init__(self):
        super().__init__()
        self.factor = 2.0

    def forward(self, obs, *, virtual, **inputs):
        return super().forward(obs * self.factor if virtual else obs, **inputs)

    def answer(self, obs, fin):
        return obs


def test_a_virtual_step_that_cannot_be_captured_runs_eagerly_and_nobody_is_warned(steps):
    got = collected(BranchesInVirtualSteps, compile=True, device=LaggingLane())
    assert_identical(collected(BranchesInVirtualSteps), got)
    assert steps == {"captured": 2 * REAL_GRAPHS, "taken": 3 * 7}


def test_a_change_of_what_virtual_steps_alone_do_is_noticed(steps):
    def change(actor):
        actor.factor += 1.0

    expected = collected(MarksVirtualSteps, update=change)
    got, (warning,) = compile_warnings_of(
        lambda: collected(MarksVirtualSteps, update=change, compile=True, device=LaggingLane())
    )
    assert "its plain attribute `factor` changes what the step does" in str(warning.message)
    assert_identical(expected, got)
    assert steps["taken"] == 7 + 1


class AllInPlace(AdvancesStateInPlace):
    """Resets its state in place, too."""

    def reset(self, hx, at):
        hx[:, at] = 0.0
        return hx


def test_a_virtual_step_leaves_the_recurrent_state_as_it_was(steps):
    got = collected(AllInPlace, n_fragments=9, n_steps=1, compile=True, device=LaggingLane())
    assert_identical(collected(AllInPlace, n_fragments=9, n_steps=1), got)
    assert steps["taken"] == 9 * 2


# ---- steps that run eagerly


class IndexesByMask(AnswerActor):
    def answer(self, obs, fin):
        return obs[obs > 0].sum().expand(fin.shape)


class DrawsFromForeignGenerator(AnswerActor):
    generators = (torch.Generator(),)

    def answer(self, obs, fin):
        return torch.rand(obs.shape, generator=self.generators[0]) * 0


class MakesTensorLater(AnswerActor):
    """Keeps what it makes at its first step in earnest."""

    kept = None

    def forward(self, obs, *, fin, virtual, **ignored):
        if self.kept is None and not virtual:
            self.kept = torch.ones(())
        return super().forward(obs, fin=fin)

    def answer(self, obs, fin):
        return obs if self.kept is None else obs * self.kept


class CountsInState(BaseActorModule):
    def forward(self, obs, *, fin, hx=None, **ignored):
        hx = torch.zeros(1, fin.shape[1], 2) if hx is None else hx
        return fin.long(), hx + 1, {"hx": hx.clone()}


class ResetsByIntegersOnly(CountsInState):
    def reset(self, hx, at):
        hx = hx.clone()
        hx[:, at].zero_()
        if not isinstance(at, torch.Tensor):
            hx[:, at] = 0
        return hx


class ResetsByHalves(CountsInState):
    def reset(self, hx, at):
        keep = torch.ones(hx.shape[1], dtype=torch.bool)
        keep[at] = False
        return torch.where(keep[:, None], hx, hx / 2)


class TouchesAllState(CountsInState):
    def reset(self, hx, at):
        keep = torch.ones(hx.shape[1])
        keep[at] = 0
        return (hx + 0.0) * keep[:, None]


class DrawsInReset(CountsInState):
    def reset(self, hx, at):
        torch.rand(1, generator=self.generator)
        return super().reset(hx, at)


class FillsEmptyBuffer(AnswerActor):
    """Fills an empty buffer at the first step of a fragment, in train mode alone if `only_training`."""

    def __init__(self, *, only_training=False):
        super().__init__()
        self.only_training = only_training
        self.register_buffer("last", None)

    def answer(self, obs, fin):
        before = torch.zeros_like(obs) if self.last is None else self.last
        if self.training or not self.only_training:
            self.last = self.following(obs)
        return before + 0

    def following(self, obs):
        return obs.clone()


class FillsAndEmptiesBuffer(FillsEmptyBuffer):
    """Fills an empty buffer, and empties a filled one."""

    def following(self, obs):
        return obs.clone() if self.last is None else None


class FillsInVirtualSteps(AnswerActor):
    """Real steps tell whether a virtual step of this fragment has filled the buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("last", None)

    def forward(self, obs, *, virtual, **inputs):
        if virtual:
            self.last = obs.clone()
        return super().forward(obs, **inputs)

    def answer(self, obs, fin):
        return torch.full_like(obs, self.last is not None)


class AddsInVirtualSteps(AnswerActor):
    """Real steps tell whether a virtual step of this fragment has added a buffer."""

    def forward(self, obs, *, virtual, **inputs):
        if virtual and not hasattr(self, "last"):
            self.register_buffer("last", obs.clone())
        return super().forward(obs, **inputs)

    def answer(self, obs, fin):
        return torch.full_like(obs, hasattr(self, "last"))


class OtherDtypeInRealSteps(AnswerActor):
    """More so in earnest."""

    def forward(self, obs, *, virtual, **inputs):
        return super().forward(obs if virtual else obs.double(), **inputs)

    def answer(self, obs, fin):
        return obs / 3


class FailsInRealSteps(AnswerActor):
    """Breaks in earnest only, and then always: eager steps say it better."""

    def forward(self, obs, *, virtual, **inputs):
        if not virtual:
            raise ArithmeticError("in earnest")
        return super().forward(obs, **inputs)

    def answer(self, obs, fin):
        return obs


class DropsOutOnes(AnswerActor):
    def __init__(self):
        super().__init__()
        self.layer = nn.Dropout(0.5)

    def answer(self, obs, fin):
        return self.layer(torch.ones_like(obs))


class UsesTorchNormal(AnswerActor):
    def answer(self, obs, fin):
        return torch.normal(obs, torch.ones_like(obs), generator=self.generator)


NOT_CAPTURED = {
    "torch.normal": (UsesTorchNormal, r"`torch.normal` makes the host wait .* write `mean \+ std \* torch.randn"),
    "control flow": (BranchesOnData, "the host has to wait for what is in a tensor .*_local_scalar_dense"),
    "a mask for an index": (IndexesByMask, "the host has to wait for what is in a tensor .*index.Tensor"),
    "an attribute": (CountsInAttribute, "changes `n`, which is not a buffer"),
    "a tensor": (ChangesTensorAttribute, "changes `table`, which is not a buffer"),
    "what is made later": (MakesTensorLater, "changes `kept`, which is not a buffer"),
    "torch's generator": (DrawsFromTorchGenerator, "from torch's global generator .*rand_like"),
    "another generator": (DrawsFromForeignGenerator, "from a generator that is not its own .*rand"),
    "numpy's generator": (DrawsFromNumpyRandom, "draws from `numpy.random`"),
    "Python's generator": (DrawsFromPythonRandom, "draws from `random`"),
    "another dtype": (OtherDtypeInRealSteps, "what it answers, remembers or keeps in buffers changes its form"),
    "a reset that draws": (DrawsInReset, "its `reset` draws random numbers"),
    "a reset that draws and shows it": (DrawsFirstState, "its `reset` does not honour a mask"),
    "a reset without masks": (ResetsByIntegersOnly, "its `reset` does not honour a mask"),
    "a reset by halves": (ResetsByHalves, "does something else where it has been done already"),
    "a reset that leaves traces": (
        TouchesAllState,
        "changes the recurrent state where nothing is to be reset",
    ),
}


@pytest.mark.filterwarnings("ignore:the actor.s reset does not honour:RuntimeWarning")
@pytest.mark.parametrize(("make_actor", "why"), NOT_CAPTURED.values(), ids=NOT_CAPTURED)
def test_a_step_that_cannot_be_captured_runs_eagerly_with_one_warning_that_says_why(make_actor, why, steps):
    got, (warning,) = compile_warnings_of(lambda: collected_seeded(make_actor, compile=True, device=LaggingLane()))
    assert warning.category is RuntimeWarning
    assert warning.filename == collecting.__file__
    assert re.search(f"runs eagerly, since .*{why}", str(warning.message))
    assert_identical(collected_seeded(make_actor), got)
    assert not steps["captured"]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32], ids=str)
def test_a_reset_of_everything_is_found_out_even_if_there_is_one_number(dtype):
    class ResetsAll(BaseActorModule):
        def reset(self, hx, at):
            return hx * 0

    with pytest.raises(step_checks.NoGraph, match="where nothing is to be reset"):
        step_checks.check_reset(ResetsAll(), torch.zeros(1, 1, 1, dtype=dtype), torch.Generator())


@pytest.mark.parametrize(
    ("name", "given", "drawn"),
    [
        ("_cudnn_rnn.default", {"dropout": 0.0, "train": True}, False),
        ("_cudnn_rnn.default", {"dropout": 0.1, "train": False}, False),
        ("_cudnn_rnn.default", {"dropout": 0.1, "train": True}, True),
        ("_scaled_dot_product_flash_attention.default", {}, False),
        ("_scaled_dot_product_flash_attention.default", {"dropout_p": 0.1}, True),
        ("native_dropout.default", {"p": 0.1, "train": True}, True),
        ("exponential_.default", {}, True),
        ("mul.Tensor", {}, False),
    ],
)
def test_an_operation_that_could_draw_and_does_not_may_be_captured(name, given, drawn):
    """These are what layers come to on CUDA."""
    assert step_checks.draws_numbers(attrgetter(name)(torch.ops.aten), (), given) == drawn


@pytest.mark.parametrize("make", [FillsEmptyBuffer, FillsAndEmptiesBuffer])
@pytest.mark.parametrize("groups", [1, 2])
def test_an_actor_that_fills_or_empties_a_buffer_runs_eagerly_with_one_warning(make, groups, steps):
    got, (warning,) = compile_warnings_of(lambda: collected(make, groups=groups, compile=True, device=LaggingLane()))
    assert "runs eagerly, since it adds or fills a buffer, or empties one" in str(warning.message)
    assert_identical(collected(make, groups=groups), got)
    assert not steps["captured"]


def test_captured_steps_go_on_after_a_fragment_of_eager_ones_that_fill_and_empty_a_buffer(steps):
    """Here eval mode can be captured, and train mode, which comes in between, cannot."""

    def fragments(**options):
        torch.manual_seed(0)
        actor, found = FillsAndEmptiesBuffer(only_training=True), []
        with same.rollout(ledgers(), actor, 6, seed=0, lag=0, **options) as feed:
            for mode in (False, True, False, False):
                actor.train(mode)
                found.append(next(feed))
        return found

    got, (warning,) = compile_warnings_of(lambda: fragments(compile=True, device=LaggingLane()))
    assert "runs eagerly in train mode, since it adds or fills a buffer" in str(warning.message)
    assert_identical(fragments(), got)
    assert steps["taken"] == 3 * (6 + 1)


@pytest.mark.parametrize("kind", [FillsInVirtualSteps, AddsInVirtualSteps])
def test_captured_steps_give_way_to_eager_ones_once_an_eager_step_has_filled_or_added_a_buffer(kind, steps):
    """Virtual steps cannot be captured here, and one is made at each end of an episode."""
    got, (warning,) = compile_warnings_of(lambda: collected(kind, compile=True, device=LaggingLane()))
    assert "runs eagerly, since a step that ran eagerly has added or filled a buffer" in str(warning.message)
    assert_identical(collected(kind), got)
    assert 0 < steps["taken"] < 3 * 7


def test_an_actor_that_raises_in_a_captured_step_raises_as_an_eager_one():
    def broken():
        with pytest.raises(ArithmeticError, match="in earnest"):
            collected_seeded(FailsInRealSteps, compile=True, device=LaggingLane())

    _, (warning,) = compile_warnings_of(broken)
    assert "since trying it out failed with ArithmeticError: in earnest" in str(warning.message)


def test_modes_that_cannot_be_captured_run_eagerly_beside_others_that_can(steps):
    got, (warning,) = compile_warnings_of(
        lambda: collected(DropsOutOnes, update=switch_mode, compile=True, device=LaggingLane())
    )
    assert "runs eagerly in train mode, since it draws random numbers from torch's global" in str(warning.message)
    assert [bool((fragment.actor["answer"] == 1).all()) for fragment in got] == [False, True, False]
    assert steps == {"captured": REAL_GRAPHS + VIRTUAL_GRAPHS, "taken": 7 + 1}


@pytest.mark.parametrize("engine", [same, threaded])
def test_modes_that_come_later_run_eagerly_with_one_warning_where_their_fragment_is_asked_for(engine, steps):
    def fragments():
        actor, found = ReportsModes(), []
        with engine.rollout(ledgers(), actor, 7, lag=0, compile=True, device=LaggingLane()) as feed:
            for part, whole in ((True, True), (False, True), (True, False), (False, False)):
                actor.train(whole)
                actor.part.train(part)
                found.append(next(feed))
        return found

    got, (warning,) = compile_warnings_of(fragments)
    assert "runs eagerly in some modes, since it is captured at the first fragment" in str(warning.message)
    assert warning.filename == __file__
    assert [int(fragment.actor["answer"].unique()) for fragment in got] == [3, 2, 1, 0]
    assert steps["taken"] == 2 * (7 + 1)


@pytest.fixture
def failing_capture(monkeypatch):
    def capture(lane, work, generators, key=0):
        work()
        raise OSError("no graphs\nat all")

    monkeypatch.setattr(LaggingLane, "capture", capture)


@pytest.mark.usefixtures("failing_capture")
@pytest.mark.parametrize("engine", [same, threaded])
def test_where_capturing_fails_it_runs_eagerly_and_the_asking_thread_is_warned(engine):
    def fragments(**options):
        torch.manual_seed(0)
        with engine.rollout(cartpoles(), LinearPolicy(), 5, seed=0, lag=1, **options) as feed:
            return [next(feed), next(feed)]

    got, (warning,) = compile_warnings_of(lambda: fragments(compile=True, device=LaggingLane()))
    assert str(warning.message).endswith("runs eagerly, since capturing it failed with OSError: no graphs.")
    assert warning.filename == __file__
    assert_identical(fragments(), got)


@pytest.mark.usefixtures("failing_capture")
@pytest.mark.parametrize("engine", [same, threaded])
def test_a_warning_that_is_an_error_is_raised_by_next(engine):
    feed = engine.rollout(cartpoles(), LinearPolicy(), 5, compile=True, device=LaggingLane())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="no graphs"):
            next(feed)
    assert not feed.open
    feed.close()


class FailsOnDemand(AssignsBuffer):
    """Breaks half-way when it is to."""

    blown = False

    def forward(self, obs, **inputs):
        answer = super().forward(obs, **inputs)
        if self.blown:
            raise OSError("blown")
        return answer


def test_a_step_that_breaks_while_it_is_captured_leaves_nothing_behind(monkeypatch):
    def capture(lane, work, generators, key=0):
        with monkeypatch.context() as now:
            now.setattr(FailsOnDemand, "blown", True)
            work()

    monkeypatch.setattr(LaggingLane, "capture", capture)
    got, (warning,) = compile_warnings_of(lambda: collected(FailsOnDemand, compile=True, device=LaggingLane()))
    assert "since capturing it failed with OSError: blown" in str(warning.message)
    assert_identical(collected(FailsOnDemand), got)


class LinearPolicy(BaseActorModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, obs, *, hx=None, **ignored):
        return self.layer(obs).argmax(-1), hx, ()


# ---- capture on the lagging device


def device_tensor(lane, values):
    tensor = lane.empty(Place.ACTOR, (len(values),), torch.float32)
    lane.launch(lambda: tensor.copy_(torch.tensor(values)))
    return tensor


@pytest.fixture
def lane():
    """A device, seen from the collector."""
    lane = LaggingLane()
    with lane.collecting():
        yield lane


def test_the_lagging_device_does_nothing_at_capture_and_replays_late(lane):
    x, out = device_tensor(lane, [1.0, 2.0]), device_tensor(lane, [0.0, 0.0])
    calls = []

    def work():
        calls.append(1)
        out.copy_(x.view(2, 1)[:, 0] * 2)
        x.add_(1)

    again = lane.capture(work, [])
    assert (x.tolist(), out.tolist()) == ([1.0, 2.0], [0.0, 0.0])
    for _ in range(2):
        lane.launch(again)
    assert out.tolist() == [0.0, 0.0]
    lane.synchronize()
    assert (x.tolist(), out.tolist(), calls) == ([3.0, 4.0], [4.0, 6.0], [1])


def test_the_lagging_device_draws_again_at_replay_and_restores_generators_after_capture(lane):
    generator, out = torch.Generator().manual_seed(3), device_tensor(lane, [0.0, 0.0])
    again = lane.capture(lambda: out.copy_(torch.rand(2, generator=generator)), [generator])
    reference = torch.Generator().manual_seed(3)
    for _ in range(2):
        lane.launch(again)
        lane.synchronize()
        assert torch.equal(out, torch.rand(2, generator=reference))


def test_the_lagging_device_restores_undeclared_writes_after_capture(lane):
    mean, var, x = torch.zeros(3), torch.ones(3), torch.rand(4, 3)
    again = lane.capture(lambda: nn.functional.batch_norm(x, mean, var, training=True), [])
    assert torch.equal(mean, torch.zeros(3))
    again()
    assert mean.sum() > 0


@pytest.mark.parametrize(
    ("work", "why"),
    [
        (lambda x: x.sum().item(), "not permitted when stream is capturing: aten._local_scalar_dense"),
        (lambda x: x.nonzero(), "not permitted when stream is capturing: aten.nonzero"),
        (lambda x: torch.rand(2, generator=torch.Generator()), "was not registered"),
    ],
)
def test_the_lagging_device_refuses_and_undoes_what_cuda_could_not_capture(work, why, lane):
    x = device_tensor(lane, [1.0, 2.0])
    with pytest.raises(RuntimeError, match=why):
        lane.capture(lambda: (x.zero_(), work(x)), [])
    assert x.tolist() == [1.0, 2.0]


def test_captured_work_keeps_no_memory_alive(lane):
    x, out = device_tensor(lane, [1.0]), device_tensor(lane, [0.0])
    again = lane.capture(partial(out.copy_, x), [])
    del x
    lane.launch(lambda: None)
    lane.launch(again)
    lane.synchronize()
    assert not torch.isfinite(out).any()


def test_capture_on_the_host_returns_the_work_itself():
    work = list
    cpu = torch.device("cpu")
    assert Lane(cpu, cpu).capture(work, []) is work
    assert LaggingLane(actor_on_host=True).capture(work, []) is not None
