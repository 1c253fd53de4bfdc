"""Environments of several groups: made before any is reset, and closed once, whatever happens."""

from __future__ import annotations

import pytest

from rlplay.engine.rollout import same, threaded
from rlplay.testing import LaggingLane
from tests.support.scripted import ScriptedActor, ScriptedEnv

engines = pytest.mark.parametrize("engine", [same, threaded], ids=["same", "threaded"])


class Counted(ScriptedEnv):
    """Counts its calls."""

    def __init__(self, log, fails=None):
        super().__init__()
        self.log, self.fails = log, fails

    def reset(self, **options):
        self.log.append("reset")
        return super().reset(**options)

    def close(self):
        self.log.append("close")
        if self.fails is not None:
            raise self.fails


class Wider(Counted):
    @property
    def observation_space(self):
        space = super().observation_space
        return type(space)(-1, 1, (9,))


def open_feed(engine, envs, **options):
    return engine.rollout(envs, ScriptedActor(), 3, device=LaggingLane(), groups=2, **options)


@engines
def test_spaces_are_compared_before_anything_is_reset_and_what_was_made_is_closed(engine):
    log = []
    with pytest.raises(ValueError, match="equal spaces: environment 1 has"):
        open_feed(engine, [lambda: Counted(log), lambda: Wider(log)])
    assert log == ["close", "close"]


@engines
def test_an_environment_that_two_factories_give_is_refused_and_closed_once(engine):
    log = []
    one = Counted(log)
    with pytest.raises(ValueError, match="stands twice"):
        open_feed(engine, [lambda: one, lambda: one])
    assert log == ["close"]


@engines
def test_a_factory_that_fails_lets_the_others_be_closed(engine):
    log = []

    def fail():
        raise ArithmeticError("no environment")

    with pytest.raises(ArithmeticError, match="no environment") as caught:
        open_feed(engine, [lambda: Counted(log), fail])
    assert "environment 1, in env.make" in caught.value.__notes__[0]
    assert log == ["close"]


@pytest.mark.parametrize("groups", [1, 2])
def test_a_keyboard_interrupt_in_closing_leaves_no_environment_open(groups):
    log = []
    feed = open_feed(same, [lambda: Counted(log, KeyboardInterrupt()), lambda: Counted(log)])
    next(feed)
    with pytest.raises(KeyboardInterrupt):
        feed.close()
    assert log.count("close") == 2


class HasNoRepr(Exception):
    def __repr__(self):
        raise AttributeError("gone")


class LosesItsRepr(Counted):
    """Cannot be shown once it is closed."""

    def __repr__(self):
        return f"environment with {len(self.log)} entries"

    def close(self):
        log, self.log = self.log, None
        log.append("close")
        raise HasNoRepr


@engines
def test_environments_whose_repr_fails_do_not_keep_others_from_being_closed(engine):
    log = []
    feed = open_feed(engine, [lambda: LosesItsRepr(log), lambda: Counted(log), lambda: LosesItsRepr(log)])
    next(feed)
    with pytest.warns(RuntimeWarning) as caught:
        feed.close()
    complaint = "closing <LosesItsRepr, whose repr fails> failed: <HasNoRepr, whose repr fails>."
    assert [str(warning.message) for warning in caught] == [complaint] * 2
    assert log.count("close") == 3
