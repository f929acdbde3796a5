"""Benches and forecasts of a made-up machine."""

from __future__ import annotations

import numpy as np

from depthdial.latency.cells import Cell
from depthdial.latency.model import LatencyModel
from depthdial.oracles.speculation import SpeculationForecast, speculation_forecast
from tests.latencies import affine, make_latency


def with_baseline() -> LatencyModel:
    """Beside it transformers, which takes twice as long."""
    latency = make_latency()
    theirs = [(n, context) for n in (1, 2, 8) for context in (16, 64)]
    cells = [
        *(Cell("hf_step", "full", n, 1, c, *[2 * affine(6, n, 1, c)] * 3, 5) for n, c in theirs),
        *(Cell("hf_prefill", "full", n, c, 0, *[2 * affine(6, n, c, 0)] * 3, 5) for n, c in theirs),
    ]
    return make_latency(cells=(*latency.cells, *cells))


def forecast_of(acceptance: float) -> SpeculationForecast:
    rows = {
        "sequence_id": np.repeat(["a", "b", "c"], 3),
        "route": np.tile(["full", "uls:3", "greedy-kl:5"], 3),
        "route_layers": np.tile(["0-5", "0,2,4", "0-3,5"], 3),
        "n_layers": np.full(9, 6),
        "agreement": np.array([1, acceptance, acceptance, 1, acceptance / 2, acceptance, 1, acceptance / 3, acceptance / 2]),
        "new_tokens": np.full(9, 30),
    }
    return speculation_forecast(rows, make_latency(), n_bootstrap=50)
