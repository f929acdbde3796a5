"""Pictures of a comparison of searches show its numbers."""

from __future__ import annotations

import pytest

from depthdial.report.search.compare_plot import draw_importance_by_method, draw_kept_layers, draw_kl_by_method
from depthdial.report.search.comparison import Comparison, first_drops, read_comparison
from tests.report.search.folders import make_search_study


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return read_comparison(make_search_study(tmp_path_factory.mktemp("search") / "study"))


def test_every_dropped_layer_carries_its_round(comparison: Comparison) -> None:
    (axes,) = draw_importance_by_method(comparison).axes
    told = {(round(y), round(x)): int(note.get_text()) for note in axes.texts for x, y in [note.get_position()]}
    want = {
        (row, layer): rank
        for row, family in enumerate(comparison.families.values())
        for layer, rank in enumerate(first_drops(family))
        if rank is not None
    }
    assert told == want
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list(comparison.families)


def test_a_panel_for_each_size_shows_the_layers_that_run(comparison: Comparison) -> None:
    panels = draw_kept_layers(comparison).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["10 layers", "8 layers"]
    for axes, size in zip(panels, comparison.sizes, strict=True):
        cells = 0
        for path in axes.collections[0].get_paths():
            left, bottom, right, top = path.get_extents().extents
            cells += round((right - left) * (top - bottom))
        assert cells == size * len(comparison.methods)


def test_lines_pass_through_the_means_with_their_intervals_side_by_side(comparison: Comparison) -> None:
    figure = draw_kl_by_method(comparison)
    (axes,) = figure.axes
    lines = dict(zip(comparison.methods, (container.lines[0] for container in axes.containers), strict=True))
    for method, line in lines.items():
        means = [comparison.at[size][method].interval("kl").mean for size in comparison.sizes]
        assert line.get_ydata() == pytest.approx(means)
        assert [round(x) for x in line.get_xdata()] == pytest.approx(comparison.sizes, abs=1)
    firsts = [line.get_xdata()[0] for line in lines.values()]
    assert len(set(firsts)) == len(firsts)
    looks = {(line.get_color(), line.get_marker()) for line in lines.values()}
    assert len(looks) == len(lines)
    assert figure.get_suptitle().startswith("With 10 layers KL is 0.8 nats (greedy-kl) to 6")
