"""How tables and their cells are written."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from depthdial.report.kit.tables import Column, any_size, cell_text, finished, provenance_table, settings_table
from depthdial.stats.intervals import Interval


def test_provenance_shows_every_value_that_the_rows_have(study: Any) -> None:
    mixed = pa.array(["one", "two"] * (len(study.sweep) // 2))
    rows = study.sweep.set_column(study.sweep.column_names.index("commit"), "commit", mixed)
    table = dict(provenance_table(rows))
    assert table["commit"] == "one; two"
    assert table["weights hash"] == "0" * 64


def test_settings_are_flattened() -> None:
    table = settings_table({"a": {"b": 1, "c": None}, "d": [1, 2], "e": list(range(50)), "f": 0.123456, "g": []})
    assert table == [("a.b", "1"), ("a.c", "none"), ("d", "1, 2"), ("e", "50 entries"), ("f", "0.1235"), ("g", "none")]


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("kl", None, "–"),
        ("kl", float("nan"), "–"),
        ("layers", 12, "12"),
        (Column("layers", decimals=2), 7.5, "7.50"),
        (Column("cost_percent", decimals=1), 33.3333, "33.3"),
        (Column("speed", write=lambda value: f"{value:.2f}×"), 1.234, "1.23×"),
        ("rouge_l", Interval(0.5, 0.4, 0.6, 9), "0.500 [0.400, 0.600]"),
        ("rouge_l", Interval(0.5, float("nan"), float("nan"), 1), "0.500"),
        ("route", "uls:6", "uls:6"),
    ],
)
def test_cells_are_written_with_the_decimals_of_their_column(column: str, value: Any, text: str) -> None:
    assert cell_text(column, value) == text


def test_budgets_of_any_unit_are_legible() -> None:
    assert cell_text(Column("budget", write=any_size), 22.5) == "22.50"
    assert (
        cell_text(Column("budget", write=any_size), Interval(7_205_936_616.0, 6_486_360_794.0, 7_845_285_303.0, 9))
        == "7.206e+09 [6.486e+09, 7.845e+09]"
    )
    assert cell_text(Column("budget", write=any_size), 0.14159) == "0.1416"


def test_a_column_is_its_key_and_knows_its_label() -> None:
    rows = [{"route": "full", "cost_percent": 33.33, "own": 0.5, "none": None}]
    (row,) = finished(rows, (Column("own", "of its own", 1),), keep=("route",))
    assert row == {"route": "full", "cost_percent": 33.33, "own": 0.5}
    assert [Column(name).label for name in row] == ["route", "cost, %", "of its own"]
    assert [cell_text(name, value) for name, value in row.items()] == ["full", "33.3", "0.5"]
    assert list(finished(rows, ())[0]) == ["route", "cost_percent", "own", "none"] and finished([], ()) == []
