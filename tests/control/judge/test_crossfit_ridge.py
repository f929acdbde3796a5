"""Guesses from other answers: they see what repeats, leave noise alone, and never see the value that they guess."""

from __future__ import annotations

import numpy as np
import pytest

from depthdial.control.judge.crossfit_ridge import guessed_values


def drawn(n: int, n_samples: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(expected values, values, known) of four routes with a shared difficulty and a taste of their own."""
    rng = np.random.default_rng(seed)
    expected = np.array([0.3, 0.5, 0.7, 0.9]) + 0.2 * rng.normal(size=(n, 1)) + 0.05 * rng.normal(size=(n, 4))
    known = expected[..., None] - 0.1 + noise * rng.normal(size=(n, 4, n_samples))
    return expected, expected + noise * rng.normal(size=(n, 4)), known


def guessed(values: np.ndarray, known: np.ndarray, n_folds: int = 10) -> np.ndarray:
    return guessed_values(values, known, n_folds, np.random.default_rng(1))


def test_without_noise_they_are_the_values_whatever_all_answers_are_worse_by() -> None:
    _, values, known = drawn(80, 2, 0.0)
    np.testing.assert_allclose(guessed(values, known), values, atol=2e-3)


def test_on_pure_noise_all_sequences_are_guessed_about_alike() -> None:
    rng = np.random.default_rng(2)
    values, known = rng.normal(size=(400, 3)), rng.normal(size=(400, 3, 4))
    assert guessed(values, known).std(axis=0).max() < 0.1


def test_other_routes_help_where_the_samples_are_few() -> None:
    expected, values, known = drawn(600, 2, 0.25)
    guesses, own = guessed(values, known), known.mean(axis=2)
    for route in range(4):  # what a regression on the route's own mean alone would leave, fitted to the very rows
        slope, offset = np.polyfit(own[:, route], expected[:, route], 1)
        alone = ((slope * own[:, route] + offset - expected[:, route]) ** 2).mean()
        assert ((guesses[:, route] - expected[:, route]) ** 2).mean() < 0.9 * alone


def test_a_sequence_is_guessed_without_its_own_value() -> None:
    _, values, known = drawn(30, 2, 0.1)
    changed = values.copy()
    changed[7] += 1e3
    assert guessed(values, known)[7] == pytest.approx(guessed(changed, known)[7])
    assert not np.allclose(guessed(values, known), guessed(changed, known))


def test_a_route_that_is_always_worth_the_same_is_guessed_so_and_constant_knowledge_is_no_knowledge() -> None:
    _, values, known = drawn(40, 2, 0.1)
    values[:, 3] = 1.0
    known[:, 1] = 0.25
    guesses = guessed(values, known)
    np.testing.assert_allclose(guesses[:, 3], 1.0, atol=1e-12)
    assert np.isfinite(guesses).all()
    flat = guessed(values, np.full_like(known, 0.5), n_folds=40)
    left_out = (values.sum(axis=0) - values) / 39
    np.testing.assert_allclose(flat, left_out)


def test_two_sequences_are_enough() -> None:
    values = np.array([[0.0, 1.0], [1.0, 3.0]])
    np.testing.assert_allclose(guessed(values, np.zeros((2, 2, 1)), n_folds=2), values[::-1])
