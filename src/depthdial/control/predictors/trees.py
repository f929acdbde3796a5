"""Gradient-boosted trees on principal components and scalars: grown by LightGBM, walked with numpy.

One boosted model for each route, small and slow-learning, with as many trees as did best on inner folds: none where trees
do no better than the mean. (Friedman, Annals of Statistics 29, 2001; LightGBM: Ke et al., NeurIPS 2017.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from depthdial.control.predictors.base import (
    checked_features,
    column_means,
    constant_columns,
    damaged,
    stored_arrays,
    stored_size,
)
from depthdial.control.predictors.projection import Projection
from depthdial.errors import InputError

N_COMPONENTS = 64
_INNER_FOLDS, _MOST_TREES, _PATIENCE_TREES = 3, 200, 20
# A tree without a split errs as the mean does, but for the single precision that LightGBM holds values in.
_LEAST_GAIN = 1e-6
_GROWING = {
    "objective": "regression",
    "metric": "l2",
    "learning_rate": 0.08,
    "max_bin": 63,
    "num_leaves": 8,
    "max_depth": 4,
    "min_data_in_leaf": 20,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 1.0,
    "use_missing": False,  # features are finite, here and at predicting
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbosity": -1,
}
_WALK_CELLS = 2_000_000  # nodes that are looked at together, so that many rows need no more memory than some


@dataclass(frozen=True, eq=False)
class Forest:
    """Trees of all routes in flat arrays. A row at a node goes left if its `feature` is at most `threshold`, else right.

    A leaf leads to itself, so that all trees can be walked at once for as many steps as the deepest has; every other node
    leads to nodes further on.

    Attributes:
        feature: (m,) which input a node looks at; 0 at a leaf.
        threshold: (m,); 0 at a leaf.
        left, right: (m,) nodes.
        leaf_value: (m,); 0 at other nodes.
        root: (t,) first node of each tree, trees of the first route first.
        first_tree: (r + 1,) where each route's trees start, and t.
    """

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    leaf_value: np.ndarray
    root: np.ndarray
    first_tree: np.ndarray

    @classmethod
    def of(cls, routes: Sequence[Sequence[Mapping[str, Any]]]) -> Forest:
        """From each route's trees as LightGBM dumps them."""
        rows: list[tuple[int, float, int, int, float]] = []
        root: list[int] = []
        first_tree = [0]
        for trees in routes:
            for tree in trees:
                root.append(len(rows))
                _append(tree, rows)
            first_tree.append(len(root))
        feature, threshold, left, right, leaf_value = zip(*rows, strict=True) if rows else ((),) * 5
        return cls(
            *(np.array(feature, np.int64), np.array(threshold, np.float64)),
            *(np.array(left, np.int64), np.array(right, np.int64), np.array(leaf_value, np.float64)),
            *(np.array(root, np.int64), np.array(first_tree, np.int64)),
        )

    def n_steps(self) -> int:
        """Steps from a root to the farthest leaf."""
        at, steps = self.root, 0
        while len(at := at[self.left[at] != at]):
            at = np.unique(np.concatenate((self.left[at], self.right[at])))
            steps += 1
        return steps

    def sums(self, inputs: np.ndarray, n_steps: int) -> np.ndarray:
        """(n, r) sum of the values of the leaves that (n, k) inputs come to, over the trees of each route."""
        rows_at_once = max(1, _WALK_CELLS // max(len(self.root), 1))
        parts = [self._sums(inputs[start : start + rows_at_once], n_steps) for start in range(0, len(inputs), rows_at_once)]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.first_tree) - 1))

    def _sums(self, inputs: np.ndarray, n_steps: int) -> np.ndarray:
        row = np.arange(len(inputs))[:, None]
        at = np.broadcast_to(self.root, (len(inputs), len(self.root)))
        for _ in range(n_steps):
            at = np.where(inputs[row, self.feature[at]] <= self.threshold[at], self.left[at], self.right[at])
        leaves = self.leaf_value[at]
        routes = zip(self.first_tree[:-1], self.first_tree[1:], strict=True)
        return np.stack([leaves[:, first:end].sum(axis=1) for first, end in routes], axis=1)

    def check(self, n_inputs: int) -> None:
        """Raises InputError unless every walk stays in the arrays and ends at a leaf."""
        node, n_trees = np.arange(len(self.feature)), len(self.root)
        ahead = (self.left > node) & (self.right > node) | (self.left == node) & (self.right == node)
        inside = [
            (self.feature >= 0) & (self.feature < n_inputs),
            ahead & (self.left < len(node)) & (self.right < len(node)),
            (self.root >= 0) & (self.root < len(node)),
            np.diff(self.first_tree) >= 0,
            self.first_tree[[0, -1]] == (0, n_trees),
        ]
        if not all(part.all() for part in inside):
            raise damaged("its trees lead nowhere")


def _append(node: Mapping[str, Any], rows: list[tuple[int, float, int, int, float]]) -> int:
    """Add a dumped node and all below it to the rows of a forest, itself first; returns its place."""
    place = len(rows)
    if "leaf_value" in node:
        rows.append((0, 0.0, place, place, float(node["leaf_value"])))
        return place
    if node["decision_type"] != "<=" or node["missing_type"] != "None":
        raise ValueError(
            f"LightGBM grew a split that the walk does not know: {node['decision_type']}, {node['missing_type']}"
        )
    rows.append((0, 0.0, place, place, 0.0))
    left, right = _append(node["left_child"], rows), _append(node["right_child"], rows)
    rows[place] = (int(node["split_feature"]), float(node["threshold"]), left, right, 0.0)
    return place


@dataclass(frozen=True, eq=False)
class TreesPredictor:
    """The sum of each route's trees and its base.

    Attributes:
        projection: f features to k inputs.
        forest: on the inputs.
        base: (r,) what is predicted without any tree; 0 where there are trees, which hold the mean themselves.
        n_steps: depth of the deepest tree.
    """

    kind: ClassVar[str] = "trees"
    projection: Projection
    forest: Forest
    base: np.ndarray
    n_steps: int

    @property
    def n_features(self) -> int:
        return len(self.projection.matrix)

    @property
    def n_routes(self) -> int:
        return len(self.base)

    @classmethod
    def fit(cls, features: np.ndarray, values: np.ndarray, groups: Sequence[slice], seed: int) -> TreesPredictor:
        """Raises InputError if every column of the features is constant, or LightGBM is not installed."""
        lightgbm = _lightgbm()
        projection = Projection.of(features, groups, N_COMPONENTS)
        inputs, base = projection.apply(features), column_means(values)
        routes: list[list[Mapping[str, Any]]] = [[] for _ in base]
        for route in np.flatnonzero(~constant_columns(values)):
            routes[route] = _grown(lightgbm, inputs, values[:, route], seed)
            base[route] = 0.0 if routes[route] else base[route]
        forest = Forest.of(routes)
        return cls(projection, forest, base, forest.n_steps())

    def predict(self, features: np.ndarray) -> np.ndarray:
        inputs = self.projection.apply(checked_features(features, self.n_features))
        return self.forest.sums(inputs, self.n_steps) + self.base

    def settings(self) -> dict[str, Any]:
        n_trees = np.diff(self.forest.first_tree).tolist()
        sizes = {"n_features": self.n_features, "n_routes": self.n_routes, "n_inputs": self.projection.n_outputs}
        return {**sizes, "n_trees": n_trees}

    def arrays(self) -> dict[str, np.ndarray]:
        forest = {name: getattr(self.forest, name) for name in Forest.__dataclass_fields__}
        return {"matrix": self.projection.matrix, "offset": self.projection.offset, "base": self.base, **forest}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> TreesPredictor:
        f, r, k = (stored_size(settings, name) for name in ("n_features", "n_routes", "n_inputs"))
        m, t = (len(arrays[name]) if name in arrays else None for name in ("feature", "root"))
        expected: dict[str, tuple[type[np.generic], tuple[int | None, ...]]]
        expected = dict.fromkeys(("feature", "left", "right"), (np.int64, (m,)))
        expected |= dict.fromkeys(("threshold", "leaf_value"), (np.float64, (m,)))
        expected |= {"root": (np.int64, (t,)), "first_tree": (np.int64, (r + 1,))}
        own = {"matrix": (np.float64, (f, k)), "offset": (np.float64, (k,)), "base": (np.float64, (r,))}
        found = stored_arrays(arrays, {**expected, **own})
        forest = Forest(**{name: found[name] for name in expected})
        forest.check(k)
        return cls(Projection(found["matrix"], found["offset"]), forest, found["base"], forest.n_steps())


def _lightgbm() -> ModuleType:
    try:
        import lightgbm
    except ImportError as error:
        raise InputError("Fitting trees needs LightGBM: pip install 'depthdial[trees]', or fit another kind.") from error
    return lightgbm


def _grown(lightgbm: ModuleType, inputs: np.ndarray, values: np.ndarray, seed: int) -> list[Mapping[str, Any]]:
    """One route's trees as LightGBM dumps them; none if no number of trees beats the mean on the inner folds."""
    growing = {**_GROWING, "seed": seed % 2**31}
    part = np.random.default_rng([seed, 2]).permutation(len(inputs)) % _INNER_FOLDS
    folds = [(np.flatnonzero(part != fold), np.flatnonzero(part == fold)) for fold in range(_INNER_FOLDS)]
    found = lightgbm.cv(
        growing,
        lightgbm.Dataset(inputs, values, params=growing),
        num_boost_round=_MOST_TREES,
        folds=folds,
        callbacks=[lightgbm.early_stopping(_PATIENCE_TREES, verbose=False)],
    )
    errors = np.array(found["valid l2-mean"])
    of_means = np.mean([np.mean((values[inner] - values[outer].mean()) ** 2) for outer, inner in folds])
    if errors.min() >= of_means * (1 - _LEAST_GAIN):
        return []
    grown = lightgbm.train(growing, lightgbm.Dataset(inputs, values, params=growing), int(errors.argmin()) + 1)
    return [tree["tree_structure"] for tree in grown.dump_model()["tree_info"]]
