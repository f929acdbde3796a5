"""Means and their intervals, against published quantiles and against what an interval promises."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.stats.intervals import (
    Interval,
    coded,
    known_interval,
    mean_interval,
    mean_over_samples,
    student_t,
    student_t_tail,
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
def test_quantiles_of_student_t(degrees: int, at_90: float, at_95: float, at_99: float) -> None:
    for confidence, exact in ((0.9, at_90), (0.95, at_95), (0.99, at_99)):
        assert student_t(confidence, degrees) == pytest.approx(exact, abs=6e-7)


def test_many_degrees_are_the_normal_distribution() -> None:
    assert student_t(0.95, 10**7) == pytest.approx(1.959964, rel=1e-6)


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95, 0.99])
def test_quantiles_fall_with_the_degrees_and_rise_with_the_confidence(confidence: float) -> None:
    quantiles = [student_t(confidence, degrees) for degrees in range(1, 60)]
    assert all(more > less for more, less in pairwise(quantiles))
    assert all(student_t(confidence + 0.005, degrees) > student_t(confidence, degrees) for degrees in range(1, 60))


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


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 30, 999, 9_999, 10_001, 10**6])
def test_the_tail_beyond_a_quantile_is_what_it_is_the_quantile_of(degrees: int) -> None:
    for confidence in (0.0, 0.3, 0.9, 0.95, 0.999):
        assert student_t_tail(student_t(confidence, degrees), degrees) == pytest.approx((1 - confidence) / 2, rel=1e-9)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 40, 300])
@pytest.mark.parametrize("t", [0.0, 1e-3, 0.4, 1.3, 2.6, 9.0])
def test_tails_are_the_integral_of_the_density(degrees: int, t: float) -> None:
    # With t = tan(angle) sqrt(degrees) the density becomes cos(angle) ** (degrees - 1) over a finite range.
    nodes, weights = np.polynomial.legendre.leggauss(400)

    def area(low: float) -> float:
        half = (math.pi / 2 - low) / 2
        return half * float(weights @ np.cos(low + half * (nodes + 1)) ** (degrees - 1))

    exact = area(math.atan(t / math.sqrt(degrees))) / (2 * area(0.0))
    assert student_t_tail(t, degrees) == pytest.approx(exact, rel=1e-9)


def test_small_tails_keep_their_digits() -> None:
    assert student_t_tail(1e6, 1) == pytest.approx(1 / (math.pi * 1e6), rel=1e-11)  # Cauchy: atan(1 / t) / pi
    assert student_t_tail(1e4, 2) == pytest.approx((1 - 1e4 / math.sqrt(2 + 1e8)) / 2, rel=1e-6)
    assert student_t_tail(40.0, 30) == pytest.approx(6.86302259720e-28, rel=1e-11)
    assert (student_t_tail(math.inf, 3), student_t_tail(-math.inf, 3), student_t_tail(0.0, 3)) == (0, 1, 0.5)


@given(st.floats(-50, 50), st.integers(1, 500))
def test_tails_are_symmetric_and_fall(t: float, degrees: int) -> None:
    assert student_t_tail(t, degrees) + student_t_tail(-t, degrees) == pytest.approx(1, abs=1e-12)
    falls = student_t_tail(t, degrees) - student_t_tail(t + 0.01, degrees)
    assert falls > 0 if abs(t) < 5 else falls >= 0  # a tail of nearly 1 has no digits left to fall


@pytest.mark.parametrize(("t", "degrees"), [(math.nan, 3), (1.0, 0), (1.0, math.nan)])
def test_no_tail_without_numbers(t: float, degrees: float) -> None:
    with pytest.raises(ValueError, match="degrees of freedom"):
        student_t_tail(t, degrees)


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
