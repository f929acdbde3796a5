"""A controller as a depth: what it refuses before anything runs, and the routes that it assigns to a batch of prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from depthdial.control.fitted import FittedController
from depthdial.control.prediction import Prediction
from depthdial.engine.depth import Asked, Assignment, Batch, Reason
from depthdial.engine.session import Session
from depthdial.errors import InputError
from depthdial.measure.features import features_of, watched_prefill
from depthdial.routes.families import fixed_routes

Settle = Callable[[Prediction, np.ndarray, np.ndarray], None]


def check_asked(controller: FittedController, session: Session, asked: Asked) -> None:
    """Refuse a model, routes, a prompt depth or a template that a controller was not fitted to.

    Raises:
        InputError: with what it was fitted to.
    """
    card = controller.card
    controller.check(session.given)
    if asked.routes is not None:
        controller.check_routes(fixed_routes(asked.routes, session.n_layers))
    if card.prompt_depth != asked.prompt_depth:
        raise InputError(
            f"The controller was fitted with prompt_depth={card.prompt_depth!r}: generate with that, or fit another one."
        )
    if card.template != asked.template:
        raise InputError(
            f"The controller was fitted to prompts of template {card.template!r}: give template={card.template!r}."
        )


def assigned(
    controller: FittedController, pick_at: Any, session: Session, batch: Batch, asked: Asked, settle: Settle | None = None
) -> Assignment:
    """The routes that a controller picks for a batch, from the prompts' hidden states; the full route runs untouched.

    Args:
        controller: predicts.
        pick_at: from predictions the places of the routes, and the price of each.
        settle: told the predictions, the places and the steps of the answers once they are there.
    """
    spec = controller.card.features
    prefilled = watched_prefill(session, batch.ids, spec)
    predicted = controller.predict(features_of(prefilled, spec))
    picked, prices = pick_at(predicted)
    names = [route.name for route in controller.routes]
    reasons = tuple(
        Reason(dict(zip(names, quality, strict=True)), dict(zip(names, steps, strict=True)), price)
        for quality, steps, price in zip(predicted.quality.tolist(), predicted.steps.tolist(), prices, strict=True)
    )

    def settled(steps: np.ndarray) -> None:
        assert settle is not None
        settle(predicted, picked, steps)

    return Assignment(
        tuple(controller.routes[i] for i in picked.tolist()),
        prefilled if asked.prompt_depth == "full" else None,
        reasons,
        full_untouched=True,
        settle=None if settle is None else settled,
    )
