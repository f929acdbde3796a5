"""The page: self-contained, complete, escaped, the same on the same input."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest

from depthdial.errors import InputError
from depthdial.report.kit.tables import cell_text
from depthdial.report.pages import write_report
from depthdial.report.study.tables import headline, oracle_table, similarity_table
from depthdial.report.study.verdict import decide
from depthdial.rows.store import UnitStore

FIGURES = {
    "oracle-rouge_l",
    "oracle-agreement",
    "routes",
    "similarity",
    "fidelity",
    "quality-time",
    "time-layers",
    "importance",
    "search",
}


class _Reader(HTMLParser):
    """Tables as lists of rows of cells, images, ids and open tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.images: list[dict[str, str | None]] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.classes: list[str] = []
        self.text = ""
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.classes += [value] if (value := found.get("class")) else []
        self.ids += [found["id"]] if found.get("id") else []
        self.references += [value for name in ("href", "src", "action") if (value := found.get(name))]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in_cell = True
        if tag == "img":
            self.images.append(found)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_cell:
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def read(page: Path) -> _Reader:
    return _Reader(page.read_text())


def test_all_figures_are_written_as_valid_png_and_svg(study: Any, page: Path) -> None:
    folder = study.folder / "figures"
    assert {path.name for path in folder.iterdir()} == {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")}
    for name in FIGURES:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        root = ElementTree.parse(folder / f"{name}.svg").getroot()
        assert root.tag.endswith("}svg")
        assert any(element.tag.endswith("}text") for element in root.iter())


def test_the_figures_on_the_page_are_those_files(study: Any, read: _Reader) -> None:
    shown = {base64.b64decode((image["src"] or "").partition("base64,")[2]) for image in read.images}
    assert shown == {(study.folder / "figures" / f"{name}.svg").read_bytes() for name in FIGURES}


def test_the_page_needs_no_network(page: Path, read: _Reader) -> None:
    assert all(reference.startswith(("#", "data:image/svg+xml;base64,")) for reference in read.references)
    assert not {"script", "link", "iframe", "object", "embed"} & set(read.tags)
    assert not re.search(r"https?://|url\(|@import", page.read_text())
    assert "default-src 'none'" in page.read_text()  # and a browser is told so


def test_the_headline_table_stands_on_the_page(study: Any, read: _Reader) -> None:
    expected = headline(study.sweep, study.curves)
    shown = read.tables[0][1:]
    assert [row[0] for row in shown] == [row["route"] for row in expected]
    assert shown == [[cell_text(name, value) for name, value in row.items()] for row in expected]


def test_the_similarity_table_stands_on_the_page(study: Any, read: _Reader) -> None:
    expected = similarity_table(study.similarity, (0.75, 0.5, 0.25))
    cells = [[cell_text(name, value) for name, value in row.items()] for row in expected]
    assert cells in [table[1:] for table in read.tables]


def test_the_page_can_be_read_without_seeing_it(read: _Reader, page: Path) -> None:
    text = page.read_text()
    assert all(len(image["alt"] or "") > 40 for image in read.images)
    assert text.count('scope="col"') and text.count("<caption>") == len(read.tables)
    assert text.count('<th scope="row">') == sum(len(table) - 1 for table in read.tables)
    assert len(set(read.ids)) == len(read.ids)
    assert {f"#{name}" for name in read.ids if not name.endswith("-title")} == {r for r in read.references if r[0] == "#"}
    assert '<html lang="en">' in text and 'name="viewport"' in text


def test_provenance_and_settings_are_told(read: _Reader) -> None:
    pairs = {row[0]: row[1] for table in read.tables if table[0] == ["setting", "value"] for row in table[1:]}
    assert pairs["weights hash"] == "0" * 64
    assert pairs["hardware"] == "a processor, 2 cores"
    assert pairs["sweep rows"] == "200 (20 sequences, 10 routes)"
    assert pairs["max_new_tokens"] == "21" and pairs["calibration.n_tokens"] == "128"
    assert "200 resamples" in pairs["intervals of the oracle"]


def test_sample_answers_are_those_of_the_first_sequences(read: _Reader) -> None:
    assert "answer 0 with 12 layers" in read.text and "answer 5 with 11 layers" in read.text
    assert "answer 6 with 12 layers" not in read.text
    assert "prompt\n5" in read.text and "the reference of 5" in read.text and read.classes.count("prompt") == 6


def test_the_first_screen_answers(study: Any, page: Path, read: _Reader) -> None:
    verdict = decide(study.sweep, prompt_depth="full")
    text = page.read_text()
    lead = _Reader(text[: text.index("<main>")]).text
    assert verdict.sentence in lead and all(choice.command in lead for choice in verdict.choices)
    assert read.classes.count("card") + read.classes.count("card chosen") == len(verdict.choices) > 1
    opened = re.findall(r'<h2 id="([a-z]+)-title">', re.sub(r"<details>.*?</details>", "", text, flags=re.S))
    assert opened == ["answer", "answers", "sure"]
    assert re.findall(r'<details><summary><h2 id="([a-z]+)-title">', text)[-1] == "provenance"


def test_another_share_to_keep_has_another_verdict(study: Any, tmp_path: Path) -> None:
    shutil.copy(study.folder / "sweep" / "rows.parquet", tmp_path / "rows.parquet")
    assert decide(study.sweep, 0.5).sentence in _Reader(write_report(tmp_path, keep=0.5).read_text()).text
    with pytest.raises(InputError, match=r"Invalid keep 1\.5: use a number above 0 and at most 1"):
        write_report(tmp_path, keep=1.5)


@pytest.mark.slow
def test_another_process_without_torch_writes_the_same_bytes(study: Any, page: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(study.folder, copy, ignore=shutil.ignore_patterns("figures", "report.html"))
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'matplotlib.pyplot')))\n"
        "import depthdial.report.pages as page, depthdial.report.study.tables, depthdial.report.study.routes_plot\n"
        "assert not {'matplotlib', 'jinja2'} & set(sys.modules)\n"
        f"page.write_report({str(copy)!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert (copy / "report.html").read_bytes() == page.read_bytes()
    for name in FIGURES:
        for kind in ("png", "svg"):
            file = Path("figures") / f"{name}.{kind}"
            assert (copy / file).read_bytes() == (study.folder / file).read_bytes()


def test_a_malicious_name_is_only_text(study_maker: Any, tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"
    made = study_maker(tmp_path / "study", task=evil, n_sequences=3)
    for name in ("similarity", "routes.json", "oracle.json"):
        place = made.folder / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    rows = made.sweep.to_pylist()
    for row in rows:
        row["answer"], row["route"] = evil, row["route"].replace("greedy-kl:8", "<b>&$x$:8")
    _rewrite(made.folder / "sweep" / "rows.parquet", rows, made.sweep.schema)
    text = write_report(made.folder).read_text()
    read = _Reader(text)
    assert "<script" not in text and "<img src=x" not in text
    assert evil in read.text and "<b>&$x$:8" in read.text
    assert len(read.images) == 3


def _rewrite(path: Path, rows: list[dict[str, Any]], schema: Any) -> None:
    import pyarrow as pa

    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


@pytest.mark.parametrize("kind", ["sweep", "similarity"])
def test_what_is_missing_is_left_out_with_a_sentence(study: Any, tmp_path: Path, kind: str) -> None:
    shutil.copy(study.folder / kind / "rows.parquet", tmp_path / "rows.parquet")
    read = _Reader(write_report(tmp_path).read_text())
    assert "No oracle: depthdial oracle makes one" in read.text
    assert "No controller: depthdial study --controller-limit fits and judges one" in read.text
    assert "No route search" in read.text and not {"oracle", "importance", "controller"} & set(read.ids)
    if kind == "sweep":
        assert "No similarity run" in read.text
        assert len(read.images) == 3
    else:
        assert "No sweep" in read.text and "No measured decoding time" in read.text
        assert "verdict" not in read.classes
        assert len(read.images) == 3


def test_a_study_of_one_sequence_without_references_or_text_has_a_report(study_maker: Any, tmp_path: Path) -> None:
    made = study_maker(tmp_path / "study", n_sequences=1, references=False, text=False)
    shutil.rmtree(made.folder / "similarity")
    (made.folder / "routes.json").unlink()
    read = _Reader(write_report(made.folder).read_text())
    assert "No sequence has a ROUGE score, so the headline is greedy agreement" in read.text
    assert "No text of answers: --keep-text" in read.text and "answers" not in read.ids
    assert not re.search(r"\bnan\b", read.text.lower())
    assert len(read.images) == 4


def test_sampled_answers_have_a_section_of_their_own(sampled: Any) -> None:
    read = _Reader(write_report(sampled.folder).read_text())
    assert "Sequences: 20, 4 sampled answers to each." in read.text
    assert "F-measure of the sampled answers (their mean)" in read.text and "the first of 4 samples" in read.text
    expected = [[cell_text(name, value) for name, value in row.items()] for row in oracle_table(sampled.curve)]
    assert expected in [table[1:] for table in read.tables]
    assert any(row[0].startswith("★ predictable oracle") for row in read.tables[0])
    assert (sampled.folder / "figures" / "predictable-rouge_l.png").exists()
    assert "No predictable oracle" not in read.text


def test_no_rows_is_an_input_error_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no result rows"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_rows_as_the_sweep_stores_them_are_understood(study: Any, tmp_path: Path) -> None:
    """The schema is the store's own, so that fabricated rows cannot drift from real ones."""
    from depthdial.rows.store import SIMILARITY_COLUMNS, SWEEP_COLUMNS, RunSettings

    for rows, columns in ((study.sweep, SWEEP_COLUMNS), (study.similarity, SIMILARITY_COLUMNS)):
        assert rows.schema.equals(UnitStore(RunSettings({}), columns).schema)
