"""The predictor that looks at nothing: every route's mean. A baseline, and what is left where nothing can be learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from depthdial.control.predictors.base import Predictor, column_means, stored_size


@dataclass(frozen=True, eq=False)
class MeanPredictor(Predictor):
    """The mean value of each route, (r,), whatever the features."""

    kind = "mean"
    shapes: ClassVar = {"mean": ("n_routes",)}
    width: int
    mean: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, values: np.ndarray, groups: Sequence[slice], seed: int) -> Self:
        return cls(features.shape[1], column_means(values))

    @property
    def sizes(self) -> dict[str, int]:
        return {"n_features": self.width, **super().sizes}

    def _predicted(self, features: np.ndarray) -> np.ndarray:
        return np.tile(self.mean, (len(features), 1))

    @classmethod
    def restore(cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        return cls(stored_size(settings, "n_features"), **cls.stored_arrays(settings, arrays))
