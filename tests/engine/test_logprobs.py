"""Log-probabilities of answers against a teacher-forced pass of the model by transformers."""

from __future__ import annotations

import pytest
import torch

import depthdial as dd
from depthdial.engine.logprobs import TokenLogprob, read_logprobs
from depthdial.errors import InputError

PROMPTS = ["the cat sat on the mat and ran", "a dog", "one two three four five six of in it is was"]
OPTIONS = [
    {},
    {"eos_token_id": [2, 11, 20]},
    {"stop_strings": ["six", "cat"]},
    {"presence_penalty": 2, "logit_bias": {7: 50}, "repetition_penalty": 1.5},
    {"do_sample": True, "temperature": 2.0, "top_k": 3, "seed": 1},
    {"depth": "uls:4", "prompt_depth": "route", "do_sample": True, "seed": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: next(iter(o), "plain"))
def test_they_are_the_log_softmax_of_the_models_own_logits(model, tokenizer, options):
    answers = dd.generate(model, tokenizer, PROMPTS, max_new_tokens=10, logprobs=3, **options)
    running = dd.view(model, options.get("depth", "full"))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = tokenizer(prompt)["input_ids"]
        with torch.no_grad():
            logits = running(torch.tensor([[*ids, *answer.tokens]])).logits[0]
        expected = logits.log_softmax(-1)[len(ids) - 1 : -1]
        assert tuple(one.token for one in answer.logprobs) == answer.tokens
        for one, row in zip(answer.logprobs, expected, strict=True):
            assert one.logprob == pytest.approx(float(row[one.token]), abs=1e-4)
            likeliest = row.topk(3)
            assert [token for token, _ in one.top] == likeliest.indices.tolist()
            assert [logprob for _, logprob in one.top] == pytest.approx(likeliest.values.tolist(), abs=1e-4)


def test_they_change_no_answer_and_are_those_of_each_row_alone(model, tokenizer):
    options = {"max_new_tokens": 8, "do_sample": True, "seed": 3, "depth": "uls:4", "frequency_penalty": 1.0}
    plain = dd.generate(model, tokenizer, PROMPTS, **options)
    told = dd.generate(model, tokenizer, PROMPTS, logprobs=2, **options)
    assert [a.tokens for a in plain] == [a.tokens for a in told]
    assert all(a.logprobs is None for a in plain)
    for prompt, answer in zip(PROMPTS, told, strict=True):
        (alone,) = dd.generate(model, tokenizer, prompt, logprobs=2, **options)
        assert [one.logprob for one in alone.logprobs] == pytest.approx([one.logprob for one in answer.logprobs], abs=1e-4)


def test_how_many_likeliest_tokens_are_told(model, tokenizer):
    def told(n):
        return dd.generate(model, tokenizer, "the cat", max_new_tokens=3, logprobs=n)[0].logprobs

    assert [one.top for one in told(0)] == [(), (), ()]
    assert [[token for token, _ in one.top] for one in told(1)] == [[one.token] for one in told(1)]  # greedy
    every = told(1000)
    assert all(len(one.top) == 30 and one.top[0] == (one.token, one.logprob) for one in every)
    assert sum(torch.tensor([p for _, p in every[0].top]).exp().tolist()) == pytest.approx(1, abs=1e-5)
    for n in (-1, True, 1.5, "all"):
        with pytest.raises(InputError, match=f"Invalid logprobs {n!r}: use a whole number of at least 0."):
            told(n)


def test_a_token_outside_of_the_likeliest_has_its_own():
    (one,) = read_logprobs(torch.tensor([[0.0, 1.0, 2.0]]).log(), torch.tensor([1]), 1)
    assert isinstance(one, TokenLogprob) and one.token == 1 and [token for token, _ in one.top] == [2]
    assert one.logprob == pytest.approx(torch.tensor(1 / 3).log().item())
