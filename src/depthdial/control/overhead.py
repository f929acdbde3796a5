"""What choosing costs: measured milliseconds of a controller on a sequence, and of the sequence itself."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from depthdial.control.controller import SequenceController
from depthdial.data.tasks import EncodedExample
from depthdial.engine.prefill import clock_sec
from depthdial.engine.session import Session
from depthdial.errors import InputError
from depthdial.measure.features import features_of, watched_prefill

_WARM = 2


@dataclass(frozen=True)
class ChoosingTime:
    """Measured one sequence at a time, in turn with the same prompts without a controller; medians over the prompts.

    Attributes:
        pool_ms: by how much a prompt's pass takes longer for the states that are pooled on the way; not below 0.
        choose_ms: features, predictions and the choice.
        prompt_ms: the prompt's pass without a controller.
        step_ms: a decoding step of the full model.
        tokens: of an answer of the full model.
        n_prompts: how many prompts were timed.
    """

    pool_ms: float
    choose_ms: float
    prompt_ms: float
    step_ms: float
    tokens: float
    n_prompts: int

    @property
    def overhead_ms(self) -> float:
        """Of one sequence."""
        return self.pool_ms + self.choose_ms

    @property
    def sequence_ms(self) -> float:
        """Of one sequence on the full model, without a controller; the first token comes out of the prompt's pass."""
        return self.prompt_ms + self.step_ms * max(self.tokens - 1, 0)

    @property
    def share(self) -> float:
        """The controller's share of the sequence's time."""
        return self.overhead_ms / self.sequence_ms

    def overhead_in(self, full_cost: float) -> float:
        """The overhead in the unit that a decoding step of the full model costs `full_cost` of: layers, FLOPs, ms."""
        return full_cost * self.overhead_ms / (self.step_ms * max(self.tokens - 1, 1))

    def record(self) -> dict[str, float]:
        """For a result file."""
        derived = {name: getattr(self, name) for name in ("overhead_ms", "sequence_ms", "share")}
        return {**vars(self), **derived}


def time_choosing(
    model: Any, tokenizer: Any, controller: SequenceController, examples: Sequence[EncodedExample], max_new_tokens: int
) -> ChoosingTime:
    """Time a controller on some prompts, one by one; the first two warm the machine up and do not count.

    One answer at least must be longer than the one token that comes out of the prompt's pass.
    """
    session, spec = Session.of(model, tokenizer).untouched, controller.card.features
    pooled, chosen, plain, steps, tokens = [], [], [], [], []
    warm = list(examples[:_WARM])
    for number, example in enumerate([*warm, *examples]):
        # Whichever pass comes second finds the prompt's memory warm: they take turns.
        watched = watched_prefill(session, [example.prompt_ids], spec) if number % 2 else None
        prefilled = session.prefill_ids([example.prompt_ids], spec.route)
        watched = watched or watched_prefill(session, [example.prompt_ids], spec)
        started = clock_sec(session.device)
        controller.pick(controller.predict(features_of(watched, spec)))
        choosing_sec = clock_sec(session.device) - started
        if number < len(warm):
            continue
        ready = prefilled if spec.is_full else session.prefill_ids([example.prompt_ids])
        answer = session.decode(session.full, ready, max_new_tokens)
        pooled.append(watched.prefill_sec - (prefilled.prefill_sec if spec.is_full else 0.0))
        chosen.append(choosing_sec)
        plain.append(ready.prefill_sec)
        tokens.append(len(answer.tokens[0]))
        if answer.steps:
            steps.append(answer.decode_sec / answer.steps)
    if not steps:
        raise InputError(
            f"None of the full model's {len(examples)} answers is longer than one token, so no decoding step could be "
            "timed: give other prompts, or fit with more response_tokens."
        )
    pool_ms, choose_ms, prompt_ms, step_ms = (1000 * statistics.median(sec) for sec in (pooled, chosen, plain, steps))
    return ChoosingTime(max(pool_ms, 0.0), choose_ms, prompt_ms, step_ms, float(np.mean(tokens)), len(tokens))
