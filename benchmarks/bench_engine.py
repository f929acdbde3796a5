"""The engine against transformers' own loop and against the machine: steps of one row, of many, on unlike routes.

In turns in one run, so that a noisy machine touches all alike; ratios are taken within a round. fp32, greedy, prompts at
full depth, answers that do not end.

- `full`, `half`: a decoding step of 1 and of 32 rows through all layers and through half of them, beside HF `generate` on
  the same prompts, and beside what the memory bandwidth of the same run allows for the weights that a step reads.
- `64 rows on five routes`: a step of all rows layer by layer, beside a bucket for each route, and beside the sum over
  routes of (its share of the rows) x (a step of 64 rows on it).
- `first token`: seconds from the prompt to the first token.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from common import arguments, in_turns, publish, ratio

import depthdial as dd
from depthdial.engine.batch import RowBatch
from depthdial.engine.depth import named_route
from depthdial.engine.prefill import clock_sec
from depthdial.engine.session import Session
from depthdial.measure.ceilings import measure_ceilings
from depthdial.measure.cost import model_cost
from depthdial.measure.passes import hf_secs, made_prompts, step_secs
from depthdial.routes import Route

Times = dict[str, list[float]]


def main() -> None:
    options = arguments(
        __doc__, "engine.json", model="smollm2-135m", dtype="float32", rounds=5, steps=24, prompt=64, rows="1,32", seed=0
    )
    model, tokenizer = dd.load(options.model, dtype=options.dtype)
    session = Session.of(model, tokenizer)
    rows = [int(n) for n in options.rows.split(",")]
    table: list[dict[str, Any]] = []
    half = dd.Route.parse("uls:50%", session.n_layers)
    for n_rows in rows:
        prompts = made_prompts(tokenizer, session.facts.vocabulary, n_rows, options.prompt, options.seed)
        times = in_turns(_steps(session, prompts, {"full": session.full, "half": half}, options.steps), options.rounds)
        for name, route in (("full", session.full), ("half", half), ("HF generate", session.full)):
            table.append(_row(name, n_rows, route, times[name], times, session))
        first = in_turns(_first_tokens(session, prompts), options.rounds)
        for name in first:
            table.append({"what": f"first token, {name}", "rows": n_rows, **_spread(first[name], first["HF generate"])})
    mixed = in_turns(_mixed(session, tokenizer, options), options.rounds)
    ideal = [sum(parts) / len(_NESTED) for parts in zip(*(mixed[f"64 x {name}"] for name in _NESTED), strict=True)]
    for name in ("layer-major", "by route"):
        table.append({"what": f"64 rows on five routes, {name}", "rows": 64, **_spread(mixed[name], mixed["layer-major"])})
    table.append({"what": "64 rows on five routes, sum of shares", "rows": 64, **_spread(ideal, mixed["layer-major"])})
    publish(
        f"Steps of {options.model}, {options.dtype}",
        [{**dict.fromkeys(_COLUMNS, ""), **row} for row in table],
        options,
        ceilings=asdict(measure_ceilings(session.device, model.dtype, session.facts.width, rows)),
        layer_major_of_shares=ratio(ideal, mixed["layer-major"]),
        by_route_over_layer_major=ratio(mixed["by route"], mixed["layer-major"]),
    )


_COLUMNS = ("what", "rows", "ms", "p20", "p80", "times HF", "GB/s", "of the bandwidth")
_NESTED = ("full", "27", "24", "20", "15")


def _steps(
    session: Session, prompts: Sequence[Sequence[int]], routes: Mapping[str, Route], steps: int
) -> dict[str, Callable[[], float]]:
    ready = session.prefill_ids(prompts)

    def ours(route: Route) -> Callable[[], float]:
        return lambda: statistics.median(step_secs(session, route, ready, steps)[3:])

    def theirs() -> float:
        return statistics.median(hf_secs(session, prompts, steps)[1][3:])

    def read() -> float:
        found = measure_ceilings(session.device, session.model.dtype, session.facts.width, [len(prompts)], rounds=2)
        return 1 / found.bandwidth_bytes_per_sec

    return {name: ours(route) for name, route in routes.items()} | {"HF generate": theirs, "byte": read}


def _first_tokens(session: Session, prompts: Sequence[Sequence[int]]) -> dict[str, Callable[[], float]]:
    def ours() -> float:
        started = clock_sec(session.device)
        session.prefill_ids(prompts).logits.argmax(-1)
        return clock_sec(session.device) - started

    return {"engine": ours, "HF generate": lambda: hf_secs(session, prompts, 1)[0]}


def _mixed(session: Session, tokenizer: Any, options: Any) -> dict[str, Callable[[], float]]:
    """Steps of 64 rows: on five nested routes together, in a bucket for each route, and of 64 rows on one route."""
    prompts = made_prompts(tokenizer, session.facts.vocabulary, 64, options.prompt, options.seed)
    ready = session.prefill_ids(prompts)
    deepest = sorted(_nested(session), key=len, reverse=True)
    mixed = [deepest[i * len(deepest) // 64] for i in range(64)]
    buckets = [[i for i in range(64) if mixed[i] == route] for route in deepest]

    def timed(groups: Sequence[Sequence[int]], routes: Sequence[Route]) -> Callable[[], float]:
        def call() -> float:
            batches = []
            for group in groups:
                batch = RowBatch(session.model, len(group))
                batch.join(ready.select(torch.tensor(group)), [routes[i] for i in group], group, options.steps)
                batches.append(batch)
            tokens = [torch.full((len(group),), 5) for group in groups]
            seconds = []
            for _ in range(options.steps // 2):
                started = clock_sec(session.device)
                for batch, one in zip(batches, tokens, strict=True):
                    batch.step(one).argmax(-1)
                seconds.append(clock_sec(session.device) - started)
            return statistics.median(seconds[2:])

        return call

    whole = [list(range(64))]
    found = {"layer-major": timed(whole, mixed), "by route": timed(buckets, mixed)}
    return found | {f"64 x {name}": timed(whole, [route] * 64) for name, route in zip(_NESTED, deepest, strict=True)}


def _nested(session: Session) -> list[Route]:
    """Five routes of 15 to 30 layers, each within the next: those that were searched for the model."""
    found = [named_route(f"searched:{n}", session.given, session.n_layers) for n in (15, 20, 24, 27)]
    return [session.full, *(route for route in found if route is not None)]


def _row(name: str, n_rows: int, route: Route, mine: list[float], times: Times, session: Session) -> dict[str, Any]:
    cost = model_cost(session.model)
    n_bytes = sum(cost.layers[i].weight_bytes for i in route.layers) + cost.head_bytes
    spread = _spread(mine, times["HF generate"])
    return {
        "what": name,
        "rows": n_rows,
        **spread,
        "GB/s": n_bytes / statistics.median(mine) / 1e9,
        "of the bandwidth": n_bytes * ratio(times["byte"], mine),
    }


def _spread(mine: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    low, *_, high = statistics.quantiles(mine, n=5)
    return {
        "ms": 1e3 * statistics.median(mine),
        "p20": 1e3 * low,
        "p80": 1e3 * high,
        "times HF": ratio(reference, mine),
    }


if __name__ == "__main__":
    main()
