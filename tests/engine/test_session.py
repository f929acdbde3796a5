from __future__ import annotations

from dataclasses import replace

from depthdial.data.tasks import encode
from depthdial.engine.session import Session, batched


def test_batches_keep_the_order_so_that_more_sequences_only_add_batches(tokenizer, small_task):
    examples = encode(small_task, tokenizer)
    few, all_of_them = list(batched(examples[:4], 2)), list(batched(examples, 2))
    assert all_of_them[:2] == few
    assert [len(batch) for batch in all_of_them] == [2, 2, 2, 1]


def test_a_session_knows_how_answers_end_and_where_the_context_does(model, tokenizer, small_task):
    session = Session.of(model, tokenizer)
    assert (session.n_layers, session.eos_token_ids, session.pad_token_id) == (6, (2,), 0)
    assert session.context_tokens == 128 and session.full.is_full
    prefilled = session.prefill(encode(small_task, tokenizer))
    lengths = [len(example.prompt_ids) for example in encode(small_task, tokenizer)]
    assert session.rooms(prefilled, 10) == [10] * 7
    assert session.rooms(prefilled, 500) == [128 - n for n in lengths]
    answers = replace(session, eos_token_ids=()).decode(session.full, prefilled, 500)
    assert [len(tokens) for tokens in answers.tokens] == [128 - n for n in lengths]
    assert [answers.part_of(i).steps for i in range(7)] == [128 - n - 1 for n in lengths]
    assert answers.part_of(2).rows == tuple(i for i in range(7) if lengths[i] == lengths[2])
