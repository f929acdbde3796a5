"""Ridge: equal to solving the normal equations and leaving rows out by hand; what changes nothing changes nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.control.predictors import ridge
from depthdial.control.predictors.fitting import fit_predictor
from tests.control.predictors.tables import GROUPS, features_of, linear


@pytest.mark.parametrize("n", [40, 120])  # fewer and more rows than columns
def test_the_closed_form_is_leaving_rows_out_one_by_one(n):
    rows = features_of(n)[:, :60]
    rows = rows - rows.mean(axis=0)
    values = linear(n, noise=0.1)[1][:, :2]
    coefficients, penalties, solved_errors = ridge._solve(rows, values - values.mean(axis=0))
    for route in range(2):
        penalty = penalties[route] * (rows**2).sum()
        errors = []
        for left_out in range(n):
            kept = np.arange(n) != left_out
            weight, intercept = by_hand(rows[kept], values[kept, route], penalty)
            errors.append((rows[left_out] @ weight + intercept - values[left_out, route]) ** 2)
        assert np.mean(errors) == pytest.approx(solved_errors[route], rel=1e-6)
        assert np.allclose(by_hand(rows, values[:, route], penalty)[0], coefficients[:, route], atol=1e-9)


def by_hand(rows, values, penalty):
    """Weight and intercept from the normal equations; the intercept is not penalised."""
    extended = np.column_stack([rows, np.ones(len(rows))])
    penalties = np.diag([penalty] * rows.shape[1] + [0.0])
    solution = np.linalg.solve(extended.T @ extended + penalties, extended.T @ values)
    return solution[:-1], solution[-1]


@given(shift=st.floats(-100, 100), seed=st.integers(0, 5))
def test_a_constant_added_to_the_values_is_added_to_the_predictions(shift, seed):
    features, values = linear(50, noise=0.05, seed=seed)
    before, after = (fit_predictor("ridge", features, given, groups=GROUPS) for given in (values, values + shift))
    assert np.allclose(after.predict(features), before.predict(features) + shift, atol=1e-8)


@given(column=st.integers(0, 81), exponent=st.floats(-4, 4), sign=st.sampled_from([-1, 1]))
def test_rescaling_a_feature_changes_nothing(column, exponent, sign):
    features, values = linear(50, noise=0.05)
    rescaled = features.copy()
    rescaled[:, column] *= sign * 10.0**exponent
    before, after = (fit_predictor("ridge", given, values, groups=GROUPS) for given in (features, rescaled))
    assert np.allclose(after.predict(rescaled), before.predict(features), atol=1e-8)


def test_scalars_are_not_drowned_by_wide_groups():
    features = np.column_stack([features_of(100)[:, :2], np.random.default_rng(5).normal(size=(100, 2000))])
    values = features[:, :1] + 0.1 * np.random.default_rng(6).normal(size=(100, 1))
    grouped = fit_predictor("ridge", features, values, groups=[slice(0, 2), slice(2, 2002)])
    alone = fit_predictor("ridge", features, values)
    chosen, unaware = (p.settings()["chosen"]["leave_one_out_r2"][0] for p in (grouped, alone))
    assert chosen > 0.8 > 0.3 > unaware


def test_each_route_has_its_own_penalty():
    features, values = linear(100)
    values[:, 1] = np.random.default_rng(8).normal(size=100)
    strong, noise, constant = fit_predictor("ridge", features, values, groups=GROUPS).settings()["chosen"]["penalty"]
    assert strong < noise
    assert constant is None
