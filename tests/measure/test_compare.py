"""Answers of depths side by side are those of `generate`, and the rows those of a sweep."""

from __future__ import annotations

import pytest

import depthdial as dd
from depthdial.errors import InputError
from depthdial.files import read_json
from depthdial.measure.compare import compare, compare_rows

PROMPTS = ["the cat", "a dog sat on the mat"]


@pytest.mark.parametrize("prompt_depth", ["full", "route"])
def test_answers_are_those_of_generate(model, tokenizer, weights_of, assert_same, prompt_depth):
    before = weights_of(model)
    depths = ["full", "uls:4", dd.Route((0, 1, 2, 3, 5), 6, "own"), "full"]
    found = compare(model, tokenizer, PROMPTS, depths=depths, prompt_depth=prompt_depth, max_new_tokens=6)
    assert_same(before, weights_of(model))
    assert [one.prompt for one in found] == PROMPTS
    for comparison in found:
        assert [one.depth for one in comparison.answers] == ["full", "uls:4", "own", "full"]
        first = comparison.answers[0].answer.tokens
        for one, depth in zip(comparison.answers, depths, strict=True):
            options = {"depth": depth, "prompt_depth": prompt_depth, "max_new_tokens": 6}
            alone = dd.generate(model, tokenizer, comparison.prompt, **options)[0]
            assert (one.answer.tokens, one.answer.route, one.answer.batch_size) == (alone.tokens, alone.route, 1)
            same = one.same_tokens
            assert one.answer.tokens[:same] == first[:same]
            assert one.is_same == (one.answer.tokens == first)
            assert one.is_same or one.answer.tokens[same : same + 1] != first[same : same + 1]
    assert any(not one.is_same for comparison in found for one in comparison.answers)


def test_what_generate_takes_is_taken(model, tokenizer):
    options = {"do_sample": True, "temperature": 2.0, "seed": 4, "max_new_tokens": 5}
    (one,) = compare(model, tokenizer, "the cat", depths=["full", "lossless"], **options)
    assert one.answers[1].is_same


def test_one_depth_is_no_comparison(model, tokenizer, small_task, tmp_path):
    with pytest.raises(InputError, match="There are 1 depths to compare"):
        compare(model, tokenizer, "the cat", depths=["full"])
    with pytest.raises(InputError, match="is one depth: give two or more"):
        compare_rows(model, tokenizer, task=small_task, depths="full,0-5", out=tmp_path)
    with pytest.raises(InputError, match="no_such_option"):
        compare(model, tokenizer, "the cat", depths=["full", "ee:3"], no_such_option=1)


def test_rows_are_a_sweeps_with_their_texts(model, tokenizer, small_task, tmp_path):
    options = {"depths": "uls:4,full", "out": tmp_path, "prompt_depth": "route", "max_new_tokens": 4}
    rows = compare_rows(model, tokenizer, task=small_task, **options)
    swept = {"routes": "uls:4,full", "prompt_depth": "route", "max_new_tokens": 4, "fidelity_tokens": 4, "keep_text": True}
    expected = dd.sweep(model, tokenizer, task=small_task, metrics=("rouge_l", "agreement"), **swept)
    same = ["sequence_id", "route", "answer", "rouge_l", "agreement", "new_tokens"]
    assert rows.select(same).equals(expected.select(same))
    assert read_json(tmp_path / "study.json", "comparison") == {"kind": "compare", "routes": ["uls:4", "full"]}
