"""What the benchmark scripts share: a table on the screen, a JSON file with where the numbers come from."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import depthdial as dd
from depthdial.data.tasks import Task
from depthdial.files import write_json
from depthdial.provenance import environment

RESULTS = Path(__file__).parent / "results"


def arguments(description: str | None, out: str, **defaults: Any) -> argparse.Namespace:
    """Options with these defaults, and `--out`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--out", type=Path, default=RESULTS / out)
    return parser.parse_args()


def publish(title: str, rows: Sequence[Mapping[str, Any]], options: argparse.Namespace, **extra: Any) -> None:
    """Print `rows` as a table and write them, with settings and environment, to `--out`."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(rows[0]):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    settings = {key: value for key, value in vars(options).items() if key != "out"}
    when = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(
        options.out, {"title": title, "when": when, "settings": settings, **environment(), **extra, "rows": list(rows)}
    )
    print(f"written: {options.out}")


def in_turns(variants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each variant says it took, once a round, behind a round that warms up and is not counted.

    The order alternates, so that a drift of the machine's speed favours neither end.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name in list(variants) if turn % 2 else reversed(variants):
            took = variants[name]()
            if turn:
                times[name].append(took)
    return times


def ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """The median of the ratios within rounds."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def long_answers(model: Any, tokenizer: Any, tokens: int, most: int) -> Task:
    """The first built-in prompts whose greedy answers at full depth have so many tokens or more."""
    task = dd.task("builtin")
    prompts = [one.instruction for one in task.examples]
    answers = dd.generate(model, tokenizer, prompts, max_new_tokens=tokens, batch_size=8)
    kept = [one for one, answer in zip(task.examples, answers, strict=True) if answer.new_tokens == tokens]
    return replace(task, examples=tuple(kept[:most]))


def seconds(call: Any) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
