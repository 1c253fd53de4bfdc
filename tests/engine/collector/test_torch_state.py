"""PyTorch's settings: which of them hold for the environments, and which for the actor, alike in every engine."""

from __future__ import annotations

import zlib
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from gym.spaces import Box, Discrete
from gym.vector import SyncVectorEnv
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from rlplay import sampling
from rlplay.engine import BaseActorModule
from rlplay.engine.acting.torch_context import TorchDefaults
from rlplay.engine.rollout import episodic, multi, same, single, threaded
from rlplay.engine.rollout.evaluate import background, evaluate
from tests.support.assertions import assert_same_bytes

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def settings():
    """Return the calling thread's settings as numbers."""
    return [
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        DTYPES.index(torch.get_default_dtype()),
        torch.empty(()).device.type == "meta",
        DTYPES.index(torch.empty(()).dtype),
    ]


def expected_settings(dtype=torch.float32, device="cpu"):
    return [1, 0, 0, 0, DTYPES.index(dtype), device == "meta", DTYPES.index(dtype)]


class Reports:
    """Observes the settings under which it was made, and those of the latest call; its rewards are those as well."""

    observation_space, action_space = Box(-9, 9, (14,), np.float64), Discrete(2)
    metadata, spec = {}, None

    def __init__(self):
        self.made, self.t = settings(), 0

    def seen(self):
        return np.array([*self.made, *settings()], np.float64)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self.seen(), {}

    def step(self, action):
        self.t += 1
        seen = self.seen()
        reward = float(np.dot(seen, 2.0 ** np.arange(14)))
        return seen, reward, False, self.t == 3, {}

    def close(self):
        assert settings() == self.made


class MadeByUser(Reports):
    """The user makes it, in settings of the user's; what it notes as those of its making are those of its reset."""

    def reset(self, *, seed=None, options=None):
        self.made = settings()
        return super().reset()

    def close(self):
        """Do nothing: the user closes it."""


def vector():
    return SyncVectorEnv([MadeByUser] * 2)


class Settings(BaseActorModule):
    """Its info is its own settings."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros((), device="cpu", dtype=torch.float32))

    def forward(self, obs, *, fin, hx=None, **ignored):
        info = torch.tensor(settings(), device="cpu", dtype=torch.float64)
        return torch.ones_like(fin, dtype=torch.int64), (), {"settings": info.expand(*fin.shape, 7)}


OPEN = {
    "same": lambda: same.rollout([Reports] * 2, Settings(), 7, seed=0, final=True),
    "same, vector": lambda: same.rollout(vector(), Settings(), 7, seed=0),
    "threaded": lambda: threaded.rollout([Reports] * 2, Settings(), 7, seed=0, final=True),
    "worker threads": lambda: threaded.rollout([Reports] * 2, Settings(), 7, seed=0, workers=2, worker="thread"),
    "worker processes": lambda: threaded.rollout([Reports] * 2, Settings(), 7, seed=0, workers=2),
    "single": lambda: single.rollout(Reports, Settings(), 7, 2, seed=0, final=True),
    "multi": lambda: multi.rollout(Reports, Settings(), 7, 2, 1, seed=0, final=True),
    "sticky": lambda: same.rollout([Reports] * 2, Settings(), 7, seed=0, sticky=True, final=True),
}
IN_PROCESSES = "worker processes", "single", "multi"


def case(engine, *others, soak=False):
    marks = [pytest.mark.soak] if soak else []
    return pytest.param(OPEN[engine], *others, id="-".join((engine, *others)), marks=marks)


every_engine = pytest.mark.parametrize("open_feed", [case(engine, soak=engine == "multi") for engine in OPEN])


@contextmanager
def defaults(dtype=torch.float32, device=None):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device) if device else ExitStack():
            yield
    finally:
        torch.set_default_dtype(before)


CALLERS = {
    "no gradients": [torch.no_grad],
    "inference mode, autocast": [torch.inference_mode, partial(torch.autocast, "cpu", dtype=torch.bfloat16)],
    "bfloat16": [partial(defaults, torch.bfloat16)],
    "all at once": [torch.no_grad, partial(torch.autocast, "cpu"), partial(defaults, torch.float64, "meta")],
}
every_caller = pytest.mark.parametrize("caller", CALLERS.values(), ids=CALLERS)


@contextmanager
def entered(contexts):
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context())
        yield TorchDefaultsSeen()


class TorchDefaultsSeen:
    """The settings of the caller, inside its contexts."""

    def __init__(self):
        self.dtype, self.device = torch.get_default_dtype(), torch.get_default_device().type
        self.autocast = torch.is_autocast_enabled("cpu")

    @property
    def of_environments(self):
        return torch.tensor(expected_settings(self.dtype, self.device), device="cpu", dtype=torch.float64)

    @property
    def of_actor(self):
        return self.of_environments * torch.tensor([0, 1, 1, 1, 1, 1, 1], device="cpu") + torch.tensor(
            [0, 0, self.autocast, 0, 0, 0, 0], device="cpu"
        )


@pytest.mark.parametrize(
    ("open_feed", "caller"),
    [case(x, caller, soak=x in IN_PROCESSES and caller != "all at once") for x in OPEN for caller in CALLERS],
)
def test_environments_and_actor_have_the_same_settings_in_every_engine(open_feed, caller):
    with entered(CALLERS[caller]) as seen:
        with open_feed() as feed:
            fragments = [next(feed), next(feed)]
        want = seen.of_environments.repeat(2)
        for fragment in fragments:
            assert (fragment.state.obs == want).all()
            assert (fragment.actor["settings"] == seen.of_actor).all()
            if fragment.env.final != ():
                assert len(fragment.env.final.t) >= 2
                assert (fragment.env.final.obs == want).all()
                assert (fragment.env.final.actor["settings"] == seen.of_actor).all()


@every_caller
def test_environments_of_episodic_and_evaluate_have_the_same_settings(caller):
    with entered(caller) as seen:
        want = seen.of_environments.repeat(2)
        with episodic.rollout([Reports] * 2, Settings(), batch_size=3, seed=0) as feed:
            for episode in next(feed):
                assert (episode.state.obs == want).all()
                assert (episode.actor["settings"] == seen.of_actor).all()
        reward = float((want * 2.0 ** torch.arange(14, device="cpu")).sum())
        rewards, info = evaluate([Reports] * 2, Settings())
        assert (rewards == reward).all()
        assert (info["settings"] == seen.of_actor.numpy()).all()
        assert (evaluate(vector(), Settings())[0] == reward).all()
        with background(Reports, Settings(), 2) as examiner:
            assert (next(examiner) == 3 * reward).all()
            assert (next(examiner) == 3 * reward).all()


class Renders(Reports):
    def render(self):
        assert settings() == expected_settings()


def test_render_has_the_settings_of_environments():
    with torch.no_grad(), torch.autocast("cpu"):
        evaluate([Renders()], Settings(), render=True)


@every_engine
def test_environments_keep_their_settings_where_the_caller_changes_its_own_between_two_asks(open_feed):
    with open_feed() as feed:
        fragments = [next(feed)]
        for context in (torch.no_grad(), torch.autocast("cpu"), torch.device("meta"), torch.inference_mode()):
            with context:
                fragments.append(next(feed))
    want = torch.tensor(expected_settings() * 2, dtype=torch.float64)
    assert all((fragment.state.obs == want).all() for fragment in fragments)
    assert all((fragment.actor["settings"][..., 2] == 0).all() for fragment in fragments)


@pytest.mark.parametrize(
    "open_feed",
    [case(x, soak=x == "multi") for x in ("same", "same, vector", "sticky", "single", "multi", "worker processes")],
)
def test_the_default_dtype_of_the_call_holds_where_the_process_changes_it_between_two_asks(open_feed):
    with open_feed() as feed:
        first = next(feed)
        with defaults(torch.float64):
            second = next(feed)
            assert torch.get_default_dtype() == torch.float64
    want = torch.tensor(expected_settings() * 2, dtype=torch.float64)
    assert (first.state.obs == want).all()
    assert (second.state.obs == want).all()


CHANGES = [
    (partial(defaults, torch.float64), r"default dtype was torch\.float32.*is torch\.float64.*back to"),
    (partial(defaults, device="meta"), r"default device was cpu.*is meta.*back to cpu"),
    (partial(defaults, torch.float16, "meta"), r"default dtype was torch\.float32.*is torch\.float16"),
]


@every_engine
def test_defaults_that_have_changed_by_the_first_ask_are_refused_and_the_feed_goes_on(open_feed):
    with open_feed() as feed:
        for change, message in CHANGES:
            with change(), pytest.raises(RuntimeError, match=message):
                next(feed)
        assert feed.steps == 0
        fragment = next(feed)
        assert feed.version == 0
        assert (fragment.state.obs == torch.tensor(expected_settings() * 2, dtype=torch.float64)).all()
    with open_feed() as other:
        assert torch.equal(next(other).state.obs, fragment.state.obs)


def test_defaults_that_are_put_back_to_those_of_the_call_are_those_of_the_call():
    with defaults(torch.float64, "meta"):
        feed = single.rollout(Reports, Settings(), 7, 2, seed=0)
    with feed:
        with pytest.raises(RuntimeError, match=r"default dtype was torch\.float64"):
            next(feed)
        with defaults(torch.float64), pytest.raises(RuntimeError, match="default device was meta"):
            next(feed)
        with defaults(torch.float64, "meta"):
            assert (next(feed).state.obs[..., 5] == 1).all()


class Samples(Settings):
    def forward(self, obs, *, fin, hx=None, **ignored):
        logits = self.weight.expand(*fin.shape, 2)
        return sampling.categorical(logits, generator=self.generator), (), {"value": logits[..., 0]}


@pytest.mark.usefixtures("no_stock")
def test_a_stream_is_saved_on_the_host_and_goes_on_whatever_the_default_device():
    def collect(n, **options):
        with same.rollout([Reports] * 2, Samples(), 7, **options) as feed:
            return [next(feed) for _ in range(n)], feed.state_dict(), feed.episodes()

    with defaults(device="meta"):
        expected, _, played = collect(4, seed=0)
        first, saved, _ = collect(2, seed=0)
        assert {x.device.type for x in tree_leaves(saved) if isinstance(x, torch.Tensor)} == {"cpu"}
        rest, _, others = collect(2, state=saved)
    assert_same_bytes([*first, *rest], expected)
    assert others == played
    assert played


class Learning:
    """Each step differentiates; the environment keeps leaf tensors that need gradients."""

    observation_space, action_space = Box(-9, 9, (3,), np.float32), Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.weight, self.t = torch.nn.Parameter(torch.ones(3)), 0
        self.optim = torch.optim.SGD([self.weight], lr=0.1)
        return self.weight.detach().numpy().copy(), {}

    def step(self, action):
        self.optim.zero_grad()
        loss = (self.weight @ self.weight.outer(self.weight)).sum()
        loss.backward()
        self.optim.step()
        self.t += 1
        return self.weight.detach().numpy().copy(), -loss.item(), False, self.t == 4, {}


class Second(Learning):
    """Differentiates twice."""

    def step(self, action):
        (slope,) = torch.autograd.grad(self.weight.pow(3).sum(), self.weight, create_graph=True)
        slope.sum().backward()
        self.t += 1
        return (self.weight.grad / 9).numpy().astype(np.float32), 0.0, False, self.t == 4, {}


@pytest.mark.parametrize(
    ("kind", "compiled"),
    [
        (Learning, False),
        pytest.param(Second, False, marks=pytest.mark.soak),
        pytest.param(Learning, True, marks=pytest.mark.soak),
        pytest.param(Second, True, marks=pytest.mark.soak),
    ],
)
def test_an_environment_that_differentiates_gives_the_same_fragments_in_every_engine(kind, compiled, monkeypatch):
    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # the compiler's progress bars have a thread that does not end

    def fragments(engine, *args, **options):
        with engine.rollout(*args, seed=0, lag=0, compile=compiled, **options) as feed, torch.autocast("cpu"):
            return torch.cat([next(feed).state.obs, next(feed).state.obs])

    actor = Settings() if not compiled else Constant()
    expected = fragments(same, [kind] * 2, actor, 6, groups=2)
    assert expected.isfinite().all()
    assert torch.equal(expected, fragments(threaded, [kind] * 2, actor, 6, groups=2))
    for worker in ("thread", "process"):
        got = fragments(threaded, [kind] * 2, actor, 6, groups=2, workers=2, worker=worker)
        assert torch.equal(expected, got)
    assert torch.equal(expected, fragments(multi, kind, actor, 6, 2, 1))


class Constant(BaseActorModule):
    def forward(self, obs, *, fin, hx=None, **ignored):
        return fin.long(), (), {"sum": obs.sum(-1)}


# ---- numeric switches


def switches():
    """Return a number that tells the switches of this process."""
    return zlib.crc32(repr(TorchDefaults.here(switches=True).switches).encode()) % 2**20


class ReportsSwitches(Reports):
    """Its rewards tell the switches."""

    def reset(self, *, seed=None, options=None):
        return np.zeros(14), {}

    def step(self, action):
        return np.zeros(14), float(switches()), True, False, {}


class SwitchActor(BaseActorModule):
    def forward(self, obs, *, fin, hx=None, **ignored):
        return torch.zeros_like(fin, dtype=torch.int64), (), torch.full(fin.shape, float(switches()))


SWITCHES = {
    "the precision of products": lambda: torch.set_float32_matmul_precision("high"),
    "TF32 for products": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "TF32 for convolutions": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "a newer precision of one backend": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "deterministic algorithms": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "cuDNN": lambda: setattr(torch.backends.cudnn, "deterministic", True),
    "a fast path": lambda: torch.backends.mha.set_fastpath_enabled(False),
    "attention": lambda: torch.backends.cuda.enable_flash_sdp(False),
}


QUICK = ("the precision of products",)
SWITCH_CASES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.soak) for name in SWITCHES]


@pytest.fixture
def switches_kept():
    """Set the switches back at the end."""
    before = TorchDefaults.here(switches=True)
    yield
    torch.set_float32_matmul_precision("highest")  # also where one of its newer switches was set
    before.set_switches()


@pytest.mark.usefixtures("switches_kept")
@pytest.mark.parametrize("switch", SWITCH_CASES)
def test_child_processes_have_the_switches_of_the_call_and_of_the_first_ask(switch):
    before = switches()
    early = single.rollout(ReportsSwitches, SwitchActor(), 2, 1, seed=0)
    SWITCHES[switch]()
    assert switches() != before
    late = single.rollout(ReportsSwitches, SwitchActor(), 2, 1, seed=0)
    for feed in (early, late):
        with feed:
            fragment = next(feed)
        assert (fragment.actor == switches()).all()
        assert (fragment.state.rew[1:] == switches()).all()
    with background(ReportsSwitches, SwitchActor(), 1) as examiner:
        assert next(examiner).tolist() == [switches()]
