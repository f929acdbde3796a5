"""The page of a search study: complete, self-contained, the same on the same input."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from depthdial.report.search.comparison import read_comparison
from depthdial.report.search.page import answer_sentences, write_search_report
from tests.report.search.folders import make_search_study

FIGURES = {"kl-by-method", "importance-by-method", "kept-layers"}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_search_report(make_search_study(tmp_path_factory.mktemp("search") / "study"))


def test_the_page_says_the_answer_and_holds_everything(page: Path) -> None:
    text = page.read_text()
    assert "10 of 12 layers: the least KL is 0.8" in text and "20% of ULS&#39;s" in text
    assert "Not nested, so that a layer may come back in a cheaper route: angular." in text
    assert text.count("data:image/svg+xml;base64,") == len(FIGURES)
    assert not re.search(r"https?://|url\(|@import|<script|<link", text)
    assert "0000000000000000" not in text  # hashes of prompts are for programs
    made = {path.name for path in (page.parent / "figures").iterdir()}
    assert made == {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")}
    assert {path.name for path in (page.parent / "tables").iterdir()} == {"search.md", "search.csv"}


def test_the_same_files_give_the_same_bytes(page: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(page.parent, copy, ignore=shutil.ignore_patterns("figures", "tables", "report.html"))
    write_search_report(copy)
    for name in ("report.html", "figures/kl-by-method.svg", "tables/search.csv"):
        assert (copy / name).read_bytes() == (page.parent / name).read_bytes()


def test_a_sentence_for_each_size(page: Path) -> None:
    told = answer_sentences(read_comparison(page.parent))
    assert [sentence.split(":")[0] for sentence in told] == ["10 of 12 layers", "8 of 12 layers"]
