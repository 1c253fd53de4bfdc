"""A stream that was saved goes on as if nothing had happened: in another feed, another engine, another process."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlplay import checkpoint
from tests.support.saving import assert_goes_on, go_on, go_on_in_new_process, start

LISTS = ["gym", "noisy", "recall", "autoreset", "factories"]
VECTORS = ["SAME_STEP", "NEXT_STEP", "DISABLED"]

pytestmark = pytest.mark.filterwarnings("ignore:.*reset.*mask:RuntimeWarning")


def case_of(kind="noisy", n_envs=3, before=2, after=3, to="same", n_steps=5, actor=None, **options):
    start_in = options.pop("start_in", "same")
    options = {"n_steps": n_steps, "lag": 0, **options}
    return {
        "kind": kind, "n_envs": n_envs, "before": before, "after": after, "from": start_in, "to": to,
        "options": options, "actor": actor or {},
    }  # fmt: skip


def check(case):
    saved, *expected = start(case)
    assert_goes_on(expected, go_on(case, saved))


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


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases())
def test_a_saved_stream_goes_on_bit_for_bit_in_either_engine(case):
    check(case)


@pytest.mark.parametrize("kind", ["autoreset", *VECTORS])
def test_environments_that_reset_themselves_go_on_from_every_row(kind):
    """Fragments of one step: the stream is saved right at an end, right after it, and in between."""
    for before in range(1, 13):
        check(case_of(kind, before=before, n_steps=1, final=True, after=4))


def test_saved_streams_go_on_in_a_new_process(tmp_path):
    some = [
        case_of("gym", lag=0, final=True),
        case_of("gymnasium", lag=1, to="threaded", groups=2),
        case_of("recall", lag=2, start_in="threaded", before=1),
        case_of("noisy", lag=1, start_in="threaded", to="threaded", sticky=True),
        case_of("NEXT_STEP", lag=2, to="threaded", n_steps=15),
        case_of("breakout", lag=1, n_envs=2),
    ]
    started = [start(case) for case in some]
    path = tmp_path / "cases.pt"
    checkpoint.save(path, {"cases": [(case, saved) for case, (saved, *_) in zip(some, started, strict=True)]})
    for (_, *expected), got in zip(started, go_on_in_new_process(path), strict=True):
        assert_goes_on(expected, got)
