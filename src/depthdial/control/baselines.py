"""A controller and its rivals, fitted several times on rows that are already measured, for their scores on other rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from depthdial.control.controller import SequenceController
from depthdial.control.fit import FitSettings, fit_rows
from depthdial.control.fitted import FittedController
from depthdial.control.judge.inputs import CONTROLLER
from depthdial.control.prediction import LAYERS, Prediction
from depthdial.control.predictors.base import LEAST_ROWS
from depthdial.control.rows import MeasuredRows

LENGTH_ONLY = "prompt length only"
# What of the gain is the length of answers that is predicted, and what their quality?
NO_STEPS, NO_QUALITY = "answer length ignored", "quality ignored"
_LEFT_OUT = 0.1


@dataclass(frozen=True, eq=False)
class Learned:
    """One way of predicting, fitted once for each seed.

    Attributes:
        fits: of each seed; prices are set on their calibrations.
        length_only: they are given the prompt's length in place of all features.
        ignores: `steps` or `quality`, of which the mean over the rows of the fit is then taken for every sequence.
    """

    fits: tuple[FittedController, ...]
    length_only: bool = False
    ignores: str | None = None

    def predict(self, features: np.ndarray) -> tuple[Prediction, ...]:
        """Of each seed, for (n, n_features) features."""
        given = _length_columns(features) if self.length_only else features
        return tuple(self._seen(one.predict(given), one.calibration) for one in self.fits)

    def known(self) -> tuple[Prediction, ...]:
        """The calibration of each seed, without what is ignored."""
        return tuple(self._seen(one.calibration, one.calibration) for one in self.fits)

    def _seen(self, predicted: Prediction, known: Prediction) -> Prediction:
        quality, steps = predicted.quality, predicted.steps
        if self.ignores == "steps":
            steps = np.broadcast_to(known.steps.mean(axis=0), steps.shape)
        if self.ignores == "quality":
            quality = np.broadcast_to(known.quality.mean(axis=0), quality.shape)
        return Prediction(quality, steps)


def learn_again(
    controller: SequenceController, fitted: MeasuredRows, *, rivals: Sequence[str], seeds: int, seed: int = 0
) -> dict[str, Learned]:
    """The controller, other kinds of predictors, and one that sees the prompt's length only, each fitted `seeds` times.

    Each time another tenth of the rows is left out, or less of them where a fit would have too few.

    Args:
        fitted: the rows that the controller was fitted to.
        rivals: kinds of predictors, refused where they cannot be fitted here; the controller's own is not its rival.
    """
    card, own, n = controller.card, controller.predictor.kind, len(fitted.features)
    kinds = {CONTROLLER: own, **{f"{kind} instead": kind for kind in rivals if kind != own}}
    n_kept = max(n - int(_LEFT_OUT * n), LEAST_ROWS)
    n_folds = min(card.fitted_on["n_folds"], n_kept)
    short = replace(fitted, features=_length_columns(fitted.features))
    found: dict[str, list[FittedController]] = {name: [] for name in (*kinds, LENGTH_ONLY)}
    for number in range(seeds):
        keep = np.sort(np.random.default_rng([seed, number]).permutation(n)[:n_kept])
        # The price of these fits is not used, and 100% is a budget that every family keeps.
        again = partial(FitSettings, "100%", card.metric, n_folds=n_folds, seed=number)
        for name, kind in kinds.items():
            found[name].append(fit_rows(fitted, card, again(predictor=kind), keep))
        alone = again(predictor="ridge" if _varies(short.features[keep, 0], n_folds) else "mean")
        found[LENGTH_ONLY].append(fit_rows(short, card, alone, keep, (slice(0, short.features.shape[1]),)))
    learned = {name: Learned(tuple(each), length_only=name == LENGTH_ONLY) for name, each in found.items()}
    if card.cost_unit != LAYERS:  # of layers by sequence the length of answers is ignored anyway
        learned[NO_STEPS] = replace(learned[CONTROLLER], ignores="steps")
        learned[NO_QUALITY] = replace(learned[CONTROLLER], ignores="quality")
    return learned


def _varies(length: np.ndarray, n_folds: int) -> bool:
    """Whether prompts differ in length whichever fold is left out; where they do not, their length tells nothing."""
    most_common = np.unique(length, return_counts=True)[1].max()
    return len(length) - most_common > -(-len(length) // n_folds)


def _length_columns(features: np.ndarray) -> np.ndarray:
    """The logarithm of the prompt's length and its square."""
    length = features[:, :1].astype(float)
    return np.concatenate([length, length**2], axis=1)
