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
    """InputError for options of `headroom.score_controller` that are out of range on n sequences."""
    if n < 2:
        raise InputError(f"A score of {n} sequence says nothing about others: give at least two test sequences.")
    whole("n_folds", n_folds, 2, n)
    whole("n_bootstrap", n_bootstrap, _LEAST_RESAMPLES)
    number("confidence", confidence, above=0, below=1)


def checked_predictions(predicted: Mapping[str, ArrayLike], n: int, n_routes: int) -> dict[str, np.ndarray]:
    """(n_seeds, n, n_routes) predictions by name, the controller's first; InputError for other shapes or names."""
    if CONTROLLER not in predicted or {RANDOM, PREDICTABLE, ORACLE} & set(predicted):
        raise InputError(
            f"The predictions are of {', '.join(predicted) or 'nothing'}: give those of `{CONTROLLER}`, and rivals under "
            f"other names than {RANDOM}, {PREDICTABLE} or {ORACLE}."
        )
    names = [CONTROLLER, *(name for name in predicted if name != CONTROLLER)]
    return {name: checked_numbers(predicted[name], f"predictions of {name}", (None, n, n_routes)) for name in names}


def checked_alike(given: Mapping[str, ArrayLike], what: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Arrays of the shapes under the names of the predictions; InputError for other shapes or names."""
    if set(given) != set(shapes):
        raise InputError(
            f"The {what} are of {', '.join(given) or 'nothing'} and the predictions of {', '.join(shapes)}: "
            "give both under the same names."
        )
    return {name: checked_numbers(given[name], f"{what} of {name}", shape) for name, shape in shapes.items()}


def checked_numbers(given: ArrayLike, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """A finite array of the shape, in which None is any size; InputError otherwise."""
    array = real_array(given, name)
    fits = array.ndim == len(shape) and all(want in (None, size) for size, want in zip(array.shape, shape, strict=True))
    if not fits or not array.size:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise InputError(f"The {name} have shape {array.shape}; give ({wanted}).")
    return array
