"""Collectors on a Ray cluster of three nodes, all on this machine: the law, errors, deaths, restarts, ends."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
from functools import partial
from textwrap import dedent

import gym
import pytest
import torch

from rlplay.engine.rollout import cluster, multi, same
from rlplay.testing import CountingActor
from tests.support.assertions import assert_same_bytes
from tests.support.errors import raising
from tests.support.processes import is_alive
from tests.support.scripted import Script, ScriptedActor, ScriptedEnv, T
from tests.support.threads import until
from tests.support.training import change_everything, record_training

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

cartpole = partial(gym.make, "CartPole-v1")
HEALTH = {  # a dead node is noticed within seconds, not within a minute
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
ONE_A_NODE = {"ray_options": {"resources": {"place": 1}}}


class Nodes:
    """A cluster of three nodes with a place for one collector each; the first is also that of the learner."""

    def __init__(self):
        utils = importlib.import_module("ray.cluster_utils")
        head = {"num_cpus": 1, "resources": {"place": 1}, "include_dashboard": False, "_system_config": HEALTH}
        self.cluster = utils.Cluster(initialize_head=True, head_node_args=head)
        self.others = [self._add(), self._add()]
        ray.init(address=self.cluster.address, log_to_driver=False)

    def _add(self):
        return self.cluster.add_node(num_cpus=1, resources={"place": 1})

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


# the law


@pytest.mark.parametrize(("n", "lag", "options"), [(2, 1, {}), (3, 0, {}), (3, 2, {"restart": True, "sticky": True})])
def test_fragments_on_three_nodes_are_those_of_same_bit_for_bit(nodes, n, lag, options):
    common = {"lag": lag, "n_steps": 11, "final": True, "sticky": options.pop("sticky", False)}
    expected, counts = record_training(partial(same.rollout, [cartpole] * (2 * n)), groups=n, **common)
    rollout = partial(cluster.rollout, cartpole, n_actors=n, n_per_actor=2, **ONE_A_NODE, **options)
    got, others = record_training(rollout, **common)
    assert others == counts
    assert_same_bytes(expected, got)


def test_each_collector_is_where_the_options_of_ray_have_placed_it(nodes):
    with cluster.rollout(cartpole, CountingActor(), T, 3, 1, **ONE_A_NODE) as feed:
        next(feed)
        found = {re.search("node ([0-9a-f]+)", one.name).group(1) for one in collectors_of(feed)}
        assert found == {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        pids = [pid_of(one) for one in collectors_of(feed)]
        assert all(map(is_alive, pids))
    assert has_ended(pids)
