"""What `dd.speculation_forecast` expects of drafts on fewer layers, beside what they give when they are used.

One bench and one sweep of agreement in this run say what to expect; then answers to the same prompts are decoded plainly and
with a fixed number of drafted tokens, in turns. Prompts are those built-in ones whose answers have `tokens` tokens, so that
rows of a batch end together, as the forecast has it. Drafts that do not pay are measured as well as any: nothing is switched
off here.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common import arguments, in_turns, long_answers, publish

import depthdial as dd
from depthdial.engine.depth import named_route
from depthdial.engine.session import Session


def main() -> None:
    options = arguments(
        __doc__,
        "forecast.json",
        model="smollm2-135m",
        rounds=3,
        tokens=64,
        prompts=8,
        rows="1,4",
        drafts="1,2,4",
        routes="searched:28,searched:24,searched:20",
    )
    model, tokenizer = dd.load(options.model)
    session = Session.of(model, tokenizer)
    rows, drafts = _numbers(options.rows), _numbers(options.drafts)
    names = options.routes.split(",")
    found = [named_route(name, session.given, session.n_layers) or dd.Route.parse(name, session.n_layers) for name in names]
    routes = {route.name: route for route in found}
    task = long_answers(model, tokenizer, options.tokens, options.prompts)
    plan = dd.BenchSettings(
        depths=("full", *names), rows=rows, context=(64, 128), prompts=(64,), drafts=drafts, steps=12, baseline=False
    )
    with tempfile.TemporaryDirectory() as folder:
        latency = dd.bench(model, tokenizer, settings=plan, out=Path(folder) / "bench", progress=True)
    scores = dd.sweep(
        model,
        tokenizer,
        task=task,
        routes=["full", *routes.values()],
        metrics=["agreement"],
        fidelity_tokens=options.tokens,
        progress=True,
    )
    forecast = dd.speculation_forecast(scores, latency, draft_tokens=drafts, batch_rows=rows)
    table = []
    for n in rows:
        cells = [one for one in forecast.settings if one.rows == n]
        depths = {"full": "full"} | {
            _name(one): dd.Lossless(routes[one.route], False, draft_tokens=one.draft_tokens) for one in cells
        }
        table += _measured(model, tokenizer, task, cells, depths, n, options)
    publish(f"Forecast and measured speed of drafts, {options.model}, {options.tokens} tokens", table, options)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _name(setting: Any) -> str:
    return f"{setting.route}, {setting.draft_tokens}"


def _measured(
    model: Any, tokenizer: Any, task: Any, cells: Sequence[Any], depths: dict[str, Any], rows: int, options: Any
) -> list[dict[str, Any]]:
    prompts = [one.instruction for one in task.examples]
    last: dict[str, list[Any]] = {}

    def decode_sec(name: str) -> float:
        last[name] = dd.generate(
            model, tokenizer, prompts, depth=depths[name], max_new_tokens=options.tokens, batch_size=rows
        )
        return sum(answer.decode_sec for answer in last[name][::rows])

    times = in_turns({name: partial(decode_sec, name) for name in depths}, options.rounds)
    plain = [answer.tokens for answer in last["full"]]
    table = []
    for one in cells:
        name = _name(one)
        ratios = [a / b for a, b in zip(times["full"], times[name], strict=True)]
        told = [answer.speculation for answer in last[name]]
        taken = sum(sum(of.accepted) for of in told)
        rounds = sum(of.rounds for of in told)
        table.append(
            {
                "route": one.route,
                "layers": one.layers,
                "rows": rows,
                "drafted": one.draft_tokens,
                "expected": one.speedup,
                "low": one.low,
                "high": one.high,
                "measured": statistics.median(ratios),
                "least": min(ratios),
                "most": max(ratios),
                "of the forecast": statistics.median(ratios) / one.speedup,
                "accepted a round": taken / max(rounds, 1),
                "expected a round": one.accepted_tokens,
                "equal": [answer.tokens for answer in last[name]] == plain,
                "n": len(prompts),
            }
        )
    return table


if __name__ == "__main__":
    main()
