"""A bench's tables and sentences say its cells, beside the ceilings and transformers."""

from __future__ import annotations

import pytest

from depthdial.report.bench.tables import answer_sentences, ceilings_sentence, checks_table, prompts_table, steps_table
from depthdial.report.kit.table_files import markdown_table
from tests.latencies import affine, make_latency
from tests.report.bench.folders import with_baseline


def test_steps_beside_the_ceilings_and_transformers():
    rows = steps_table(with_baseline())
    assert len(rows) == 2 * 3 * 2 and [row["rows"] for row in rows] == sorted(row["rows"] for row in rows)
    row = next(row for row in rows if (row["route"], row["rows"], row["context_tokens"]) == ("uls:3", 2, 64))
    seconds = affine(3, 2, 1, 64)
    assert row["layers"] == 3 and row["step_ms"].mean == pytest.approx(1e3 * seconds) == pytest.approx(row["fitted_ms"])
    assert row["step_ms"].high == pytest.approx(1.1e3 * seconds)
    assert row["tokens_per_sec"] == pytest.approx(2 / seconds)
    read = 3e6 + 5e5 + 2 * 64 * 3 * 64
    assert row["gb_per_sec"] == pytest.approx(read / seconds / 1e9)
    assert row["bandwidth_percent"] == pytest.approx(100 * read / seconds / 1e10)
    flops = 2 * (3 * (5e5 + 128 * 65) + 2.5e5)
    assert row["gflop_per_sec"] == pytest.approx(flops / seconds / 1e9)
    assert row["times_hf"] == pytest.approx(2 * affine(6, 2, 1, 64) / seconds)
    assert "TPOT, ms (p20, p80)" in markdown_table(rows)


def test_prompts_and_checks():
    prompts, checks = prompts_table(make_latency()), checks_table(make_latency())
    assert "hf_ms" not in steps_table(make_latency())[0]
    row = next(row for row in prompts if (row["route"], row["rows"], row["tokens"]) == ("full", 8, 64))
    assert row["ttft_ms"].mean == pytest.approx(1e3 * affine(6, 8, 64, 0))
    assert row["tokens_per_sec"] == pytest.approx(8 * 64 / affine(6, 8, 64, 0))
    row = next(row for row in checks if (row["route"], row["rows"], row["tokens"]) == ("full", 1, 5))
    assert row["steps"] == pytest.approx(affine(6, 1, 5, 16) / affine(6, 1, 1, 16))


def test_sentences():
    told = " ".join([*answer_sentences(make_latency()), ceilings_sentence(make_latency())])
    assert f"Batch 1: {1e3 * affine(6, 1, 1, 40):.2f} ms a step with all 6 layers" in told
    share, bytes_share = affine(3, 1, 1, 40) / affine(6, 1, 1, 40), (3e6 + 5e5 + 40 * 3 * 64) / (6e6 + 5e5 + 40 * 6 * 64)
    assert f"{share:.2f} of the time, where its bytes and FLOPs would take {bytes_share:.2f}." in told
    assert "Memory bandwidth: 10.0 GB/s (sum)" in told and "10.00 at 1 row (linear), 40.00 at 8 rows (packed)" in told
