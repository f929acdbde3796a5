"""Certify a controller: a price at which it loses at most epsilon of quality against the full model, with high probability.

The grid of prices comes from the controller alone, before a row is read; the losses are measured on rows that neither the
controller nor its prices have seen. See `choose.guarantee` for what is promised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from depthdial.choose.guarantee import CONFORMAL, Certificate, CertificationPlan
from depthdial.choose.policy import choose_routes, prices_for_budgets
from depthdial.errors import InputError
from depthdial.measure.provenance import digest, environment

if TYPE_CHECKING:
    from depthdial.choose.controller import SequenceController
    from depthdial.choose.controller_rows import MeasuredRows

_SAFEST = "full"
# Near the full model a small step already costs quality, so the grid is finer there: shares of the greatest saving.
_GRID = 24


def certification_plan(
    controller: SequenceController, epsilon: float, *, delta: float | None = 0.05, method: str = "betting", seed: int = 0
) -> CertificationPlan:
    """What will be tested: the full model, then prices from the safest to that of the cheapest routes. No row is needed.

    Raises:
        InputError: epsilon, delta or method are out of range.
    """
    card = controller.card
    prices = price_grid(controller)
    return CertificationPlan(
        settings=(_SAFEST, *(f"price {i}: {price:.4g}" for i, price in enumerate(prices, start=1))),
        epsilon=epsilon,
        delta=None if method == CONFORMAL else delta,
        method=method,
        # Nothing agrees with the full model more than it does itself.
        bounds=(0.0, 1.0) if card.metric == "agreement" else (-1.0, 1.0),
        seed=seed,
        cost_unit=card.cost_unit,
        about={
            "model": card.model,
            "weights_hash": card.weights_hash,
            "metric": card.metric,
            "controller": digest({"card": card.to_dict(), "calibration": controller.calibration.tolist()}),
            "prices": list(prices),
        },
    )


def price_grid(controller: SequenceController) -> tuple[float, ...]:
    """Rising prices that save more and more on the rows of the fit, finely at first."""
    costs, full = controller.costs, controller.card.full_cost
    shares = (np.arange(1, _GRID + 1) / _GRID) ** 2
    budgets = full - shares * (full - costs.min())
    prices = prices_for_budgets(controller.calibration, costs, budgets)
    # A price of 0 takes the best predicted route, which may be another than the full one: that has to be tested as well.
    return tuple(dict.fromkeys(sorted(map(float, prices))))


def certify_rows(
    controller: SequenceController, plan: CertificationPlan, rows: MeasuredRows, provenance: dict[str, Any]
) -> Certificate:
    """Test a plan on measured rows."""
    card = controller.card
    values, predicted = rows.values(card.metric, card.routes), controller.predict(rows.features)
    costs, full = controller.costs, card.full
    n = np.arange(len(values))
    losses, spent = [np.zeros(len(values))], [np.full(len(values), costs[full])]
    for price in plan.about["prices"]:
        chosen = choose_routes(predicted, costs, price)
        losses.append(values[:, full] - values[n, chosen])
        spent.append(costs[chosen])
    return plan.certify(np.stack(losses, axis=1), np.stack(spent, axis=1), provenance={**provenance, **environment()})


def certified_price(controller: SequenceController, certificate: Certificate) -> float:
    """The price of a certificate of this controller's.

    Raises:
        InputError: if it certifies nothing, or is another controller's.
    """
    if certificate.certified is None:
        raise InputError(certificate.reason or "Nothing is certified.")
    own = certification_plan(controller, certificate.plan.epsilon).about["controller"]
    if certificate.plan.about.get("controller") != own:
        raise InputError("The certificate is another controller's: certify this one.")
    return float(certificate.plan.about["prices"][certificate.certified - 1])
