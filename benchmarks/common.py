"""What the benchmark scripts share: a table on the screen, a JSON file with where the numbers come from."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

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


def seconds(call: Any) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
