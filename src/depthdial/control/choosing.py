"""A controller as a depth: what it refuses before anything runs, and the routes that it assigns to a batch of prompts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial

import numpy as np

from depthdial.control.fitted import FittedController
from depthdial.control.prediction import Prediction
from depthdial.engine.depth import Asked, Assignment, Batch, Depth, Reason
from depthdial.engine.prefill import PrefillInParts
from depthdial.engine.session import Session
from depthdial.errors import InputError
from depthdial.measure.features import features_of, watched_parts, watched_prefill
from depthdial.routes.families import fixed_routes


class ChoosingDepth(Depth):
    """Picks the routes of prompts from their hidden states, by what a controller predicts; the full route runs untouched."""

    controller: FittedController

    @abstractmethod
    def pick_at(self, predicted: Prediction) -> tuple[np.ndarray, tuple[float, ...]]:
        """(n,) places of the routes of n sequences, and the price that each was picked at."""

    def settle(self, predicted: Prediction, chosen: np.ndarray, steps: np.ndarray) -> None:
        """Learn what answers took, once they are there; nothing, unless a budget runs.

        Args:
            predicted, chosen: what `pick` was given of these n sequences, and what it gave.
            steps: (n,) decoding steps that their answers really took.
        """

    @property
    def n_layers(self) -> int:
        return self.controller.card.n_layers

    def pick(self, predicted: Prediction) -> np.ndarray:
        """(n,) places of the routes that are worth their price, of n sequences in order of arrival."""
        return self.pick_at(predicted)[0]

    def prepare(self, session: Session, asked: Asked) -> None:
        card = self.controller.card
        self.controller.check(session.given)
        if asked.routes is not None:
            self.controller.check_routes(fixed_routes(asked.routes, session.n_layers))
        if card.prompt_depth != asked.prompt_depth:
            raise InputError(
                f"The controller was fitted with prompt_depth={card.prompt_depth!r}: generate with that, or fit another one."
            )
        if card.template != asked.template:
            raise InputError(
                f"The controller was fitted to prompts of template {card.template!r}: give template={card.template!r}."
            )

    def prompts_in_parts(self, session: Session, prompts: Sequence[Sequence[int]], asked: Asked) -> PrefillInParts:
        return watched_parts(session, prompts, self.controller.card.features)

    def assign(self, session: Session, batch: Batch, asked: Asked) -> Assignment:
        card = self.controller.card
        prefilled = batch.own or watched_prefill(session, batch.ids, card.features)
        predicted = self.controller.predict(features_of(prefilled, card.features))
        picked, prices = self.pick_at(predicted)
        names = [route.name for route in card.routes]
        reasons = tuple(
            Reason(dict(zip(names, quality, strict=True)), dict(zip(names, steps, strict=True)), price)
            for quality, steps, price in zip(predicted.quality.tolist(), predicted.steps.tolist(), prices, strict=True)
        )
        return Assignment(
            tuple(card.routes[i] for i in picked.tolist()),
            prefilled if asked.prompt_depth == "full" else None,
            reasons,
            full_untouched=True,
            settle=partial(self.settle, predicted, picked),
        )
