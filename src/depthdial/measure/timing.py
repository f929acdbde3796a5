"""How long routes take, measured apart from their quality: the file `timing.json` of a study.

After a round of warm-up all routes take turns, so that a machine that slows down slows all of them. The prompt's pass (time
to the first token) and decoding steps are timed apart, at each batch size. The file holds::

    {"about": {"prompt_depth", "prompt_tokens", "device", "dtype", "threads", "n_steps", "is_merged"},
     "routes": [{"route": "uls:24", "layers": 24, "batch": 1, "n_repeats": 5,
                 "ttft_ms": {"median", "low", "high"}, "step_ms": {"median", "low", "high"}}, ..]}

with one entry for each route and batch size. `low` and `high` are the fastest and the slowest round; `prompt_tokens` is the
length of the longest prompt, and `is_merged` says whether an adapter's routes ran with its weights merged.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from depthdial.engine.prefill import Prefill
from depthdial.engine.session import Session
from depthdial.errors import InputError
from depthdial.files import read_json, write_json
from depthdial.hf.adapter import merged
from depthdial.hf.untouched import has_adapters_on
from depthdial.measure.latency import step_stamps, with_room
from depthdial.routes import Route

TIMING_FILE = "timing.json"
BATCHES, N_REPEATS, N_STEPS = (1, 8), 5, 4


def time_study(
    parts: Sequence[tuple[Any, Sequence[Route]]],
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    folder: Path,
    *,
    prompt_depth: str = "full",
) -> dict[str, Any]:
    """Time routes and write `timing.json`, or read it where all of them are in it.

    Args:
        parts: models, each with its routes; adapters are merged into a copy.
        prompts: token ids; the first ones are run.
    """
    path = folder / TIMING_FILE
    known = read_json(path, "timing") if path.exists() else {"routes": []}
    if {route.name for _, routes in parts for route in routes} <= {row["route"] for row in known["routes"]}:
        return known
    sessions, is_merged = [], False
    for model, routes in parts:
        whole, was_merged = _whole(model)
        is_merged |= was_merged
        sessions.append((Session.of(whole, tokenizer), routes))
    session = sessions[0][0]
    about = {
        "prompt_depth": prompt_depth,
        "prompt_tokens": max(len(prompt) for prompt in prompts[: max(BATCHES)]),
        "device": session.device.type,
        "dtype": str(session.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "n_steps": N_STEPS,
        "is_merged": is_merged,
    }
    rows = [row for size in BATCHES for row in time_routes(sessions, prompts[:size], prompt_depth=prompt_depth)]
    document = {"about": about, "routes": rows}
    write_json(path, document)
    return document


def time_routes(
    parts: Sequence[tuple[Session, Sequence[Route]]],
    prompts: Sequence[Sequence[int]],
    *,
    prompt_depth: str = "full",
    n_repeats: int = N_REPEATS,
    n_steps: int = N_STEPS,
) -> list[dict[str, Any]]:
    """Time some routes on one batch of prompts, in turns; one entry for each, as the file holds them.

    Routes whose prompt runs the same layers share its pass within a round.
    """
    places = [(session, route) for session, routes in parts for route in routes]
    found: dict[int, tuple[list[float], list[float]]] = {place: ([], []) for place in range(len(places))}
    for round_ in range(-1, n_repeats):
        passes: dict[tuple[int, Route], Prefill] = {}
        for place, (session, route) in enumerate(places):
            key = (id(session), session.full if prompt_depth == "full" else route)
            if key not in passes:
                passes[key] = session.prefill_ids(with_room(prompts, session, n_steps), key[1])
            stamps = step_stamps(session.model, session, route, passes[key], n_steps)
            step_ms = 1000 * statistics.median(b - a for a, b in pairwise(stamps))
            if round_ >= 0:
                found[place][0].append(1000 * passes[key].prefill_sec)
                found[place][1].append(step_ms)
    return [
        {
            "route": route.name,
            "layers": len(route),
            "batch": len(prompts),
            "n_repeats": n_repeats,
            "ttft_ms": _spread(found[place][0]),
            "step_ms": _spread(found[place][1]),
        }
        for place, (_, route) in enumerate(places)
    ]


def _whole(model: Any) -> tuple[Any, bool]:
    """A model with its adapters merged into a copy, where that can be done."""
    if not has_adapters_on(model):
        return model, False
    try:
        return merged(copy.deepcopy(model)), hasattr(model, "merge_and_unload")
    except InputError:
        return model, False


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}
