"""Standardising and components: what goes in alike comes out alike, and what does not vary is dropped."""

import numpy as np
import pytest

from depthdial.control.predictors.projection import Projection, Standardiser, spectrum
from depthdial.errors import InputError
from tests.control.predictors.tables import GROUPS, features_of


def test_columns_have_mean_0_and_deviation_1_and_constant_ones_are_0():
    features = 1000 * features_of(60) + 5
    features[:, 3] = 7.1
    standard = Standardiser.of(features)
    rows = standard.apply(features)
    varies = np.arange(82) != 3
    assert (standard.varies == varies).all()
    assert np.allclose(rows.mean(axis=0), 0, atol=1e-12)
    assert np.allclose(rows.std(axis=0), varies)


def test_narrow_groups_are_kept_and_wide_ones_become_components():
    features = features_of(60)
    projection = Projection.of(features, GROUPS, 6)
    inputs = projection.apply(features)
    assert inputs.shape == (60, 2 + 6)
    assert np.allclose(inputs[:, :2], Standardiser.of(features).apply(features)[:, :2])
    components = inputs[:, 2:]
    covariance = components.T @ components / 60
    assert np.allclose(covariance, np.diag(np.diag(covariance)), atol=1e-9)
    assert np.trace(covariance) == pytest.approx(6)
    assert (np.diff(np.diag(covariance)) <= 1e-12).all()
    wide = Standardiser.of(features).apply(features)[:, 2:]
    assert np.linalg.lstsq(components, wide, rcond=None)[1].sum() < 0.1 * (wide**2).sum()  # six directions hold nearly all


def test_few_columns_are_kept_as_they_are():
    features = features_of(60)
    assert np.allclose(Projection.of(features, GROUPS, 80).apply(features), Standardiser.of(features).apply(features))


@pytest.mark.parametrize("shape", [(30, 10), (10, 30), (20, 20)])
def test_the_spectrum_is_that_of_the_singular_values(shape):
    rows = np.random.default_rng(0).normal(size=shape)
    power, left, right = spectrum(rows)
    assert np.allclose(power, np.linalg.svd(rows, compute_uv=False) ** 2)
    assert np.allclose(left.T @ left, np.eye(len(power)))
    assert (right is None) == (shape[1] >= shape[0])
    assert np.allclose(left * np.sqrt(power) @ right.T if right is not None else left @ left.T @ rows, rows)


def test_what_is_constant_up_to_rounding_is_constant():
    features = np.full((40, 2), 3.0) * (1 + 1e-9 * np.random.default_rng(0).normal(size=(40, 2)))
    with pytest.raises(InputError, match="constant features"):
        Projection.of(features, [slice(0, 2)], 4)
