"""What a controller predicts of sequences: the quality of every route's answer, and how many decoding steps it takes.

Cost is what is computed: layers times decoding steps. Before an answer is there its length has to be predicted as well; the
conditional mean is what a budget on a sum of costs needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from depthdial.errors import InputError
from depthdial.oracles.costs import LAYER_STEPS, LAYERS, MS

FLOPS = "flops"
# In which budgets and prices of a controller count; all but the layers of a sequence grow with its answer.
COST_UNITS = (LAYER_STEPS, LAYERS, FLOPS, MS)


@dataclass(frozen=True, eq=False)
class Prediction:
    """Of n sequences; as an array it is the quality.

    Attributes:
        quality: (n, n_routes) predicted quality of each route's answer, more is better.
        steps: (n, n_routes) predicted decoding steps of each route's answer.
    """

    quality: np.ndarray
    steps: np.ndarray

    def __post_init__(self) -> None:
        if self.quality.ndim != 2 or self.quality.shape != self.steps.shape:
            raise InputError(
                f"Predicted quality has shape {self.quality.shape} and steps {self.steps.shape}: give (n, n_routes) of both."
            )

    def __len__(self) -> int:
        return len(self.quality)

    def __getitem__(self, rows: Any) -> Prediction:
        """Some of the sequences, by a slice, a mask or indices."""
        return Prediction(self.quality[rows], self.steps[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.quality, dtype=dtype, copy=True if copy is None else copy)


def cost_table(unit: str, step_costs: np.ndarray, steps: np.ndarray, mean_steps: float) -> np.ndarray:
    """(n, n_routes) what each route costs on each sequence: a full answer of mean length costs what a full step does.

    Args:
        unit: `layers` counts every sequence alike; all others count what a step costs as often as there are steps.
        step_costs: (n_routes,) what one decoding step costs on each route.
        steps: (n, n_routes) decoding steps.
        mean_steps: of the full model's answers.
    """
    if unit == LAYERS:
        return np.broadcast_to(step_costs, steps.shape)
    return step_costs * steps / mean_steps


def likely_steps(shares: np.ndarray, max_steps: int, n_routes: int) -> np.ndarray:
    """(n, n_routes) predicted steps from raw shares of the most steps, (n, n_routes) or (n, 1): from one to the most."""
    return np.broadcast_to(np.clip(shares * max_steps, 1.0, max_steps), (len(shares), n_routes))


def require_prediction(predicted: Any) -> Prediction:
    """InputError for an array of qualities, which does not tell how long answers are."""
    if not isinstance(predicted, Prediction):
        raise InputError(
            f"Routes are picked by a Prediction of quality and decoding steps, not by {type(predicted).__name__}: "
            "give what `predict` returns."
        )
    return predicted
