"""Certificates of depths: the plan comes first, losses are the sweep's, and rows that were used are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import depthdial as dd
from depthdial.data.tasks import Example
from depthdial.errors import InputError
from depthdial.files import read_json
from depthdial.measure.certify import PLAN_FILE, tell_repeated
from depthdial.measure.passing import contains
from tests.conftest import make_task

SIZE = {"max_new_tokens": 3, "batch_size": 6}
DEPTHS = ["uls:5", "uls:4"]


@pytest.fixture
def few(many):
    """The first sixteen of `many`."""
    return replace(many, examples=many.examples[:16])


def columns_of(rows, metric):
    frame = rows.to_pandas().pivot(index="sequence_id", columns="route", values=metric)
    return frame["full"].to_numpy()[:, None] - frame[DEPTHS].to_numpy()


def test_losses_are_those_of_a_sweep_and_the_plan_is_there(model, tokenizer, few, tmp_path, weights_of, assert_same):
    before = weights_of(model)
    found = dd.certify_depths(model, tokenizer, task=few, depths=DEPTHS, epsilon=(0.5, 0.9), out=tmp_path, **SIZE)
    assert_same(before, weights_of(model))
    rows = dd.sweep(model, tokenizer, task=few, routes=["full", *DEPTHS], metrics=["rouge_l"], **SIZE)
    losses = columns_of(rows, "rouge_l")
    assert len(found) == 2 and [one.plan.epsilon for one in found] == [0.5, 0.9]
    for one in found:
        assert one.plan.settings == ("full", *DEPTHS) and one.plan.metric == "rouge_l"
        assert one.risks[1:] == pytest.approx(losses.mean(axis=0)) and one.risks[0] == 0
        assert one.plan.about["depths"]["uls:4"] == str(dd.Route.parse("uls:4", 6))
        assert one.plan.answer_tokens == 3 and one.provenance["n_layers"] == 6
        layers = (6, 5, 4)[one.certified or 0]
        assert one.provenance["layers_saved_per_sequence"] == 6 - layers
    kept = read_json(tmp_path / PLAN_FILE, "plan")
    assert [one["digest"] for one in kept["plans"]] == [one.plan_digest for one in found]


def test_the_plan_is_written_before_a_row_runs_and_a_stopped_run_goes_on(model, tokenizer, few, tmp_path, monkeypatch):
    options = {"task": few, "depths": DEPTHS, "epsilon": 0.5, "out": tmp_path, **SIZE}
    run, ran = dd.measure.sweep.Sweep.run, []

    def stopping(job, item, advance):
        assert (tmp_path / PLAN_FILE).exists()
        if len(ran) == 1:
            raise KeyboardInterrupt
        ran.append(item)
        run(job, item, advance)

    monkeypatch.setattr("depthdial.measure.sweep.Sweep.run", stopping)
    with pytest.raises(KeyboardInterrupt):
        dd.certify_depths(model, tokenizer, **options)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "units").glob("*.parquet")}
    monkeypatch.setattr("depthdial.measure.sweep.Sweep.run", run)
    with pytest.raises(InputError, match="holds a certification plan with another plans"):
        dd.certify_depths(model, tokenizer, **{**options, "epsilon": 0.6})
    found = dd.certify_depths(model, tokenizer, **options)
    assert len(before) == 3 and all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert found == dd.certify_depths(model, tokenizer, **{**options, "out": None})


def test_pass_or_fail_and_a_function_of_the_callers(model, tokenizer, few, tmp_path):
    full = dd.generate(model, tokenizer, [one.instruction for one in few.examples], max_new_tokens=3)
    # Each row passes where the first word of the full model's answer stands in the answer.
    known = tuple(replace(e, reference=(a.text.split() or ["the"])[0]) for e, a in zip(few.examples, full, strict=True))
    task = replace(few, examples=known)
    options = {"task": task, "depths": DEPTHS, "epsilon": 0.9, **SIZE}
    (checked,) = dd.certify_depths(model, tokenizer, metric="contains", out=tmp_path, **options)
    assert checked.provenance["quality"][0] > 0.8 and checked.plan.metric == "contains"

    def own(example: Example, answer: str) -> float:
        return contains(example, answer) / 2

    (halved,) = dd.certify_depths(model, tokenizer, metric=own, **options)
    assert halved.risks == pytest.approx(np.array(checked.risks) / 2) and halved.plan.metric == "own"
    assert halved.plan.about["scored_by"] != checked.plan.about["scored_by"]
    with pytest.raises(InputError, match="give a number from 0"):
        dd.certify_depths(model, tokenizer, metric=lambda *_: 2, **options)


@pytest.mark.slow
def test_a_function_may_bear_the_name_of_a_metric(model, tokenizer, few):
    """It has neither that metric's bounds nor its references."""
    bare = replace(few, examples=tuple(replace(example, reference=None) for example in few.examples))
    for name in ("agreement", "rouge_l", "contains", "regex"):

        def own(example: Example, answer: str) -> float:
            return float("cat" in answer)

        own.__name__ = name
        (found,) = dd.certify_depths(model, tokenizer, task=bare, depths=DEPTHS, metric=own, epsilon=0.9, **SIZE)
        assert found.plan.bounds == (-1.0, 1.0) and found.plan.metric == name


def test_depths_that_choose_for_each_prompt(model, tokenizer, few):
    (found,) = dd.certify_depths(
        model, tokenizer, task=few, depths="rls:4@0", metric="agreement", epsilon=0.99, method="hoeffding", **SIZE
    )
    assert found.plan.bounds == (0.0, 1.0) and 0 < found.risks[1] < 1


def test_what_is_refused_before_anything_runs(model, tokenizer, few, small_task, monkeypatch):
    monkeypatch.setattr("depthdial.measure.sweep.Sweep.run", None)
    cases = [
        ({"task": replace(few, split="test")}, "test split is for evaluation alone: certify"),
        ({"epsilon": 0.02}, "16 rows cannot certify a loss of at most 0.02, which takes at least 172 even where nothing is"),
        ({"epsilon": 0.0001, "method": "empirical_bernstein"}, "takes at least"),
        ({"epsilon": ()}, "give one or more different numbers"),
        ({"epsilon": 2}, "Invalid epsilon 2"),
        ({"epsilon": None}, "Invalid epsilon None"),
        ({"epsilon": np.float32(0.02)}, "16 rows cannot certify a loss of at most 0.02"),
        ({"epsilon": 1 / 49, "method": "conformal_risk_control"}, "which takes at least 48 even"),
        ({"delta": 1}, "delta"),
        ({"metric": "bleu"}, "Unknown metric 'bleu': use rouge_l, agreement, exact_match"),
        ({"method": "hope"}, "Unknown method 'hope'"),
        ({"depths": "full"}, "The full model alone loses nothing"),
        (
            {"task": replace(small_task, split="train", examples=small_task.examples * 7), "metric": "contains"},
            "Row 'small-5'",
        ),
        ({"task": replace(small_task, split="train", examples=small_task.examples * 7)}, "ROUGE-L needs one"),
        (
            {"task": replace(few, examples=tuple(replace(e, reference=" ") for e in few.examples)), "metric": "contains"},
            "Row 'many-0' has no reference",
        ),
    ]
    for given, complaint in cases:
        with pytest.raises(InputError, match=complaint):
            dd.certify_depths(model, tokenizer, **{"task": few, "depths": DEPTHS, "epsilon": 0.5, **given})


def test_rows_that_routes_were_searched_on_are_refused(model, tokenizer, few):
    from depthdial.data.leakage import prompt_hashes

    searched = dd.Route((0, 1, 2, 5), 6, "found", searched_on=frozenset(prompt_hashes(few)[:1]))
    with pytest.raises(InputError, match="were used to search the routes: take rows that were not"):
        dd.certify_depths(model, tokenizer, task=few, depths=searched, epsilon=0.5, **SIZE)


def test_rows_that_repeat_a_prompt_are_told(caplog):
    task = make_task(["a", "b", "a", "a"], ["1", "2", "3", "4"])
    tell_repeated(task)
    assert "2 of the 4 rows repeat the prompt of another row" in caplog.text
    caplog.clear()
    tell_repeated(replace(task, examples=task.examples[:2]))
    assert not caplog.text
