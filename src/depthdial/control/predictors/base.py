"""What every predictor can do, and how tables and stored arrays are checked.

`features` are (n, f), one row a sequence; `values` are (n, r), the quality of each route on each sequence, higher is better.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar

import numpy as np

from depthdial.errors import InputError

# Below this nothing learned can be told from luck, and the inner folds of trees and MLP would be empty.
LEAST_ROWS = 32
_T = TypeVar("_T")


class Predictor(ABC):
    """A fitted predictor of the quality of r routes from f features.

    Predictions are raw: they are not clipped to the range of the values, as a policy compares them and a clipped one would
    hide by how much a route is better. A route whose value was constant is predicted as that constant, exactly.

    Attributes:
        kind: its name.
        shapes: of each array that was learned, attributes of float64, the sizes by their names in `settings`.
    """

    kind: ClassVar[str]
    shapes: ClassVar[Mapping[str, tuple[str, ...]]]

    @classmethod
    @abstractmethod
    def fit(cls, features: np.ndarray, values: np.ndarray, groups: Sequence[slice], seed: int) -> Self:
        """Learn from tables that `checked_tables` gave."""

    @abstractmethod
    def _predicted(self, features: np.ndarray) -> np.ndarray: ...

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of the arrays by their names, `n_features` and `n_routes` among them."""
        shapes = ((names, getattr(self, array).shape) for array, names in self.shapes.items())
        return {name: size for names, shape in shapes for name, size in zip(names, shape, strict=True)}

    @property
    def n_features(self) -> int:
        return self.sizes["n_features"]

    @property
    def n_routes(self) -> int:
        return self.sizes["n_routes"]

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(n, r) predicted values, float64, of (n, f) finite features, which are as many as were fitted on."""
        table = _numbers(features, "Features")
        if table.shape[1] != self.n_features:
            raise InputError(
                f"The predictor was fitted on {self.n_features} features, got {table.shape[1]}: "
                "compute them as they were computed for the fit."
            )
        return self._predicted(table)

    def settings(self) -> dict[str, Any]:
        """JSON-ready: sizes and chosen hyperparameters."""
        return dict(self.sizes)

    def arrays(self) -> dict[str, np.ndarray]:
        """What was learned, ready for safetensors."""
        return {name: getattr(self, name) for name in self.shapes}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        """The predictor that `settings()` and `arrays()` were taken of, bit for bit; InputError if they are damaged."""
        return cls(**cls.stored_arrays(settings, arrays))

    @classmethod
    def stored_arrays(
        cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray], texts: Collection[str] = ()
    ) -> dict[str, np.ndarray]:
        """The arrays by name; InputError unless they are finite and of `shapes` in the stored sizes, and `texts` bytes."""
        sizes = {size: stored_size(settings, size) for shape in cls.shapes.values() for size in shape}
        expected = {name: (np.dtype(float), tuple(sizes[size] for size in shape)) for name, shape in cls.shapes.items()}
        expected |= {name: (np.dtype(np.uint8), np.shape(arrays.get(name, ()))[:1]) for name in texts}
        found = {name: (array.dtype, array.shape) for name, array in arrays.items()}
        for name in sorted({*found, *expected}):
            if found.get(name) != expected.get(name):
                raise damaged(f"its array {name} is {found.get(name, 'missing')}, not {expected.get(name, 'known')}")
            if not np.isfinite(arrays[name]).all():
                raise damaged(f"its array {name} holds numbers that are not finite")
        return {name: np.ascontiguousarray(arrays[name]) for name in expected}


def checked_tables(
    features: np.ndarray, values: np.ndarray, groups: Sequence[slice] | None
) -> tuple[np.ndarray, np.ndarray, tuple[slice, ...]]:
    """Features and values to learn from, as float64, and the groups that the columns fall into (by default one)."""
    table, targets = _numbers(features, "Features"), _numbers(values, "Values")
    if len(table) != len(targets):
        raise InputError(f"Features have {len(table)} rows but values have {len(targets)}: give one row of each a sequence.")
    if len(table) < LEAST_ROWS:
        raise InputError(f"There are {len(table)} rows to learn from: give at least {LEAST_ROWS} sequences.")
    if not table.shape[1] or not targets.shape[1]:
        raise InputError(f"Features {table.shape} and values {targets.shape} must both have at least one column.")
    parts = (slice(0, table.shape[1]),) if groups is None else tuple(groups)
    columns = sorted(column for part in parts for column in range(part.start, part.stop, part.step or 1))
    if columns != list(range(table.shape[1])):
        raise InputError(
            f"The groups must part the {table.shape[1]} features into slices: each column in exactly one of them."
        )
    return table, targets, parts


def _numbers(given: np.ndarray, what: str) -> np.ndarray:
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


def constant_columns(table: np.ndarray) -> np.ndarray:
    """(columns,) which columns hold one and the same number in every row."""
    return table.max(axis=0) == table.min(axis=0)


def column_means(values: np.ndarray) -> np.ndarray:
    """(r,) means; of a constant column the constant itself, which a mean may miss by its rounding."""
    return np.where(constant_columns(values), values[0], values.mean(axis=0))


def stored(settings: Mapping[str, Any], name: str, kind: type[_T]) -> _T:
    """A setting that was stored; InputError if it is not there or of another kind."""
    value = settings.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise damaged(f"its setting {name} is {value!r}, not {kind.__name__}")
    return value


def stored_size(settings: Mapping[str, Any], name: str) -> int:
    """A stored number of things, at least one."""
    value = stored(settings, name, int)
    if value < 1:
        raise damaged(f"its setting {name} is {value}")
    return value


def damaged(what: str) -> InputError:
    """The error for a stored predictor in which something cannot be: `what`."""
    return InputError(f"The stored predictor is damaged ({what}): fit it again.")
