"""Means and their intervals, against published quantiles and against what an interval promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from depthdial.stats.intervals import (
    Interval,
    coded,
    known_interval,
    mean_interval,
    mean_over_samples,
    ratio_interval,
    share_interval,
)

# Two-sided quantiles of Student's t as printed in tables: degrees of freedom, at 90%, 95% and 99%.
TABLE = [
    (1, 6.313752, 12.706205, 63.656741),
    (2, 2.919986, 4.302653, 9.924843),
    (3, 2.353363, 3.182446, 5.840909),
    (4, 2.131847, 2.776445, 4.604095),
    (5, 2.015048, 2.570582, 4.032143),
    (7, 1.894579, 2.364624, 3.499483),
    (10, 1.812461, 2.228139, 3.169273),
    (30, 1.697261, 2.042272, 2.749996),
    (100, 1.660234, 1.983972, 2.625891),
]


@pytest.mark.parametrize(("degrees", "at_90", "at_95", "at_99"), TABLE)
def test_half_widths_are_quantiles_of_student_t(degrees: int, at_90: float, at_95: float, at_99: float) -> None:
    values = np.arange(degrees + 1.0)
    error = values.std(ddof=1) / math.sqrt(degrees + 1)
    for confidence, exact in ((0.9, at_90), (0.95, at_95), (0.99, at_99)):
        found = mean_interval(values, confidence)
        assert (found.high - found.low) / (2 * error) == pytest.approx(exact, abs=6e-7)


def test_shares_have_wilsons_intervals_within_0_and_1() -> None:
    for count, n in ((0, 100), (5, 100), (2, 24), (24, 24), (1, 1), (0, 1)):
        seen, exact = share_interval(count, n), binomtest(count, n).proportion_ci(method="wilson")
        assert (seen.mean, seen.n) == (count / n, n)
        assert (seen.low, seen.high) == pytest.approx((exact.low, exact.high), abs=1e-6)
        assert 0 <= seen.low <= seen.mean <= seen.high <= 1
    for count, n in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="takes a count of 0 to n"):
            share_interval(count, n)


def test_a_worked_example() -> None:
    # Mean 5, standard deviation 2.138090, t(0.975; 7) = 2.364624: half a width of 1.787481.
    interval = mean_interval([2, 4, 4, 4, 5, 5, 7, 9])
    assert (interval.mean, interval.n) == (5, 8)
    assert interval.low == pytest.approx(5 - 1.787481, rel=1e-4)
    assert interval.high == pytest.approx(5 + 1.787481, rel=1e-4)
    assert str(interval) == "5.000 [3.213, 6.787]"


def test_one_value_has_no_interval() -> None:
    interval = mean_interval([0.25])
    assert (interval.mean, interval.n) == (0.25, 1)
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


def test_no_value_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval([])


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert mean_interval(np.full(5, 0.5)) == Interval(0.5, 0.5, 0.5, 5)


VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30)


@given(VALUES, st.floats(-100, 100), st.floats(0.01, 100))
def test_intervals_move_and_stretch_with_the_values(values: list[float], shift: float, scale: float) -> None:
    before, after = mean_interval(values), mean_interval([scale * value + shift for value in values])
    for name in ("mean", "low", "high"):
        moved = scale * getattr(before, name) + shift
        assert getattr(after, name) == pytest.approx(moved, rel=1e-6, abs=1e-6 * scale + 1e-6)


@given(VALUES)
def test_more_confidence_is_a_wider_interval_around_the_same_mean(values: list[float]) -> None:
    narrow, wide = mean_interval(values, 0.8), mean_interval(values, 0.99)
    assert narrow.mean == wide.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert wide.low <= narrow.low <= narrow.mean <= narrow.high <= wide.high


@pytest.mark.parametrize("n", [2, 3, 8, 40])
def test_intervals_cover_the_true_mean_as_often_as_they_say(n: int) -> None:
    draws = np.random.default_rng(0).normal(3.0, 2.0, size=(4000, n))
    intervals = [mean_interval(row) for row in draws]
    covered = np.mean([interval.low <= 3.0 <= interval.high for interval in intervals])
    assert covered == pytest.approx(0.95, abs=0.012)  # 3.5 standard errors of the count; the draws are seeded


def test_samples_are_averaged_within_their_sequence_and_route():
    columns = {
        "sequence_id": np.array(["b", "a", "b", "a", "b"]),
        "route": np.array(["full", "full", "full", "full", "ee:1"]),
        "sample": np.array([0, 0, 1, 1, 0]),
        "rouge_l": np.array([0.1, 0.2, 0.3, math.nan, 0.5]),
        "layers_run": np.array([4, 4, 4, 4, 1]),
        "answer": np.array(["first", "x", "second", "y", "z"], dtype=object),
    }
    means = mean_over_samples(columns)
    assert list(zip(means["sequence_id"], means["route"], strict=True)) == [("b", "full"), ("a", "full"), ("b", "ee:1")]
    assert means["rouge_l"][[0, 2]].tolist() == pytest.approx([0.2, 0.5]) and math.isnan(means["rouge_l"][1])
    assert means["layers_run"].tolist() == [4, 4, 1]
    assert means["answer"].tolist() == ["first", "x", "z"]
    assert "sample" not in means


def test_entries_are_numbered_in_order_of_appearance():
    entries, codes = coded([("b", 1), ("a", 1), ("b", 1)])
    assert entries == [("b", 1), ("a", 1)] and codes.tolist() == [0, 1, 0]
    assert coded([])[1].shape == (0,)


def test_an_interval_of_what_is_there():
    assert known_interval(np.array([1.0, math.nan, 2.0])) == mean_interval([1.0, 2.0])
    assert known_interval(np.array([math.nan])) is None and known_interval(np.empty(0)) is None


def test_a_ratio_of_means_covers_the_true_one_as_often_as_it_promises():
    rng, found = np.random.default_rng(3), []
    for _ in range(1500):
        bases = rng.gamma(4.0, 0.25, 60)
        found.append(ratio_interval(0.8 * bases + rng.normal(0, 0.2, 60), bases))
    assert np.mean([one.mean for one in found]) == pytest.approx(0.8, abs=0.005)
    assert np.mean([one.low <= 0.8 <= one.high for one in found]) == pytest.approx(0.95, abs=0.02)


def test_a_ratio_leaves_out_pairs_with_a_gap_and_needs_a_base():
    values, bases = np.array([0.5, math.nan, 1.0, 9.0]), np.array([1.0, 1.0, 2.0, math.nan])
    assert ratio_interval(values, bases) == Interval(0.5, 0.5, 0.5, 2)
    assert ratio_interval(values, np.zeros(4)) is None and ratio_interval(np.empty(0), np.empty(0)) is None
    alone = ratio_interval(np.array([0.5]), np.array([1.0]))
    assert (alone.mean, alone.n) == (0.5, 1) and math.isnan(alone.low)
