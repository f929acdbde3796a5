"""Numbers in the README and in docs/ are those of the committed rows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from depthdial.choose.oracle import OracleCurve
from depthdial.report.tables import cell_parts, cell_text, headline, similarity_table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_the_headline_is_that_of_the_demos_rows() -> None:
    rows = headline(pq.read_table(ROOT / "experiments" / "demo" / "sweep" / "rows.parquet"))
    for row in rows:
        name = "full" if row["route"] == "full" else f"`{row['route']}`"
        line = next(line for line in README.splitlines() if line.startswith("|") and f"{name} |" in line and "x |" in line)
        expected = [str(row["layers"]), cell_text("rouge_l", row["rouge_l"])]
        expected += [cell_parts(column, row[column])[0] for column in ("agreement", "kl")]
        assert cells_of(line)[1:] == [*expected, f"{row['speed']:.2f}x"]


def test_the_star_is_that_of_the_demos_rows() -> None:
    document = json.loads((ROOT / "experiments" / "demo" / "oracle.json").read_text())
    curve = OracleCurve.from_dict(document["rouge_l"])
    assert curve.matches_full_at is not None and curve.matches_full_interval is not None
    low, high = curve.matches_full_interval
    assert (
        f"| oracle, as good as full | {curve.matches_full_at:.1f} [{low:.1f}, {high:.1f}] | {curve.full_value:.3f} |"
        in README
    )
    assert f"The oracle needs {curve.matches_full_at / 30:.0%} of the layers" in README
    assert curve.permuted_matches_full_at is not None and curve.permuted_matches_full_at < curve.matches_full_at


@pytest.mark.parametrize("name", ["alpaca", "cnn_dailymail"])
def test_the_similarity_tables_are_those_of_the_rows(name: str) -> None:
    document = (ROOT / "docs" / "similarity.md").read_text(encoding="utf-8")
    table = similarity_table(pq.read_table(ROOT / "experiments" / "similarity" / name / "rows.parquet"))
    assert len(table) == 12
    for row in table:
        cells = [cell_text(column, value) for column, value in row.items() if column != "cost_percent"]
        assert f"| {' | '.join(cells)} |" in document


def test_the_speeds_are_those_of_the_benchmarks() -> None:
    results = {name: json.loads((ROOT / "benchmarks/results" / f"{name}.json").read_text()) for name in ("decode", "oracle")}
    decode, whole = results["decode"], results["oracle"]["comparisons"][-1]
    words = re.sub(r"\s+", " ", README)
    fit = decode["affine"]
    assert f"{fit['ms_fixed']:.1f} ms + {fit['ms_per_layer']:.2f} ms per layer" in words
    assert f"15 of 30 layers take {decode['half_over_full']:.2f} of the full model's time" in words
    assert f"a view takes {decode['view_over_pruned']:.2f} of the time" in words
    assert f"{whole['curve_sec']:.2f} s, {whole['ratio']:.0f} times less than a plain dynamic programme" in words


def test_no_committed_row_of_a_data_set_holds_text() -> None:
    for path in (ROOT / "experiments" / "similarity").rglob("rows.parquet"):
        assert not {"answer", "reference", "prompt"} & set(pq.read_schema(path).names)


def test_every_link_leads_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
