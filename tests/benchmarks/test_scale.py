"""The simulated replica: what it must do at loads that can be worked out by hand, and the page that quotes it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.scale.data_sheet import Gpus, Shape, fixed_sec, latency_of, layer_sec, rows_that_fit
from benchmarks.scale.simulate import Replica, most_requests, simulate
from tests.latencies import make_latency

ROOT = Path(__file__).parent.parent.parent
REPLICA = Replica(make_latency(6), max_rows=4, max_prefills=2, prompt_tokens=16, new_tokens=8)


def every_layer(*_: int) -> float:
    return 6


def half(*_: int) -> float:
    return 3


def test_a_lonely_request_waits_for_its_own_prompt_alone():
    outcome = simulate(REPLICA, 0.0001, every_layer, 40)
    assert np.allclose(outcome.first_token_sec, REPLICA.latency.prefill_sec(1, 16))
    context = REPLICA.prompt_tokens + REPLICA.new_tokens / 2
    assert np.allclose(outcome.token_sec[~np.isnan(outcome.token_sec)], REPLICA.latency.step_sec([6], context))
    assert outcome.rows == 1 and outcome.layers == 6 and outcome.busy_share < 0.01 and not outcome.longer


def test_a_replica_under_more_than_it_can_do_is_always_busy_and_its_queue_grows():
    outcome = simulate(REPLICA, 10_000, every_layer, 2000)
    assert outcome.busy_share > 0.99 and outcome.longer and outcome.rows <= 4


def test_fewer_layers_take_more_requests_and_waiting_decides_where_it_is_asked_to():
    soon = 5 * REPLICA.latency.prefill_sec(2, 16)
    full, shallow = (most_requests(REPLICA, depths, soon, 300) for depths in (every_layer, half))
    assert shallow > 1.2 * full
    shed = simulate(REPLICA, 1.5 * full, lambda _, waiting: 3 if waiting > 1 else 6, 300)
    assert 3 < shed.layers < 6


def test_a_large_models_step_is_the_sum_of_its_parts():
    shape, gpus = Shape(), Gpus()
    assert shape.all_bytes == pytest.approx(2 * 70.6e9, rel=0.01)  # the checkpoint's 70.6 billion weights
    latency = latency_of(shape, gpus, "large")
    expected = fixed_sec(shape, gpus, 64) + 80 * sum(layer_sec(shape, gpus, 64, 64, 1024).values())
    assert latency.route_sec("full", rows=64, context_tokens=1024) == pytest.approx(expected, rel=1e-6)
    assert rows_that_fit(shape, gpus, 4096, 64) == int(rows_that_fit(shape, gpus, 4096, 80) * 80 / 64)


def test_the_page_says_what_the_simulation_found():
    document = json.loads((ROOT / "benchmarks/results/scale.json").read_text())
    page = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    for row in document["rows"]:
        told = [
            row["replica"],
            row["depth"],
            f"{row['requests/s']:.1f}",
            f"{row['of every layer']:.2f}x",
            str(row["replicas"]),
        ]
        told.append(f"{row['ms a token']:.0f}" if row["ms a token"] else "")
        assert told in lines
    found, words = document["arithmetic"], re.sub(r"\s+", " ", page)
    layer = found["layer_ms"]
    assert f"{layer['weights']:.3f} ms" in words and f"{layer['all-reduces']:.3f} ms" in words
    assert f"takes {found['step_ms']:.1f} ms with all layers and {found['step_ms_80']:.1f} ms with 64" in words
    assert f"behind {found['tokens_where_computing_takes_over']:.0f} tokens" in words
    assert f"{found['rows_of_4096']} rows" in words and f"{found['rows_of_4096_80']} where" in words
    assert f"{found['prompt_of_512_ms']:.1f} ms" in words
