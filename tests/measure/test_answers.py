from __future__ import annotations

from depthdial.measure.answers import full_answers
from depthdial.measure.batches import Runner
from depthdial.measure.results import SWEEP_COLUMNS, RunSettings, UnitStore
from depthdial.measure.tasks import encode


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
