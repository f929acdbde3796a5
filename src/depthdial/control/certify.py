"""Certify a controller: a price at which it loses at most epsilon of quality against the full model, with high probability.

The grid of prices comes from the controller alone, before a row is read; the losses are measured on rows that neither the
controller nor its prices have seen. See `guarantee.plan` for what is promised.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from depthdial.control.fitted import FittedController
from depthdial.control.prediction import cost_table
from depthdial.errors import InputError
from depthdial.guarantee.plan import CONFORMAL, Certificate, CertificationPlan
from depthdial.oracles.prices import choose_routes, prices_for_budgets
from depthdial.provenance import digest, environment

if TYPE_CHECKING:
    from depthdial.control.rows import MeasuredRows

# Near the full model a small step already costs quality, so the grid is finer there: shares of the greatest saving.
_GRID = 24


def certification_plan(
    controller: FittedController, epsilon: float, *, delta: float | None = 0.05, method: str = "betting", seed: int = 0
) -> CertificationPlan:
    """What will be tested: the full model, then prices from the safest to that of the cheapest routes. No row is needed."""
    card = controller.card
    prices = price_grid(controller)
    return CertificationPlan(
        settings=("full", *(f"price {i}: {price:.4g}" for i, price in enumerate(prices, start=1))),
        epsilon=epsilon,
        delta=None if method == CONFORMAL else delta,
        method=method,
        # Nothing agrees with the full model more than it does itself.
        bounds=(0.0, 1.0) if card.metric == "agreement" else (-1.0, 1.0),
        seed=seed,
        cost_unit=card.cost_unit,
        metric=card.metric,
        answer_tokens=card.response_tokens,
        about={
            "model": card.model,
            "weights_hash": card.weights_hash,
            "metric": card.metric,
            "controller": identity_of(controller),
            "prices": list(prices),
        },
    )


def identity_of(controller: FittedController) -> str:
    """Digest of everything that decides what a controller picks at a price: card, both predictors, calibration.

    A certificate is bound to it: other weights are another controller.
    """
    learned = {
        name: [str(array.dtype), list(array.shape), hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()]
        for name, array in sorted(controller.arrays().items())
    }
    predictors = [
        {"kind": one.kind, "settings": one.settings()} for one in (controller.predictor, controller.steps_predictor)
    ]
    return digest({"card": controller.card.to_dict(), "predictors": predictors, "learned": learned})


def price_grid(controller: FittedController) -> tuple[float, ...]:
    """Rising prices that save more and more on the rows of the fit, finely at first."""
    costs = controller.expected_costs(controller.calibration)
    full, cheapest = costs[:, controller.card.full].mean(), costs.min(axis=1).mean()
    shares = (np.arange(1, _GRID + 1) / _GRID) ** 2
    prices = prices_for_budgets(controller.calibration.quality, costs, full - shares * (full - cheapest))
    # A price of 0 takes the best predicted route, which may be another than the full one: that has to be tested as well.
    return tuple(dict.fromkeys(sorted(map(float, prices))))


def certify_rows(
    controller: FittedController, plan: CertificationPlan, rows: MeasuredRows, provenance: dict[str, Any]
) -> Certificate:
    """Test a plan on measured rows."""
    card, full = controller.card, controller.card.full
    values, predicted = rows.values(card.metric, card.routes), controller.predict(rows.features)
    steps = rows.steps(card.routes)
    mean_steps, n = float(steps[:, full].mean()), np.arange(len(values))
    if not mean_steps:
        raise InputError("None of the full model's answers takes a decoding step, so nothing can be saved: give other rows.")
    # Full answers cost the full route's cost on average on these very rows.
    expected, costs = controller.expected_costs(predicted), cost_table(card.cost_unit, controller.costs, steps, mean_steps)
    losses, spent, chosen = [np.zeros(len(values))], [costs[:, full]], [np.full(len(values), full)]
    for price in plan.about["prices"]:
        chosen.append(choose_routes(predicted.quality, expected, price))
        losses.append(values[:, full] - values[n, chosen[-1]])
        spent.append(costs[n, chosen[-1]])
    certificate = plan.certify(np.stack(losses, axis=1), np.stack(spent, axis=1), provenance={**provenance, **environment()})
    layers = np.array([len(route) for route in card.routes])
    saved = layers[full] - layers[chosen[certificate.certified or 0]]
    beside = {"layers_saved_per_sequence": float(saved.mean()), "n_layers": card.n_layers}
    return replace(certificate, provenance={**certificate.provenance, **beside})
