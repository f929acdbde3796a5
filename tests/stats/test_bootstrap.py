"""Resamples, ratios of sums in them, and percentile intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.stats import bootstrap
from depthdial.stats.bootstrap import percentiles, ratios, resamples


@given(st.integers(0, 9), st.integers(1, 30), st.integers(0, 99))
def test_every_resample_holds_as_many_sequences_as_the_sample(n_draws: int, n: int, seed: int) -> None:
    counts = np.concatenate([np.empty((0, n)), *resamples(np.random.default_rng(seed), n_draws, n)])
    assert counts.shape == (n_draws, n)
    assert (counts.sum(axis=1) == n).all() and (counts >= 0).all()


def test_chunks_are_the_same_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(resamples(np.random.default_rng(3), 10, 7)))
    monkeypatch.setattr(bootstrap, "_CELLS_AT_ONCE", 21)
    chunks = list(resamples(np.random.default_rng(3), 10, 7))
    assert [len(chunk) for chunk in chunks] == [3, 3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(chunks), whole)


def test_sequences_are_drawn_alike() -> None:
    counts = np.concatenate(list(resamples(np.random.default_rng(0), 20_000, 5)))
    assert counts.mean(axis=0) == pytest.approx(np.ones(5), abs=0.03)
    assert counts.var(axis=0) == pytest.approx(np.full(5, 0.8), abs=0.04)


@pytest.mark.parametrize("n_weights", [1, 2])
def test_a_resample_without_weight_is_drawn_again(n_weights: int) -> None:
    weights = np.zeros((3, n_weights))
    weights[range(n_weights), range(n_weights)] = 1.0
    counts = np.concatenate(list(resamples(np.random.default_rng(0), 200, 3, weights)))
    assert (counts @ weights > 0).all() and (counts.sum(axis=1) == 3).all()


def test_ratios_are_of_the_sums_over_what_was_drawn() -> None:
    rng = np.random.default_rng(1)
    table, bases = rng.random((6, 2, 3)), rng.random(6)
    (counts,) = resamples(rng, 4, 6)
    for row, found, mean in zip(counts, ratios(counts, table, bases), ratios(counts, table), strict=True):
        drawn = np.repeat(np.arange(6), row.astype(int))
        np.testing.assert_allclose(found, table[drawn].sum(axis=0) / bases[drawn].sum())
        np.testing.assert_allclose(mean, table[drawn].mean(axis=0))
    np.testing.assert_allclose(ratios(counts, bases, bases), np.ones(4))


def test_percentiles_are_the_tails_of_the_draws() -> None:
    draws = np.stack([np.arange(1001.0), -np.arange(1001.0)], axis=1)
    np.testing.assert_allclose(percentiles(draws, 0.95), [[25, 975], [-975, -25]])
    ends = percentiles(np.array([1.0, 2.0, np.inf]), 0.9, method="inverted_cdf")
    assert ends.tolist() == [1.0, np.inf]
