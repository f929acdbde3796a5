"""Predicted against measured quality, route by route: can the predictions of a controller be taken at their word?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_BINS = 8
_NORMAL_95 = 1.96


@dataclass(frozen=True, eq=False)
class RouteCalibration:
    """Of one route, bins of sequences with like predictions, each (n_bins,).

    Attributes:
        predicted, measured: means over the sequences of a bin (of predictions over seeds first).
        low, high: 95% interval of the measured mean (normal).
        explained: share of the measured variance that the predictions explain on these sequences (R squared, mean over
            the seeds; below 0 if the mean alone were better); None where every sequence measures the same.
    """

    route: str
    predicted: np.ndarray
    measured: np.ndarray
    low: np.ndarray
    high: np.ndarray
    explained: float | None


def calibrated(routes: tuple[str, ...], predicted: np.ndarray, values: np.ndarray) -> tuple[RouteCalibration, ...]:
    """One for each route, from predictions (n_seeds, n, n_routes) and measured qualities (n, n_routes)."""
    return tuple(_of_route(name, predicted[:, :, i], values[:, i]) for i, name in enumerate(routes))


def _of_route(name: str, predicted: np.ndarray, values: np.ndarray) -> RouteCalibration:
    mean = predicted.mean(axis=0)
    edges = np.unique(np.quantile(mean, np.linspace(0, 1, _BINS + 1)[1:-1]))
    bins = np.searchsorted(edges, mean, side="left")
    groups = [values[bins == number] for number in np.unique(bins)]
    measured = np.array([group.mean() for group in groups])
    half = np.array([_NORMAL_95 * group.std(ddof=1) / np.sqrt(len(group)) if len(group) > 1 else np.nan for group in groups])
    centres = np.array([mean[bins == number].mean() for number in np.unique(bins)])
    variance = float(((values - values.mean()) ** 2).mean())
    is_constant = variance <= 1e-24 * max(1.0, float(np.abs(values).max()) ** 2)
    explained = None if is_constant else float(1 - ((predicted - values) ** 2).mean() / variance)
    return RouteCalibration(name, centres, measured, measured - half, measured + half, explained)
