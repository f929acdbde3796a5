"""What a fitted controller is to those that judge, certify or stream with it, and what a fit gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from depthdial.control.card import ControllerCard
from depthdial.control.prediction import Prediction
from depthdial.control.predictors.base import Predictor
from depthdial.routes import Route


@dataclass(frozen=True)
class Fitted:
    """The parts of a controller; see `SequenceController`."""

    card: ControllerCard
    predictor: Predictor
    steps_predictor: Predictor
    calibration: Prediction
    price: float


class FittedController(Protocol):
    """What `SequenceController` offers."""

    @property
    def card(self) -> ControllerCard: ...

    @property
    def predictor(self) -> Predictor: ...

    @property
    def steps_predictor(self) -> Predictor: ...

    @property
    def calibration(self) -> Prediction: ...

    @property
    def routes(self) -> tuple[Route, ...]: ...

    @property
    def costs(self) -> np.ndarray: ...

    def check(self, model: Any) -> None: ...

    def check_routes(self, routes: Any) -> None: ...

    def predict(self, features: np.ndarray) -> Prediction: ...

    def expected_costs(self, predicted: Prediction) -> np.ndarray: ...

    def arrays(self) -> dict[str, np.ndarray]: ...
