"""The page of a comparison, of rows that were really measured."""

from __future__ import annotations

import pytest

from depthdial.errors import InputError
from depthdial.files import write_json
from depthdial.measure.compare import compare_rows
from depthdial.report.pages import kind_of, write_report


@pytest.fixture
def folder(model, tokenizer, small_task, tmp_path):
    compare_rows(model, tokenizer, task=small_task, depths="full,uls:4", out=tmp_path, max_new_tokens=4)
    return tmp_path


def test_answers_stand_side_by_side_with_differences_marked(folder):
    assert kind_of(folder) == "compare"
    page = write_report(folder)
    text = page.read_text()
    assert "Words that differ from the answer of full are marked" in text and "the prompt runs all of them" in text
    assert text.count('<div class="answer">') == 7 * 2 + 6 and "uls:4 (4 of 6 layers)" in text
    assert "<mark>" in text and "the dog ran to the cat and sat" in text
    assert "<script" not in text and "http://" not in text.replace("http://www.w3.org", "")
    assert (folder / "tables" / "compare.md").read_text().startswith("| route |")
    assert write_report(folder).read_text() == text


def test_a_folder_whose_rows_lack_a_depth_is_refused(folder):
    for routes in (["full", "ee:3"], [], None):
        write_json(folder / "study.json", {"kind": "compare", "routes": routes})
        with pytest.raises(InputError, match=r"names depths that the rows lack: run `depthdial compare` again"):
            write_report(folder)
