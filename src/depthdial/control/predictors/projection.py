"""From raw features to few inputs of one size: standardised, and wide groups of columns reduced to principal components."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from depthdial.errors import InputError

# A column that varies less than this, relative to its size, varies by the rounding of single precision.
_ROUNDING = 1e-7
# Groups up to so many columns (a prompt's length, an entropy) are used as they are; wider ones are hidden states.
NARROW_GROUP = 32
# Powers are known to about 1e-16 of the largest.
_LEAST_POWER = 1e-11


def varying(features: np.ndarray) -> np.ndarray:
    """(f,) which columns of (n, f) are not constant, but for rounding."""
    return features.std(axis=0) > _ROUNDING * np.abs(features).max(axis=0)


@dataclass(frozen=True, eq=False)
class Standardiser:
    """Columns to mean 0 and standard deviation 1 over the rows that were fitted; constant columns become 0.

    Attributes:
        mean: (f,).
        inverse_scale: (f,), one over the standard deviation, and 0 for a constant column.
    """

    mean: np.ndarray
    inverse_scale: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Self:
        """Raises InputError if every column is constant."""
        mean, scale, varies = features.mean(axis=0), features.std(axis=0), varying(features)
        if not varies.any():
            raise InputError("All columns are constant features: nothing to predict from; give features that vary.")
        return cls(mean, np.divide(1.0, scale, out=np.zeros_like(scale), where=varies))

    @property
    def varies(self) -> np.ndarray:
        """(f,) which columns are not constant."""
        return self.inverse_scale > 0

    def apply(self, features: np.ndarray) -> np.ndarray:
        return (features - self.mean) * self.inverse_scale


class Projection(NamedTuple):
    """`features @ matrix + offset`, (f, k) and (k,): standardising, dropping and principal components in one step."""

    matrix: np.ndarray
    offset: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, groups: Sequence[slice], n_components: int) -> Self:
        """Fitted on (n, f) features: narrow groups as they are, standardised; all wide ones together as components.

        The components' variances are 1 on average and keep their ratios: blowing them up to 1 each (whitening) would give
        directions of mere noise the weight of the strongest.
        """
        standard = Standardiser.of(features)
        wide = np.zeros(features.shape[1], dtype=bool)
        for group in groups:
            wide[group] = np.count_nonzero(standard.varies[group]) > NARROW_GROUP
        wide &= standard.varies
        if np.count_nonzero(wide) <= n_components:
            wide[:] = False
        narrow = np.flatnonzero(standard.varies & ~wide)
        directions = _principal_directions(standard.apply(features)[:, wide], n_components)
        matrix = np.zeros((features.shape[1], len(narrow) + directions.shape[1]))
        matrix[narrow, np.arange(len(narrow))] = standard.inverse_scale[narrow]
        matrix[wide, len(narrow) :] = standard.inverse_scale[wide, None] * directions
        return cls(matrix, -(standard.mean @ matrix))

    def apply(self, features: np.ndarray) -> np.ndarray:
        return features @ self.matrix + self.offset


def _principal_directions(centred: np.ndarray, n_components: int) -> np.ndarray:
    """(w, k) directions of most variance of (n, w) centred rows, scaled to components of variance 1 on average."""
    if not centred.shape[1]:
        return np.zeros((0, 0))
    power, left, right = spectrum(centred)
    kept = min(n_components, len(power))
    directions = centred.T @ (left[:, :kept] / np.sqrt(power[:kept])) if right is None else right[:, :kept]
    # Of a direction and its opposite an eigensolver gives either: take the one whose largest part is positive.
    largest = directions[np.abs(directions).argmax(axis=0), np.arange(kept)]
    return directions * np.sign(largest) * np.sqrt(len(centred) / power[:kept].mean())


def spectrum(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Singular values squared, falling, without those that are 0, and the singular vectors of (n, w) rows.

    From the smaller of the two Gram matrices: thousands of columns cost no more than there are rows.

    Returns:
        (k,) powers, (n, k) left vectors, and (w, k) right ones where they came first (w < n), else None.
    """
    n, width = rows.shape
    power, vectors = np.linalg.eigh(rows.T @ rows if width < n else rows @ rows.T)
    power, vectors = power[::-1], vectors[:, ::-1]
    kept = power > _LEAST_POWER * max(power[0], np.finfo(float).tiny)
    power, vectors = power[kept], vectors[:, kept]
    if width < n:
        return power, rows @ (vectors / np.sqrt(power)), vectors
    return power, vectors, None
