"""What a score of a controller is made from, checked: names, shapes and numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from depthdial.checks import number, whole
from depthdial.errors import InputError
from depthdial.oracles.exact.knapsack import real_array

CONTROLLER, RANDOM = "controller", "random"
PREDICTABLE, ORACLE = "predictable oracle", "oracle"
_LEAST_RESAMPLES = 100


def check_options(n: int, n_folds: int, n_bootstrap: int, confidence: float) -> None:
    """InputError for options of `gap.score_controller` that are out of range on n sequences."""
    if n < 2:
        raise InputError(f"A score of {n} sequence says nothing about others: give at least two test sequences.")
    for name, count, least, most in (("n_folds", n_folds, 2, n), ("n_bootstrap", n_bootstrap, _LEAST_RESAMPLES, None)):
        whole(name, count, least, most)
    number("confidence", confidence, above=0, below=1)


def checked_predictions(
    predicted: Mapping[str, ArrayLike], prices: Mapping[str, ArrayLike], n: int, n_routes: int, n_budgets: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Predictions and prices as arrays, the controller's first; InputError where they do not belong together."""
    if CONTROLLER not in predicted or {RANDOM, PREDICTABLE, ORACLE} & set(predicted):
        raise InputError(
            f"The predictions are of {', '.join(predicted) or 'nothing'}: give those of `{CONTROLLER}`, and rivals under "
            f"other names than {RANDOM}, {PREDICTABLE} or {ORACLE}."
        )
    if set(prices) != set(predicted):
        raise InputError(
            f"The prices are of {', '.join(prices) or 'nothing'} and the predictions of {', '.join(predicted)}: "
            "give both under the same names."
        )
    names = [CONTROLLER, *(name for name in predicted if name != CONTROLLER)]
    guesses = {name: checked_numbers(predicted[name], f"predictions of {name}", (None, n, n_routes)) for name in names}
    shapes = {name: (len(guesses[name]), n_budgets) for name in names}
    return guesses, {name: checked_numbers(prices[name], f"prices of {name}", shapes[name]) for name in names}


def checked_numbers(given: ArrayLike, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """A finite array of the shape, in which None is any size; InputError otherwise."""
    array = real_array(given, name)
    fits = array.ndim == len(shape) and all(want in (None, size) for size, want in zip(array.shape, shape, strict=True))
    if not fits or not array.size:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise InputError(f"The {name} have shape {array.shape}; give ({wanted}).")
    return array


def expected_costs(
    expected: Mapping[str, ArrayLike] | None, guesses: Mapping[str, np.ndarray], spent: np.ndarray
) -> dict[str, np.ndarray]:
    """By name (n_seeds, n, n_routes) costs to choose by."""
    if expected is None:
        return {name: np.broadcast_to(spent, guess.shape) for name, guess in guesses.items()}
    if set(expected) != set(guesses):
        raise InputError(
            f"The expected costs are of {', '.join(expected) or 'nothing'} and the predictions of {', '.join(guesses)}: "
            "give both under the same names."
        )
    return {
        name: checked_numbers(expected[name], f"expected costs of {name}", guess.shape) for name, guess in guesses.items()
    }
