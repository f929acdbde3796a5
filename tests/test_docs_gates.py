"""The tables of docs/token_routing.md are those of the committed rows of the gates study."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from depthdial.report.gates.summary import gather_gates
from depthdial.report.gates.tables import controllers_table, differences_table
from depthdial.report.kit.table_files import markdown_table
from depthdial.report.kit.tables import Cells

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "token_routing.md").read_text(encoding="utf-8")
CONTROLLERS = ("controller", "target", "mode", "layers", "flops_percent", "rouge_l_points", "nll", "agreement")
DIFFERENCES = (
    *("target", "mode", "cost_a", "cost_b", "difference", "over_sequences", "effect_size", "p_above", "p_below"),
    *("verdict", "verdict_sequences"),
)


def part(table: Sequence[Cells], names: Sequence[str]) -> str:
    return markdown_table([{name: value for name, value in row.items() if name in names} for row in table])


def test_the_tables_of_the_gates_study_are_those_of_its_rows() -> None:
    cells = gather_gates(pq.read_table(ROOT / "experiments" / "gates" / "rows.parquet"))
    assert part(controllers_table(cells), CONTROLLERS) in DOCUMENT
    assert part(differences_table(cells), DIFFERENCES) in DOCUMENT


def test_the_speeds_of_token_routing_are_those_of_the_benchmark() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "tokens.json").read_text())
    for row in result["rows"]:
        if row["sequences"] in (1, 16, 32) and row["variant"] != "full" and row["pass"] != "matrices of a step":
            told = f"{row['over full']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
            lines = [line for line in DOCUMENT.splitlines() if line.startswith(f"| {row['pass']} | {row['sequences']} |")]
            assert any(told in line for line in lines), (row, told)


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "gpt_neox", "qwen3", "gemma2"])
def test_the_largest_error_in_the_text_covers_every_architecture(name: str) -> None:
    table = (ROOT / "experiments" / "token_routing" / "errors.md").read_text()
    lines = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
    assert lines
    assert "1.7e-6" in DOCUMENT
    for line in lines:
        assert all(float(cell) <= 1.75e-6 for cell in line.split("|")[3:6])
