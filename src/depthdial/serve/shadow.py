"""The drift watch: a share of finished answers is judged at full depth, where the engine has time for it."""

from __future__ import annotations

import random
import threading
from concurrent.futures import Future
from typing import Any

from depthdial.engine.engine import Engine
from depthdial.engine.handles import EngineRequest
from depthdial.errors import InputError
from depthdial.serve.metrics import Metrics

_MOST_WAITING = 64


class Shadow:
    """Judges answers by how closely their depth follows the full model, token by token.

    Args:
        share: of all answers, from 0 to 1, drawn at random.
        metrics: told what was found.
    """

    def __init__(self, engine: Engine, share: float, metrics: Metrics) -> None:
        self._engine, self._share, self._metrics = engine, share, metrics
        self._random, self._lock, self._n_waiting = random.Random(0), threading.Lock(), 0

    def consider(self, request: EngineRequest, depth: str) -> None:
        """Draw which answers of a finished request are judged, and queue them behind everything else.

        Args:
            depth: that was asked for, as metrics name it.
        """
        for place in range(request.n_answers):
            if self._random.random() >= self._share:
                continue
            with self._lock:
                has_room = self._n_waiting < _MOST_WAITING
                self._n_waiting += has_room
            if not has_room:
                self._metrics.not_judged(depth, "dropped")
                continue
            try:
                future = self._engine.fidelity(request, place, full_untouched=True)
            except InputError:  # the engine is closed
                self._forget()
                return
            future.add_done_callback(lambda done: self._judged(done, depth))

    def _judged(self, done: Future[Any], depth: str) -> None:
        self._forget()
        if done.cancelled():
            return
        if done.exception() is not None:
            self._metrics.not_judged(depth, "failed")
        else:
            self._metrics.judged(depth, done.result())

    def _forget(self) -> None:
        with self._lock:
            self._n_waiting -= 1
