"""The settings of lossless answers: what they refuse, before anything runs."""

from __future__ import annotations

import dataclasses

import pytest

import depthdial as dd
from depthdial.errors import InputError
from tests.latencies import make_latency

LATENCY = make_latency()
STEPS_ALONE = dataclasses.replace(LATENCY, cells=tuple(cell for cell in LATENCY.cells if cell.kind == "step"))


@pytest.mark.parametrize("draft", ["lookup", "uls:50%"])
@pytest.mark.parametrize(
    ("latency", "told"),
    [
        (5, "not as int: give what depthdial bench writes"),
        (make_latency(8), "with 8 layers, and the rows or routes are of a model with 6: bench that model"),
        (STEPS_ALONE, "no pass of several tokens behind a context: bench with --drafts"),
        ("nowhere.json", "no latency model file nowhere.json"),
    ],
)
def test_times_that_tell_nothing_of_this_model(model, tokenizer, monkeypatch, draft, latency, told):
    monkeypatch.setattr(model, "forward", lambda *_, **__: pytest.fail("something ran"))
    with pytest.raises(InputError, match=told):
        dd.generate(model, tokenizer, "the cat", depth=dd.Lossless(draft, latency=latency), max_new_tokens=4)


def test_times_may_come_as_a_model_a_file_or_a_folder(model, tokenizer, tmp_path):
    path = LATENCY.save(tmp_path / "bench.json")
    plain = dd.generate(model, tokenizer, "the cat", max_new_tokens=9)[0].tokens
    for latency in (LATENCY, path, str(path), tmp_path):
        found = dd.generate(model, tokenizer, "the cat", depth=dd.Lossless("0-3,5", latency=latency), max_new_tokens=9)
        assert found[0].tokens == plain


def test_drafts_that_are_asked_for_are_told_of_however_few_are_accepted(model, tokenizer):
    found = dd.generate(model, tokenizer, ["the cat", "a dog"], depth=dd.Lossless("5-5", draft_tokens=3), max_new_tokens=20)
    for answer in found:
        told = answer.speculation
        assert told.rounds > told.steps and told.is_on
        assert f"drafts by {told.draft} in {told.rounds} of {told.steps + told.rounds} passes" in str(told)


def test_whether_tokens_are_copied_is_yes_or_no():
    with pytest.raises(InputError, match="Invalid lookup 'no': use True or False, or leave it out"):
        dd.Lossless("uls:50%", lookup="no")
