"""A controller and its rivals, fitted several times on rows that are already measured, for their scores on other rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from depthdial.choose.controller import SequenceController
from depthdial.choose.controller_fit import FitSettings, fit_rows
from depthdial.choose.controller_rows import MeasuredRows
from depthdial.choose.gap import CONTROLLER
from depthdial.choose.predictors.base import LEAST_ROWS, Predictor
from depthdial.choose.predictors.fitting import cross_validated, fit_predictor

LENGTH_ONLY = "prompt length only"
_LEFT_OUT = 0.1


@dataclass(frozen=True, eq=False)
class Learned:
    """One way of predicting, fitted once for each seed.

    Attributes:
        predictors: one of each seed.
        calibrations: of each seed (n_kept, n_routes) predictions for the rows of the fit, by predictors that had not seen
            them; prices are set on these.
        sees: the columns of (n, n_features) features that the predictors are given.
    """

    predictors: tuple[Predictor, ...]
    calibrations: tuple[np.ndarray, ...]
    sees: Callable[[np.ndarray], np.ndarray]

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(n_seeds, n, n_routes) of (n, n_features) features."""
        return np.stack([predictor.predict(self.sees(features)) for predictor in self.predictors])


def learn_again(
    controller: SequenceController, fitted: MeasuredRows, *, rivals: Sequence[str], seeds: int, seed: int = 0
) -> dict[str, Learned]:
    """The controller, other kinds of predictors, and one that sees the prompt's length only, each fitted `seeds` times.

    Each time another tenth of the rows is left out, or less of them where a fit would have too few.

    Args:
        fitted: the rows that the controller was fitted to.
        rivals: kinds of predictors; the controller's own is not its rival.

    Raises:
        InputError: if a kind is unknown, or cannot be fitted here.
    """
    card, own = controller.card, controller.predictor.kind
    kinds = {CONTROLLER: own, **{f"{kind} instead": kind for kind in rivals if kind != own}}
    n = len(fitted.features)
    n_folds = min(card.fitted_on["n_folds"], max(n - int(_LEFT_OUT * n), LEAST_ROWS))
    length, values = _length_columns(fitted.features), fitted.values(card.metric, card.routes)
    found: dict[str, list[tuple[Predictor, np.ndarray]]] = {name: [] for name in (*kinds, LENGTH_ONLY)}
    for number in range(seeds):
        rng = np.random.default_rng([seed, number])
        keep = np.sort(rng.permutation(n)[: max(n - int(_LEFT_OUT * n), LEAST_ROWS)])
        for name, kind in kinds.items():
            # The price of this fit is not used, and 100% is a budget that every family keeps.
            again = FitSettings("100%", card.metric, predictor=kind, n_folds=n_folds, seed=number)
            one = fit_rows(fitted, card, again, keep)
            found[name].append((one.predictor, one.calibration))
        kind = "ridge" if _varies(length[keep, 0], n_folds) else "mean"
        calibration = cross_validated(kind, length[keep], values[keep], n_folds=n_folds, seed=number)
        found[LENGTH_ONLY].append((fit_predictor(kind, length[keep], values[keep], seed=number), calibration))
    return {
        name: Learned(
            tuple(predictor for predictor, _ in each),
            tuple(calibration for _, calibration in each),
            _length_columns if name == LENGTH_ONLY else _all_columns,
        )
        for name, each in found.items()
    }


def _varies(length: np.ndarray, n_folds: int) -> bool:
    """Whether prompts differ in length whichever fold is left out; where they do not, their length tells nothing."""
    most_common = np.unique(length, return_counts=True)[1].max()
    return len(length) - most_common > -(-len(length) // n_folds)


def _length_columns(features: np.ndarray) -> np.ndarray:
    """The logarithm of the prompt's length and its square."""
    length = features[:, :1].astype(float)
    return np.concatenate([length, length**2], axis=1)


def _all_columns(features: np.ndarray) -> np.ndarray:
    return features
