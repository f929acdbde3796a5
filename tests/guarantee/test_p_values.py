"""p-values of a mean of bounded losses: valid under the hypothesis, in the right units, and one with their bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.errors import InputError
from depthdial.guarantee.p_values import METHODS, p_values, rows_needed, upper_bounds

each_method = pytest.mark.parametrize("method", METHODS)


def losses(kind: str, mean: float, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Losses in [-1, 1] of a given expectation: rare and total, many zeros and a tail, signed, two-valued."""
    rng = np.random.default_rng(seed)
    some = rng.random(shape)
    return {
        "rare": lambda: (some < mean).astype(float),
        "skewed": lambda: np.where(some < 4 * mean, rng.beta(1, 3, shape), 0.0),
        "signed": lambda: np.where(some < 0.4, rng.uniform(mean / 0.4 - 0.4, mean / 0.4 + 0.4, shape), 0.0),
        "extreme": lambda: np.where(some < (1 + mean) / 2, 1.0, -1.0),
        "constant": lambda: np.full(shape, mean),
    }[kind]()


@each_method
@pytest.mark.parametrize("kind", ["rare", "skewed", "signed", "extreme", "constant"])
@pytest.mark.parametrize("n", [2, 30, 150])
def test_p_values_are_super_uniform_where_the_expected_loss_is_epsilon(method: str, kind: str, n: int) -> None:
    epsilon, draws = 0.05, 4000
    found = p_values(losses(kind, epsilon, (draws, n)), epsilon, method=method)
    for level in (0.01, 0.05, 0.1, 0.3):
        # Four standard errors: of 240 shares a valid method has one above that in a hundred runs, and seeds are fixed.
        assert (found <= level).mean() <= level + 4 * math.sqrt(level * (1 - level) / draws)
    assert found.min() >= 0 and found.max() <= 1


def test_a_smaller_loss_is_found_out() -> None:
    rows = losses("skewed", 0.01, (200, 400))
    share = {method: (p_values(rows, 0.05, method=method) <= 0.05).mean() for method in METHODS}
    assert share["betting"] > 0.99
    assert share["betting"] >= share["empirical_bernstein"] >= share["hoeffding"]
    assert share["hoeffding_bentkus"] >= share["hoeffding"]


@each_method
@given(scale=st.floats(0.01, 50), shift=st.floats(-3, 3), seed=st.integers(0, 99))
def test_units_do_not_matter(method: str, scale: float, shift: float, seed: int) -> None:
    rows = losses("signed", 0.01, (40,), seed)
    here = p_values(rows, 0.06, method=method)
    moved = p_values(rows * scale + shift, 0.06 * scale + shift, method=method, bounds=(-scale + shift, scale + shift))
    # Rounding may move the ceiling of Hoeffding-Bentkus by one count in forty.
    assert moved == pytest.approx(here, rel=0.3 if method == "hoeffding_bentkus" else 1e-6)


@each_method
@given(seed=st.integers(0, 99), kind=st.sampled_from(["rare", "skewed", "signed"]), n=st.integers(2, 80))
def test_a_larger_epsilon_is_easier(method: str, seed: int, kind: str, n: int) -> None:
    rows = losses(kind, 0.03, (n,), seed)
    grid = np.array([0.001, 0.01, 0.02, 0.05, 0.1, 0.3, 0.7, 0.999, 1.0])
    found = p_values(np.tile(rows, (len(grid), 1)), grid, method=method)
    if method == "star_betting":  # nothing is left to win below delta, where 5 of these 23,700 samples change order
        found = np.maximum(found, 0.05)
    assert (np.diff(found) <= 1e-12).all()


@each_method
@given(seed=st.integers(0, 99), delta=st.sampled_from([0.05, 0.1, 0.3]), kind=st.sampled_from(["skewed", "signed"]))
def test_a_bound_is_where_the_p_value_is_delta(method: str, seed: int, delta: float, kind: str) -> None:
    rows = losses(kind, 0.03, (3, 60), seed)
    bound = upper_bounds(rows, delta, method=method)
    assert bound.shape == (3,)
    assert (p_values(rows, bound, method=method, delta=delta) <= delta).all()
    assert (p_values(rows, bound - 1e-9, method=method, delta=delta) > delta).all()


@each_method
def test_samples_do_not_see_each_other(method: str) -> None:
    rows = losses("skewed", 0.03, (2, 3, 50))
    epsilon = np.array([[0.02, 0.05, 0.1], [0.2, 0.3, 0.4]])
    found = p_values(rows, epsilon, method=method)
    assert found.shape == (2, 3)
    for at in np.ndindex(2, 3):
        assert p_values(rows[at], epsilon[at], method=method) == pytest.approx(found[at], rel=1e-12)


def test_betting_by_hand() -> None:
    rows, epsilon, delta = np.array([0.0, 0.3, -0.1, 0.0]), 0.2, 0.1
    x, level = (rows + 1) / 2, 0.6
    capital, best, total, spread = 1.0, 1.0, 0.5, 0.25
    for t, value in enumerate(x, start=1):
        bet = min(math.sqrt(2 * math.log(1 / delta) / (len(x) * spread / t)), 0.9 / (1 - level))
        capital *= 1 + bet * (level - value)
        best = max(best, capital)
        total += value
        spread += (value - total / (t + 1)) ** 2
    assert p_values(rows, epsilon, delta=delta) == pytest.approx(1 / best)


def test_star_betting_by_hand_and_against_plain_bets() -> None:
    rows, epsilon, delta = np.array([0.0, 0.3, -0.1, 0.0, *[-0.2] * 8]), 0.2, 0.4
    x, level, target = (rows + 1) / 2, 0.6, math.log(1 / delta)
    capital, best, total, spread = 0.0, 0.0, 0.5, 0.25
    for t, value in enumerate(x, start=1):
        left = target / len(x) if best >= target else max(target - capital, 0.0) / (len(x) - t + 1)
        capital += math.log1p(min(math.sqrt(2 * left / (spread / t)), 0.9 / (1 - level)) * (level - value))
        best = max(best, capital)
        total += value
        spread += (value - total / (t + 1)) ** 2
    assert best > target  # both kinds of bets were made
    assert p_values(rows, epsilon, method="star_betting", delta=delta) == pytest.approx(math.exp(-best))
    noisy = np.random.default_rng(0).normal(0.0, 0.12, (60, 1000)).clip(-1, 1)
    plain, star = (upper_bounds(noisy, 0.05, method=method).mean() for method in ("betting", "star_betting"))
    assert star < 0.95 * plain


def test_closed_forms_by_hand() -> None:
    rows, delta = np.tile([0.1, 0.0, 0.0, -0.2, 0.4, 0.0, 0.0, 0.0], 20), 0.2
    t = math.log(2 / delta)
    bernstein = rows.mean() + math.sqrt(2 * rows.var(ddof=1) * t / 160) + 14 * t / (3 * 159)
    assert upper_bounds(rows, delta, method="empirical_bernstein") == pytest.approx(bernstein)
    assert upper_bounds(rows, delta, method="hoeffding") == pytest.approx(rows.mean() + 2 * math.sqrt(math.log(5) / 320))


def test_hoeffding_bentkus_by_hand() -> None:
    rows = np.array([1.0] * 2 + [0.0] * 38)
    tail = sum(math.comb(40, k) * 0.2**k * 0.8 ** (40 - k) for k in range(3))
    chernoff = math.exp(-40 * (0.05 * math.log(0.05 / 0.2) + 0.95 * math.log(0.95 / 0.8)))
    found = p_values(rows, 0.2, method="hoeffding_bentkus", bounds=(0, 1))
    assert found == pytest.approx(min(math.e * tail, chernoff))


@each_method
def test_the_smallest_epsilon_and_the_rows_that_it_needs_belong_together(method: str) -> None:
    def smallest(n: int) -> float:
        return float(upper_bounds(np.zeros(n), 0.05, method=method))

    by_n = [smallest(n) for n in (50, 100, 200, 500, 1000)]
    assert by_n == sorted(by_n, reverse=True) and by_n[-1] > 0
    needed = rows_needed(0.1, 0.05, method=method)
    assert needed is not None
    assert smallest(needed) <= 0.1 < smallest(needed - 1)


def test_a_hopeless_epsilon_needs_more_than_a_million_rows() -> None:
    assert rows_needed(1e-7, 0.05, method="hoeffding") is None


def test_gains_are_no_negative_epsilon() -> None:
    assert upper_bounds(np.full(500, -0.5), 0.05) < -0.3


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(InputError, match="Unknown method 'guess': use betting, "):
        p_values(np.zeros(100), 0.05, method="guess")
