"""A controller on a stream of unknown length, within a running budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from depthdial.control.choosing import ChoosingDepth
from depthdial.control.fitted import FittedController
from depthdial.control.prediction import Prediction, require_prediction
from depthdial.oracles.prices import OnlineBudget


@dataclass
class OnlineController(ChoosingDepth):
    """A controller on a stream of unknown length, within a running budget; it remembers what it has spent.

    Attributes:
        controller: predicts; its own price is only where the stream's starts.
        state: the running budget (see `oracles.prices.OnlineBudget` for what it promises).
    """

    controller: FittedController
    state: OnlineBudget

    @property
    def name(self) -> str:
        return "controller, running budget"

    def pick_at(self, predicted: Prediction) -> tuple[np.ndarray, tuple[float, ...]]:
        """The prices are those at which each was weighed; the guard of the budget may have overruled them."""
        chosen, prices = [], []
        expected = self.controller.expected_costs(require_prediction(predicted))
        for quality, costs in zip(predicted.quality, expected, strict=True):
            prices.append(self.state.price)
            route, self.state = self.state.step(quality, costs)
            chosen.append(route)
        return np.array(chosen, dtype=np.intp), tuple(prices)

    def settle(self, predicted: Prediction, chosen: np.ndarray, steps: np.ndarray) -> None:
        """Replace what answers were expected to cost by what they cost."""
        rows, taken = np.arange(len(chosen)), np.asarray(steps, dtype=float)[:, None]
        expected = self.controller.expected_costs(predicted)[rows, chosen]
        measured = self.controller.card.costs_of(np.broadcast_to(taken, predicted.steps.shape))[rows, chosen]
        self.state = self.state.settle(float(expected.sum()), float(measured.sum()))
