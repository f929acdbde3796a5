"""A small multilayer perceptron on principal components and scalars: trained with torch (`mlp_training`), run with numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from depthdial.control.predictors.base import Predictor, column_means, constant_columns
from depthdial.control.predictors.projection import Projection

N_COMPONENTS = 64


@dataclass(frozen=True, eq=False)
class MlpPredictor(Predictor):
    """`relu(projected @ weight_in + bias_in) @ weight_out + bias_out`, in the units of the values.

    Attributes:
        matrix, offset: the projection of f features to k inputs.
        weight_in, bias_in: (k, h) and (h,), of all members side by side.
        weight_out, bias_out: (h, r) and (r,).
    """

    kind = "mlp"
    shapes: ClassVar = {
        "matrix": ("n_features", "n_inputs"),
        "offset": ("n_inputs",),
        "weight_in": ("n_inputs", "n_hidden"),
        "bias_in": ("n_hidden",),
        "weight_out": ("n_hidden", "n_routes"),
        "bias_out": ("n_routes",),
    }
    matrix: np.ndarray
    offset: np.ndarray
    weight_in: np.ndarray
    bias_in: np.ndarray
    weight_out: np.ndarray
    bias_out: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, values: np.ndarray, groups: Sequence[slice], seed: int) -> Self:
        """Raises InputError if every column of the features is constant."""
        projection = Projection.of(features, groups, N_COMPONENTS)
        mean, learned = column_means(values), np.flatnonzero(~constant_columns(values))
        if not len(learned):
            return cls(*projection, np.zeros((len(projection.offset), 1)), np.zeros(1), np.zeros((1, len(mean))), mean)
        from depthdial.control.predictors.mlp_training import trained

        spread = values[:, learned].std(axis=0)
        targets = (values[:, learned] - mean[learned]) / spread
        weight_in, bias_in, weight, bias = trained(projection.apply(features), targets, seed)
        weight_out, bias_out = np.zeros((len(bias_in), len(mean))), mean
        weight_out[:, learned] = weight * spread
        bias_out[learned] += bias * spread
        return cls(*projection, weight_in, bias_in, weight_out, bias_out)

    def _predicted(self, features: np.ndarray) -> np.ndarray:
        inputs = features @ self.matrix + self.offset
        return np.maximum(inputs @ self.weight_in + self.bias_in, 0.0) @ self.weight_out + self.bias_out
