"""The page of a check, of rows that were really measured."""

from __future__ import annotations

import pytest

from depthdial.errors import InputError
from depthdial.files import read_json, write_json
from depthdial.measure.check import check
from depthdial.report.pages import kind_of, write_report
from tests.conftest import make_llama


@pytest.fixture
def folder(model, tokenizer, small_task, tmp_path):
    other = (make_llama(seed=3), tokenizer)
    check(other, model, tokenizer, task=small_task, max_new_tokens=4, keep_text=True, out=tmp_path)
    return tmp_path


def test_the_verdict_stands_first_and_both_answers_side_by_side(folder):
    assert kind_of(folder) == "check"
    text = write_report(folder).read_text()
    told = read_json(folder / "check.json", "check")
    verdict = told["sentence"].replace("'", "&#39;")
    assert 0 < text.index(verdict) < text.index("ROUGE-L between both answers")
    assert text.count('<div class="answer">') == 6 * 3 + 2  # one row has no reference
    assert "<mark>" in text and "<script" not in text
    assert "ROUGE-L of the full model against the references" in (folder / "tables" / "check.md").read_text()
    assert write_report(folder).read_text() == text


def test_a_damaged_verdict_is_refused(folder):
    write_json(folder / "check.json", {"sentence": "yes"})
    with pytest.raises(InputError, match=r"holds no scores: run `depthdial check` again"):
        write_report(folder)
