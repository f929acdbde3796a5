from __future__ import annotations

import torch

from depthdial.data.tasks import encode
from depthdial.engine.session import Session
from depthdial.hf.untouched import untouched
from depthdial.measure.references import Reference
from depthdial.rows.store import SWEEP_COLUMNS, RunSettings, UnitStore


def made(model, tokenizer, **options):
    return Reference(Session.of(model, tokenizer), **options)


def test_answers_are_made_once_and_kept(tmp_path, model, tokenizer, small_task, monkeypatch):
    reference, batch = made(model, tokenizer), encode(small_task, tokenizer)
    prefilled = reference.prefill(batch)
    store = UnitStore(RunSettings({"seed": 0}), SWEEP_COLUMNS, tmp_path)
    answers = reference.answers(batch, prefilled, 5, store)
    monkeypatch.setattr(Session, "decode", lambda *args: 1 / 0)
    assert reference.answers(batch, prefilled, 5) == answers
    another = made(model, tokenizer)
    assert another.answers(batch, prefilled, 5, UnitStore(store.run, SWEEP_COLUMNS, tmp_path)) == answers


def test_in_memory_they_are_made_again_for_each_reference(model, tokenizer, small_task):
    batch = encode(small_task, tokenizer)
    references = [made(model, tokenizer) for _ in range(2)]
    first, second = (one.answers(batch, one.prefill(batch), 5).tokens for one in references)
    session = references[0].untouched
    assert first == second == session.decode(session.full, session.prefill(batch), 5).tokens


def test_short_answers_are_the_beginning_of_long_ones(model, tokenizer, small_task, monkeypatch):
    reference, batch = made(model, tokenizer), encode(small_task, tokenizer)
    prefilled = reference.prefill(batch)
    short = reference.untouched.decode(reference.untouched.full, prefilled, 3)
    reference.answers(batch, prefilled, 6)
    monkeypatch.setattr(Session, "decode", lambda *args: 1 / 0)
    found = reference.answers(batch, prefilled, 3, longer=6)
    assert (found.tokens, found.finish_reasons) == (short.tokens, short.finish_reasons)


def test_prompts_are_kept_as_far_as_memory_goes(model, tokenizer, small_task):
    batch = encode(small_task, tokenizer)
    forgetful, mindful = made(model, tokenizer), made(model, tokenizer, keep_bytes=10**9)
    assert forgetful.prefill(batch) is not forgetful.prefill(batch)
    first = mindful.prefill(batch)
    assert mindful.prefill(batch) is first and mindful.prefill(batch[:2]) is not first
    watched = mindful.prefill(batch, watch=(1, 3))
    assert watched.pooled is not None and torch.equal(watched.logits, first.logits)
    assert mindful.prefill(batch, watch=(1, 3)) is watched is mindful.prefill(batch)


def test_with_adapters_the_reference_is_the_untouched_model(model, tokenizer, small_task, with_lora):
    batch = encode(small_task, tokenizer)
    bare = made(model.requires_grad_(False), tokenizer)
    expected = bare.prefill(batch)
    answers = bare.answers(batch, expected, 5).tokens
    adapted = with_lora(model)
    reference = made(adapted, tokenizer)
    found = reference.prefill(batch)
    own = Session.of(adapted, tokenizer).prefill(batch)
    assert torch.equal(found.logits, expected.logits) and not torch.equal(own.logits, expected.logits)
    assert reference.answers(batch, found, 5).tokens == answers
    with untouched(model):
        off = Session.of(model, tokenizer)
    assert off.untouched is off
