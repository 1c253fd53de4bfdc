"""Trainings that are saved at a random fragment and resumed in a new process equal those that were not interrupted.

Fragments, weights, the optimiser, the replay buffer and what is drawn from it, to the last bit.
"""

from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rlplay import checkpoint
from tests.support.saving import assert_goes_on, case_of, go_on_in_new_process, start

LISTS = [
    "gym",
    "gymnasium",
    "noisy",
    "recall",
    "autoreset",
    "factories",
    *(["breakout"] if find_spec("ale_py") else []),
]
VECTORS = ["SAME_STEP", "NEXT_STEP", "DISABLED"]

pytestmark = pytest.mark.filterwarnings("ignore:.*reset.*mask:RuntimeWarning")


@st.composite
def cases(draw):
    kind, engines = draw(st.sampled_from(LISTS + VECTORS)), st.sampled_from(["same", "threaded"])
    n_envs = draw(st.integers(1, 4))
    return case_of(
        kind, n_envs, draw(st.integers(0, 6)), draw(st.integers(1, 5)), draw(engines), draw(st.integers(1, 12)),
        start_in=draw(engines), lag=draw(st.integers(0, 2)), groups=draw(st.integers(1, min(n_envs, 2))),
        final=draw(st.booleans()), sticky=kind in LISTS and draw(st.booleans()),
        info=("hint",) if kind == "noisy" and draw(st.booleans()) else (),
    )  # fmt: skip


@pytest.mark.parametrize("n_processes", [1, pytest.param(30, marks=[pytest.mark.soak, pytest.mark.timeout(1200)])])
def test_a_training_goes_on_in_a_new_process_to_the_last_bit(tmp_path, n_processes):
    path = tmp_path / "cases.pt"

    @settings(max_examples=n_processes, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.lists(cases(), min_size=6, max_size=6))
    def check(some):
        started = [start(case) for case in some]
        checkpoint.save(path, {"cases": [(case, saved) for case, (saved, *_) in zip(some, started, strict=True)]})
        for case, (_, *expected), got in zip(some, started, go_on_in_new_process(path), strict=True):
            try:
                assert_goes_on(expected, got)
            except AssertionError as error:
                raise AssertionError(f"{error}, of {case}") from error

    check()
