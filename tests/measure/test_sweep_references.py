"""Sweeps of rows without references, with several, and with some that ROUGE cannot see; tasks by their names."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import pytest

import depthdial as dd
from depthdial.errors import DataWarning, InputError
from depthdial.measure.sweep import default_metrics, sweep

OPTIONS = {"routes": ["full", "ee:3"], "max_new_tokens": 3, "fidelity_tokens": 3}


def with_references(task, *references):
    examples = [replace(e, reference=r) for e, r in zip(task.examples, references, strict=False)]
    return replace(task, examples=tuple(examples))


def test_references_that_rouge_cannot_see_are_null_with_one_sentence(model, tokenizer, small_task):
    task = with_references(small_task, "Привет", "on the mat", "你好 GPT-4 很高兴见到你")
    with pytest.warns(
        DataWarning, match=r"for 2 of 3 sequences \(such as 'small-0'\): take rouge_tokenizer='unicode'"
    ) as said:
        rows = sweep(model, tokenizer, task=task, **OPTIONS)
    assert len(said) == 1
    assert [row["rouge_l"] is None for row in rows.to_pylist()] == [True, False, True] * 2
    with pytest.raises(InputError, match=r"rouge_l.*agreement"):
        dd.oracle(rows, metric="rouge_l")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = sweep(model, tokenizer, task=task, rouge_tokenizer="unicode", **OPTIONS)
        sweep(model, tokenizer, task=task, metrics=("agreement",), **OPTIONS)
    assert seen.column("rouge_l").null_count == 0
    with pytest.raises(InputError, match="Unknown ROUGE tokenizer 'thai'"):
        sweep(model, tokenizer, task=task, rouge_tokenizer="thai", **OPTIONS)


def test_without_references_there_is_agreement_and_what_cannot_be_is_refused(model, tokenizer, small_task):
    task = with_references(small_task, None, None)
    rows = sweep(model, tokenizer, task=task, **OPTIONS)
    assert rows.column("agreement").null_count == rows.column("new_tokens").null_count == 0
    assert "agreement" in default_metrics(task, 4) and "agreement" not in default_metrics(small_task, 4)
    dd.oracle(rows, metric="agreement", n_bootstrap=0, n_permutations=0)
    with pytest.raises(InputError, match="No row of 'tests' has a reference, which rouge_l, nll would need: measure"):
        sweep(model, tokenizer, task=task, metrics=("nll", "rouge_l"), **OPTIONS)


def test_of_several_references_rouge_takes_the_best_and_nll_the_first(model, tokenizer, small_task):
    one = replace(small_task, examples=small_task.examples[:1])
    answer = sweep(model, tokenizer, task=one, keep_text=True, **OPTIONS).to_pylist()[0]["answer"]
    several = replace(one, examples=(replace(one.examples[0], other_references=(answer,)),))
    (before, after) = (sweep(model, tokenizer, task=task, **OPTIONS).to_pylist()[0] for task in (one, several))
    assert after["nll"] == before["nll"]
    assert after["rouge_l"] >= before["rouge_l"]


def test_a_path_stands_for_a_task(model, tokenizer, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ("the cat", "a dog")))
    rows = dd.sweep(model, tokenizer, task=str(path), metrics=("agreement",), **OPTIONS)
    assert rows.num_rows == 4
    with pytest.raises(InputError, match="Unknown task 'bultin'"):
        dd.similarity(model, tokenizer, task="bultin", routes=["full"])
    with pytest.raises(InputError, match="Unknown task 'bultin'"):
        dd.search_routes(model, tokenizer, task="bultin")
    with pytest.raises(InputError, match="Unknown task 'bultin'"):
        dd.finetune(model, tokenizer, task="bultin", routes=["ee:3"], out=tmp_path / "o")
