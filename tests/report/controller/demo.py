"""Scores of a fabricated controller: a linear world in which it sees much of what an oracle may know, and a rival little."""

from __future__ import annotations

from functools import cache

import numpy as np

from depthdial.control.judge.headroom import ControllerScore, score_controller
from depthdial.guarantee.plan import CertificationPlan
from depthdial.oracles.prices import choose_routes, prices_for_budgets
from depthdial.report.controller.scores import ControllerScores

LAYERS = np.array([6.0, 8.0, 10.0, 12.0])
ROUTES = ("greedy-kl:6", "greedy-kl:8", "greedy-kl:10", "full")
BUDGETS = np.array([7.0, 9.0, 11.0])
SKIPPED = 1 - LAYERS / 12


def world(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(expected, measured, known) agreement; the full model's is 1."""
    rng = np.random.default_rng(seed)
    expected = 1 - 1.2 * SKIPPED**1.3 - SKIPPED * (0.4 * rng.normal(size=(n, 1)) + 0.1 * rng.normal(size=(n, 4)))
    noise = 0.05 * (SKIPPED > 0)
    known = expected[..., None] - 0.03 + noise[:, None] * rng.normal(size=(n, 4, 4))
    return expected, expected + noise * rng.normal(size=(n, 4)), known


@cache
def demo_score(metric: str = "agreement", cost: str = "layers", n_seeds: int = 3) -> ControllerScore:
    """A controller of three seeds with a rival, known answers and an overhead."""
    before = world(300, 1)[0]
    expected, values, known = world(150, 2)
    rng = np.random.default_rng(3)
    errors = {"controller": 0.2, "prompt length only": 1.5}

    def predictions(truth: np.ndarray, error: float) -> np.ndarray:
        return truth + error * rng.normal(size=(n_seeds, len(truth), 1)) * SKIPPED

    prices = {
        name: np.stack([prices_for_budgets(one, LAYERS, BUDGETS) for one in predictions(before, error)])
        for name, error in errors.items()
    }
    return score_controller(
        ROUTES,
        values,
        LAYERS,
        {name: predictions(expected, error) for name, error in errors.items()},
        prices,
        BUDGETS,
        overhead=0.05,
        known=known,
        metric=metric,
        cost=cost,
        n_bootstrap=100,
    )


@cache
def equal_score() -> ControllerScore:
    """Of sequences that are all alike, one budget and one seed: there is nothing to choose."""
    values = np.tile([0.4, 0.6, 0.8, 1.0], (30, 1))
    return score_controller(
        ROUTES, values, LAYERS, {"controller": values[None]}, {"controller": [[0.15]]}, [8.0], n_bootstrap=100
    )


@cache
def demo_scores() -> ControllerScores:
    """Two scores, a certificate that holds and one that cannot be given."""
    expected, values, _ = world(400, 5)
    prices = (0.1, 0.05)
    chosen = np.stack([choose_routes(expected, LAYERS, price) for price in prices[::-1]], axis=1)
    losses, costs = np.zeros((400, 3)), np.full((400, 3), 12.0)
    losses[:, 1:] = np.clip(1 - np.take_along_axis(values, chosen, axis=1), -1, 1)
    costs[:, 1:] = LAYERS[chosen]
    names = ("full", *(f"price {price}" for price in prices[::-1]))
    certificates = tuple(CertificationPlan(names, epsilon).certify(losses, costs) for epsilon in (0.3, 0.001))
    scores = {"agreement": demo_score(), "rouge_l by ms": demo_score("rouge_l", "ms")}
    about = {"model": "fabricated-12", "task": "fabricated", "predictor": {"kind": "ridge"}}
    return ControllerScores(scores, certificates, {"predict_ms": 0.25}, about)
