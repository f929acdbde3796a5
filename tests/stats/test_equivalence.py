"""Paired differences: their intervals, what they decide, and what they must not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import stdtr

from depthdial.errors import InputError
from depthdial.stats.equivalence import (
    common_costs,
    difference_at_equal_cost,
    paired_over_seeds,
    paired_over_sequences,
)
from depthdial.stats.intervals import mean_interval

SCORES = st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=2, max_size=12)
MARGINS = st.floats(0.05, 20)


def test_a_worked_example() -> None:
    # Differences 1, 2, 3, 4, 5: mean 3, standard deviation 1.581139, error 0.707107, t(0.975; 4) = 2.776445.
    found = paired_over_seeds([2, 4, 6, 8, 10], [1, 2, 3, 4, 5], margin=6.0)
    assert found.mean == 3 and found.effect_size == pytest.approx(3 / 1.581139, rel=1e-6)
    assert found.interval_95.low == pytest.approx(3 - 2.776445 * 0.707107, abs=1e-5)
    assert found.interval_90.high == pytest.approx(3 + 2.131847 * 0.707107, abs=1e-5)
    assert found.p_above == pytest.approx(stdtr(4, -9 / 0.7071067811865476))
    assert found.p_below == pytest.approx(stdtr(4, -3 / 0.7071067811865476))
    assert found.is_equivalent and found.direction == 1 and found.verdict == "equivalent within the margin"


def test_small_tails_keep_their_digits() -> None:
    cauchy = paired_over_seeds([1, -1], [0, 0], margin=1e6)  # of one degree, with t = 1e6: atan(1 / t) / pi
    assert cauchy.p_above == cauchy.p_below == pytest.approx(1 / (math.pi * 1e6), rel=1e-11)


@pytest.mark.parametrize(
    ("shift", "spread", "verdict"),
    [
        (0.0, 0.3, "equivalent within the margin"),
        (0.4, 0.2, "equivalent within the margin"),
        (2.0, 0.5, "helps"),
        (-2.0, 0.5, "hurts"),
        (0.0, 3.0, "not decided by these data"),
        (0.9, 1.0, "not decided by these data"),
    ],
)
def test_the_four_verdicts(shift: float, spread: float, verdict: str) -> None:
    differences = shift + spread * np.array([-1.2, -0.5, 0.0, 0.5, 1.2])
    found = paired_over_seeds(differences, np.zeros(5), margin=1.0)
    assert found.verdict == verdict
    loss = paired_over_seeds(differences, np.zeros(5), margin=1.0, higher_is_better=False)
    assert loss.verdict == {"helps": "hurts", "hurts": "helps"}.get(verdict, verdict)
    # Absence of evidence is not evidence of absence: without a margin nothing is ever called equal.
    without = paired_over_seeds(differences, np.zeros(5))
    assert without.verdict != "equivalent within the margin" and math.isnan(without.p_above) and math.isnan(without.p_below)


@given(SCORES, MARGINS)
def test_the_two_tests_are_the_interval_inside_the_margin(pairs: list[tuple[float, float]], margin: float) -> None:
    a, b = np.array(pairs).T
    found = paired_over_seeds(a, b, margin=margin)
    p_equivalence = max(found.p_above, found.p_below)
    if abs(p_equivalence - 0.05) > 1e-9:
        assert found.is_equivalent == (p_equivalence < 0.05)
    assert found.interval_95 == mean_interval(a - b)


@given(SCORES, MARGINS)
def test_swapping_the_two_turns_everything_round(pairs: list[tuple[float, float]], margin: float) -> None:
    a, b = np.array(pairs).T
    there, back = paired_over_seeds(a, b, margin=margin), paired_over_seeds(b, a, margin=margin)
    assert there.mean == -back.mean and there.direction == -back.direction
    assert there.is_equivalent == back.is_equivalent
    assert (there.p_above, there.p_below) == (back.p_below, back.p_above)
    assert there.interval_95.low == pytest.approx(-back.interval_95.high, abs=1e-12)


@given(SCORES, MARGINS, st.floats(1.0, 10.0))
def test_a_wider_margin_never_undoes_equivalence(pairs: list[tuple[float, float]], margin: float, factor: float) -> None:
    a, b = np.array(pairs).T
    narrow, wide = (paired_over_seeds(a, b, margin=m) for m in (margin, factor * margin))
    assert wide.is_equivalent or not narrow.is_equivalent
    assert max(wide.p_above, wide.p_below) <= max(narrow.p_above, narrow.p_below) + 1e-12


@given(SCORES)
def test_a_common_part_of_a_seed_cancels(pairs: list[tuple[float, float]]) -> None:
    a, b = np.array(pairs).T
    luck = np.arange(len(a)) * 7.0
    assert paired_over_seeds(a + luck, b + luck).mean == pytest.approx(paired_over_seeds(a, b).mean, abs=1e-9)


def test_equal_scores_are_equivalent_and_scores_at_the_margin_are_not() -> None:
    same = paired_over_seeds([1, 2, 3], [1, 2, 3], margin=0.1)
    assert (same.verdict, same.effect_size) == ("equivalent within the margin", 0.0)
    assert same.p_above == same.p_below == 0.0
    edge = paired_over_seeds([2, 3, 4], [1, 2, 3], margin=1.0)
    assert not edge.is_equivalent and max(edge.p_above, edge.p_below) == 0.5 and edge.effect_size == math.inf


def test_equivalence_is_claimed_wrongly_in_5_of_100_studies_at_most() -> None:
    draws = np.random.default_rng(0).normal(1.0, 0.5, size=(4000, 5))  # the truth lies at the margin itself
    claimed = np.mean([paired_over_seeds(row, np.zeros(5), margin=1.0).is_equivalent for row in draws])
    assert claimed == pytest.approx(0.05, abs=0.012)


# Over sequences


def _scores(n_seeds: int, n_sequences: int, shift: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(30, 15, size=n_sequences)
    a = difficulty + shift + rng.normal(0, 2, size=(n_seeds, n_sequences))
    return a, difficulty + rng.normal(0, 2, size=(n_seeds, n_sequences))


def test_the_bootstrap_over_sequences_agrees_with_the_t_interval() -> None:
    a, b = _scores(4, 300)
    found, exact = paired_over_sequences(a, b, margin=1.0), mean_interval((a - b).mean(axis=0))
    assert found.mean == pytest.approx(exact.mean) == found.two_way.mean
    width = exact.high - exact.low
    assert found.interval_95.low == pytest.approx(exact.low, abs=0.05 * width)
    assert found.interval_95.high == pytest.approx(exact.high, abs=0.05 * width)
    assert (found.two_way.interval_95.n, found.interval_95.n) == (4, 300)
    assert found.verdict == "equivalent within the margin"


def test_other_seeds_add_their_own_uncertainty() -> None:
    a, b = _scores(5, 200)
    a = a + np.array([-3.0, -1.0, 0.0, 1.0, 3.0])[:, None]  # seeds differ more than sequences do
    found = paired_over_sequences(a, b, margin=1.0)
    alone, both = found.interval_90, found.two_way.interval_90
    assert both.high - both.low > 2 * (alone.high - alone.low)
    assert found.is_equivalent and found.two_way.verdict == "not decided by these data"


def test_the_chance_of_a_bootstrap_is_its_seed() -> None:
    a, b = _scores(3, 40)
    first = paired_over_sequences(a, b, n_draws=1500)
    assert first == paired_over_sequences(a, b, n_draws=1500)
    assert first.interval_95 != paired_over_sequences(a, b, n_draws=1500, seed=1).interval_95


@given(st.integers(1, 4), st.integers(2, 20), st.floats(-3, 3), st.integers(0, 99))
def test_intervals_lie_among_the_differences_and_90_within_95(n_seeds: int, n: int, shift: float, seed: int) -> None:
    a, b = _scores(n_seeds, n, shift, seed)
    found = paired_over_sequences(a, b, margin=1.0, n_draws=200)
    by_sequence = (a - b).mean(axis=0)
    assert by_sequence.min() - 1e-9 <= found.interval_95.low <= found.interval_90.low
    assert found.interval_90.high <= found.interval_95.high <= by_sequence.max() + 1e-9
    assert (found.two_way is None) == (n_seeds == 1)


def test_one_sequence_decides_nothing() -> None:
    found = paired_over_sequences([[1.0], [2.0]], [[0.0], [0.0]], margin=5.0, n_draws=100)
    assert found.verdict == "not decided by these data" and math.isnan(found.interval_95.low)


@pytest.mark.parametrize(
    ("a", "b", "options", "told"),
    [
        ([1.0], [1.0, 2.0], {}, "cannot be paired"),
        ([], [], {}, "cannot be paired"),
        ([[1.0]], [[1.0]], {}, "cannot be paired"),
        ([1.0, math.nan], [1.0, 2.0], {}, "not finite"),
        ([1.0], [1.0], {"margin": 0.0}, "Invalid margin of equivalence 0.0: use a number above 0"),
        ([1.0], [1.0], {"margin": math.nan}, "above 0"),
    ],
)
def test_scores_that_cannot_be_paired_are_refused(a: list, b: list, options: dict, told: str) -> None:
    with pytest.raises(InputError, match=told):
        paired_over_seeds(a, b, **options)


def test_sequences_that_cannot_be_paired_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(seeds, sequences\)"):
        paired_over_sequences([1.0, 2.0], [1.0, 2.0])
    with pytest.raises(InputError, match="Invalid n_draws"):
        paired_over_sequences([[1.0, 2.0]], [[1.0, 2.0]], n_draws=0)


# At equal cost


def test_curves_are_compared_at_the_same_cost() -> None:
    # Both lie on one line, but `a` was measured at a higher cost: the raw difference is all cost.
    line = lambda costs: [(c, 10 * c) for c in costs]  # noqa: E731
    a, b = [line((0.3, 0.55, 0.8))], [line((0.25, 0.5, 0.75))]
    assert difference_at_equal_cost(a, b, [0.3, 0.5, 0.7]) == pytest.approx(np.zeros((1, 3)), abs=1e-12)
    assert a[0][1][1] - b[0][1][1] == pytest.approx(0.5)


def test_nothing_is_extrapolated() -> None:
    found = difference_at_equal_cost([[(0.3, 1.0), (0.8, 2.0)]], [[(0.8, 1.0), (0.2, 0.0)]], [0.25, 0.3, 0.8, 0.81])
    assert np.isnan(found[0, [0, 3]]).all() and np.isfinite(found[0, 1:3]).all()


def test_points_of_one_cost_count_by_their_mean() -> None:
    found = difference_at_equal_cost([[(0.5, 1.0), (0.5, 3.0)]], [[(0.5, 0.0)]], [0.5])
    assert found.tolist() == [[2.0]]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(-9, 9)), min_size=1, max_size=6), st.floats(-3, 3))
def test_a_shift_is_found_wherever_the_curve_reaches(curve: list[tuple[float, float]], shift: float) -> None:
    costs = [c for c, _ in curve]
    found = difference_at_equal_cost([[(c, s + shift) for c, s in curve]], [curve], costs)
    assert found == pytest.approx(np.full((1, len(costs)), shift), abs=1e-9)


def test_curves_without_partner_or_point_are_refused() -> None:
    with pytest.raises(InputError, match="curves of 1 and 2 seeds"):
        difference_at_equal_cost([[(0.5, 1.0)]], [[(0.5, 1.0)]] * 2, [0.5])
    with pytest.raises(InputError, match="no point"):
        difference_at_equal_cost([[]], [[(0.5, 1.0)]], [0.5])


def test_common_costs_are_the_nearest_that_all_curves_reach() -> None:
    curves = [[(0.31, 0.0), (0.5, 0.0), (0.74, 0.0)], [(0.29, 0.0), (0.5, 0.0), (0.76, 0.0)]]
    assert common_costs(curves, [0.3, 0.5, 0.75]) == [0.31, 0.5, 0.74]
    assert common_costs([[(0.5, 0.0)], [(0.52, 0.0)]], [0.5]) == [None]
    assert common_costs([[(0.1, 0.0), (0.9, 0.0)], [(0.6, 0.0), (0.9, 0.0)]], [0.1, 0.5, 0.9]) == [None, 0.6, 0.9]
