from __future__ import annotations

import torch

from depthdial.data.tasks import encode
from depthdial.engine.session import Runner
from depthdial.hf.untouched import untouched
from depthdial.measure.answers import full_answers, reference_prefill
from depthdial.rows.store import SWEEP_COLUMNS, RunSettings, UnitStore


def test_answers_are_made_once_and_kept(tmp_path, model, tokenizer, small_task, monkeypatch):
    runner, batch = Runner.of(model, tokenizer), encode(small_task, tokenizer)
    prefilled = runner.prefill(batch)
    store = UnitStore(RunSettings({"seed": 0}), SWEEP_COLUMNS, tmp_path)
    made = full_answers(runner, store, batch, prefilled, 5)
    monkeypatch.setattr(Runner, "decode", lambda *args: 1 / 0)
    assert full_answers(runner, store, batch, prefilled, 5) == made
    assert full_answers(runner, UnitStore(store.run, SWEEP_COLUMNS, tmp_path), batch, prefilled, 5) == made


def test_in_memory_they_are_made_again(model, tokenizer, small_task):
    runner, batch = Runner.of(model, tokenizer), encode(small_task, tokenizer)
    prefilled, store = runner.prefill(batch), UnitStore(RunSettings({"seed": 0}), SWEEP_COLUMNS)
    first, second = (full_answers(runner, store, batch, prefilled, 5) for _ in range(2))
    assert first.tokens == second.tokens == runner.decode(runner.full, prefilled, 5).tokens


def test_without_adapters_the_reference_is_the_same_pass(model, tokenizer, small_task):
    runner, batch = Runner.of(model, tokenizer), encode(small_task, tokenizer)
    prefilled = runner.prefill(batch)
    assert reference_prefill(runner, batch, prefilled) is prefilled


def test_with_adapters_the_reference_is_the_untouched_model(model, tokenizer, small_task, with_lora):
    batch = encode(small_task, tokenizer)
    bare = Runner.of(model.requires_grad_(False), tokenizer)
    expected = bare.prefill(batch)
    store = UnitStore(RunSettings({"seed": 0}), SWEEP_COLUMNS)
    answers = full_answers(bare, store, batch, expected, 5).tokens
    runner = Runner.of(with_lora(model), tokenizer)
    prefilled = runner.prefill(batch)
    reference = reference_prefill(runner, batch, prefilled)
    assert torch.equal(reference.logits, expected.logits) and not torch.equal(prefilled.logits, expected.logits)
    assert full_answers(runner, store, batch, reference, 5).tokens == answers
    with untouched(model):
        off = Runner.of(model, tokenizer)
    assert reference_prefill(off, batch, prefilled) is prefilled
