"""Collectors on a Ray cluster of three nodes, all on this machine: the law, errors, deaths, restarts, ends."""

from __future__ import annotations

import importlib
import itertools
import os
import re
import signal
import subprocess
import sys
from functools import partial

import gym
import numpy as np
import pytest

from rlplay.engine.rollout import cluster, same
from tests.support.assertions import assert_same_bytes
from tests.support.processes import is_alive
from tests.support.threads import until
from tests.support.training import GruWithBuffer, change_everything, record_training

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

cartpole = partial(gym.make, "CartPole-v1")
HEALTH = {  # a dead node is noticed within seconds, not within a minute
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
ONE_A_NODE = {"ray_options": {"num_cpus": 0, "resources": {"place": 1}}}


class Nodes:
    """A cluster of three nodes with a place for one collector each; the first is also that of the learner."""

    def __init__(self):
        utils = importlib.import_module("ray.cluster_utils")
        head = {"num_cpus": 0, "resources": {"place": 1}, "include_dashboard": False, "_system_config": HEALTH}
        self.cluster = utils.Cluster(initialize_head=True, head_node_args=head)
        self.others = [self._add(), self._add()]
        ray.init(address=self.cluster.address, log_to_driver=False)

    def _add(self):
        return self.cluster.add_node(num_cpus=0, resources={"place": 1})

    def kill(self):
        """Kill a node, not that of the learner; return its number."""
        node = self.others.pop()
        self.cluster.remove_node(node, allow_graceful=False)
        return node.node_id

    def replace(self):
        self.others.append(self._add())

    def close(self):
        ray.shutdown()
        self.cluster.shutdown()


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Replaces the fixture of all tests: nodes are processes, and some tests add one."""


@pytest.fixture(scope="module")
def nodes():
    """Three nodes; a test that kills one adds another."""
    found = Nodes()
    yield found
    found.close()


def pid_of(collector):
    return int(re.search(r"process (\d+)", collector.name).group(1))


def collectors_of(feed):
    return list(feed._driver.collector._collectors)


def has_ended(pids):
    until(lambda: not any(map(is_alive, pids)))
    return True


def end_of(feed):
    """Take fragments until there is an error; return it."""
    try:
        for _ in range(1000):
            next(feed)
    except Exception as error:
        return error
    raise AssertionError("there was no error")


@pytest.mark.parametrize(("n", "lag", "options"), [(2, 1, {}), (3, 2, {"restart": True})])
def test_fragments_on_several_nodes_are_those_of_same_bit_for_bit(nodes, n, lag, options):
    common = {"lag": lag, "n_steps": 11, "final": True}
    expected, counts = record_training(partial(same.rollout, [cartpole] * (2 * n)), groups=n, **common)
    rollout = partial(cluster.rollout, cartpole, n_actors=n, n_per_actor=2, **ONE_A_NODE, **options)
    got, others = record_training(rollout, **common)
    assert others == counts
    assert_same_bytes(expected, got)


def test_collectors_are_where_the_options_of_ray_place_them_and_close_leaves_none(nodes):
    with cluster.rollout(cartpole, GruWithBuffer(), 5, 3, 1, **ONE_A_NODE) as feed:
        next(feed)
        found = {re.search("node ([0-9a-f]+)", one.name).group(1) for one in collectors_of(feed)}
        assert found == {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        pids = [pid_of(one) for one in collectors_of(feed)]
        assert all(map(is_alive, pids))
    assert has_ended(pids)


class TwoArgumentError(Exception):
    """An exception that cannot be made again from its message alone."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


class Fails:
    """Fails in its third step."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (4,)), gym.spaces.Discrete(2)
    n_steps = 0

    def reset(self, *, seed=None):
        return np.zeros(4, np.float32), {}

    def step(self, action):
        self.n_steps += 1
        if self.n_steps == 3:
            raise TwoArgumentError("one", "another")
        return np.zeros(4, np.float32), 0.0, False, False, {}


def test_an_error_of_an_environment_comes_with_its_type_and_a_note(nodes):
    feed = cluster.rollout(Fails, GruWithBuffer(), 5, 2, 1, **ONE_A_NODE)
    error = end_of(feed)
    assert type(error) is TwoArgumentError
    assert re.search(
        r"collector \d \(environment \d\) on node .*: environment \d, in env.step, at step 2 of fragment 0",
        error.__notes__[0],
    )
    assert has_ended([pid_of(one) for one in collectors_of(feed)])


def test_a_killed_node_is_told_and_named(nodes):
    feed = cluster.rollout(cartpole, GruWithBuffer(), 5, 3, 1, **ONE_A_NODE)
    next(feed)
    pids, killed = [pid_of(one) for one in collectors_of(feed)], nodes.kill()
    error = end_of(feed)
    nodes.replace()
    assert re.match(rf"collector \d \(environment \d\) on node {killed} .* has died: ", str(error))
    assert isinstance(error, RuntimeError)
    assert isinstance(error.__cause__, ray.exceptions.RayActorError)
    assert has_ended(pids)


def test_with_restart_the_stream_after_a_kill_is_that_of_a_run_without(nodes):
    common, asks = {"lag": 1, "n_steps": 11, "final": True, "n_fragments": 6}, itertools.count(1)

    def kill(*args):
        change_everything(*args)
        if next(asks) == 2:
            nodes.kill()
            nodes.replace()

    expected, counts = record_training(partial(same.rollout, [cartpole] * 3), groups=3, **common)
    rollout = partial(cluster.rollout, cartpole, n_actors=3, n_per_actor=1, restart=True, **ONE_A_NODE)
    with pytest.warns(RuntimeWarning, match=r"collector \d .* has died: .* It was made anew"):
        got, others = record_training(rollout, update=kill, **common)
    assert others == counts
    assert_same_bytes(expected, got)


SCRIPT = """
import os, signal, sys
from functools import partial
import gym, ray
from rlplay.engine.rollout import cluster
from tests.support.training import GruWithBuffer

_, address, path, end = sys.argv

class Told(gym.Wrapper):
    def close(self):
        with open(path, "a") as file:
            file.write("closed ")

ray.init(address=address, log_to_driver=False)
options = {"num_cpus": 0}  # the nodes have none
feed = cluster.rollout(lambda: Told(gym.make("CartPole-v1")), GruWithBuffer(), 11, 2, 1, ray_options=options)
next(feed)
print(*[one.name.rpartition("process ")[2] for one in feed._driver.collector._collectors], flush=True)
if end == "SIGKILL":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("end", "closed"), [("exit", "closed closed "), ("SIGKILL", "")])
def test_a_program_that_ends_with_an_open_feed_leaves_no_ray_actor(nodes, tmp_path, end, closed):
    told = tmp_path / "told"
    told.touch()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, nodes.cluster.address, str(told), end], capture_output=True, text=True
    )
    assert done.returncode == (0 if end == "exit" else -signal.SIGKILL), done.stderr
    assert has_ended([int(pid) for pid in done.stdout.split()])
    assert told.read_text() == closed


def test_ray_is_started_on_this_machine_unless_the_program_has_started_it():
    script = SCRIPT.replace("ray.init(address=address, log_to_driver=False)", "assert not ray.is_initialized()")
    alone = {**os.environ, "RAY_ADDRESS": "local"}  # else `ray.init()` may find the nodes of the other tests
    done = subprocess.run(
        [sys.executable, "-c", script, "", "/dev/null", "exit"], capture_output=True, text=True, env=alone
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 2
    assert has_ended([int(pid) for pid in done.stdout.split()])
