"""Tables as a report writes them: lists of dictionaries with equal keys, which are columns, and how their cells are written.

A cell is a text, a number, None, or an `Interval` (which prints as `mean [low, high]`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from depthdial.rows.store import PROVENANCE_COLUMNS
from depthdial.stats.intervals import Interval

Cells = dict[str, Any]


class Column(str):
    """The key of a table's cells, which knows its label and how its numbers are written; elsewhere the key as any text."""

    label: str
    write: Callable[[float], str]

    def __new__(cls, key: str, label: str = "", decimals: int = 3, write: Callable[[float], str] | None = None) -> Column:
        column = super().__new__(cls, key)
        column.label = label or getattr(key, "label", key)
        column.write = write or getattr(key, "write", lambda value: f"{value:z.{decimals}f}")
        return column


def any_size(value: float) -> str:
    """Two decimals, or four digits of FLOPs and seconds, of which two decimals are far too many or too few."""
    return f"{value:.4g}" if value and not 1 <= abs(value) < 10_000 else f"{value:z.2f}"


# Columns that several pages have; a label that is its key needs no entry.
SHARED = (
    Column("layers", "layers run", 2),
    Column("cost_percent", "cost, %", 1),
    Column("rouge_l", "ROUGE-L"),
    Column("kl", "KL, nats"),
    Column("nll", "NLL, nats"),
)


def finished(table: Sequence[Cells], columns: Sequence[Column], keep: Sequence[str] | None = None) -> list[Cells]:
    """A table under its columns, without those in which no row has anything, but for those to `keep` (None: all)."""
    known = {str(column): column for column in (*SHARED, *columns)}
    names = list(table[0] if table else ())
    names = [n for n in names if keep is None or n in keep or any(row[n] is not None for row in table)]
    return [{known.get(name, Column(name)): row[name] for name in names} for row in table]


def cell_text(column: str, value: Any) -> str:
    """A cell as it is printed: fixed decimals by column, intervals in brackets, a dash for what is not there."""
    return " ".join(part for part in cell_parts(column, value) if part)


def cell_parts(column: str, value: Any) -> tuple[str, str]:
    """The same in two parts: the value and its interval, which is empty for what has none."""
    write = Column(column).write
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–", ""
    if isinstance(value, str | bool | int):
        return str(value), ""
    if isinstance(value, Interval):
        return write(value.mean), "" if math.isnan(value.low) else f"[{write(value.low)}, {write(value.high)}]"
    return write(value), ""


def distinct(rows: pa.Table, column: str) -> list[str]:
    """The values of a column in order of appearance, without empty ones; none where there is no such column."""
    values = rows[column].unique().to_pylist() if column in rows.column_names else []
    return [str(value) for value in values if value not in (None, "")]


def provenance_table(rows: pa.Table) -> list[tuple[str, str]]:
    """Where the rows come from: (name, value) for each provenance column, with every value that it takes."""
    names = [name for name in PROVENANCE_COLUMNS if name in rows.column_names]
    return [(name.replace("_", " "), "; ".join(sorted(distinct(rows, name))) or "not recorded") for name in names]


def settings_table(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A flat view of nested settings: (name, value), nested names joined by a dot; long lists by their length."""
    table: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            table += [(f"{name}.{inner}", text) for inner, text in settings_table(value)]
        elif isinstance(value, list | tuple):
            table.append((name, f"{len(value)} entries" if len(value) > 40 else ", ".join(map(_plain, value)) or "none"))
        else:
            table.append((name, _plain(value)))
    return table


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
