"""One way to tell what page a folder has."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from depthdial.report.pages import PAGES, kind_of, write_report


@pytest.mark.parametrize("kind", PAGES)
def test_every_kind_has_a_writer_and_is_named_by_its_folder(kind: str, tmp_path: Path) -> None:
    assert callable(getattr(import_module(PAGES[kind]), f"write_{kind}_report"))
    (tmp_path / "study.json").write_text(f'{{"kind": "{kind}"}}')
    assert kind_of(tmp_path) == kind


def test_folders_of_before_say_what_they_are_by_their_files(study: Any, tmp_path: Path) -> None:
    assert kind_of(study.folder) == kind_of(tmp_path) == "study"
    (tmp_path / "controller_scores.json").write_text("{}")
    assert kind_of(tmp_path) == "controller"
    (tmp_path / "study.json").write_text('{"kind": "unheard of"}')
    assert kind_of(tmp_path) == "study"


def test_the_one_function_writes_the_page_of_its_kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text('{"kind": "gates"}')
    monkeypatch.setattr("depthdial.report.gates.page.write_gates_report", lambda folder: folder / "gates.html")
    assert write_report(tmp_path) == tmp_path / "gates.html"
