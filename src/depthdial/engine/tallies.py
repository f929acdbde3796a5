"""What an engine counts while it runs, and the statistics that it tells."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from depthdial.engine.answers import Answer
from depthdial.engine.groups import Work

_LATEST = 2048  # answers that quantiles of times are taken of


@dataclass(frozen=True)
class EngineStats:
    """The state of an engine, and what it has done since it was made.

    Attributes:
        waiting, running: answers in the queue, and those that have a row or are being prefilled.
        finished, cancelled, failed: requests by how they ended.
        max_rows: rows that may decode at once now: fewer than asked for after memory ran out, until answers have ended.
        steps: decoding steps, one of each batch.
        prompt_tokens, new_tokens: tokens that were prefilled, padding not counted, and tokens of answers.
        layer_calls_run: calls of decoder layers in steps, each for some rows.
        layer_calls_skipped: those that steps at full depth would have had beside them.
        row_layers_run, row_layers_skipped: the same by row: tokens times layers.
        kv_bytes: of keys and values that are held now.
        freed_bytes: of prompts' keys and values that were let go early: of layers that their rows do not run.
        busy_sec: seconds of passes and of choosing tokens.
        tokens_per_sec: new tokens for each of them; None before the first.
        ttft_p50_sec, ttft_p95_sec: from `submit` to the first token, of the latest answers; None before the first.
        tpot_p50_sec, tpot_p95_sec: for each token after the first, of the latest answers; None before the first.
        schedule, schedule_reason: how rows of several routes are run, and why.
    """

    waiting: int
    running: int
    finished: int
    cancelled: int
    failed: int
    max_rows: int
    steps: int
    prompt_tokens: int
    new_tokens: int
    layer_calls_run: int
    layer_calls_skipped: int
    row_layers_run: int
    row_layers_skipped: int
    kv_bytes: int
    freed_bytes: int
    busy_sec: float
    tokens_per_sec: float | None
    ttft_p50_sec: float | None
    ttft_p95_sec: float | None
    tpot_p50_sec: float | None
    tpot_p95_sec: float | None
    schedule: str
    schedule_reason: str


@dataclass(frozen=True)
class Gauges:
    """What is true of an engine after a tick; see `EngineStats`."""

    waiting: int = 0
    running: int = 0
    max_rows: int = 0
    kv_bytes: int = 0
    freed_bytes: int = 0
    schedule: str = ""
    schedule_reason: str = ""


class Tallies:
    """Counters that the worker adds to and any thread reads."""

    def __init__(self, n_layers: int) -> None:
        self.lock = threading.Lock()
        self._n_layers = n_layers
        self.finished = self.cancelled = self.failed = 0
        self.steps = self.prompt_tokens = self.new_tokens = 0
        self.layer_calls_run = self.layer_calls_skipped = 0
        self.row_layers_run = self.row_layers_skipped = 0
        self.busy_sec = 0.0
        self._ttft_sec: deque[float] = deque(maxlen=_LATEST)
        self._tpot_sec: deque[float] = deque(maxlen=_LATEST)

    def add(self, **numbers: float) -> None:
        """Add to counters by name."""
        with self.lock:
            for name, value in numbers.items():
                setattr(self, name, getattr(self, name) + value)

    def stepped(self, work: Work | None) -> None:
        """A group has made a step."""
        self.add(steps=1)
        if work is not None:
            self.add(
                layer_calls_run=work.layers,
                layer_calls_skipped=self._n_layers - work.layers,
                row_layers_run=work.row_layers,
                row_layers_skipped=work.rows * self._n_layers - work.row_layers,
            )

    def ended(self, answer: Answer) -> None:
        """An answer has its last token."""
        if answer.first_token_sec is None:
            return
        with self.lock:
            self._ttft_sec.append(answer.first_token_sec - answer.submitted_sec)
            if len(answer.tokens) > 1:
                self._tpot_sec.append((answer.last_token_sec - answer.first_token_sec) / (len(answer.tokens) - 1))

    def read(self, **now: Any) -> EngineStats:
        """All of them, with what is true now."""
        with self.lock:
            ttft, tpot = _quantiles(self._ttft_sec), _quantiles(self._tpot_sec)
            counted = {name: value for name, value in vars(self).items() if not name.startswith("_") and name != "lock"}
        return EngineStats(
            **counted,
            **now,
            tokens_per_sec=counted["new_tokens"] / counted["busy_sec"] if counted["busy_sec"] > 0 else None,
            ttft_p50_sec=ttft[0],
            ttft_p95_sec=ttft[1],
            tpot_p50_sec=tpot[0],
            tpot_p95_sec=tpot[1],
        )


def _quantiles(seconds: deque[float]) -> tuple[float | None, float | None]:
    if not seconds:
        return None, None
    p50, p95 = np.quantile(np.array(seconds), [0.5, 0.95]).tolist()
    return p50, p95
