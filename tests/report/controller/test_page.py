"""A controller's page and tables from its scores alone, and its place in a study's page."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from depthdial.errors import InputError
from depthdial.report.controller.page import write_controller_report
from depthdial.report.controller.scores import ControllerScores, keep_scores
from depthdial.report.controller.tables import certificate_table, controller_table, headline
from depthdial.report.kit.table_files import csv_table, markdown_table
from depthdial.report.study.folder import read_folder
from depthdial.report.study.sections import build_sections
from tests.report.controller.demo import demo_score, demo_scores, equal_score


def test_the_page_its_figures_and_tables_are_written(tmp_path: Path) -> None:
    keep_scores(tmp_path, replace(demo_scores(), scores={"agreement": demo_score()}))
    text = write_controller_report(tmp_path).read_text()
    assert "<title>Depthdial controller: fabricated-12 on fabricated</title>" in text
    assert headline(demo_score())[0].replace("'", "&#39;") in text
    names = {"controller-agreement", "controller-shares", "controller-calibration"}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{n}.{end}" for n in names for end in ("png", "svg")
    }
    tables = tmp_path / "tables"
    assert (tables / "controller-agreement.md").read_text() == markdown_table(controller_table(demo_score()))
    assert (tables / "controller-agreement-mean.csv").read_text() == csv_table(controller_table(demo_score(), -1))
    assert (tables / "certificates.md").read_text() == markdown_table(certificate_table(demo_scores().certificates))


def test_the_same_scores_give_the_same_page(tmp_path: Path) -> None:
    keep_scores(tmp_path, ControllerScores({"agreement": equal_score()}))
    page = write_controller_report(tmp_path)
    first = page.read_bytes()
    assert b"<title>Depthdial controller: a model</title>" in first
    assert write_controller_report(tmp_path).read_bytes() == first


def test_a_folder_without_scores_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no controller_scores.json: run `depthdial controller evaluate` first"):
        write_controller_report(tmp_path)


def test_a_folder_of_results_with_a_controller_has_its_section_after_the_oracles(study: Any, tmp_path: Path) -> None:
    shutil.copy(study.folder / "sweep" / "rows.parquet", tmp_path)
    keep_scores(tmp_path, demo_scores())
    sections = build_sections(read_folder(tmp_path))
    anchors = [section.anchor for section in sections]
    assert "oracle" not in anchors and anchors[anchors.index("time") + 1] == "controller"
    assert list(sections[anchors.index("controller")].paragraphs) == headline(demo_score())
