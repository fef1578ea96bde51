"""Plots of many strategies can be read: everything is in the picture, and no name lies on another."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text

from pfl_mobile.strategies import names
from pfl_mobile.study import figures, plots
from tests.study.evaluations import evaluation


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws, and gives the figure with everything in its place."""
    kept = []

    def keep(figure, path):
        figures.save(figure, path)
        figure.draw_without_rendering()
        kept.append(figure)
        return path

    monkeypatch.setattr(plots, "save", keep)

    def draw(function, *given):
        function(*given, tmp_path / "plot.png")
        return kept[-1]

    return draw


def inside(figure, texts):
    """The places of the texts alone, [n] of (left, bottom, right, top), all of them in the picture."""
    boxes = np.array([Text.get_window_extent(text).extents for text in texts])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= figure.bbox.extents[2:]).all()
    return boxes


def apart(boxes):
    left, bottom, right, top = boxes.T
    crossing = (
        (left[:, None] < right) & (left < right[:, None]) & (bottom[:, None] < top) & (bottom < top[:, None])
    )
    return crossing.sum() == len(boxes)


def row(name, score, sent):
    costs = {"bytes_up": sent, "bytes_down": sent, "steps": 100.0}
    return {"strategy": name, "metric": "top1", "personalized_acc": score, "personal_steps": 3.0, **costs}


def test_names_in_the_plot_of_costs_do_not_overlap(drawn):
    rows = [row(name, 80 + i % 3, 1e6) | {"beginning": None} for i, name in enumerate(names())]
    figure = drawn(plots.draw_costs, rows, 10)
    axes = figure.axes[0]
    assert sorted(text.get_text() for text in axes.texts) == sorted(names())
    assert apart(inside(figure, axes.texts))
    inside(figure, [axes.xaxis.label, axes.yaxis.label])


def test_the_plot_of_costs_counts_the_beginning_and_the_steps_after_the_rounds(drawn):
    began = {"bytes_up": 1e6, "bytes_down": 2e6, "steps": 800.0}
    figure = drawn(
        plots.draw_costs, [row("a", 1, 1e6) | {"beginning": None}, row("b", 2, 0) | {"beginning": began}], 10
    )
    points = figure.axes[0].collections[0]
    assert points.get_offsets()[:, 0].tolist() == [2, 3]
    small, large = points.get_sizes() - 20
    assert large / small == pytest.approx((800 + 130) / 130)


def test_the_plot_of_losses_names_every_line_and_tells_them_apart(drawn):
    losses = {name: [1.0, float(i)] for i, name in enumerate(names())}
    figure = drawn(plots.draw_history, [1, 2], losses)
    legend = figure.legends[0].get_texts()
    assert [text.get_text() for text in legend] == names()[::-1]  # the highest line is named first
    assert apart(inside(figure, legend))
    lines = figure.axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(names())
    drawn(plots.draw_history, [1, 2], {"stopped before": [], "not known": [np.nan, np.nan]})


@pytest.mark.parametrize("count", [2, 34])
def test_the_plot_of_users_says_what_it_shows(drawn, count):
    found = {name: [evaluation([1, 2, 3], [4, 5, 6])] for name in names()[:count]}
    figure = drawn(plots.draw_distributions, found)
    axes = figure.axes[0]
    assert apart(inside(figure, [axes.xaxis.label, *figure.texts, *axes.get_yticklabels()]))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_names_in_a_column_keep_their_order_and_a_distance(heights):
    order, places = plots._column(np.array(heights))
    assert [heights[i] for i in order] == sorted(heights)
    assert min(places) >= -1e-9
    assert max(places) <= 1 + 1e-9
    gap = 1 / max(24, len(heights) - 1)
    assert all(after - before >= gap - 1e-9 for before, after in pairwise(places))
    wide = np.diff(np.sort(heights)) >= gap
    if wide.all():
        assert places == pytest.approx(sorted(heights))
