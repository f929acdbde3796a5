"""Milliseconds of result rows by a latency model, in place of those that were measured while the rows were made.

A sweep's own seconds are those of its batches on its machine; a latency model says what the same answers take at any batch
size, on the machine that it was measured on.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from depthdial.checks import whole
from depthdial.errors import InputError
from depthdial.latency.model import LatencyModel
from depthdial.oracles.costs import DEPTH_COLUMN, LAYERS_COLUMN, MS, TOKENS_COLUMN
from depthdial.routes import stored_route

LAYERS_TEXT, PROMPT_COLUMN = "route_layers", "prompt_tokens"
# What modelled seconds are read from, where rows have it.
MODELLED_FROM = (LAYERS_TEXT, PROMPT_COLUMN, TOKENS_COLUMN, LAYERS_COLUMN, DEPTH_COLUMN)


def loaded_latency(latency: Any, cost: str) -> LatencyModel:
    """A latency model as it was given: itself, its file, or the folder of a bench.

    Raises:
        InputError: for a cost that is not measured in milliseconds, or a file that is none.
    """
    if cost != MS:
        raise InputError(f"A latency model gives milliseconds, and the cost is {cost!r}: give cost='ms', or no latency.")
    return latency if isinstance(latency, LatencyModel) else LatencyModel.load(latency)


def modelled_sec(columns: dict[str, np.ndarray], latency: LatencyModel, batch_rows: int = 1) -> np.ndarray:
    """(n_rows,) seconds of decoding that each answer takes in a batch of so many like it; without answers, those of a token.

    Args:
        columns: (n_rows,) each, of `MODELLED_FROM` those that there are.
        batch_rows: sequences that decode together; each is charged its part of the step.

    Raises:
        InputError: if rows do not say which layers ran, or are of another model.
    """
    whole("latency_rows", batch_rows, 1)
    columns = {name: one if name == LAYERS_TEXT else one.astype(float) for name, one in columns.items()}
    depths = columns.get(DEPTH_COLUMN)
    if depths is not None:
        for n_layers in np.unique(depths[np.isfinite(depths)]):
            latency.require_fits(int(n_layers))
    weights = _weights(columns, latency)
    tokens = columns.get(TOKENS_COLUMN)
    steps = np.ones(len(weights)) if tokens is None or np.isnan(tokens).all() else np.maximum(tokens - 1, 0.0)
    context = np.full(len(weights), latency.context())
    prompts = columns.get(PROMPT_COLUMN)
    if prompts is not None and np.isfinite(prompts).all():
        context = prompts + (steps + 1) / 2
    parts = latency.parts(batch_rows)
    each = parts.fixed_sec + weights * (parts.layer_sec + parts.context_sec * context)
    return steps * each / batch_rows


def _weights(columns: dict[str, np.ndarray], latency: LatencyModel) -> np.ndarray:
    """(n_rows,) layers that ran, each by its share of a mean layer's time; of token-wise depths the mean number."""
    texts, counts = columns.get(LAYERS_TEXT), columns.get(LAYERS_COLUMN)
    if texts is None and counts is None:
        raise InputError(f"The rows say nowhere which layers ran: give the column {LAYERS_TEXT!r} or {LAYERS_COLUMN!r}.")
    if counts is not None and (wrong := counts[(counts < 0) | (counts > latency.n_layers)]).size:
        raise InputError(
            f"The column {LAYERS_COLUMN!r} holds {wrong[0]:g}, and {latency.model!r} has {latency.n_layers} layers: bench "
            "the model that the rows are of."
        )
    if texts is None:
        texts = np.full(len(np.asarray(counts)), "")
    known = {text: _weight(text, latency) for text in set(texts.tolist())}
    found = np.array([np.nan if known[text] is None else known[text] for text in texts.tolist()], dtype=float)
    gaps = np.isnan(found)
    if gaps.any() and counts is not None:
        found[gaps] = counts[gaps]
    if np.isnan(found).any():
        text = str(texts[int(np.isnan(found).argmax())]) or "a route"
        raise InputError(f"The rows do not say how many layers {text!r} ran: sweep it again, or leave its rows out.")
    return found


def _weight(text: Any, latency: LatencyModel) -> float | None:
    if not isinstance(text, str) or not re.fullmatch(r"full|[\d,\s-]+", text):
        return None  # a depth that is decided token by token
    return latency.weight(stored_route(text, latency.n_layers))
