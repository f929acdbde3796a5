"""The page of an evaluation: complete, self-contained, the same on the same input, and found by the folder."""

from __future__ import annotations

import re

import pytest

from depthdial.errors import InputError
from depthdial.report.eval.page import write_eval_report
from depthdial.report.pages import kind_of, write_report
from tests.report.eval.folders import made, save


def test_the_page_holds_everything(tmp_path):
    save(tmp_path)
    assert kind_of(tmp_path) == "eval"
    page = write_report(tmp_path)
    text = page.read_text()
    assert "Scores by depth" in text and "Every metric" in text and "greedy-kl:24" in text and "0.4.13" in text
    assert text.count("data:image/svg+xml;base64,") == 1
    assert not re.search(r"https?://|url\(|@import|<script|<link", text)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"evaluation.png", "evaluation.svg"}
    assert (tmp_path / "tables" / "depths.csv").read_text().startswith("depth,layers,task_0,task_0_low,task_0_high,")
    assert {path.name for path in (tmp_path / "tables").glob("*.md")} == {
        "depths.md",
        *(f"task-task_{i}.md" for i in range(3)),
    }
    first = page.read_bytes()
    assert write_eval_report(tmp_path).read_bytes() == first


def test_the_page_says_what_the_full_model_scored(tmp_path):
    from dataclasses import replace

    save(tmp_path, [replace(unit, prompt_depth="full", one_token_share=1.0) for unit in made(1)])
    assert "100% of the scored continuations are single tokens" in write_eval_report(tmp_path).read_text()


@pytest.mark.slow
def test_many_tasks_have_a_table_and_a_few_panels(tmp_path):
    save(tmp_path, made(14, 5, {"full": 30, "uls:20": 20}))
    text = write_eval_report(tmp_path).read_text()
    assert "The first 12 tasks of 14" in text and "task_13" in text


def test_a_folder_without_an_evaluation(tmp_path):
    with pytest.raises(InputError, match="no evaluation file"):
        write_eval_report(tmp_path)
    (tmp_path / "study.json").write_text('{"kind": "search"}')
    with pytest.raises(InputError, match="holds no evaluation"):
        write_eval_report(tmp_path)
    (tmp_path / "study.json").write_text('{"kind": "eval"}')
    with pytest.raises(InputError, match="no finished task"):
        write_eval_report(tmp_path)
