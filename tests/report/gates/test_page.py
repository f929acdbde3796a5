"""The page of a gates study: self-contained, complete, the same on the same input."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from depthdial.errors import InputError
from depthdial.report.gates.page import write_gates_report
from depthdial.report.gates.summary import gather_gates
from depthdial.report.gates.tables import answer_sentences
from tests.report.gates.studies import gate_map, gate_rows, make_gate_study

SMALL: dict[str, Any] = {"n_sequences": 6, "seeds": (0, 1, 2), "targets": (0.4, 0.5)}
FIGURES = {
    *("cost-performance", "inputs", "differences-rouge_l", "differences-nll", "differences-agreement"),
    *("map-1-hidden-argmax", "map-2-hidden-sampled"),
}
TABLES = {"controllers", "controls", "differences-rouge_l", "differences-nll", "differences-agreement"}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gates_report(make_gate_study(tmp_path_factory.mktemp("gates"), ["hidden"], **SMALL))


def test_figures_and_tables_lie_beside_the_page(page: Path) -> None:
    made = {path.name for path in (page.parent / "figures").iterdir()}
    assert made == {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")}
    made = {path.name for path in (page.parent / "tables").iterdir()}
    assert made == {f"{name}.{kind}" for name in TABLES for kind in ("md", "csv")}


def test_the_page_needs_no_network(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"https?://|url\(|@import|<script|<link", text)
    assert "default-src 'none'" in text
    assert text.count("data:image/svg+xml;base64,") == len(FIGURES)
    assert all(len(alt) > 40 for alt in re.findall(r'alt="([^"]*)"', text))


def test_the_page_says_the_answer_first(page: Path) -> None:
    text = page.read_text()
    for sentence in answer_sentences(gather_gates(gate_rows(**SMALL))):
        assert sentence in text
    assert text.index("Sampled (mean of 2 targets") < text.index("<figure>")
    assert "absence of evidence is not evidence of absence" in re.sub(r"\s+", " ", text)
    assert "<title>Depthdial gates: fabricated on fabricated</title>" in text
    assert "token_budget" in text and "percentile, 200 draws" in text


@pytest.mark.slow  # a study's page has it in the fast lane
def test_another_process_without_torch_writes_the_same_bytes(page: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(page.parent, copy, ignore=shutil.ignore_patterns("figures", "tables", "report.html"))
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'matplotlib.pyplot')))\n"
        "import depthdial.stats.equivalence as equivalence; equivalence.N_DRAWS = 200\n"  # as in this process
        f"import depthdial.report.gates.page as page; page.write_gates_report({str(copy)!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert (copy / "report.html").read_bytes() == page.read_bytes()
    for path in (page.parent / "tables").iterdir():
        assert (copy / "tables" / path.name).read_bytes() == path.read_bytes()


def test_a_study_of_one_controller_without_maps_or_settings_has_a_page(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = gate_rows(n_sequences=2, seeds=(0,), targets=(0.5,), references=False)
    kept = rows.filter(pa.array([name == "bernoulli" for name in rows["controller"].to_pylist()]))
    pq.write_table(kept, tmp_path / "rows.parquet")
    text = write_gates_report(tmp_path).read_text()
    assert "hold no target at which both hidden and fixed were measured" in text
    assert "No gate maps are in this folder" in text and "hold no other controller" in text
    assert not re.search(r"\bnan\b", re.sub(r'src="[^"]*"', "", text).lower())


def test_text_of_an_answer_is_only_text(tmp_path: Path) -> None:
    folder = make_gate_study(tmp_path, [], n_sequences=2, seeds=(0,), targets=(0.5,))
    evil = "<script>alert('x')</script>"
    found = gate_map(tokens=[evil[:10], evil[10:], "&"], n_prompt=0)
    replace(found, sequence_id=evil).save(folder / "maps" / "evil.json")
    text = write_gates_report(folder).read_text()
    assert "<script" not in text and "&lt;script&gt;" in text


def test_a_folder_without_rows_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no result rows"):
        write_gates_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
