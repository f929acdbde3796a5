from __future__ import annotations

import copy
import json

from depthdial.data.tasks import encode
from depthdial.engine.session import Session
from depthdial.measure.timing import BATCHES, TIMING_FILE, time_routes, time_study
from depthdial.routes import Route

FULL, SHALLOW = Route(tuple(range(6)), 6, "full"), Route((0, 5), 6, "own:2")


def prompts(task, tokenizer):
    return [example.prompt_ids for example in encode(task, tokenizer)]


def test_routes_take_turns_behind_one_prompt_pass_a_round(model, tokenizer, small_task, monkeypatch):
    session, passes = Session.of(model, tokenizer), []
    real = Session.prefill_ids
    monkeypatch.setattr(Session, "prefill_ids", lambda self, *args: (passes.append(args[1]), real(self, *args))[1])
    given = prompts(small_task, tokenizer)[:2]
    rows = time_routes([(session, (FULL, SHALLOW))], given, n_repeats=3, n_steps=2)
    assert len(passes) == 4 and {len(route) for route in passes} == {6}  # one for warming up
    assert [(row["route"], row["layers"], row["batch"], row["n_repeats"]) for row in rows] == [
        ("full", 6, 2, 3),
        ("own:2", 2, 2, 3),
    ]
    for row in rows:
        for kind in ("ttft_ms", "step_ms"):
            assert 0 < row[kind]["low"] <= row[kind]["median"] <= row[kind]["high"]
    assert rows[0]["ttft_ms"] == rows[1]["ttft_ms"]
    passes.clear()
    time_routes([(session, (FULL, SHALLOW))], given, prompt_depth="route", n_repeats=1, n_steps=2)
    assert [len(route) for route in passes] == [6, 2, 6, 2]


def test_prompts_that_fill_the_context_are_cut(model, tokenizer):
    session = Session.of(model, tokenizer)
    assert session.context_tokens is not None
    assert time_routes([(session, (SHALLOW,))], [[1] * session.context_tokens], n_repeats=1, n_steps=2)


def test_a_study_is_timed_once_with_merged_adapters(
    model, tokenizer, small_task, tmp_path, with_lora, weights_of, assert_same
):
    bare, adapted = copy.deepcopy(model), with_lora(model)
    before = weights_of(adapted)
    parts, given = [(bare, (FULL,)), (adapted, (SHALLOW,))], prompts(small_task, tokenizer)
    document = time_study(parts, tokenizer, given, tmp_path)
    assert document == json.loads((tmp_path / TIMING_FILE).read_text())
    assert [(row["route"], row["batch"]) for row in document["routes"]] == [
        (name, min(size, len(given))) for size in BATCHES for name in ("full", "own:2")
    ]
    assert document["about"]["is_merged"] and document["about"]["prompt_depth"] == "full"
    assert_same(before, weights_of(adapted))
    assert time_study(parts, tokenizer, given, tmp_path) == document
