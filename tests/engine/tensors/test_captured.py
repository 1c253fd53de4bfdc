"""`compile=True` with environments on a device: captured steps equal eager ones bit for bit."""

import warnings
from functools import partial

import pytest
import torch
from tqdm import tqdm

from rlplay.engine.rollout import same, threaded
from rlplay.testing import CountingActor, LaggingLane
from rlplay.zoo.actors import ActorCritic, GaussianActorCritic, mlp
from rlplay.zoo.envs import CartPoleBatch, RegulatorBatch
from tests.support.assertions import assert_same_bytes
from tests.support.tensors import Script, ScriptActor
from tests.support.training import GruWithBuffer

# eager steps on the host are the reference, so the host has to draw noise call by call, too
pytestmark = pytest.mark.usefixtures("no_stock")

MODES = ("SAME_STEP", "NEXT_STEP", "DISABLED")


def collect(engine, make_env, make_actor, *, n_steps=7, n_fragments=4, lag=1, modes=False, **options):
    """Collect fragments, while weights change, and with `modes` train and eval mode by turns; return what was found."""
    lane, fragments = options.get("device"), []
    torch.manual_seed(0)
    env, actor = make_env(), make_actor()
    with engine.rollout(env, actor, n_steps, seed=3, lag=lag, **options) as feed:
        for k in range(n_fragments):
            fragments.append(next(feed))
            if lane is not None:
                lane.synchronize()
            with torch.no_grad():
                for weight in actor.parameters():
                    weight.add_(0.01)
            if modes:
                actor.train(k % 2 == 1)
        return fragments, feed.episodes(), env


def check(make_env, make_actor, **options):
    """Check captured steps, alone and with the environment, against eager ones on the host; return the environment."""
    fragments, episodes, _ = collect(same, make_env, make_actor, **options)
    for engine in (same, threaded):
        lane = LaggingLane(haste=0.5 if engine is threaded else 0.0)
        got, played, env = collect(engine, make_env, make_actor, compile=True, device=lane, **options)
        assert_same_bytes(got, fragments)
        assert played == episodes
    return env


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("capturable", [False, True])
def test_captured_steps_are_the_eager_ones_bit_for_bit(mode, final, capturable):
    env = check(
        lambda: Script(mode=mode, capturable=capturable, in_place=capturable),
        lambda: CountingActor(sampled=True),
        final=final,
        info={"speed": float, "place": torch.zeros(2).numpy()},
    )
    # its Python code runs at the capture only, once for train mode and once for eval mode; or at each step
    assert env.n_steps == 2 if capturable else env.n_steps >= 4 * 7


FORMS = [{"obs": "nested", "action": "dict"}, {"action": "box"}, {"obs": "counted", "start": 3}]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_captured_steps_of_all_forms_are_the_eager_ones(form):
    check(lambda: Script(capturable=True, **form), lambda: ScriptActor(Script(**form)), final=True)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_recurrent_actor_with_buffers_in_both_modes(groups):
    check(lambda: CartPoleBatch(6, limit=9), GruWithBuffer, modes=True, final=True, groups=groups, n_fragments=6)


def test_environments_that_draw_random_numbers_draw_them_at_each_replay():
    def gaussian():
        return GaussianActorCritic(mlp(1, 8, 1), mlp(1, 8, 1), 1)

    check(lambda: RegulatorBatch(6, limit=5), gaussian, final=True)
    check(lambda: CartPoleBatch(6, limit=9), lambda: ActorCritic(mlp(4, 8, 2), mlp(4, 8, 1)))


def test_a_list_of_environments_each_of_them_captured():
    check(lambda: [Script(n, capturable=True) for n in (2, 4)], CountingActor, final=True)


class ReadsValues(Script):
    def step(self, action):
        if action.sum().item() < 0:
            raise AssertionError
        return super().step(action)


class TellsLastsAtTimes(Script):
    def __init__(self):
        super().__init__(capturable=True, tell_always=False)


@pytest.mark.parametrize(
    ("make", "final", "why"),
    [
        (lambda: ReadsValues(capturable=True), False, "_local_scalar_dense"),
        (TellsLastsAtTimes, True, "_local_scalar_dense"),
        (lambda: Script(capturable=True, final_name="unknown"), False, ""),
    ],
)
def test_an_environment_that_cannot_be_captured_runs_eagerly_with_one_warning(make, final, why):
    fragments, episodes, _ = collect(same, make, CountingActor, final=final)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got, played, _ = collect(same, make, CountingActor, final=final, compile=True, device=LaggingLane())
    assert_same_bytes(got, fragments)
    assert played == episodes
    told = [str(w.message) for w in caught if "compile=True" in str(w.message)]
    assert len(told) == bool(why)
    assert all("vector environment says that its step can be captured" in one and why in one for one in told)


class ReadsWhileCaptured(CartPoleBatch):
    def step(self, action):
        action.sum().item()
        return super().step(action)


def test_a_failed_capture_leaves_the_torch_context_of_the_actor_as_it_was():
    def fragments(**options):
        with torch.autocast("cpu", torch.bfloat16):
            actor = partial(ActorCritic, mlp(4, 8, 2), mlp(4, 8, 1))
            return collect(same, lambda: ReadsWhileCaptured(6, limit=9), actor, **options)[0]

    expected = fragments()
    with pytest.warns(RuntimeWarning, match="it runs eagerly"):
        got = fragments(compile=True, device=LaggingLane())
    assert_same_bytes(got, expected)


class Accumulates(Script):
    """Adds up its rewards, in an attribute, in a dict of attributes, or in what it makes at its first step."""

    def __init__(self, how, **options):
        super().__init__(capturable=True, **options)
        self.how, self.total, self.kept = how, torch.zeros(self.num_envs), {"total": torch.zeros(self.num_envs)}

    def step(self, action):
        obs, reward, *rest = super().step(action)
        if self.how == "an attribute":
            self.total = self.total + reward
        elif self.how == "in a dict":
            self.kept["total"] = self.total = self.kept["total"] + reward
        elif self.how == "made late":
            if not hasattr(self, "late"):
                self.late = torch.zeros_like(reward)
            self.total.copy_(self.late.add_(reward))
        else:
            self.total.add_(reward)
        return obs, self.total.clone(), *rest


class Wrapped:
    def __init__(self, env):
        self.env = env

    def __getattr__(self, name):
        return getattr(self.env, name)


REBOUND = {"an attribute": "total", "in a dict": "kept.total", "made late": "late"}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("how", REBOUND)
def test_an_environment_that_puts_tensors_in_the_place_of_its_own_runs_eagerly_with_one_warning(how, wrapped):
    def make():
        return Wrapped(Accumulates(how)) if wrapped else Accumulates(how)

    fragments, episodes, _ = collect(same, make, CountingActor)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got, played, _ = collect(same, make, CountingActor, compile=True, device=LaggingLane())
    assert_same_bytes(got, fragments)
    assert played == episodes
    (told,) = [str(w.message) for w in caught if "compile=True" in str(w.message)]
    assert f"its step puts another tensor into `Accumulates.{REBOUND[how]}`" in told


def test_an_environment_that_writes_into_its_tensors_is_captured():
    assert check(partial(Accumulates, "in place"), CountingActor).n_steps == 2


def test_on_the_host_the_actor_is_compiled_and_the_environment_is_not(monkeypatch):
    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # the compiler's progress bars have a thread that does not end
    eager, episodes, _ = collect(same, lambda: Script(capturable=True), CountingActor, final=True)
    for engine in (same, threaded):
        got, played, env = collect(engine, lambda: Script(capturable=True), CountingActor, final=True, compile=True)
        assert_same_bytes(got, eager)
        assert played == episodes
        assert env.n_steps >= 4 * 7
