from __future__ import annotations

from dataclasses import replace

import pytest

from depthdial.data.tasks import Example
from depthdial.engine.prefill import left_padded, prefill
from depthdial.engine.session import Session
from depthdial.errors import InputError
from depthdial.train.rows import training_rows


@pytest.fixture
def session(model, tokenizer):
    return Session.of(model, tokenizer)


def test_references_end_with_the_end_token(lessons, tokenizer, session):
    rows = training_rows(lessons, tokenizer, session)
    assert [row.id for row in rows] == [e.id for e in lessons.examples]
    for row, example in zip(rows, lessons.examples, strict=True):
        assert tokenizer.decode(row.response_ids) == f"{example.reference} </s>"
        assert row.n_tokens == len(row.prompt_ids) + len(row.response_ids)


def test_a_cut_reference_does_not_teach_to_stop(lessons, tokenizer, session):
    rows = training_rows(replace(lessons, max_response_tokens=2), tokenizer, session)
    lengths = {e.id: len(e.reference.split()) for e in lessons.examples}
    for row in rows:
        assert (row.response_ids[-1] == tokenizer.eos_token_id) == (lengths[row.id] < 2)
        assert len(row.response_ids) == 2


def test_own_answers_are_greedy_and_written_once(lessons, model, tokenizer, session, tmp_path, monkeypatch):
    task = replace(lessons, max_response_tokens=5)
    rows = training_rows(task, tokenizer, session, answers="model", folder=tmp_path)
    row = rows[3]
    ids = list(row.prompt_ids)
    for token in row.response_ids:  # greedy, one token after the other, without batch or cache
        assert prefill(model, *left_padded([ids], 0, "cpu")).logits[0, -1].argmax().item() == token
        ids.append(token)
    monkeypatch.setattr(Session, "decode", None)  # written again, they would need it
    assert training_rows(task, tokenizer, session, answers="model", folder=tmp_path) == rows


def test_both_takes_about_half_of_the_answers_from_the_model(lessons, first, tokenizer, session):
    def own(task):
        reference, both = (training_rows(task, tokenizer, session, answers=a) for a in ("reference", "both"))
        return {b.id for r, b in zip(reference, both, strict=True) if r.response_ids != b.response_ids}

    whole = own(lessons)
    assert 6 <= len(whole) <= 18
    fewer = first(12)
    assert own(fewer) == whole & {e.id for e in fewer.examples}  # whichever limit


def test_rows_without_an_answer_or_too_few_are_refused(lessons, first, tokenizer, session):
    with pytest.raises(InputError, match=r"5 rows are too few .* at least 8"):
        training_rows(first(5), tokenizer, session)
    blank = replace(lessons, examples=(*lessons.examples, Example("blank", "one two", "", None)))
    with pytest.raises(InputError, match=r"'blank' has no answer .*answers='model'"):
        training_rows(blank, tokenizer, session)
    assert len(training_rows(blank, tokenizer, session, answers="model")) == 25


def test_a_response_ends_as_the_chat_template_does(lessons, model, tokenizer):
    # Neither the tokenizer's end token nor, in the order of their ids, the first of the model's.
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    model.resize_token_embeddings(len(tokenizer))
    model.generation_config.eos_token_id = [1, 2]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    rows = training_rows(lessons, tokenizer, Session.of(model, tokenizer))
    assert {row.response_ids[-1] for row in rows} == {end}
    plain = training_rows(replace(lessons, template="plain"), tokenizer, Session.of(model, tokenizer))
    assert {row.response_ids[-1] for row in plain} == {tokenizer.eos_token_id}
    # What is taught is what stops an answer, measured or written.
    assert end in Session.of(model, tokenizer).eos_token_ids


def test_the_tokenizers_end_token_comes_before_the_models_others(lessons, model, tokenizer):
    tokenizer.eos_token = "six"
    model.generation_config.eos_token_id = [2, tokenizer.eos_token_id]
    rows = training_rows(lessons, tokenizer, Session.of(model, tokenizer))
    assert {row.response_ids[-1] for row in rows} == {tokenizer.eos_token_id}


def test_a_reference_cut_by_the_context_does_not_teach_to_stop(lessons, model, tokenizer):
    longest = max(len(tokenizer(f"{e.instruction} {e.reference}")["input_ids"]) for e in lessons.examples)
    model.config.max_position_embeddings = longest
    session = Session.of(model, tokenizer)
    rows = training_rows(lessons, tokenizer, session)
    assert max(row.n_tokens for row in rows) == longest
    assert {row.response_ids[-1] == 2 for row in rows if row.n_tokens < longest} == {True}
