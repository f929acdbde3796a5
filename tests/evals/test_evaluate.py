"""`dd.evaluate`: units of a folder, standard errors, what is refused before anything runs."""

from __future__ import annotations

import importlib.util
import json
import math
import warnings

import numpy as np
import pytest
import torch

import depthdial as dd
from depthdial.errors import DataWarning, InputError
from depthdial.rows.evals import EvalResults
from tests.evals.documents import CHOICES, responses

pytest.importorskip("lm_eval")

from depthdial.evals import units as units_module
from tests.evals.test_lm_eval import make


def go(model, tokenizer, folder, **options):
    given = {"tasks": "tiny_choice", "depth": ["full", "uls:3"], "include_path": folder, "batch_size": 4}
    return dd.evaluate(model, tokenizer, **{**given, **options})


def test_scores_are_the_harnesss_own(model, tokenizer, folder):
    results = go(model, tokenizer, folder, tasks=["tiny_choice", "tiny_text", "tiny_answer", "tiny_last"])
    assert results.tasks == ("tiny_answer", "tiny_choice", "tiny_last", "tiny_text") and results.depths == ("full", "uls:3")
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    for name in results.tasks:
        theirs = evaluate(lm=make(model, tokenizer, "uls:3"), task_dict=manager.load([name]), bootstrap_iters=0)["results"]
        unit = results.unit(name, "uls:3")
        assert unit.layers == 3 and unit.prompt_depth == "route" and unit.n_shot == 0 and unit.n_layers == 6
        for score in unit.scores:
            assert score.value == theirs[name][f"{score.metric},{score.filter}"]
            assert np.mean(score.each) == pytest.approx(score.value)
    choice = results.unit("tiny_choice", "uls:3")
    assert choice.chance == pytest.approx(1 / 3) and choice.n_documents == 5
    score = choice.score("acc")
    assert score.stderr == pytest.approx(np.std(score.each, ddof=1) / math.sqrt(5)) and score.higher_is_better
    assert results.unit("tiny_text", "full").score("bits_per_byte").higher_is_better is False


def test_a_group_has_the_score_of_its_tasks(model, tokenizer, folder):
    results = go(model, tokenizer, folder, tasks="tiny_group, tiny_choice")
    unit = results.unit("tiny_group", "uls:3")
    assert unit.n_documents == 10 and [one.metric for one in unit.scores] == ["acc"]
    assert len(unit.score().each) == 10 and unit.score().stderr
    assert unit.one_token_share == pytest.approx(
        sum(n == 1 for n in [4, 3, 1, 3, 2, 5, 3, 2, 5, 1, 3, 5, 3, 2, 5, *[1] * 15]) / 30
    )


def test_a_stopped_evaluation_goes_on(model, tokenizer, folder, tmp_path, monkeypatch):
    out, ran, run = tmp_path / "out", [], units_module.run_unit

    def watched(lm, name, *args, **options):
        if len(ran) == 2 and not (tmp_path / "go on").exists():
            raise KeyboardInterrupt
        ran.append((lm.depth.name, name))
        return run(lm, name, *args, **options)

    monkeypatch.setattr(units_module, "run_unit", watched)
    options = {"tasks": "tiny_choice,tiny_text", "out": out}
    with pytest.raises(KeyboardInterrupt):
        go(model, tokenizer, folder, **options)
    assert len(list((out / "units").glob("*.json"))) == 2
    (tmp_path / "go on").touch()
    results = go(model, tokenizer, folder, **options)
    assert ran == [(d, t) for d in ("full", "uls:3") for t in ("tiny_choice", "tiny_text")]
    assert EvalResults.load(out).units == results.units
    more = go(model, tokenizer, folder, **{**options, "depth": "ee:2,full"})
    assert len(ran) == 6 and more.depths == ("full", "ee:2") and EvalResults.load(out).depths == ("full", "uls:3", "ee:2")
    assert dd.write_report(out).name == "report.html"
    with pytest.raises(InputError, match="another limit"):
        go(model, tokenizer, folder, **options, limit=2)


def test_a_limit_takes_the_first_documents(model, tokenizer, folder):
    unit = go(model, tokenizer, folder, limit=2, depth="uls:3").units[0]
    told = responses(make(model, tokenizer, "uls:3"), folder, "choice")["choice"][:2]
    right = [
        float(max(range(3), key=lambda i: resps[i][0][0]) == row["answer"])
        for resps, row in zip(told, CHOICES, strict=False)
    ]
    assert list(unit.score("acc").each) == right


def test_full_contexts_warn_of_single_tokens(model, tokenizer, folder):
    with pytest.warns(DataWarning, match="100% of the continuations of tiny_letter are single tokens"):
        results = go(model, tokenizer, folder, tasks="tiny_letter", prompt_depth="full")
    one, other = results.units
    assert one.score("acc").each == other.score("acc").each and other.layers == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        go(model, tokenizer, folder, tasks="tiny_letter")


def test_the_global_state_is_left_alone(model, tokenizer, folder, weights_of, assert_same, capfd):
    import logging
    import random

    before, state, torch_state = weights_of(model), random.getstate(), torch.get_rng_state()
    level = logging.getLogger("lm_eval").level
    go(model, tokenizer, folder, tasks="tiny_choice,tiny_answer")
    assert_same(before, weights_of(model))
    assert random.getstate() == state and torch.equal(torch.get_rng_state(), torch_state)
    assert logging.getLogger("lm_eval").level == level and capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"tasks": "tiny_choise"}, "There is no task 'tiny_choise': use tiny_choice"),
        ({"tasks": ""}, "No task was given"),
        ({"depth": "uls:9"}, "9"),
        ({"depth": "sideways"}, "sideways"),
        ({"depth": []}, "No depth was given"),
        ({"limit": 0}, "Invalid limit 0"),
        ({"num_fewshot": -1}, "Invalid num_fewshot -1"),
        ({"prompt_depth": "half"}, "Unknown prompt depth 'half'"),
        ({"chat": True}, "no chat template"),
        ({"include_path": "nowhere"}, "There is no folder nowhere"),
    ],
)
def test_bad_input(model, tokenizer, folder, options, told, monkeypatch):
    monkeypatch.setattr("depthdial.evals.catalogue.TaskManager", _own_only)
    with pytest.raises(InputError, match=told) as error:
        go(model, tokenizer, folder, **options)
    assert "\n" not in str(error.value)


def _own_only(include_path, include_defaults=True):
    """Without the harness's thousands of files, which take seconds to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path, include_defaults=False)


def test_without_the_harness(model, tokenizer, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "lm_eval" else find(name, *rest))
    with pytest.raises(InputError, match=r"not installed: pip install 'depthdial\[eval\]'\.$"):
        dd.evaluate(model, tokenizer)


def test_units_are_plain_json(model, tokenizer, folder, tmp_path):
    go(model, tokenizer, folder, out=tmp_path / "out", depth="uls:3")
    (path,) = (tmp_path / "out" / "units").glob("*.json")
    document = json.loads(path.read_text())
    assert document["task"] == "tiny_choice" and document["route"] == "0,2,4" and "versions" in document["provenance"]


@pytest.mark.slow
def test_a_task_of_the_harness_that_is_not_here(model, tokenizer):
    """Its name is known, and near names of its thousands are told; its data would have to be fetched."""
    with pytest.raises(InputError, match="There is no task 'helaswag': use hellaswag"):
        dd.evaluate(model, tokenizer, tasks="helaswag")
    with pytest.raises(InputError, match="data of the task 'hellaswag' cannot be loaded"):
        dd.evaluate(model, tokenizer, tasks="hellaswag")


def test_scores_that_are_not_finite(model, tokenizer, folder):
    with torch.no_grad():
        model.lm_head.weight[5] = math.nan
    with pytest.raises(
        InputError, match=r"On the task 'tiny_text' at the depth 'full' a?.* is not finite: try --dtype float32"
    ):
        go(model, tokenizer, folder, tasks="tiny_text", depth="full")
