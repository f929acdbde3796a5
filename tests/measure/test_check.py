"""What ships against the full model: against scores taken by hand, killed and gone on with, over files and over HTTP."""

from __future__ import annotations

from dataclasses import replace

import pytest

import depthdial as dd
from depthdial.data.leakage import prompt_hashes
from depthdial.errors import InputError
from depthdial.files import read_json
from depthdial.hf.trained import note_training
from depthdial.measure.check import agreement, check
from depthdial.measure.quality import rouge
from tests.conftest import make_llama
from tests.measure.servers import serving

N = 6  # tokens of an answer


@pytest.fixture
def run(model, tokenizer, small_task):
    def go(target, **options):
        return check(target, model, tokenizer, task=small_task, **{"max_new_tokens": N, "batch_size": 3, **options})

    return go


@pytest.fixture
def saved(model, tokenizer, tmp_path):
    """A route of the model, as a folder that anybody's tools load."""
    folder = tmp_path / "shipped"
    dd.view(model, "0,1,2,3,5").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_model_itself_keeps_everything(run, model, tokenizer, weights_of, assert_same):
    before = weights_of(model)
    result = run((model, tokenizer))
    assert_same(before, weights_of(model))
    assert (result.answer, result.metric, result.rows.num_rows) == ("yes", "rouge_l", 7)
    assert result.keeping.kept.mean == 1 and result.scores["same"].mean == result.scores["agreement"].mean == 1
    assert result.sentence.startswith("Keeps at least 95% of the full model's ROUGE-L against the references: yes, 100.0%")


def test_a_saved_folder_is_judged_as_it_runs_with_its_prompt_on_the_route(run, saved, model, tokenizer, small_task):
    result = run(saved, keep_text=True, out=saved.parent / "rows")
    rows = result.rows.to_pylist()
    prompts = [example.instruction for example in small_task.examples]
    shallow = dd.generate(model, tokenizer, prompts, depth="0,1,2,3,5", prompt_depth="route", max_new_tokens=N)
    full = dd.generate(model, tokenizer, prompts, max_new_tokens=N)
    for row, own, other, example in zip(rows, full, shallow, small_task.examples, strict=True):
        assert (row["full_answer"], row["target_answer"]) == (own.text, other.text)
        assert (row["full_finish"], row["target_finish"]) == tuple(
            "stop" if one.finish_reason == "eos" else "length" for one in (own, other)
        )
        assert row["rouge_l_answers"] == rouge(other.text, own.text)["rouge_l"]
        expected = None if example.reference is None else rouge(other.text, example.reference)["rouge_l"]
        assert row["rouge_l"] == expected
        assert row["same"] == (own.text == other.text)
        assert (row["reference"], row["prompt"]) == (example.reference, example.instruction)
    behind_full_prompts = dd.generate(model, tokenizer, prompts, depth="0,1,2,3,5", max_new_tokens=N)
    assert [one.text for one in behind_full_prompts] != [row["target_answer"] for row in rows]
    assert read_json(saved.parent / "rows" / "check.json", "check") == result.to_dict()


def test_a_server_is_asked_for_the_very_same_tokens(run, model, tokenizer, small_task, tmp_path):
    def answer(prompt, limit):
        ids = prompt if isinstance(prompt, list) else tokenizer(prompt)["input_ids"]
        one = dd.generate(model, tokenizer, tokenizer.decode(ids), max_new_tokens=limit)[0]
        return one.text, "stop" if one.finish_reason == "eos" else "length"

    with serving(answer) as served:
        result = run(served.url, out=tmp_path / "rows")
        assert result.scores["same"].mean == result.scores["agreement"].mean == 1 and result.answer == "yes"
        assert sorted(body["prompt"] for body in served.asked) == sorted(
            tokenizer(example.instruction)["input_ids"] for example in small_task.examples
        )
        again = run(served.url, out=tmp_path / "rows")  # nothing is asked twice
        assert again.rows.equals(result.rows) and len(served.asked) == 7
        result = run(served.url, send="text", metric="agreement")
        assert result.scores["same"].mean == 1 and isinstance(served.asked[-1]["prompt"], str)


def test_a_stopped_check_goes_on_and_its_rows_are_those_of_one_that_was_not(run, saved, tmp_path, monkeypatch):
    from depthdial.measure.targets import LoadedTarget

    whole, answers, done = run(saved), LoadedTarget.answers, []

    def stops(self, places, n):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(list(places))
        return answers(self, places, n)

    with monkeypatch.context() as patched:
        patched.setattr(LoadedTarget, "answers", stops)
        with pytest.raises(KeyboardInterrupt):
            run(saved, out=tmp_path / "rows")
    counted = []
    monkeypatch.setattr(LoadedTarget, "answers", lambda self, places, n: counted.append(places) or answers(self, places, n))
    resumed = run(saved, out=tmp_path / "rows")
    assert [list(places) for places in counted] == [[3, 4, 5], [6]] and done == [[0, 1, 2]]
    timeless = [name for name in whole.rows.column_names if name not in ("target_sec", "settings_hash")]
    assert resumed.rows.select(timeless).equals(whole.rows.select(timeless))
    with pytest.raises(InputError, match="holds a run with another max_new_tokens"):
        run(saved, out=tmp_path / "rows", max_new_tokens=N + 1)


def test_rows_without_references_are_judged_by_the_answers(run, model, tokenizer, small_task):
    bare = replace(small_task, examples=tuple(replace(e, reference=None) for e in small_task.examples))
    other = make_llama(seed=3)
    result = check((other, tokenizer), model, tokenizer, task=bare, max_new_tokens=N)
    assert (result.metric, result.answer) == ("rouge_l_answers", "no") and "rouge_l" not in result.scores
    with pytest.raises(InputError, match="No row can be judged by rouge_l"):
        check((other, tokenizer), model, tokenizer, task=bare, max_new_tokens=N, metric="rouge_l")


def test_adapters_are_off_for_the_full_models_answers(run, model, tokenizer, small_task, with_lora):
    adapted = with_lora(make_llama(), scale=4.0)
    result = check((model, tokenizer), adapted, tokenizer, task=small_task, max_new_tokens=N)
    assert result.scores["same"].mean == 1


def test_rows_that_a_model_was_trained_on_are_refused(run, model, tokenizer, small_task):
    other = make_llama()
    note_training(other, prompt_hashes(small_task)[:2])
    with pytest.raises(InputError, match="2 of the 7 sequences"):
        run((other, tokenizer))
    assert run((other, tokenizer), allow_searched_rows=True).answer == "yes"


@pytest.mark.parametrize(
    ("target", "options", "complaint"),
    [
        ("no/such/folder", {}, "no folder"),
        ("missing.gguf", {}, "There is no file missing.gguf"),
        (None, {"keep": 2}, "Invalid keep 2"),
        (None, {"metric": "bleu"}, "Unknown metric 'bleu': use rouge_l, rouge_l_answers or agreement"),
        (None, {"send": "bytes"}, "Unknown form of prompts 'bytes'"),
        (None, {"max_new_tokens": 0}, "Invalid max_new_tokens 0"),
    ],
)
def test_bad_input(run, model, tokenizer, target, options, complaint):
    with pytest.raises(InputError, match=complaint):
        run(target or (model, tokenizer), **options)


@pytest.mark.parametrize(
    ("own", "other", "share"),
    [([1, 2, 3], [1, 2, 3, 4], 1), ([1, 2, 3, 4], [1, 2, 3], 0.75), ([1], [2], 0), ([], [], 1), ([], [1], 0)],
)
def test_agreement_counts_up_to_the_first_difference(own, other, share):
    assert agreement(own, other) == share
