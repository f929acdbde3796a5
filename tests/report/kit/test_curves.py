"""Areas of shares and the routes' colours."""

from __future__ import annotations

import numpy as np
import pytest

from depthdial.report.kit.curves import fill_shares, legend_columns, route_colors
from depthdial.report.kit.style import figure_style, new_figure


@pytest.mark.parametrize("budgets", [np.array([1.0, 2.0, 4.0]), np.array([3.0])])
def test_areas_pile_up_to_the_whole(budgets: np.ndarray) -> None:
    shares = np.tile([0.2, 0.5, 0.3], (len(budgets), 1))
    with figure_style():
        figure = new_figure(2)
        axes = figure.add_subplot()
        fill_shares(figure, axes, ["a", "b", "c"], budgets, shares)
    tops = [area.get_paths()[0].get_extents().y1 for area in axes.collections]
    assert tops == pytest.approx([20, 70, 100])
    assert axes.get_legend_handles_labels()[1] == ["a", "b", "c"]
    low, high = axes.get_xlim()
    assert low < high and low <= budgets[0] and high >= budgets[-1]


def test_colours_rise_in_brightness() -> None:
    brightness = [sum(color[:3]) for color in route_colors(6)]
    assert brightness == sorted(brightness) and len(set(brightness)) == 6


def test_many_routes_fill_the_width_of_the_legend() -> None:
    assert legend_columns(["a"] * 5) == 4
    assert legend_columns(["a"] * 20) == 14
    assert legend_columns(["a" * 40] * 20) == 4
