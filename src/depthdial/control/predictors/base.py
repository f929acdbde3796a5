"""What every predictor can do, and how tables and stored arrays are checked.

`features` are (n, f), one row a sequence; `values` are (n, r), the quality of each route on each sequence, higher is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np

from depthdial.errors import InputError

# Below this nothing learned can be told from luck, and the inner folds of trees and MLP would be empty.
LEAST_ROWS = 32
_T = TypeVar("_T")


class Predictor(Protocol):
    """A fitted predictor of the quality of r routes from f features.

    Predictions are raw: they are not clipped to the range of the values, as a policy compares them and a clipped one would
    hide by how much a route is better. A route whose value was constant is predicted as that constant, exactly.
    """

    kind: ClassVar[str]

    @property
    def n_features(self) -> int: ...

    @property
    def n_routes(self) -> int: ...

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(n, r) predicted values, float64, of (n, f) features.

        Raises:
            InputError: for another number of features than were fitted on, or features that are not finite.
        """
        ...

    def settings(self) -> dict[str, Any]:
        """JSON-ready: sizes and chosen hyperparameters."""
        ...

    def arrays(self) -> dict[str, np.ndarray]:
        """What was learned, ready for safetensors."""
        ...

    @classmethod
    def restore(cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Predictor:
        """The predictor that `settings()` and `arrays()` were taken of: it predicts the same, bit for bit.

        Raises:
            InputError: if they do not belong together or are damaged.
        """
        ...


def checked_features(features: np.ndarray, n_features: int) -> np.ndarray:
    """Features to predict from, as float64.

    Raises:
        InputError: unless they are a finite table (n, n_features).
    """
    table = numbers(features, "Features")
    if table.shape[1] != n_features:
        raise InputError(
            f"The predictor was fitted on {n_features} features, got {table.shape[1]}: "
            "compute them as they were computed for the fit."
        )
    return table


def checked_tables(
    features: np.ndarray, values: np.ndarray, groups: Sequence[slice] | None
) -> tuple[np.ndarray, np.ndarray, tuple[slice, ...]]:
    """Features and values to learn from, as float64, and the groups that the columns fall into (by default one).

    Raises:
        InputError: for tables that do not fit each other, too few rows, or groups that do not part the columns.
    """
    table, targets = numbers(features, "Features"), numbers(values, "Values")
    if len(table) != len(targets):
        raise InputError(f"Features have {len(table)} rows but values have {len(targets)}: give one row of each a sequence.")
    if len(table) < LEAST_ROWS:
        raise InputError(f"There are {len(table)} rows to learn from: give at least {LEAST_ROWS} sequences.")
    if not table.shape[1] or not targets.shape[1]:
        raise InputError(f"Features {table.shape} and values {targets.shape} must both have at least one column.")
    return table, targets, _checked_groups(groups, table.shape[1])


def numbers(given: np.ndarray, what: str) -> np.ndarray:
    """A table as float64; `what` is what it is called.

    Raises:
        InputError: unless it is two-dimensional, of real numbers, and finite.
    """
    table = np.asarray(given)
    if table.ndim != 2 or table.dtype.kind not in "fiub":
        raise InputError(
            f"{what} must be a table of numbers with one row a sequence, not {table.dtype} of shape {table.shape}."
        )
    table = table.astype(np.float64, copy=False)
    if not np.isfinite(table).all():
        row, column = np.argwhere(~np.isfinite(table))[0]
        raise InputError(
            f"{what} must be finite, but row {row}, column {column} is {table[row, column]}: mend or leave out that row."
        )
    return table


def _checked_groups(groups: Sequence[slice] | None, n_features: int) -> tuple[slice, ...]:
    given = (slice(0, n_features),) if groups is None else tuple(groups)
    ends = 0
    for group in sorted(given, key=lambda group: group.start or 0):
        if group.step not in (None, 1) or (group.start or 0) != ends or group.stop is None or group.stop <= ends:
            break
        ends = group.stop
    else:
        if ends == n_features:
            return given
    raise InputError(f"The groups must part the {n_features} features into slices: each column in exactly one of them.")


def constant_columns(table: np.ndarray) -> np.ndarray:
    """(columns,) which columns hold one and the same number in every row."""
    return table.max(axis=0) == table.min(axis=0)


def column_means(values: np.ndarray) -> np.ndarray:
    """(r,) means; of a constant column the constant itself, which a mean may miss by its rounding."""
    return np.where(constant_columns(values), values[0], values.mean(axis=0))


# Restoring


def stored(settings: Mapping[str, Any], name: str, kind: type[_T]) -> _T:
    """A setting that was stored.

    Raises:
        InputError: if it is not there or of another kind.
    """
    value = settings.get(name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise damaged(f"its setting {name} is {value!r}, not {kind.__name__}")
    return value


def stored_size(settings: Mapping[str, Any], name: str, least: int = 1) -> int:
    """A stored number of things, at least `least`."""
    value = stored(settings, name, int)
    if value < least:
        raise damaged(f"its setting {name} is {value}")
    return value


def stored_arrays(
    arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[type[np.generic], tuple[int | None, ...]]]
) -> dict[str, np.ndarray]:
    """The arrays by name, if they are exactly the expected ones, by dtype and shape (None: any length), and finite.

    Raises:
        InputError: if they are not.
    """
    if set(arrays) != set(expected):
        raise damaged(f"its arrays are {sorted(arrays)}, not {sorted(expected)}")
    for name, (dtype, shape) in expected.items():
        array = arrays[name]
        fits = array.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, array.shape, strict=True))
        if array.dtype != np.dtype(dtype) or not fits:
            raise damaged(
                f"its array {name} is {array.dtype} of shape {array.shape}, not {np.dtype(dtype)} of shape {shape}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise damaged(f"its array {name} holds numbers that are not finite")
    return {name: np.ascontiguousarray(arrays[name]) for name in expected}


def damaged(what: str) -> InputError:
    """The error for a stored predictor in which something cannot be: `what`."""
    return InputError(f"The stored predictor is damaged ({what}): fit it again.")
