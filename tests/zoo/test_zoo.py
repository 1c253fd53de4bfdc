"""The zoo: environments have their documented optima, and actors give the infos that losses need."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise

import gym
import numpy as np
import pytest
import torch
from torch import nn

from rlplay import nested
from rlplay.algo import unroll
from rlplay.engine.rollout import same
from rlplay.zoo.actors import ActorCritic, Duelling, GaussianActorCritic, NatureCNN, QNetwork, mlp, orthogonal_
from rlplay.zoo.envs import BitFlip, Catch, Chain, DeepSea, Endless, NarrowPath, Recall, Regulator


def play(env, policy, n_episodes, gamma=1.0, seed=0):
    """Return the first observations and the discounted returns of some episodes."""
    firsts, gains = [], []
    for j in range(n_episodes):
        obs, _ = env.reset(seed=None if j else seed)
        firsts.append(obs)
        gain, discount, over = 0.0, 1.0, False
        while not over:
            obs, rew, terminated, truncated, _ = env.step(policy(obs))
            gain, discount, over = gain + discount * rew, discount * gamma, terminated or truncated
        gains.append(gain)
    return firsts, np.array(gains)


def agree(samples, mean):
    """Whether a sample mean is within five of its standard errors, which chance exceeds once in a million times."""
    return abs(np.mean(samples) - mean) <= 5 * np.std(samples) / math.sqrt(len(samples)) + 1e-9


def follow(env):
    return lambda obs: obs[:-1].argmax()


def go_right(env):
    return lambda obs: 1


def chase(env):
    def policy(obs):
        board = obs.reshape(env.rows, env.columns)
        return 1 + np.sign(board[:-1].any(axis=0).argmax() - board[-1].argmax())

    return policy


def remember(env):
    cue = None

    def policy(obs):
        nonlocal cue
        cue = obs[:-1].argmax() if obs[:-1].any() else cue
        return cue if obs[-1] else (cue + 1) % env.n_cues  # what is said before the question must not matter

    return policy


BEST = [
    (lambda: NarrowPath(), follow),
    (lambda: NarrowPath(length=2, n_actions=2), follow),
    (lambda: Chain(), go_right),
    (lambda: Chain(n_states=7, small=0.5), go_right),
    (lambda: Catch(), chase),
    (lambda: Catch(rows=5, columns=8), chase),
    (lambda: Recall(), remember),
    (lambda: Recall(n_cues=4, delay=0), remember),
    (lambda: Endless(), go_right),
]
ENVS = [NarrowPath, Chain, Catch, Recall, Regulator, Endless, DeepSea]


@pytest.mark.parametrize(("make", "best"), BEST)
def test_the_best_policy_reaches_the_optimum_and_a_random_one_the_level_of_chance(make, best):
    env, rng = make(), np.random.default_rng(1)
    assert (play(env, best(env), 50)[1] == env.optimum).all()
    assert agree(play(env, lambda obs: rng.integers(env.action_space.n), 2000)[1], env.chance)


@pytest.mark.parametrize("make", [*ENVS, BitFlip])
def test_gymnasiums_environment_checker_passes(make):
    checker = pytest.importorskip("gymnasium.utils.env_checker")
    checker.check_env(make(), skip_render_check=True)


@pytest.mark.parametrize("n_bits", [1, 4, 10])
def test_bits_that_differ_are_flipped_until_none_does(n_bits):
    env = BitFlip(n_bits)

    def policy(obs):
        return (obs["observation"] != obs["desired_goal"]).argmax()

    firsts, gains = play(env, policy, 400)
    distance = np.array([(obs["observation"] != obs["desired_goal"]).sum() for obs in firsts])
    assert (gains == np.where(distance, 1 - distance, -1.0 if n_bits == 1 else gains)).all()
    if n_bits == 10:
        assert agree(gains, env.optimum)
    with pytest.raises(ValueError, match="`n_bits`"):
        BitFlip(0)


def test_an_episode_that_misses_its_goal_is_truncated():
    env = BitFlip(3)
    env.reset(seed=0)
    env._bits[:], env._goal[:] = 0, 1
    seen = [env.step(action) for action in (0, 0, 1)]
    assert [(rew, terminated, truncated) for _, rew, terminated, truncated, _ in seen] == [
        (-1, False, False),
        (-1, False, False),
        (-1, False, True),
    ]
    assert seen[0][0]["observation"].tolist() == [1, 0, 0]
    assert not np.shares_memory(seen[0][0]["observation"], env._bits)


@pytest.mark.parametrize("size", [1, 4, 10])
def test_the_treasure_is_at_the_end_of_the_way_to_the_right(size):
    env = DeepSea(size, layout=3)

    def dive(obs):
        row, column = np.argwhere(obs.reshape(size, size))[0]
        return env._right[row, column]

    assert play(env, dive, 3)[1] == pytest.approx(env.optimum)
    assert (play(env, lambda obs: 1 - dive(obs), 3)[1] == 0).all()
    firsts, gains = play(env, lambda obs: 0, 2)
    assert firsts[0][0] == 1
    assert firsts[0].sum() == 1
    assert size == 1 or (gains < 1).all()
    assert not np.array_equal(DeepSea(10, layout=1)._right, DeepSea(10, layout=2)._right)
    with pytest.raises(ValueError, match="`size`"):
        DeepSea(0)


@pytest.mark.parametrize("make", ENVS)
def test_a_seed_repeats_an_environment_and_observations_are_new_arrays(make):
    env, actions = make(), make().action_space
    actions.seed(3)
    acts = [actions.sample() for _ in range(40)]

    def trace():
        seen = [env.reset(seed=5)[0]]
        kept = seen[0].copy()
        for act in acts:
            obs, *rest, _ = env.step(act)
            seen += [obs, *rest]
            if rest[-1] or rest[-2]:
                seen.append(env.reset()[0])
        assert np.array_equal(seen[0], kept)
        observations = [x for x in seen if isinstance(x, np.ndarray)]
        assert all(obs in env.observation_space for obs in observations)
        assert not any(np.shares_memory(x, y) for x, y in pairwise(observations))
        return np.concatenate([np.atleast_1d(x) for x in seen])

    once = trace()
    env.reset(seed=6)
    assert np.array_equal(once, trace())


@pytest.mark.parametrize(
    ("env", "length"), [(Chain(limit=6), 6), (Regulator(limit=7), 7), (Endless(8), 8), (Catch(4), 3), (Recall(2, 3), 5)]
)
def test_episodes_have_the_documented_lengths(env, length):
    while env.reset()[0][-1] and isinstance(env, Chain):
        pass  # from its last state, the first step to the right would lead out
    ends = []
    for t in range(length):
        to_and_fro = np.full(env.action_space.shape, 1 - t % 2)
        ends.append(env.step(to_and_fro)[2:4])
    terminates = isinstance(env, Catch | Recall)
    assert ends == [(False, False)] * (length - 1) + [(terminates, not terminates)]


def test_recall_shows_its_cue_once_and_its_question_once():
    env = Recall(n_cues=3, delay=2)
    for _ in range(10):
        seen = [env.reset()[0], *(env.step(0)[0] for _ in range(4))]
        assert [obs[:-1].sum() for obs in seen] == [1, 0, 0, 0, 0]
        assert [obs[-1] for obs in seen] == [0, 0, 0, 1, 0]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("options", [{}, {"n_states": 1}, {"n_states": 6, "small": 0.7}])
def test_the_values_of_the_chain_are_those_of_its_steps(gamma, options):
    env = Chain(**options)
    q = env.q_values(gamma)
    assert q.shape == (env.n_states, 2)
    for start in np.ndindex(q.shape):
        while env.reset()[0].argmax() != start[0]:
            pass
        gain, discount, act, over = 0.0, 1.0, start[1], False
        state = start[0]
        while not over:
            obs, rew, over, cut, _ = env.step(act)
            assert q[state, act] == pytest.approx(rew + gamma * (0 if over else q[obs.argmax()].max()), abs=1e-12)
            assert obs.sum() == (not over)
            gain, discount, state = gain + discount * rew, discount * gamma, obs.argmax()
            act, over = q[state].argmax(), over or cut
        if gamma < 1:  # undiscounted, nothing presses for an end
            assert q[start] == pytest.approx(gain, abs=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("a", [0.8, 1.1])
def test_the_gain_of_the_regulator_is_the_best_and_solves_the_riccati_equation(gamma, a):
    env = Regulator(a=a, b=0.7, q=1.5, r=0.3)
    k = env.gain(gamma)
    p = env.value(0.0, gamma) - env.value(1.0, gamma)
    gab = gamma * env.a * env.b
    assert k == pytest.approx(gab * p / (env.r + gamma * env.b**2 * p), abs=1e-12)
    assert p == pytest.approx(env.q + gamma * a**2 * p - (gab * p) ** 2 / (env.r + gamma * env.b**2 * p), abs=1e-12)
    for other in (k - 0.1, k + 0.1):
        assert all(env.value(x, gamma, other) < env.value(x, gamma) for x in (0.5, -2.0))
    assert env.value(1.0, 0.9, gain=-2.0) == -math.inf  # which pushes the wrong way


def test_the_regulator_moves_and_costs_as_documented():
    env, rng = Regulator(a=0.9, b=0.7, q=1.5, r=0.3, noise=0.2), np.random.default_rng(1)
    x, drift = env.reset(seed=0)[0].item(), []
    for _ in range(2000):
        u = rng.normal(size=1).astype(np.float32)
        after, rew, *_ = env.step(u)
        assert rew == pytest.approx(-(1.5 * x**2 + 0.3 * u.item() ** 2), rel=1e-5)
        drift.append(after.item() - 0.9 * x - 0.7 * u.item())
        x = after.item()
    assert agree(drift, 0)
    assert agree(np.square(drift), 0.2**2)


@pytest.mark.parametrize("better", [1.0, 0.5])
def test_the_value_of_the_regulator_is_its_mean_return(better):
    env, gamma = Regulator(r=1.0, noise=1.0, limit=120), 0.9  # beyond which 0.9^120 = 3e-6 of it is left
    gain = better * env.gain(gamma)
    firsts, gains = play(env, lambda obs: -gain * obs, 1500, gamma)
    assert agree(gains - [env.value(float(x[0]), gamma, gain) for x in firsts], 0.0)
    assert np.std([x[0] for x in firsts]) == pytest.approx(1, abs=0.2)


def test_the_value_of_endless_is_one_over_one_minus_gamma():
    assert Endless().value(0.9) == pytest.approx(10)


def test_catch_refuses_a_board_on_which_a_ball_cannot_be_caught():
    Catch(rows=3, columns=5)
    for rows, columns in ((2, 5), (1, 1)):
        with pytest.raises(ValueError, match=f"`rows` must be above {rows} "):
            Catch(rows=rows, columns=columns)


def actors():
    """Each with the environment for it, and the shape of its info."""
    critic, normal = {"logits": (3,), "value": ()}, {"mean": (1,), "log_std": (1,), "value": ()}
    head = nn.Linear
    yield "separate", Catch, ActorCritic(mlp(50, 8, 3), mlp(50, 8, 1)), critic
    yield "shared", Catch, ActorCritic(head(8, 3), head(8, 1), body=mlp(50, 8)), critic
    yield "lstm", Recall, ActorCritic(head(6, 3), head(6, 1), body=mlp(4, 8), core=nn.LSTM(8, 6, 2)), critic
    yield "gru", Recall, ActorCritic(head(6, 3), head(6, 1), core=nn.GRU(4, 6)), critic
    yield "gaussian", lambda: Regulator(limit=5), GaussianActorCritic(head(1, 1), head(1, 1), 1), normal
    core = nn.LSTM(1, 6)
    yield "gaussian-lstm", lambda: Regulator(limit=5), GaussianActorCritic(head(6, 1), head(6, 1), 1, core=core), normal
    yield "q", Chain, QNetwork(mlp(5, 8, 2), epsilon=0.5), {"q": (2,)}
    yield "duelling", Chain, QNetwork(Duelling(head(5, 1), head(5, 2)), epsilon=0.5), {"q": (2,)}
    yield "drqn", Chain, QNetwork(head(6, 2), body=mlp(5, 8), core=nn.GRU(8, 6), epsilon=0.5), {"q": (2,)}


@pytest.fixture(params=range(9), ids=[name for name, *_ in actors()])
def case(request):
    torch.manual_seed(2)
    _, make, actor, shapes = list(actors())[request.param]
    return make, actor, shapes


def collect(make, actor, n_fragments=1, n_steps=16, n_envs=4, seed=1):
    with same.rollout([make() for _ in range(n_envs)], actor, n_steps, seed=seed, final=True) as feed:
        return [next(feed) for _ in range(n_fragments)]


def best(info):
    return info["mean"] if "mean" in info else info[next(k for k in ("logits", "q") if k in info)].argmax(-1)


def test_actors_answer_what_the_losses_ask_for(case):
    make, actor, shapes = case
    (fragment,) = collect(make, actor)
    assert {k: x.shape for k, x in fragment.actor.items()} == {k: (17, 4, *shape) for k, shape in shapes.items()}
    assert all(x.dtype == torch.float32 for x in fragment.actor.values())
    assert fragment.state.act.dtype == (torch.float32 if "mean" in shapes else torch.int64)
    assert bool(nested.leaves(fragment.hx)) == (actor.core is not None)


def test_unrolled_actors_repeat_their_reactions(case):
    fragment, following = collect(*case[:2], n_fragments=2)
    info, hx, final = unroll(fragment, case[1])
    assert len(fragment.env.final.t)
    torch.testing.assert_close(dict(info), fragment.actor)
    torch.testing.assert_close(dict(final), fragment.env.final.actor)
    torch.testing.assert_close(hx, following.hx)
    assert all(x.requires_grad for x in info.values())


def test_every_parameter_of_an_actor_gets_gradients(case):
    _, actor, _ = case
    (fragment,) = collect(*case[:2])
    sum(x.square().sum() for x in unroll(fragment, actor).info.values()).backward()
    # the standard deviation is 1 at first, where the square of its logarithm is flat
    assert all(x.grad is not None and (x.grad.any() or name == "log_std") for name, x in actor.named_parameters())


def test_actors_are_greedy_in_eval_mode_only(case):
    make, actor, _ = case
    drawn, greedy = collect(make, actor)[0], collect(make, actor.eval())[0]
    assert torch.equal(greedy.state.act[1:], best(greedy.actor)[:-1])
    assert not torch.equal(drawn.state.act[1:], best(drawn.actor)[:-1])


def test_actors_draw_from_their_own_generator(case):
    (once,), _, (again,) = collect(*case[:2]), torch.rand(1), collect(*case[:2])
    assert torch.equal(once.state.act, again.state.act)
    assert not torch.equal(once.state.act, collect(*case[:2], seed=2)[0].state.act)


def test_actions_of_actors_have_the_frequencies_of_the_policy():
    torch.manual_seed(0)
    actor = ActorCritic(nn.Linear(1, 2), nn.Linear(1, 1))
    (fragment,) = collect(Endless, actor, n_steps=500)
    p = fragment.actor["logits"][0, 0].softmax(-1)[1].item()
    assert agree(fragment.state.act[1:].flatten().numpy(), p)

    actor = GaussianActorCritic(nn.Linear(1, 2), nn.Linear(1, 1), 2)
    with torch.no_grad():
        actor.log_std.copy_(torch.tensor([-2.0, 1.0]))
    act, _, info = actor.step(*[torch.zeros(0)], torch.ones(1, 2000, 1), *[torch.zeros(0)] * 3, hx=None, virtual=False)
    assert act.dtype == torch.float32
    noise = ((act - info["mean"]) / info["log_std"].exp()).detach()[0]
    for x in noise.T.numpy():
        assert agree(x, 0.0)
        assert agree(x**2, 1.0)
    assert agree((noise[:, 0] * noise[:, 1]).numpy(), 0.0)


def test_the_schedule_of_epsilon_reaches_the_behaviour_copy():
    torch.manual_seed(0)
    actor = QNetwork(nn.Linear(1, 2), epsilon=1)
    with same.rollout([Endless() for _ in range(4)], actor, 300, seed=1) as feed:
        fragment = next(feed)
        assert agree(fragment.state.act[1:].flatten().numpy(), 0.5)
        actor.epsilon.fill_(0.25)
        fragment = next(feed)
        wrong = fragment.state.act[1:] != best(fragment.actor)[:-1]
        assert agree(wrong.flatten().numpy(), 0.125)
        actor.epsilon.fill_(0)
        fragment = next(feed)
        assert torch.equal(fragment.state.act[1:], best(fragment.actor)[:-1])


def test_the_duelling_head_is_equation_nine_of_the_paper():
    torch.manual_seed(0)
    head, x = Duelling(nn.Linear(4, 1), nn.Linear(4, 3)), torch.randn(2, 5, 4)
    q, v, adv = head(x), head.value(x), head.advantage(x)
    for a in range(3):
        expected = v[..., 0] + adv[..., a] - (adv[..., 0] + adv[..., 1] + adv[..., 2]) / 3
        torch.testing.assert_close(q[..., a], expected)


def test_the_convolutional_body_has_the_documented_layers():
    torch.manual_seed(0)
    body, obs = NatureCNN(2), torch.randint(256, (2, 3, 2, 84, 84), dtype=torch.uint8)
    features = body(obs)
    assert features.shape == (2, 3, 512)
    for j in np.ndindex(2, 3):
        torch.testing.assert_close(features[j], body.layers(obs[j][None].float() / 255)[0])
    assert [tuple(x.weight.shape) for x in body.layers if hasattr(x, "weight")] == [
        (32, 2, 8, 8),
        (64, 32, 4, 4),
        (64, 64, 3, 3),
        (512, 3136),
    ]


class Screen(gym.Env):
    """Pixels in uint8, of one grey: the number of the step."""

    observation_space = gym.spaces.Box(0, 255, (1, 84, 84), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.stepno = 0
        return np.zeros((1, 84, 84), np.uint8), {}

    def step(self, action):
        self.stepno += 1
        return np.full((1, 84, 84), self.stepno, np.uint8), 1.0, self.stepno == 3, False, {}


def test_an_actor_critic_over_pixels_repeats_its_reactions():
    actor = ActorCritic(nn.Linear(512, 2), nn.Linear(512, 1), body=NatureCNN(1))
    (fragment,) = collect(Screen, actor, n_steps=4, n_envs=2)
    assert fragment.state.obs.dtype == torch.uint8
    torch.testing.assert_close(dict(unroll(fragment, actor).info), fragment.actor)


def test_a_perceptron_ends_in_a_linear_layer():
    kinds = [type(layer) for layer in mlp(4, 8, 6, 2, activation=nn.ReLU)]
    assert kinds == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert mlp(4, 8, 2)(torch.zeros(3, 5, 4)).shape == (3, 5, 2)


def test_orthogonal_weights_have_orthogonal_rows_or_columns_of_the_given_length():
    module = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(12, 5, bias=False), nn.Linear(5, 9))
    orthogonal_(module, gain=0.5)
    conv, _, wide, tall = module
    for rows in (conv.weight.flatten(1), wide.weight, tall.weight.T):
        torch.testing.assert_close(rows @ rows.T, 0.25 * torch.eye(len(rows)))
    assert not conv.bias.any()
    assert not tall.bias.any()


def test_zoo_actors_import_no_environments():
    code = "import sys, rlplay.zoo, rlplay.zoo.actors; print({'gym', 'gymnasium'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


PLAY = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1:]))  # as if these were not installed
import numpy as np
from rlplay.zoo import envs

for name in ["BitFlip", "Catch", "Chain", "DeepSea", "Endless", "NarrowPath", "Recall", "Regulator"]:
    env = getattr(envs, name)()
    env.action_space.seed(1)
    obs, info = env.reset(seed=2)
    for _ in range(20):
        assert obs in env.observation_space, name
        print(name, obs)
        obs, *outcome, info = env.step(env.action_space.sample())
        print(outcome)
        if outcome[1] or outcome[2]:
            obs, info = env.reset()
"""


def test_environments_play_alike_with_gym_and_with_gymnasium():
    pytest.importorskip("gymnasium")
    with_gym, with_gymnasium = (
        subprocess.run([sys.executable, "-c", PLAY, absent], capture_output=True, text=True, check=True)
        for absent in ("gymnasium", "gym")
    )
    assert with_gym.stdout == with_gymnasium.stdout
    assert "unmaintained" in with_gym.stderr
    assert not with_gymnasium.stderr  # gym's notice appears only where gym is needed
