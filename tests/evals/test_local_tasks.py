"""The tasks that ship: sound, and told apart by the real model's depths."""

from __future__ import annotations

import json

import pytest

import depthdial as dd
from depthdial.evals.local_tasks import FOLDER

pytest.importorskip("lm_eval")


def rows(name):
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_choices_are_sound():
    asked = rows("choice")
    assert len(asked) >= 40 and len({row["question"] for row in asked}) == len(asked)
    for row in asked:
        assert len(set(row["choices"])) == 4 and 0 <= row["answer"] < 4
        assert all(len(choice.split()) > 1 for choice in row["choices"])  # several tokens: never the full model's first
    counts = [sum(row["answer"] == i for row in asked) for i in range(4)]
    assert max(counts) - min(counts) <= 1


def test_answers_are_sound():
    asked = rows("answer")
    assert len(asked) >= 40 and len({row["question"] for row in asked}) == len(asked)
    assert all(row["answer"] == row["answer"].strip() and " " not in row["answer"] for row in asked)


def test_they_run_without_a_network(model, tokenizer):
    results = dd.evaluate(model, tokenizer, tasks="builtin", depth="uls:3", limit=3)
    assert results.tasks == ("builtin_answer", "builtin_choice", "builtin_text")
    assert all(unit.n_documents == 3 for unit in results.units)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::depthdial.RouteWarning")  # the route was searched for prompts at full depth
def test_the_real_model_has_the_scores_of_its_saved_folder(tmp_path):
    """SmolLM2 on 24 layers, and the folder of that view through the harness's own `hf` model."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model, tokenizer = dd.load("smollm2-135m")
    results = dd.evaluate(model, tokenizer, depth=["full", "24"], batch_size=8, limit=24)
    shallow = results.depths[1]
    route = results.unit("builtin_choice", shallow).route
    dd.view(model, route).save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = TaskManager(include_path=str(FOLDER), include_defaults=False).load(list(results.tasks))
    theirs = evaluate(
        lm=HFLM(str(tmp_path / "saved"), device="cpu", batch_size=8), task_dict=loaded, bootstrap_iters=0, limit=24
    )
    for task in results.tasks:
        for score in results.unit(task, shallow).scores:
            assert score.value == theirs["results"][task][f"{score.metric},{score.filter}"], task
    full = results.unit("builtin_choice", "full").score("acc")
    assert full.value - 2 * (full.stderr or 0) > 0.25
    assert results.unit("builtin_answer", "full").score().value > results.unit("builtin_answer", shallow).score().value
    assert results.unit("builtin_text", "full").score().value < results.unit("builtin_text", shallow).score().value
