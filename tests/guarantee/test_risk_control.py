"""Fixed-sequence testing stops at the first failure; conformal risk control is its formula, by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.guarantee.risk_control import conformal_bounds, conformal_setting, fixed_sequence


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([0.9, 0.01, 0.02, 0.2, 0.01], 2),  # the last one is small, and is never looked at
        ([0.9, 0.2, 0.01, 0.01, 0.01], 0),
        ([0.9, 0.05, 0.05, 0.05, 0.05], 4),
        ([0.9, 0.051, 0.0, 0.0, 0.0], 0),
    ],
)
def test_testing_stops_at_the_first_failure(p_values: list[float], expected: int) -> None:
    assert fixed_sequence(np.array(p_values), 0.05) == expected


def test_chains_do_not_see_each_other() -> None:
    p = np.random.default_rng(0).random((20, 30, 5)) * 0.1
    found = fixed_sequence(p, 0.05)
    assert found.shape == (20, 30) and len(np.unique(found)) == 5
    assert all(found[at] == fixed_sequence(p[at], 0.05) for at in np.ndindex(20, 30))


def test_wrong_certificates_are_as_rare_as_promised() -> None:
    # Uniform p-values for true hypotheses, however small those of the false ones before them are.
    p = np.random.default_rng(0).random((20000, 6))
    p[:, :3] = 0.0
    assert 0.09 < (fixed_sequence(p, 0.1) >= 3).mean() <= 0.1 + 4 * 0.3 / np.sqrt(20000)


@given(
    seed=st.integers(0, 999), n=st.integers(2, 30), m=st.integers(2, 6), epsilon=st.sampled_from([0.05, 0.1, 0.3, 0.8, 1.0])
)
def test_conformal_risk_control_by_brute_force(seed: int, n: int, m: int, epsilon: float) -> None:
    losses = np.random.default_rng(seed).uniform(-0.4, 0.6, (n, m)) * np.linspace(0, 1, m)
    best = 0
    for setting in range(m):
        worst = [max(row[: setting + 1]) for row in losses.tolist()]
        if n / (n + 1) * (sum(worst) / n) + 1 / (n + 1) <= epsilon:
            best = setting
        else:
            break
    assert conformal_setting(losses, epsilon, 1.0) == best
    assert (np.diff(conformal_bounds(losses, 1.0)) >= 0).all()


def test_conformal_batches() -> None:
    losses = np.random.default_rng(1).uniform(-0.2, 0.5, (7, 40, 5)) * np.linspace(0, 1, 5)
    found = conformal_setting(losses, 0.2, 1.0)
    assert found.shape == (7,) and len(np.unique(found)) > 1
    assert found.tolist() == [int(conformal_setting(one, 0.2, 1.0)) for one in losses]


def test_conformal_risk_control_holds_on_average_and_no_more() -> None:
    # A pool whose mean is the true risk, and a grid on which the sample's luck matters.
    rng = np.random.default_rng(0)
    size = rng.random((2000, 1))
    pool = np.where(rng.random((2000, 1)) < 0.2, size, 0.0) * np.array([0.0, 0.3, 0.6, 0.9, 1.0])
    pool[:, 1:] -= 0.01 * (size > 0.9)
    epsilon, truth = 0.085, pool.mean(axis=0)
    picked = conformal_setting(pool[rng.integers(0, 2000, (4000, 60))], epsilon, 1.0)
    risk = truth[picked]
    assert risk.mean() <= epsilon
    assert (risk > epsilon).mean() > 0.1
