"""Predicted against measured: bins, their intervals and the variance that is explained."""

from __future__ import annotations

import numpy as np
import pytest

from depthdial.control.judge.reliability import calibrated


def test_true_predictions_lie_on_the_diagonal_and_explain_everything() -> None:
    values = np.random.default_rng(0).random((200, 2))
    for route, found in zip(("a", "b"), calibrated(("a", "b"), values[None], values), strict=True):
        assert found.route == route and found.explained == pytest.approx(1)
        np.testing.assert_allclose(found.predicted, found.measured)
        assert len(found.predicted) == 8 and (np.diff(found.predicted) > 0).all()


def test_bins_hold_the_truth_and_a_bias_shows() -> None:
    rng = np.random.default_rng(1)
    truth = rng.random((4000, 1))
    values = truth + 0.3 * rng.normal(size=truth.shape)
    (good,) = calibrated(("a",), np.stack([truth, truth]), values)
    assert ((good.low < good.predicted) & (good.predicted < good.high)).mean() >= 0.75
    assert good.explained == pytest.approx((1 / 12) / (1 / 12 + 0.09), abs=0.03)
    (biased,) = calibrated(("a",), truth[None] + 0.5, values)
    assert (biased.high < biased.predicted).all()
    assert biased.explained is not None and biased.explained < 0


def test_the_share_explained_is_that_of_a_single_seed_not_of_their_mean() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=(500, 1))
    apart = np.stack([values + rng.normal(size=values.shape) for _ in range(5)])
    (found,) = calibrated(("a",), apart, values)
    assert found.explained == pytest.approx(0, abs=0.1)


def test_equal_predictions_are_one_bin_and_equal_values_explain_nothing() -> None:
    (found,) = calibrated(("full",), np.ones((3, 20, 1)), np.ones((20, 1)))
    assert found.predicted.tolist() == found.measured.tolist() == [1.0]
    assert found.explained is None
