"""A latency model as tables: decoding steps, prompts and checks as measured, beside the ceilings of the same run."""

from __future__ import annotations

from typing import Any

from depthdial.latency.cells import HF_PREFILL, HF_STEP, PREFILL, STEP, VERIFY, Cell
from depthdial.latency.model import LatencyModel
from depthdial.report.kit.tables import Cells, Column, any_size, finished
from depthdial.stats.intervals import Interval

COLUMNS = (
    Column("context_tokens", "context"),
    Column("step_ms", "TPOT, ms (p20, p80)", 2),
    Column("pass_ms", "ms (p20, p80)", 2),
    Column("ttft_ms", "TTFT, ms (p20, p80)", 1),
    Column("tokens_per_sec", "tokens/s", 1),
    Column("gb_per_sec", "GB/s", 1),
    Column("bandwidth_percent", "of the bandwidth, %", 0),
    Column("gflop_per_sec", "GFLOP/s", write=any_size),
    Column("gemm_percent", "of the products, %", 0),
    Column("hf_ms", "HF generate, ms", 2),
    Column("times_hf", "against HF", write=lambda value: f"{value:.2f}x"),
    Column("fitted_ms", "fitted, ms", 2),
)
_HF = {STEP: HF_STEP, PREFILL: HF_PREFILL}


def steps_table(latency: LatencyModel) -> list[Cells]:
    """A row for each measured decoding step: seconds, tokens per second, GB/s and FLOP/s, beside `generate` of HF."""
    rows = []
    for cell in _cells(latency, STEP):
        layers = latency.routes[cell.route]
        read = latency.sizes.step_bytes(layers, cell.rows, cell.context_tokens) / cell.p50_sec
        rows.append(
            {
                **_named(latency, cell),
                "context_tokens": cell.context_tokens,
                "step_ms": _ms(cell),
                "fitted_ms": 1e3 * latency.route_sec(layers, cell.rows, cell.context_tokens),
                "tokens_per_sec": cell.rows / cell.p50_sec,
                "gb_per_sec": read / 1e9,
                "bandwidth_percent": 100 * read / latency.ceilings.bandwidth_bytes_per_sec,
                **_computed(latency, cell, heads=1),
                **_beside(latency, cell),
            }
        )
    return finished(rows, COLUMNS, keep=())


def prompts_table(latency: LatencyModel) -> list[Cells]:
    """A row for each measured prompt: the time to the first token."""
    rows = [
        {
            **_named(latency, cell),
            "tokens": cell.tokens,
            "ttft_ms": _ms(cell),
            "tokens_per_sec": cell.rows * cell.tokens / cell.p50_sec,
            **_computed(latency, cell, heads=1),
        }
        for cell in _cells(latency, PREFILL)
    ]
    return finished(rows, COLUMNS, keep=())


def checks_table(latency: LatencyModel) -> list[Cells]:
    """A row for each measured pass over several tokens behind a context."""
    rows = [
        {
            **_named(latency, cell),
            "tokens": cell.tokens,
            "context_tokens": cell.context_tokens,
            "pass_ms": _ms(cell),
            "steps": cell.p50_sec / latency.route_sec(latency.routes[cell.route], cell.rows, cell.context_tokens),
            **_computed(latency, cell, heads=cell.tokens),
        }
        for cell in _cells(latency, VERIFY)
    ]
    return finished(rows, (*COLUMNS, Column("steps", "of its step", write=lambda value: f"{value:.2f}x")))


def ceilings_sentence(latency: LatencyModel) -> str:
    """What the machine can do, in a sentence."""
    ceilings = latency.ceilings
    gemm = ", ".join(
        f"{any_size(one.flops_per_sec / 1e9)} at {one.rows} row{'s' * (one.rows > 1)} ({one.way})" for one in ceilings.gemm
    )
    return (
        f"Memory bandwidth: {ceilings.bandwidth_bytes_per_sec / 1e9:.1f} GB/s ({ceilings.bandwidth_way}). Matrix products, "
        f"GFLOP/s: {gemm}."
    )


def answer_sentences(latency: LatencyModel) -> list[str]:
    """The fewest rows: what a step takes, what bandwidth allows, and what half of the layers take."""
    rows = latency.measured_rows()[0]
    full, bound = latency.route_sec(None, rows), latency.bound_sec(None, rows)
    told = [
        f"Batch {rows}: {1e3 * full:.2f} ms a step with all {latency.n_layers} layers, {rows / full:.1f} tokens/s; the "
        f"measured ceilings allow {1e3 * bound:.2f} ms ({100 * bound / full:.0f}% of what it takes)."
    ]
    shallow = min((name for name in latency.routes if name != "full"), key=lambda name: _from_half(latency, name))
    less, its_bound = latency.route_sec(shallow, rows), latency.bound_sec(shallow, rows)
    told.append(
        f"{shallow}, {len(latency.routes[shallow])} layers: {1e3 * less:.2f} ms, {less / full:.2f} of the time, where its "
        f"bytes and FLOPs would take {its_bound / bound:.2f}."
    )
    return told


def _from_half(latency: LatencyModel, name: str) -> float:
    return abs(len(latency.routes[name]) - latency.n_layers / 2)


def _cells(latency: LatencyModel, kind: str) -> list[Cell]:
    found = [cell for cell in latency.cells if cell.kind == kind]
    return sorted(found, key=lambda cell: (cell.rows, cell.context_tokens, cell.tokens, -len(latency.routes[cell.route])))


def _named(latency: LatencyModel, cell: Cell) -> Cells:
    return {"route": cell.route, "layers": len(latency.routes[cell.route]), "rows": cell.rows}


def _ms(cell: Cell) -> Interval:
    return Interval(1e3 * cell.p50_sec, 1e3 * cell.p20_sec, 1e3 * cell.p80_sec, cell.count)


def _computed(latency: LatencyModel, cell: Cell, *, heads: int) -> dict[str, Any]:
    flops = latency.sizes.pass_flops(latency.routes[cell.route], cell.rows, cell.tokens, cell.context_tokens, heads)
    rate = flops / cell.p50_sec
    ceiling = latency.ceilings.flops_per_sec(cell.rows * cell.tokens)
    return {"gflop_per_sec": rate / 1e9, "gemm_percent": 100 * rate / ceiling}


def _beside(latency: LatencyModel, cell: Cell) -> dict[str, Any]:
    """transformers' own `generate`, which runs every layer, at the same rows and context."""
    theirs = next(
        (
            one
            for one in latency.cells
            if (one.kind, one.rows, one.context_tokens) == (_HF[cell.kind], cell.rows, cell.context_tokens)
        ),
        None,
    )
    if theirs is None:
        return {"hf_ms": None, "times_hf": None}
    return {"hf_ms": 1e3 * theirs.p50_sec, "times_hf": theirs.p50_sec / cell.p50_sec}
