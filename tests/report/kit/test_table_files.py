"""Tables as files."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from depthdial.report.gates.tables import COLUMNS
from depthdial.report.kit.table_files import csv_table, markdown_table, write_table
from depthdial.report.kit.tables import finished
from depthdial.stats.intervals import Interval

TABLE = finished(
    [
        {
            "controller": "a|b",
            "seeds": 5,
            "difference": Interval(0.123456, -0.1, 0.3, 5),
            "p_above": 0.0001,
            "effect_size": None,
        },
        {"controller": "c", "seeds": None, "difference": None, "p_above": math.nan, "effect_size": 0.5},
    ],
    COLUMNS,
)


def test_markdown_is_what_a_reader_sees() -> None:
    assert markdown_table(TABLE) == (
        "| controller | seeds | difference, over seeds | p, above −margin | d_z over seeds |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| a\\|b | 5 | 0.123 [-0.100, 0.300] | < 0.001 | – |\n"
        "| c | – | – | – | 0.50 |\n"
    )


def test_csv_keeps_all_digits_and_spreads_intervals() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_table(TABLE))))
    assert rows[0] == {
        "controller": "a|b",
        "seeds": "5",
        "difference": "0.123456",
        "difference_low": "-0.1",
        "difference_high": "0.3",
        "p_above": "0.0001",
        "effect_size": "",
    }
    assert (rows[1]["difference"], rows[1]["difference_low"], rows[1]["p_above"], rows[1]["effect_size"]) == (
        "",
        "",
        "",
        "0.5",
    )


def test_an_empty_table_is_an_empty_file(tmp_path: Path) -> None:
    markdown, table = write_table([], tmp_path, "none")
    assert markdown.read_text() == table.read_text() == ""
    assert (markdown.name, table.name) == ("none.md", "none.csv")
