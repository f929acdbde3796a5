"""The predictor that looks at nothing: every route's mean. A baseline, and what is left where nothing can be learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from depthdial.control.predictors.base import checked_features, column_means, stored_arrays, stored_size


@dataclass(frozen=True, eq=False)
class MeanPredictor:
    """The mean value of each route, whatever the features.

    Attributes:
        mean: (r,).
    """

    kind: ClassVar[str] = "mean"
    n_features: int
    mean: np.ndarray

    @property
    def n_routes(self) -> int:
        return len(self.mean)

    @classmethod
    def fit(cls, features: np.ndarray, values: np.ndarray, groups: Sequence[slice], seed: int) -> MeanPredictor:
        return cls(features.shape[1], column_means(values))

    def predict(self, features: np.ndarray) -> np.ndarray:
        return np.tile(self.mean, (len(checked_features(features, self.n_features)), 1))

    def settings(self) -> dict[str, Any]:
        return {"n_features": self.n_features, "n_routes": self.n_routes}

    def arrays(self) -> dict[str, np.ndarray]:
        return {"mean": self.mean}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> MeanPredictor:
        n_features, n_routes = (stored_size(settings, name) for name in ("n_features", "n_routes"))
        return cls(n_features, **stored_arrays(arrays, {"mean": (np.float64, (n_routes,))}))
