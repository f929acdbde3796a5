"""Ridge regression on standardised features: the default predictor, solved in closed form.

The penalty is chosen by the leave-one-out error, which ridge has in closed form (Allen's PRESS, Technometrics 16, 1974;
for penalties as in Golub, Heath and Wahba, Technometrics 21, 1979). One for each route: the routes share the spectrum, so it
costs nothing, and a route that is easy to predict wants a smaller one than a route whose quality is mostly noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from depthdial.control.predictors.base import Predictor, column_means, constant_columns, damaged, stored
from depthdial.control.predictors.projection import Standardiser, spectrum

# Relative to the summed power of the rows: from nearly interpolating to nearly the mean.
_PENALTIES = np.logspace(-6, 2, 25)
# A column of a group of d columns counts d**-exponent: with 1/2 every group has the same summed variance, so that thousands
# of hidden dimensions do not drown a scalar beside them; with 1 the few scalars lead. (0, every column alike: on simulated
# tables at most 0.002 of R2 better where the hidden states alone matter, and 0.01 to 0.05 worse wherever scalars do.)
_GROUP_EXPONENTS = (0.5, 1.0)
_TIE = 1e-9
_CHOSEN = ("penalty", "group_exponent", "leave_one_out_r2")


@dataclass(frozen=True, eq=False)
class RidgePredictor(Predictor):
    """`features @ weight + intercept`, standardising included.

    Attributes:
        weight, intercept: (f, r) and (r,).
        chosen: JSON-ready, by route: the penalty, the group exponent, and the leave-one-out R2. None for a constant route.
    """

    kind = "ridge"
    shapes: ClassVar = {"weight": ("n_features", "n_routes"), "intercept": ("n_routes",)}
    weight: np.ndarray
    intercept: np.ndarray
    chosen: dict[str, list[float | None]]

    @classmethod
    def fit(cls, features: np.ndarray, values: np.ndarray, groups: Sequence[slice], seed: int) -> Self:
        """Raises InputError if every column of the features is constant. Nothing is drawn at random."""
        standard = Standardiser.of(features)
        rows = standard.apply(features)
        mean, learned = column_means(values), np.flatnonzero(~constant_columns(values))
        weight = np.zeros((features.shape[1], values.shape[1]))
        chosen: dict[str, list[float | None]] = {name: [None] * values.shape[1] for name in _CHOSEN}
        lowest = np.full(values.shape[1], np.inf)
        for exponent in _GROUP_EXPONENTS[: len(groups)] if len(learned) else ():
            scale = _column_scales(standard.varies, groups, exponent)
            coefficients, penalties, errors = _solve(rows * scale, values[:, learned] - mean[learned])
            for place, route in enumerate(learned):
                if errors[place] < lowest[route] * (1 - _TIE):
                    lowest[route] = errors[place]
                    weight[:, route] = coefficients[:, place] * scale * standard.inverse_scale
                    r2 = 1 - lowest[route] / values[:, route].var()
                    for name, value in zip(_CHOSEN, (penalties[place], exponent, r2), strict=True):
                        chosen[name][route] = float(value)
        return cls(weight, mean - standard.mean @ weight, chosen)

    def _predicted(self, features: np.ndarray) -> np.ndarray:
        return features @ self.weight + self.intercept

    def settings(self) -> dict[str, Any]:
        return {**self.sizes, "chosen": self.chosen}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        found, chosen = cls.stored_arrays(settings, arrays), stored(settings, "chosen", dict)
        n_routes = len(found["intercept"])
        if set(chosen) != set(_CHOSEN) or any(len(by_route) != n_routes for by_route in chosen.values()):
            raise damaged(f"its setting chosen is not {', '.join(_CHOSEN)} for each of {n_routes} routes")
        return cls(**found, chosen=chosen)


def _column_scales(varies: np.ndarray, groups: Sequence[slice], exponent: float) -> np.ndarray:
    """(f,) what a column counts; the constant ones of a group do not count among its columns."""
    scale = np.ones(len(varies))
    for group in groups:
        scale[group] = max(np.count_nonzero(varies[group]), 1) ** -exponent
    return scale


def _solve(rows: np.ndarray, centred: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ridge of (n, r) centred values on (n, f) centred rows, at the penalty with the least leave-one-out error.

    Returns:
        (f, r) coefficients, and by route the penalties relative to the rows' power, and the errors.
    """
    n, n_routes = centred.shape
    power, left, _ = spectrum(rows)
    along = left.T @ centred
    penalties = _PENALTIES * power.sum()
    errors = np.empty((len(penalties), n_routes))
    for number, penalty in enumerate(penalties):
        shrink = power / (power + penalty)
        # The mean is learned too, hence the 1/n. What is left over of one row, had it not been learned from.
        leverage = 1 / n + left**2 @ shrink
        errors[number] = np.mean(((centred - left @ (shrink[:, None] * along)) / (1 - leverage)[:, None]) ** 2, axis=0)
    # Of penalties that are as good as each other the largest, so that rounding never decides.
    best = len(penalties) - 1 - np.argmax((errors <= errors.min(axis=0) * (1 + _TIE))[::-1], axis=0)
    dual = left @ (along / (power[:, None] + penalties[best]))
    return rows.T @ dual, _PENALTIES[best], errors[best, np.arange(n_routes)]
