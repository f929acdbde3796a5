from __future__ import annotations

from dataclasses import replace

import pytest

from depthdial.errors import InputError
from depthdial.measure.batches import Runner
from depthdial.measure.tasks import Example
from depthdial.models.prompt import left_padded, prefill
from depthdial.train.rows import ANSWERS, check_answers, training_rows


@pytest.fixture
def runner(model, tokenizer):
    return Runner.of(model, tokenizer)


def test_references_end_with_the_end_token(lessons, tokenizer, runner):
    rows = training_rows(lessons, tokenizer, runner)
    assert [row.id for row in rows] == [e.id for e in lessons.examples]
    for row, example in zip(rows, lessons.examples, strict=True):
        assert tokenizer.decode(row.response_ids) == f"{example.reference} </s>"
        assert row.n_tokens == len(row.prompt_ids) + len(row.response_ids)


def test_a_cut_reference_does_not_teach_to_stop(lessons, tokenizer, runner):
    rows = training_rows(replace(lessons, max_response_tokens=2), tokenizer, runner)
    lengths = {e.id: len(e.reference.split()) for e in lessons.examples}
    for row in rows:
        assert (row.response_ids[-1] == tokenizer.eos_token_id) == (lengths[row.id] < 2)
        assert len(row.response_ids) == 2


def test_own_answers_are_greedy_and_written_once(lessons, model, tokenizer, runner, tmp_path, monkeypatch):
    task = replace(lessons, max_response_tokens=5)
    rows = training_rows(task, tokenizer, runner, answers="model", folder=tmp_path)
    row = rows[3]
    ids = list(row.prompt_ids)
    for token in row.response_ids:  # greedy, one token after the other, without batch or cache
        assert prefill(model, *left_padded([ids], 0, "cpu")).logits[0, -1].argmax().item() == token
        ids.append(token)
    monkeypatch.setattr(Runner, "decode", None)  # written again, they would need it
    assert training_rows(task, tokenizer, runner, answers="model", folder=tmp_path) == rows


def test_both_takes_about_half_of_the_answers_from_the_model(lessons, first, tokenizer, runner):
    def own(task):
        reference, both = (training_rows(task, tokenizer, runner, answers=a) for a in ("reference", "both"))
        return {b.id for r, b in zip(reference, both, strict=True) if r.response_ids != b.response_ids}

    whole = own(lessons)
    assert 6 <= len(whole) <= 18
    fewer = first(12)
    assert own(fewer) == whole & {e.id for e in fewer.examples}  # whichever limit


def test_rows_without_an_answer_or_too_few_are_refused(lessons, first, tokenizer, runner):
    with pytest.raises(InputError, match=r"5 rows are too few .* at least 8"):
        training_rows(first(5), tokenizer, runner)
    blank = replace(lessons, examples=(*lessons.examples, Example("blank", "one two", "", None)))
    with pytest.raises(InputError, match=r"'blank' has no answer .*answers='model'"):
        training_rows(blank, tokenizer, runner)
    assert len(training_rows(blank, tokenizer, runner, answers="model")) == 25


def test_unknown_answers():
    assert [check_answers(name) for name in ANSWERS] == list(ANSWERS)
    with pytest.raises(InputError, match=r"Unknown answers 'mine': train on reference, model or both"):
        check_answers("mine")
