"""Arguments of a rollout that are mixed up: classes for instances, instances for factories, actor for environments."""

from __future__ import annotations

import pytest
from torch import nn

from rlplay.engine.rollout import cluster, episodic, multi, same, single, threaded
from rlplay.engine.rollout.evaluate import background, evaluate
from tests.support.scripted import ScriptedActor, ScriptedEnv

IN_PROCESSES = {
    "single": single.rollout,
    "multi": multi.rollout,
    "cluster": cluster.rollout,
    "evaluate.background": lambda factory, actor: background(factory, actor, 2),
}
IN_THIS_PROCESS = {"same": same.rollout, "threaded": threaded.rollout, "episodic": episodic.rollout, "eval": evaluate}
in_processes = pytest.mark.parametrize("call", IN_PROCESSES.values(), ids=IN_PROCESSES)
EVERYWHERE = IN_PROCESSES | IN_THIS_PROCESS
everywhere = pytest.mark.parametrize("call", EVERYWHERE.values(), ids=EVERYWHERE)


@pytest.fixture(autouse=True)
def _with_ray(monkeypatch):
    monkeypatch.setattr(cluster, "connect", lambda: None)


WRONG = {
    "a list": ([ScriptedEnv(), ScriptedEnv()], "a list of 2"),
    "factories": ([ScriptedEnv] * 3, "a list of 3"),
    "an instance": (ScriptedEnv(), "an instance of ScriptedEnv"),
    "nothing": (None, "None"),
}


LISTS_ARE_FOR = {"evaluate.background": "`evaluate`"}


@pytest.mark.parametrize("engine", IN_PROCESSES)
@pytest.mark.parametrize(("given", "words"), WRONG.values(), ids=WRONG)
def test_environments_in_the_place_of_a_factory_are_refused_with_the_remedy(engine, given, words):
    with pytest.raises(TypeError, match=rf"`factory` must be a callable that makes an environment, got {words}: ") as e:
        IN_PROCESSES[engine](given, ScriptedActor())
    assert "made in other processes" in str(e.value)
    assert "`lambda: gym.make(...)`" in str(e.value)
    assert str(e.value).endswith(
        f"; lists of environments are for {LISTS_ARE_FOR.get(engine, '`same` and `threaded`')}."
    )
    assert "0x" not in str(e.value)


@everywhere
def test_an_actor_in_the_place_of_the_environments_is_told(call):
    with pytest.raises(TypeError, match=r"`(envs|factory)` is an actor, ScriptedActor: are the arguments swapped\?"):
        call(ScriptedActor(), [ScriptedEnv()])
    with pytest.raises(TypeError, match=r"`(envs|factory)` is an actor, Linear: are the arguments swapped\?"):
        call(nn.Linear(2, 2), [ScriptedEnv()])


@everywhere
def test_the_class_of_an_actor_in_its_place_is_told(call):
    envs = [ScriptedEnv()] if call in IN_THIS_PROCESS.values() else ScriptedEnv
    with pytest.raises(TypeError, match=r"a rlplay.engine.BaseActorModule, got the class ScriptedActor: write `"):
        call(envs, ScriptedActor)
    with pytest.raises(TypeError, match=r"must be a rlplay.engine.BaseActorModule, got int\."):
        call(envs, 3)
