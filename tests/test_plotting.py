"""Pictures of several runs beside each other."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from rlplay.plotting import Curves, learning_curve, learning_curves, timeline, timelines


def line_of(axes, name):
    (line,) = [line for line in axes.lines if line.get_label().startswith(name)]
    return line.get_xdata(), line.get_ydata()


def test_the_line_of_several_runs_is_their_mean_where_all_have_one():
    runs = [(np.arange(0, 110, 10), np.full(11, 1.0)), (np.arange(20, 130, 10), np.full(11, 3.0))]
    figure = learning_curves([Curves("one", {"ours": runs}, window=2)], title="A title", caption="A caption")
    (axes,) = figure.axes
    x, y = line_of(axes, "ours")
    assert (x[0], x[-1]) == (30, 100)  # the second run's first window, the first run's end
    np.testing.assert_allclose(y, 2.0)
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (1.0, 3.0)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ours"]
    figure.draw_without_rendering()


def test_runs_that_have_no_step_in_common_have_no_line():
    runs = [(np.arange(10, 20), np.zeros(10)), (np.arange(100, 110), np.ones(10))]
    (axes,) = learning_curves([Curves("", {"ours": runs}, window=5)]).axes
    assert not axes.lines
    assert not axes.collections


def test_a_name_has_one_colour_and_panels_may_lack_it():
    run = (np.arange(5), np.arange(5.0))
    panels = [Curves("a", {"x": [run], "y": [run]}, 1), Curves("b", {"y": [run]}, 1), Curves("c", {"x": [run]}, 9)]
    figure = learning_curves(panels)
    first, second, third = figure.axes
    assert first.lines[1].get_color() == second.lines[0].get_color() != first.lines[0].get_color()
    assert not third.lines  # shorter than a window
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["x", "y"]


def test_of_episodes_that_end_at_one_step_the_last_mean_counts():
    steps, returns = [10, 10, 10, 20, 20], [1.0, 2.0, 3.0, 8.0, 9.0]
    (axes,) = learning_curves([Curves("one", {"ours": [(steps, returns)]}, window=2)]).axes
    x, y = line_of(axes, "ours")
    np.testing.assert_allclose(y, 2.5 + (x - 10) / 10 * 6)
    assert (x[0], x[-1]) == (10, 20)


def test_a_window_without_episodes_is_refused():
    with pytest.raises(ValueError, match=r"`window` must be at least 1, got 0"):
        learning_curve([1, 2], [1.0, 2.0], window=0)


def test_too_many_names_are_refused():
    runs = {name: [(np.arange(3), np.arange(3.0))] for name in "abcde"}
    with pytest.raises(ValueError, match="at most 4 names together, got 5"):
        learning_curves([Curves("one", runs, 1)])


# timelines


def made_up_trace(tracks):
    """Return a trace of tracks by name, each a list of (activity, milliseconds), one after the other from 0."""
    events = []
    for tid, (name, parts) in enumerate(tracks.items()):
        events.append({"name": "thread_name", "ph": "M", "tid": tid, "args": {"name": name}})
        at, fragment = 0, -1
        for doing, duration in parts:
            fragment += doing == "waiting"
            args = {"args": {"fragment": fragment}} if name == "learner" else {}
            span = {"name": doing, "ph": "X", "tid": tid, "ts": 1e3 * at, "dur": 1e3 * duration}
            events += [{**span, **args}] if doing else []
            at += duration
    return SimpleNamespace(events=events)


def busy_of(axes):
    return [text.get_text() for text in axes.texts if "busy" in text.get_text()]


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


TURNS = {"learner": [("waiting", 10), ("training", 10)] * 5, "collector": [("stepping", 10), ("waiting", 10)] * 5}
AT_ONCE = {"learner": [("waiting", 1), ("training", 9)] * 10, "collector": [("inference", 100)]}


def test_timelines_for_comparison_have_one_scale_and_one_legend():
    figure = timelines(
        {"turns": made_up_trace(TURNS), "at once": made_up_trace(AT_ONCE)}, milliseconds=40, title="Both"
    )
    turns, at_once = figure.axes
    assert turns.get_xlim() == at_once.get_xlim() == (0, 40)
    assert turns.get_position().width == at_once.get_position().width
    assert busy_of(turns) == ["50 % busy", "50 % busy"]
    assert busy_of(at_once) == ["90 % busy", "100 % busy"]
    assert [axes.get_title("left") for axes in figure.axes] == ["turns", "at once"]
    assert "at once 0 % of" in turns.get_title("right")
    assert "at once 90 % of" in at_once.get_title("right")
    assert [text.get_text() for text in turns.texts[-2:]] == [" 3", " 4"]  # from the last request that 40 ms follow
    assert legend_of(figure) == ["training", "stepping", "inference", "waiting", "the learner receives a fragment"]
    figure.draw_without_rendering()
    boxes = [axes.get_tightbbox() for axes in figure.axes] + [figure.legends[0].get_window_extent()]
    boxes.append(figure._suptitle.get_window_extent())
    for one, other in itertools.combinations(boxes, 2):
        assert not one.shrunk(0.99, 0.99).overlaps(other.shrunk(0.99, 0.99))
    assert all(figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1 + 1 for box in boxes)


def test_a_panel_shows_only_what_all_tracks_have_recorded():
    short = TURNS | {"worker 0": [("stepping", 65)]}
    (axes,) = timelines({"one": made_up_trace(short)}, milliseconds=25).axes
    assert [text.get_text() for text in axes.texts[-1:]] == [" 2"]  # asked for at 40: 25 ms are recorded
    with pytest.raises(ValueError, match="in the trace 'one' is followed by 70 ms"):
        timelines({"one": made_up_trace(short)}, milliseconds=70)


@pytest.mark.parametrize("content", ["", "no JSON", "{}", "[1]", "3"])
def test_a_file_that_is_no_trace_is_refused(content, tmp_path):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json' is no trace: pass a file that `feed\.trace\(path\)` has written"):
        timeline(tmp_path / "run.json")


def test_a_collector_that_waits_for_its_workers_is_not_busy():
    steps = {"collector": [("inference", 30), ("stepping", 70)], "worker 0": [("waiting", 30), ("stepping", 70)]}
    figure = timeline(made_up_trace({"learner": [("waiting", 50), ("training", 50)]} | steps))
    assert busy_of(figure.axes[0]) == ["50 % busy", "30 % busy", "70 % busy"]
    assert "waiting for workers" in legend_of(figure)
    assert "learner and collector (or its workers) are busy at once 50 %" in figure.axes[0].get_title("left")


def test_time_without_a_record_is_explained_and_a_stream_without_work_waits():
    tracks = AT_ONCE | {"collector process 0": [("stepping", 80)]}
    assert "not recorded" in legend_of(timeline(made_up_trace(tracks)))
    tracks = AT_ONCE | {"learner's stream": [("", 10), ("training", 80)]}
    figure = timeline(made_up_trace(tracks), fragments=None)
    assert "not recorded" not in legend_of(figure)
    assert busy_of(figure.axes[0])[-1] == "80 % busy"
