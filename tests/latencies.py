"""Latency models of made-up machines, for tests of what reads one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from depthdial.latency.cells import Ceilings, Cell, Gemm, Sizes
from depthdial.latency.model import LatencyModel

# Seconds of a pass of some layers, rows and tokens a row behind a context.
Clock = Callable[[int, int, int, int], float]


def affine(layers: int, rows: int, tokens: int, context_tokens: int) -> float:
    """A pass that reads weights once and computes for every token: 2 ms + 0.5 a token, and of a layer 1 + 0.1 a token."""
    n = rows * tokens
    return 2e-3 + 5e-4 * n + layers * (1e-3 + 1e-4 * n + 1e-6 * rows * context_tokens)


def cells_of(
    clock: Clock,
    routes: dict[str, tuple[int, ...]],
    rows: tuple[int, ...] = (1, 2, 8),
    contexts: tuple[int, ...] = (16, 64),
    tokens: tuple[int, ...] = (2, 3, 5, 9),
    prompts: tuple[int, ...] = (16, 64),
) -> tuple[Cell, ...]:
    """Every pass of a bench, each as long as the clock says, a tenth slower at p80."""

    def cell(kind: str, name: str, n_rows: int, n_tokens: int, context: int) -> Cell:
        seconds = clock(len(routes[name]), n_rows, n_tokens, context)
        return Cell(kind, name, n_rows, n_tokens, context, seconds, seconds, 1.1 * seconds, 5)

    places = [(name, n_rows) for n_rows in rows for name in routes]
    return (
        *(cell("step", name, n_rows, 1, context) for name, n_rows in places for context in contexts),
        *(cell("verify", name, n_rows, n, contexts[0]) for name, n_rows in places for n in tokens),
        *(cell("prefill", name, n_rows, n, 0) for name, n_rows in places for n in prompts),
    )


def make_latency(n_layers: int = 6, clock: Clock = affine, **changes: Any) -> LatencyModel:
    """A model of alike layers whose passes take what the clock says."""
    half = tuple(range(0, n_layers, 2))
    routes = {"full": tuple(range(n_layers)), f"uls:{len(half)}": half}
    sizes = Sizes((1e6,) * n_layers, 5e5, (64.0,) * n_layers, (5e5,) * n_layers, (128.0,) * n_layers, 2.5e5)
    given: dict[str, Any] = {
        "model": "tiny",
        "weights_hash": "0" * 16,
        "dtype": "float32",
        "device": "cpu",
        "threads": 2,
        "n_layers": n_layers,
        "routes": routes,
        "layer_share": (1.0,) * n_layers,
        "sizes": sizes,
        "ceilings": Ceilings(1e10, "sum", (Gemm(1, 1e10, "linear"), Gemm(8, 4e10, "packed"))),
        "cells": cells_of(clock, changes.get("routes", routes)),
        "date": "2026-11-27",
    }
    return LatencyModel(**{**given, **changes})
