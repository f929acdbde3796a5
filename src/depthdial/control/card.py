"""What a sequence controller is for and what it was made of: the part of it that is written as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, get_args

import numpy as np

from depthdial.checks import choice
from depthdial.control.prediction import COST_UNITS, cost_table
from depthdial.errors import InputError
from depthdial.measure.features import FeatureSpec
from depthdial.oracles.prices import Budget, budget_in
from depthdial.routes import Route
from depthdial.routes.families import RouteFamily, require_fixed, restored_routes, stored_routes
from depthdial.views.passes import PromptDepth

# Qualities that a controller can predict: in [0, 1], more is better.
METRICS = ("agreement", "rouge_l")


@dataclass(frozen=True)
class ControllerCard:
    """The contents of `controller.json`, but for what the predictor and the policy keep beside it.

    Attributes:
        model: name of the model, with its adapter's kind.
        weights_hash, dtype: of the model and its adapter together.
        routes: cheapest first, the full one among them. Of a model with an adapter that one is the untouched full model.
        metric: what is predicted of every route.
        cost_unit: in which budgets and prices count: `layer_steps` (layers times decoding steps, as a share of the full
            model's), `layers` (of a sequence, however long its answer), `flops` or `ms`.
        route_costs: of one decoding step on each route: the share of the layers that run, layers run, FLOPs of a response
            token, or measured milliseconds.
        mean_steps: decoding steps of the full model's answers, mean over the rows of the fit.
        prompt_depth: how prompts run; with `route` only the layers that all routes share run before the choice.
        features: of a prompt.
        template, max_prompt_tokens: how the prompts of the fit were made.
        response_tokens: on how many tokens of an answer the metric was taken, at most.
        r2: of each route, cross-validated on the fitting rows; None where the quality is constant.
        steps_r2: the same of the predicted decoding steps.
        means: of each route, on the fitting rows.
        fitted_on: JSON-ready record of the rows (task, split, size, prompt hashes, seed), versions and hardware.

    Raises:
        InputError: if the family has no full route, or parts do not fit each other.
    """

    model: str
    weights_hash: str
    dtype: str
    n_layers: int
    routes: tuple[Route, ...]
    metric: str
    cost_unit: str
    route_costs: tuple[float, ...]
    prompt_depth: PromptDepth
    features: FeatureSpec
    template: str
    max_prompt_tokens: int | None
    response_tokens: int
    mean_steps: float
    r2: tuple[float | None, ...]
    steps_r2: tuple[float | None, ...]
    means: tuple[float, ...]
    fitted_on: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        check_family(self.routes, self.n_layers)
        choice("metric of a controller", self.metric, METRICS)
        choice("cost", self.cost_unit, COST_UNITS)
        choice("prompt depth", self.prompt_depth, get_args(PromptDepth))
        if self.features.n_layers != self.n_layers:
            raise InputError(
                f"The features are of {self.features.n_layers} layers, and the controller's model has {self.n_layers}."
            )
        parts = (self.route_costs, self.r2, self.steps_r2, self.means)
        if any(len(part) != len(self.routes) for part in parts) or not all(cost > 0 for cost in self.route_costs):
            raise InputError("A controller needs a cost above 0, a mean and an R2 for each of its routes.")
        if not 0 < self.mean_steps <= self.max_steps:
            raise InputError(
                f"The full model's answers take {self.mean_steps:g} decoding steps on average, of at most "
                f"{self.max_steps}: give prompts with answers of two tokens or more, and as many response_tokens."
            )

    @property
    def full(self) -> int:
        """The place of the full route."""
        return next(i for i, route in enumerate(self.routes) if route.is_full)

    @property
    def full_cost(self) -> float:
        return self.route_costs[self.full]

    @property
    def max_steps(self) -> int:
        """Decoding steps of the longest answer, whose first token comes out of the prompt's pass."""
        return max(self.response_tokens - 1, 1)

    def budget(self, budget: Budget) -> float:
        """A budget in the controller's unit: of layer-steps a number above 1 counts layers, of which a share runs."""
        return budget_in(self.cost_unit, budget, full_cost=self.full_cost, n_layers=self.n_layers)

    def costs_of(self, steps: np.ndarray) -> np.ndarray:
        """(n, n_routes) costs of answers that take (n, n_routes) decoding steps; of the rows of the fit full ones cost
        `full_cost` on average."""
        return cost_table(self.cost_unit, np.array(self.route_costs), steps, self.mean_steps)

    def to_dict(self) -> dict[str, Any]:
        document = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            **document,
            "routes": stored_routes(self.routes),
            "features": self.features.settings(),
            "fitted_on": dict(self.fitted_on),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ControllerCard:
        """The card that `to_dict` wrote; KeyError, TypeError or ValueError for what is none."""
        given = {f.name: document[f.name] for f in fields(cls)}
        given["routes"] = restored_routes(given["routes"], given["n_layers"])
        given["features"] = FeatureSpec.restore(given["features"])
        given["mean_steps"] = float(given["mean_steps"])
        for name in ("route_costs", "r2", "steps_r2", "means"):
            given[name] = tuple(None if x is None else float(x) for x in given[name])
        return cls(**given)


def check_family(routes: Sequence[Any], n_layers: int) -> None:
    """Refuse fewer than two routes, a random rule, two of one name, another depth, or a family without the full route."""
    for route in routes:
        require_fixed(route)
    RouteFamily("controller", n_layers, tuple(routes))  # its rules are the rules here
    if not any(route.is_full for route in routes):
        names = ", ".join(route.name for route in routes)
        raise InputError(f"The family ({names}) has no full route: add 'full', for sequences that need every layer.")
    if len(routes) < 2:
        raise InputError("A controller needs two routes or more to choose among: add one that skips layers.")
