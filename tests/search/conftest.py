"""Searches whose harm is a formula, so that every method can be held against brute force."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from depthdial.data.tasks import encode
from depthdial.engine.session import Session
from depthdial.measure.latency import LayerCosts
from depthdial.search.calibration import Calibration
from depthdial.search.method import Memory, Problem


@pytest.fixture
def problem_of() -> Callable:
    def make(n_layers, min_layers, harm=None, costs=None, start=0.0, states=(), answer_states=None):
        by_layer = tuple(costs) if costs else (1.0,) * n_layers
        return Problem(
            n_layers,
            min_layers,
            LayerCosts("layers", by_layer, {}),
            harm or (lambda route: 0.0),
            start,
            lambda first: iter(states[first:]),
            len(states),
            answer_states,
        )

    return make


@pytest.fixture
def find() -> Callable:
    """Runs a method from the start; gives what it found, and how often it said that a piece was done."""

    def run(method, problem, memory=None):
        memory, pieces = memory or Memory(None, {}), []
        expected = method.pieces(problem, memory)
        found = method.find(problem, memory, pieces.append)
        return found, len(pieces), expected

    return run


@pytest.fixture
def calibrated(model, tokenizer, small_task):
    def make(metric, batch_size=3, over=model, prompt_depth="full"):
        session = Session.of(over, tokenizer)
        examples = [e for e in encode(small_task, tokenizer) if e.reference_ids]
        return Calibration.of(session, examples, metric, 4, batch_size, prompt_depth=prompt_depth)

    return make
