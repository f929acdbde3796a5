"""A small multilayer perceptron on principal components and scalars: trained with torch (`mlp_training`), run with numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from depthdial.control.predictors.base import (
    checked_features,
    column_means,
    constant_columns,
    stored_arrays,
    stored_size,
)
from depthdial.control.predictors.projection import Projection

N_COMPONENTS = 64


@dataclass(frozen=True, eq=False)
class MlpPredictor:
    """`relu(projected @ weight_in + bias_in) @ weight_out + bias_out`.

    Attributes:
        projection: f features to k inputs.
        weight_in, bias_in: (k, h) and (h,), of all members side by side.
        weight_out, bias_out: (h, r) and (r,), in the units of the values.
    """

    kind: ClassVar[str] = "mlp"
    projection: Projection
    weight_in: np.ndarray
    bias_in: np.ndarray
    weight_out: np.ndarray
    bias_out: np.ndarray

    @property
    def n_features(self) -> int:
        return len(self.projection.matrix)

    @property
    def n_routes(self) -> int:
        return len(self.bias_out)

    @classmethod
    def fit(cls, features: np.ndarray, values: np.ndarray, groups: Sequence[slice], seed: int) -> MlpPredictor:
        """Raises InputError if every column of the features is constant."""
        projection = Projection.of(features, groups, N_COMPONENTS)
        mean, learned = column_means(values), np.flatnonzero(~constant_columns(values))
        spread = values[:, learned].std(axis=0)
        if not len(learned):
            return cls(projection, np.zeros((projection.n_outputs, 1)), np.zeros(1), np.zeros((1, len(mean))), mean)
        from depthdial.control.predictors.mlp_training import trained

        weight_in, bias_in, weight, bias = trained(
            projection.apply(features), (values[:, learned] - mean[learned]) / spread, seed
        )
        weight_out, bias_out = np.zeros((len(bias_in), len(mean))), mean
        weight_out[:, learned] = weight * spread
        bias_out[learned] += bias * spread
        return cls(projection, weight_in, bias_in, weight_out, bias_out)

    def predict(self, features: np.ndarray) -> np.ndarray:
        inputs = self.projection.apply(checked_features(features, self.n_features))
        return np.maximum(inputs @ self.weight_in + self.bias_in, 0.0) @ self.weight_out + self.bias_out

    def settings(self) -> dict[str, Any]:
        sizes = {"n_inputs": len(self.weight_in), "n_hidden": len(self.bias_in)}
        return {"n_features": self.n_features, "n_routes": self.n_routes, **sizes}

    def arrays(self) -> dict[str, np.ndarray]:
        layers = {name: getattr(self, name) for name in ("weight_in", "bias_in", "weight_out", "bias_out")}
        return {"matrix": self.projection.matrix, "offset": self.projection.offset, **layers}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> MlpPredictor:
        f, r, k, h = (stored_size(settings, name) for name in ("n_features", "n_routes", "n_inputs", "n_hidden"))
        shapes = {"matrix": (f, k), "offset": (k,)}
        shapes |= {"weight_in": (k, h), "bias_in": (h,), "weight_out": (h, r), "bias_out": (r,)}
        found = stored_arrays(arrays, {name: (np.float64, shape) for name, shape in shapes.items()})
        return cls(Projection(found.pop("matrix"), found.pop("offset")), **found)
