"""The time of a decoding step on every kind of weights and number of layers, side by side, in turns.

Routes of as many layers take the same time but for noise (three of 24 layers are measured, which shows it), so each number
of layers is timed once on each kind of weights. Where rows of one batch take routes of their own, the batch itself is timed,
as its rows really were routed. A merged adapter leaves matrices of the same sizes, so routes with it are timed without it.
Token gates decide by what they see, so their steps follow the board's own prompts, beside the full model's on these.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from depthdial.control.controller import SequenceController
from depthdial.control.overhead import time_choosing
from depthdial.data.tasks import encode
from depthdial.engine.batch import RowBatch
from depthdial.engine.prefill import Prefill, clock_sec
from depthdial.engine.session import Session
from depthdial.files import read_json, write_json
from depthdial.measure.latency import step_stamps
from depthdial.measure.passes import made_prompts
from depthdial.measure.timing import time_routes
from depthdial.provenance import environment
from depthdial.routes import Route
from depthdial.views.snapshot import as_is
from depthdial.views.tokens.depth import Depth, TokenDepth

from .entries import BF16, BOARD, CONTROLLER, DEPTHS, DYNAMIC, FP32, FULL, NARROW_DEPTHS, NEW_TOKENS, SMALLER, TIMES, TORCHAO
from .gates import depths
from .policies import FILE as POLICIES
from .policies import fitted_folder
from .weights import why_absent

if TYPE_CHECKING:
    from .bench import Bench

ROWS, PROMPT_TOKENS, SEED = (1, 32), 64, 0
# (rounds, steps of a round) by rows.
TURNS = {1: (7, 12), 32: (3, 6)}
MIX_TURNS = (5, 4)
# The same where tokens have layers of their own: every round takes other prompts, for each token takes another time.
TOKEN_TURNS = {1: (16, 12), 32: (4, 12)}
_TOKEN = 5  # any
_CHOICES = 12
# Of other rules, to show that the number of layers decides.
TWINS = ("ee:24", "uls:24")


def keep_times(bench: Bench) -> None:
    """Measure everything in one process and write it; nothing is gone on from, for turns are taken together."""
    kinds = [w for w in (FP32, BF16, DYNAMIC, TORCHAO, SMALLER) if why_absent(w) is None]
    held = {weights: bench.held(weights) for weights in kinds}
    sessions = {weights: Session.of(one.model, one.tokenizer) for weights, one in held.items()}
    parts = [(session, _routes(bench, weights, session.n_layers)) for weights, session in sessions.items()]
    cells = []
    for rows in ROWS:
        prompts = made_prompts(bench.full.tokenizer, bench.reference.untouched.facts.vocabulary, rows, PROMPT_TOKENS, SEED)
        n_repeats, n_steps = TURNS[rows]
        found = time_routes(parts, prompts, n_repeats=n_repeats, n_steps=n_steps)
        kinds = [weights for weights, (_, routes) in zip(sessions, parts, strict=True) for _ in routes]
        cells += [{"weights": weights, **cell} for weights, cell in zip(kinds, found, strict=True)]
        print(f"{rows} rows are timed", file=sys.stderr, flush=True)
    mixes = _time_mixes(sessions[FP32], _mixes(bench), prompts)
    tokenwise = [cell for rows in ROWS for cell in _time_tokenwise(bench, sessions[FP32], rows)]
    document = {
        "about": {
            "prompt_tokens": PROMPT_TOKENS,
            "turns": {str(rows): _told(turns) for rows, turns in TURNS.items()},
            "mixes": _told(MIX_TURNS),
            "tokenwise": {str(rows): _told(turns) for rows, turns in TOKEN_TURNS.items()},
            "threads": torch.get_num_threads(),
            "seed": SEED,
            **environment(),
        },
        "cells": cells,
        "mixes": mixes,
        "tokenwise": tokenwise,
        "choosing": _choosing(bench),
    }
    write_json(bench.out / TIMES, document)


def _told(turns: tuple[int, int]) -> dict[str, int]:
    return dict(zip(("rounds", "steps"), turns, strict=True))


def _spread(ms: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(ms), "low": min(ms), "high": max(ms)}


def _routes(bench: Bench, weights: str, n_layers: int) -> list[Route]:
    """What is timed on some weights: one route of each number of layers."""
    every = Route(tuple(range(n_layers)), n_layers, FULL)
    if weights in (SMALLER, TORCHAO, DYNAMIC):
        return [every]
    greedy = next(family for family in BOARD if family.name == "greedy")
    routes = {c.layers: c.route for c in greedy.configs(bench.families, ()) if isinstance(c.route, Route)}
    depths = {FP32: DEPTHS, BF16: NARROW_DEPTHS}[weights]
    twins = [Route.parse(text, n_layers=n_layers) for text in (TWINS if weights == FP32 else ())]
    return [every, *(routes[depth] for depth in depths), *twins]


def _mixes(bench: Bench) -> dict[str, list[Route]]:
    """Of every configuration whose rows take routes of their own, those of the first rows of the board."""
    frame = bench.board.read()
    ids = [one.id for one in bench.examples][: max(ROWS)]
    found = {FULL: [Route(tuple(range(30)), 30)] * len(ids)}
    for name, own in frame.groupby("config"):
        texts = own.set_index("sequence_id")["route_layers"]
        if own["family"].iloc[0] in ("rls", "pudding", "controller"):
            found[str(name)] = [Route.parse(texts[one], n_layers=30) for one in ids]
    return found


def _time_mixes(
    session: Session, mixes: Mapping[str, Sequence[Route]], prompts: Sequence[Sequence[int]]
) -> list[dict[str, Any]]:
    """Milliseconds of a step of one batch, in turns; rows on other weights are a batch of their own within the step."""
    rounds, steps = MIX_TURNS
    found: dict[str, list[float]] = {name: [] for name in mixes}
    ready = session.prefill_ids(prompts)  # which all mixes continue on
    for round_ in range(-1, rounds):
        for name, routes in mixes.items():
            runs = [_stepping(session, own, ready) for own in _by_weights(name, routes)]
            for _ in range(steps):
                started = clock_sec(session.device)
                for run in runs:
                    run()
                if round_ >= 0:
                    found[name].append(1000 * (clock_sec(session.device) - started))
    return [{"config": name, "batch": len(prompts), "step_ms": _spread(ms)} for name, ms in found.items()]


def _time_tokenwise(bench: Bench, session: Session, rows: int) -> list[dict[str, Any]]:
    """Milliseconds of a step of token gates, and of the full model, on prompts of the board, in turns."""
    gates = depths(bench)
    if not gates:
        return []
    rounds, steps = TOKEN_TURNS[rows]
    prompts = [one.prompt_ids for one in encode(bench.task, bench.full.tokenizer)]
    rounds_of = [[prompts[(round_ * rows + i) % len(prompts)] for i in range(rows)] for round_ in range(rounds)]
    found = time_tokenwise(session, {FULL: session.full, **gates}, rounds_of, steps)
    print(f"{rows} rows at depths by token are timed", file=sys.stderr, flush=True)
    return found


def time_tokenwise(
    session: Session, depths: Mapping[str, Depth], rounds: Sequence[Sequence[Sequence[int]]], steps: int
) -> list[dict[str, Any]]:
    """Milliseconds of a step at some depths, in turns, each round behind prompts of its own.

    A step's time goes with the layers that its tokens run, so that a round's is the mean over its steps; `layers` is the
    mean of what ran, and of the rounds' times the median, the lowest and the highest are told.
    """
    times: dict[str, list[float]] = {name: [] for name in depths}
    layers: dict[str, list[float]] = {name: [] for name in depths}
    for round_, prompts in enumerate([rounds[0], *rounds]):
        ready = session.prefill_ids(prompts)
        for name, depth in depths.items():
            # What is drawn follows from the key of a sequence: another one for each round and row.
            own = depth.for_batch((round_, row) for row in range(len(prompts))) if isinstance(depth, TokenDepth) else depth
            stamps = step_stamps(session.model, session, own, ready, steps)
            if round_ == 0:  # warms up
                continue
            times[name].append(1000 * statistics.mean(b - a for a, b in pairwise(stamps)))
            ran = own.mean_layers([steps] * len(prompts)) if isinstance(own, TokenDepth) else [float(len(depth))]
            layers[name].append(statistics.mean(one for one in ran if one is not None))
    return [
        {
            "config": name,
            "batch": len(rounds[0]),
            "layers": statistics.mean(layers[name]),
            "step_ms": _spread(ms),
        }
        for name, ms in times.items()
    ]


def _by_weights(name: str, routes: Sequence[Route]) -> list[list[Route]]:
    """The controller's full route runs without the adapter, on a copy of the weights, and so as a batch of its own."""
    if not name.startswith("controller"):
        return [list(routes)]
    return [own for own in ([r for r in routes if r.is_full], [r for r in routes if not r.is_full]) if own]


def _stepping(session: Session, routes: list[Route], ready: Prefill) -> Callable[[], torch.Tensor]:
    """A step of a batch whose rows have these routes behind the first prompts, to be called again and again."""
    batch = RowBatch(session.model, len(routes))
    batch.join(ready.select(torch.arange(len(routes))), routes, range(len(routes)), MIX_TURNS[1])
    return partial(_step, session, batch, torch.full((len(routes),), _TOKEN))


def _step(session: Session, batch: RowBatch, tokens: torch.Tensor) -> torch.Tensor:
    with as_is(session.device):
        return batch.step(tokens).argmax(-1)


def _choosing(bench: Bench) -> dict[str, float] | None:
    """Milliseconds that a choice costs a sequence, by the controller; the router's is of the same kind and width."""
    told = read_json(bench.out / POLICIES, "policies") if (bench.out / POLICIES).exists() else {}
    if CONTROLLER.name not in told:
        return None
    controller = SequenceController.from_pretrained(fitted_folder(bench.work, told))
    examples = encode(bench.task, bench.full.tokenizer)[:_CHOICES]
    return time_choosing(bench.full.model, bench.full.tokenizer, controller, examples, NEW_TOKENS).record()
