"""Thresholds for a confidence early exit (CALM, arXiv 2207.07061) that meet budgets, found on calibration rows.

Every layer's confidence is measured on one pass at full depth, and the exits that a threshold would make are counted. What
tokens that left earlier would have changed is left out, so the cost that is measured later differs a little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from depthdial.engine.session import Session
from depthdial.engine.teacher_forcing import continued_logits, right_padded
from depthdial.errors import InputError
from depthdial.views.snapshot import as_is
from depthdial.views.tokens.depth import TokenDepth
from depthdial.views.tokens.policy import Confidence, ConfidenceExit, Decide, TokenPolicy, TokenStep


@dataclass(frozen=True)
class _Listener(TokenPolicy):
    """Runs everything and writes down how confident each token is before each layer."""

    exit: ConfidenceExit
    heard: list[torch.Tensor] = field(default_factory=list)

    def start(self, step: TokenStep) -> Decide:
        before: list[torch.Tensor] = []
        everyone = torch.ones_like(step.positions, dtype=torch.bool)

        def decide(layer: int, hidden: torch.Tensor) -> torch.Tensor | None:
            if layer >= self.exit.first_layer:
                self.heard.append(self.exit.measured(step, before[-1] if before else None, hidden, everyone))
            before[:] = [hidden]
            return None

        return decide


def exit_thresholds(
    model: Any,
    tokenizer: Any,
    texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    measure: Confidence,
    targets: Sequence[float],
    *,
    first_layer: int = 1,
) -> list[ConfidenceExit]:
    """The exits of one measure that run given fractions of the layers.

    Args:
        texts: (prompt, response) token ids to calibrate on, responses of two tokens or more.
        targets: mean fractions of all layers that a response's tokens run.

    Raises:
        InputError: if a target lies below the layers before the first exit, or there is nothing to calibrate on.
    """
    if not texts or min(len(response) for _, response in texts) < 2:
        raise InputError("Confidence exits are calibrated on responses of two tokens or more: give only such ones.")
    session = Session.of(model, tokenizer)
    lowest = first_layer / session.n_layers
    low = next((target for target in targets if not lowest <= target <= 1), None)
    if low is not None:
        raise InputError(f"A confidence exit after {first_layer} layers runs {lowest:.0%} to 100% of them, not {low:.0%}.")
    measured = _confidence(session, texts, ConfidenceExit(measure, 1.0, first_layer))
    return [
        ConfidenceExit(measure, _threshold(measured, target, session.n_layers, first_layer), first_layer)
        for target in targets
    ]


def _confidence(session: Session, texts: Sequence[tuple[Sequence[int], Sequence[int]]], exit: ConfidenceExit) -> np.ndarray:
    """(n_tokens, n_layers - first_layer), before each layer that can be skipped."""
    listener = _Listener(exit)
    ready = session.prefill_ids([list(prompt) for prompt, _ in texts])
    tokens, mask = right_padded([list(response) for _, response in texts], session.pad_token_id, session.device)
    with as_is(session.device):
        continued_logits(session.model, TokenDepth(listener, session.n_layers), ready, tokens, mask)
    is_read = mask[:, 1:].bool()  # a response's last token is predicted, and none after it
    return torch.stack([one[is_read] for one in listener.heard], dim=1).cpu().numpy()


def _threshold(measured: np.ndarray, target: float, n_layers: int, first_layer: int) -> float:
    """The threshold at which the mean layer of exit comes closest to the target, by bisection: it grows with it."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        left = measured > middle
        layers = np.where(left.any(1), left.argmax(1) + first_layer, n_layers)
        low, high = (low, middle) if layers.mean() > target * n_layers else (middle, high)
    return high
