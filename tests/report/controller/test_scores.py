"""The file of an evaluated controller: whole, in part, damaged, absent; alone and in a study's folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from depthdial.errors import InputError
from depthdial.report.controller.scores import SCORES_FILE, ControllerScores, keep_scores, read_scores
from depthdial.report.study.folder import read_folder
from tests.report.controller.demo import demo_scores


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    path = keep_scores(tmp_path, demo_scores())
    assert path == tmp_path / SCORES_FILE
    found = read_scores(tmp_path)
    assert found is not None
    assert json.dumps(found.to_dict()) == json.dumps(demo_scores().to_dict())
    assert [certificate.certified is not None for certificate in found.certificates] == [True, False]


def test_scores_alone_are_enough_and_nothing_is_nothing(tmp_path: Path) -> None:
    found = ControllerScores.from_dict({"scores": demo_scores().to_dict()["scores"]})
    assert list(found.scores) == ["agreement", "rouge_l by ms"]
    assert (found.certificates, found.overhead, found.controller) == ((), {}, {})
    assert read_scores(tmp_path) is None


@pytest.mark.parametrize(
    "text", ["[1]", "{}", '{"scores": {}}', '{"scores": {"agreement": {}}}', '{"scores": [], "surprise": 1}']
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / SCORES_FILE).write_text(text)
    with pytest.raises(InputError, match=r"controller_scores.json is damaged: run `depthdial controller evaluate` again"):
        read_scores(tmp_path)


def test_a_folder_of_results_is_read_with_its_controller(study: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(study.folder, tmp_path / "study", ignore=shutil.ignore_patterns("figures", "report.html"))
    assert read_folder(copy).controller is None
    keep_scores(copy, demo_scores())
    found = read_folder(copy).controller
    assert found is not None and list(found.scores) == list(demo_scores().scores)
