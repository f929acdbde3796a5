"""A fitted controller, as those that judge, certify or stream with it need it: it predicts, and knows what it is for."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from depthdial.control.card import ControllerCard
from depthdial.control.prediction import Prediction, likely_steps
from depthdial.control.predictors.base import Predictor
from depthdial.errors import InputError
from depthdial.hf.adapter import adapter_card, compare_weights
from depthdial.hf.architectures import count_layers, unwrap
from depthdial.hf.untouched import adapter_modules
from depthdial.routes import Route

CALIBRATION, CALIBRATION_STEPS = "calibration.quality", "calibration.steps"
PREDICTOR, STEPS = "predictor.", "steps."


@dataclass(frozen=True, eq=False)
class FittedController:
    """The parts that a fit gives.

    Attributes:
        card: what it is for and what it was made of.
        predictor: of (n, n_features) features, (n, n_routes) qualities.
        steps_predictor: of (n, n_features) features the decoding steps of the answers as a share of the most that there can
            be, (n, n_routes) or (n, 1) where all routes are scored on the full model's answer.
        calibration: what was predicted for the rows of the fit by predictors that had not seen them; prices for budgets are
            set on these.
        price: quality per unit of cost, at which it picks.
    """

    card: ControllerCard
    predictor: Predictor
    steps_predictor: Predictor
    calibration: Prediction
    price: float
    _checked: weakref.WeakKeyDictionary[Any, Any] = field(
        default_factory=weakref.WeakKeyDictionary, repr=False, kw_only=True
    )

    @property
    def routes(self) -> tuple[Route, ...]:
        return self.card.routes

    @property
    def costs(self) -> np.ndarray:
        """(n_routes,) what a decoding step costs on each route, in the controller's unit."""
        return np.array(self.card.route_costs)

    @property
    def seen(self) -> dict[str, frozenset[str]]:
        """Hashes of the prompts that it was made on, by what they were used for."""
        fitted = self.card.fitted_on
        return {
            "to fit the controller": frozenset(fitted["prompts"]),
            "to search its routes": frozenset(fitted.get("searched_on", ())),
        }

    def predict(self, features: np.ndarray) -> Prediction:
        """Quality and decoding steps of every route for (n, n_features) features, by `measure.features`."""
        quality, shares = self.predictor.predict(features), self.steps_predictor.predict(features)
        return Prediction(quality, likely_steps(shares, self.card.max_steps, quality.shape[1]))

    def expected_costs(self, predicted: Prediction) -> np.ndarray:
        """(n, n_routes) predicted costs, in the controller's unit."""
        return self.card.costs_of(predicted.steps)

    def check(self, model: Any) -> None:
        """Refuse a model, or an adapter on it, that the controller was not fitted on. Reads a model's weights once."""
        base = unwrap(model)
        # PEFT puts its modules into the very model, which is another one from then on.
        adapters = tuple(map(id, adapter_modules(base)))
        if self._checked.get(base) == adapters:
            return
        card, n_layers = self.card, count_layers(base)
        if torch.promote_types(getattr(torch, card.dtype), base.dtype) != base.dtype:
            raise InputError(
                f"The controller is for {card.model} in {card.dtype}, and this model is held in a narrower type, in which "
                f"other weights cannot be told from it: load it in {card.dtype}, or fit a controller in its type."
            )
        is_same, held = compare_weights(base, card.weights_hash, card.dtype)
        if n_layers != card.n_layers or not is_same:
            own = adapter_card(model)
            told = f"an adapter ({own.kind})" if own else "no adapter of Depthdial's"
            raise InputError(
                f"The controller is for {card.model} ({card.n_layers} layers, {card.dtype}, weights "
                f"{card.weights_hash[:12]}), and this model has {n_layers} layers, {told} and {held}: load that model with "
                "its adapter, or fit a controller for this one."
            )
        self._checked[base] = adapters

    def check_routes(self, routes: Sequence[Route]) -> None:
        """Refuse a family that is not the controller's."""
        if {route.layers for route in routes} != {route.layers for route in self.routes}:
            names = ", ".join(route.name for route in self.routes)
            raise InputError(f"The controller chooses among other routes ({names}): give those, or fit one for these.")

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything that was learned, by the names in its file."""
        return {
            **{PREDICTOR + name: array for name, array in self.predictor.arrays().items()},
            **{STEPS + name: array for name, array in self.steps_predictor.arrays().items()},
            CALIBRATION: self.calibration.quality,
            CALIBRATION_STEPS: self.calibration.steps,
        }
