"""The numbers in docs/search.md are those of the committed comparison, and hold what its text says."""

from __future__ import annotations

from pathlib import Path

import pytest

from depthdial.report.kit.tables import cell_text
from depthdial.report.search.comparison import Comparison, read_comparison

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "experiments" / "search"
COLUMNS = ("kl", "kl_share", "agreement", "nll", "kl_more")


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return read_comparison(FOLDER)


def test_the_table_is_that_of_the_rows(comparison: Comparison) -> None:
    document = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    rows = comparison.rows()
    assert len(rows) == 8 * 3
    for row in rows:
        told = {name: cell_text(name, value) for name, value in row.items()}
        cells = [told[name] for name in ("method", "layers", *COLUMNS)]
        assert f"| {' | '.join(cells)} |" in document


def test_greedy_has_half_of_uls_and_less_than_one_pass_methods_at_every_size(comparison: Comparison) -> None:
    for size in comparison.sizes:
        kl = {name: one.mean("kl") for name, one in comparison.at[size].items()}
        assert kl["greedy-kl"] <= kl["uls"] / 2
        assert kl["greedy-kl"] < min(kl["block-influence"], kl["angular"])


def test_the_committed_table_and_rows_are_one_and_hold_no_text(comparison: Comparison) -> None:
    assert not {"answer", "reference", "prompt"} & set(comparison.table.column_names) - {"answer"}
    assert comparison.table.column("answer").null_count == comparison.table.num_rows
    told = (FOLDER / "tables" / "search.md").read_text(encoding="utf-8")
    assert all(cell_text("kl", row["kl"]) in told for row in comparison.rows())
