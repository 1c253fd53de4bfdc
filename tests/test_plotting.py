"""Pictures of several runs beside each other."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from rlplay.plotting import Curves, learning_curves


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


def test_too_many_names_are_refused():
    runs = {name: [(np.arange(3), np.arange(3.0))] for name in "abcde"}
    with pytest.raises(ValueError, match="at most 4 names together, got 5"):
        learning_curves([Curves("one", runs, 1)])
