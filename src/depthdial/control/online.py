"""A controller on a stream of unknown length, within a running budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from depthdial.control.choosing import assigned, check_asked
from depthdial.control.fitted import FittedController
from depthdial.control.prediction import Prediction, require_prediction
from depthdial.engine.depth import Asked, Assignment, Batch, Depth
from depthdial.engine.session import Session
from depthdial.oracles.prices import OnlineBudget


@dataclass
class OnlineController(Depth):
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

    @property
    def n_layers(self) -> int:
        return self.controller.card.n_layers

    def prepare(self, session: Session, asked: Asked) -> None:
        """As `engine.depth.Depth` says."""
        check_asked(self.controller, session, asked)

    def assign(self, session: Session, batch: Batch, asked: Asked) -> Assignment:
        """As `engine.depth.Depth` says; the budget learns what the answers took."""
        return assigned(self.controller, self.pick_at, session, batch, asked, self.settle)

    def pick(self, predicted: Prediction) -> np.ndarray:
        """(n,) places of the routes of the next n sequences, in order of arrival."""
        return self.pick_at(predicted)[0]

    def pick_at(self, predicted: Prediction) -> tuple[np.ndarray, tuple[float, ...]]:
        """The same with the price at which each was weighed; the guard of the budget may have overruled it."""
        chosen, prices = [], []
        expected = self.controller.expected_costs(require_prediction(predicted))
        for quality, costs in zip(predicted.quality, expected, strict=True):
            prices.append(self.state.price)
            route, self.state = self.state.step(quality, costs)
            chosen.append(route)
        return np.array(chosen, dtype=np.intp), tuple(prices)

    def settle(self, predicted: Prediction, chosen: np.ndarray, steps: np.ndarray) -> None:
        """Replace what answers were expected to cost by what they cost, once they are there.

        Args:
            predicted, chosen: what `pick` was given of these n sequences, and what it gave.
            steps: (n,) decoding steps that their answers really took.
        """
        rows = np.arange(len(chosen))
        expected = self.controller.expected_costs(predicted)[rows, chosen]
        measured = self.controller.card.costs_of(
            np.repeat(np.asarray(steps, dtype=float)[:, None], len(self.controller.costs), 1)
        )
        self.state = self.state.settle(float(expected.sum()), float(measured[rows, chosen].sum()))
