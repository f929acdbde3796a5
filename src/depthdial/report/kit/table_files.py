"""A report's tables as files: Markdown as it is printed, CSV with all digits."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from depthdial.files import write_text
from depthdial.report.kit.tables import Cells, Column, cell_text
from depthdial.stats.intervals import Interval


def markdown_table(table: Sequence[Cells]) -> str:
    """The table with the report's column names and decimals; empty for no row."""
    if not table:
        return ""
    names = list(table[0])
    is_text = [all(isinstance(row[name], str | None) for row in table) for name in names]
    lines = [
        [_escaped(Column(name).label) for name in names],
        ["---" if text else "---:" for text in is_text],
        *([_escaped(cell_text(name, row[name])) for name in names] for row in table),
    ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def csv_table(table: Sequence[Cells]) -> str:
    """The table under its keys, numbers unrounded, an `Interval` as three columns (NAME, NAME_low, NAME_high)."""
    if not table:
        return ""
    spread = [name for name in table[0] if any(isinstance(row[name], Interval) for row in table)]
    header = [part for name in table[0] for part in ((name, f"{name}_low", f"{name}_high") if name in spread else (name,))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in table:
        cells: list[Any] = []
        for name, value in row.items():
            parts = (value.mean, value.low, value.high) if isinstance(value, Interval) else (value, None, None)
            cells += parts if name in spread else parts[:1]
        writer.writerow(["" if cell is None or (isinstance(cell, float) and math.isnan(cell)) else cell for cell in cells])
    return text.getvalue()


def write_table(table: Sequence[Cells], folder: Path, name: str) -> tuple[Path, Path]:
    """Write NAME.md and NAME.csv."""
    return write_text(folder / f"{name}.md", markdown_table(table)), write_text(folder / f"{name}.csv", csv_table(table))


def _escaped(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
