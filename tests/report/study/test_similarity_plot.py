"""Similarity figures: lines are means over sequences, bands their intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from depthdial.report.study.similarity_plot import draw_fidelity, draw_similarity
from depthdial.report.study.summary import gather
from depthdial.stats.intervals import mean_interval


def _point(axes: Any, label: str, x: float) -> float:
    (line,) = (line for line in axes.get_lines() if line.get_label() == label)
    return dict(zip(np.round(line.get_xdata(), 6), line.get_ydata(), strict=True))[round(x, 6)]


def _values(rows: Any, route: str, column: str) -> np.ndarray:
    return rows.filter(pc.equal(rows["route"], route))[column].to_numpy()


def test_lines_are_means_at_their_cost(study: Any) -> None:
    figure = draw_similarity(gather(study.similarity))
    final, intermediate = figure.axes
    assert _point(final, "EE, early exit", 50) == pytest.approx(_values(study.similarity, "ee:6", "cosine_final").mean())
    expected = _values(study.similarity, "rls-wo1:6@0", "cosine_intermediate").mean()
    assert _point(intermediate, "RLS wo/1", 50) == pytest.approx(expected)
    assert _point(final, "ULS, uniform skipping", 100) == pytest.approx(1.0)  # the full model's own rows
    ends = (
        _values(study.similarity, "uls:6", "cosine_final").mean(),
        _values(study.similarity, "ee:6", "cosine_final").mean(),
    )
    assert f"ULS {ends[0]:.2f}, early exit {ends[1]:.2f}" in figure.get_suptitle()


def test_bands_are_the_intervals(study: Any) -> None:
    rows = study.similarity.filter(pc.equal(study.similarity["route"], "ee:6"))
    (band,) = draw_similarity(gather(rows)).axes[0].collections
    interval = mean_interval(rows["cosine_final"].to_numpy())
    extents = band.get_paths()[0].get_extents()
    assert (extents.y0, extents.y1) == pytest.approx((interval.low, interval.high))


def test_each_family_has_its_own_colour_marker_and_line(study: Any) -> None:
    lines = draw_similarity(gather(study.similarity)).axes[0].get_lines()
    assert len(lines) == 6
    for look in ("get_color", "get_marker", "get_label"):
        assert len({getattr(line, look)() for line in lines}) == 6
    assert "greedy-kl, searched" in {line.get_label() for line in lines}


def test_kl_is_on_a_log_scale_without_the_full_models_zero(study: Any) -> None:
    kl, agreement = draw_fidelity(gather(study.similarity)).axes
    assert (kl.get_yscale(), agreement.get_yscale()) == ("log", "linear")
    assert all((line.get_ydata() > 0).all() for line in kl.get_lines())
    assert _point(agreement, "EE, early exit", 100) == pytest.approx(1.0)
    assert [tick.get_text() for tick in kl.get_yticklabels()].count("1") == 1


def test_bands_of_two_sequences_do_not_stretch_the_axis_beyond_what_can_be(study: Any) -> None:
    two = study.similarity.filter(pc.is_in(study.similarity["sequence_id"], pc.unique(study.similarity["sequence_id"])[:2]))
    low, high = draw_fidelity(gather(two)).axes[1].get_ylim()
    assert low >= -0.03 - 1e-9 and high <= 1.03 + 1e-9


def test_one_sequence_has_lines_without_bands(study: Any) -> None:
    one = study.similarity.filter(pc.equal(study.similarity["sequence_id"], "s0"))
    for draw in (draw_similarity, draw_fidelity):
        figure = draw(gather(one))
        figure.draw_without_rendering()
        assert len(figure.axes[0].get_lines()) == 6
        assert not any(np.isfinite(path.vertices).any() for band in figure.axes[0].collections for path in band.get_paths())
