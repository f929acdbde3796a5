"""OpenAI's penalties and biases against a slow reference: the model run anew for every token, penalties in plain Python."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

import depthdial as dd
from depthdial.engine.penalties import CountPenalty, LogitBias, read_penalties
from depthdial.errors import InputError

PROMPTS = ["the cat sat on the mat and ran", "a dog", "one two three four five six of in it is was"]
CASES = [
    {"presence_penalty": 1.5},
    {"presence_penalty": -2},
    {"frequency_penalty": 0.9},
    {"frequency_penalty": 0.4, "presence_penalty": 0.6},
    {"logit_bias": {7: 4.0, "9": -100, 11: 1.5}},
    {"logit_bias": {5: 3}, "frequency_penalty": 1.0, "repetition_penalty": 1.4},
]


def by_hand(
    model, tokenizer, prompt, n_tokens, presence_penalty=0, frequency_penalty=0, logit_bias=None, repetition_penalty=1
):
    ids = tokenizer(prompt)["input_ids"]
    answer: list[int] = []
    for _ in range(n_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([[*ids, *answer]])).logits[0, -1].tolist()
        for token, bias in (logit_bias or {}).items():
            logits[int(token)] += bias
        for token in {*ids, *answer}:
            logits[token] *= 1 / repetition_penalty if logits[token] > 0 else repetition_penalty
        for token, count in Counter(answer).items():  # of generated tokens alone
            logits[token] -= frequency_penalty * count + presence_penalty
        answer.append(max(range(len(logits)), key=logits.__getitem__))
    return answer


def tokens(model, tokenizer, prompts=PROMPTS, **options):
    return [list(a.tokens) for a in dd.generate(model, tokenizer, prompts, eos_token_id=None, max_new_tokens=12, **options)]


@pytest.mark.parametrize("options", CASES, ids=lambda o: "-".join(o))
def test_greedy_answers_are_those_of_the_definition(model, tokenizer, options):
    expected = [by_hand(model, tokenizer, prompt, 12, **options) for prompt in PROMPTS]
    assert expected != tokens(model, tokenizer)
    assert tokens(model, tokenizer, **options) == expected == tokens(model, tokenizer, batch_size=1, **options)


@pytest.mark.parametrize("options", CASES, ids=lambda o: "-".join(o))
def test_sampled_answers_do_not_depend_on_the_batch(model, tokenizer, options):
    given = {"do_sample": True, "temperature": 1.5, "seed": 4, "depth": "uls:4", **options}
    together = tokens(model, tokenizer, **given)
    assert together == tokens(model, tokenizer, batch_size=2, **given)
    assert together == [tokens(model, tokenizer, [prompt], **given)[0] for prompt in PROMPTS]
    assert together[::-1] == tokens(model, tokenizer, PROMPTS[::-1], **given)


def test_a_bias_forbids_or_forces_a_token(model, tokenizer):
    assert tokens(model, tokenizer, logit_bias={8: 100}) == [[8] * 12] * 3
    plain = tokens(model, tokenizer)
    forbidden = plain[0][0]
    assert all(forbidden not in answer for answer in tokens(model, tokenizer, logit_bias={forbidden: -100}))


def test_what_changes_nothing_is_left_out(model, tokenizer):
    neutral = {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}}
    assert read_penalties(neutral) == read_penalties({}) == {}
    assert tokens(model, tokenizer, **neutral) == tokens(model, tokenizer)
    assert tokens(model, tokenizer, logit_bias=None, presence_penalty=None) == tokens(model, tokenizer)


def test_a_generation_config_may_hold_them_and_that_of_a_model_does_not_count(model, tokenizer):
    expected = tokens(model, tokenizer, presence_penalty=1.5)
    assert tokens(model, tokenizer, generation_config={"presence_penalty": 1.5}) == expected != tokens(model, tokenizer)
    plain = tokens(model, tokenizer)
    model.generation_config.presence_penalty = 1.5  # transformers' own generate passes over it
    assert tokens(model, tokenizer) == plain


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"presence_penalty": 2.1}, "Invalid presence_penalty 2.1: use a number of at least -2 and at most 2."),
        ({"frequency_penalty": -3}, "Invalid frequency_penalty -3: use a number of at least -2 and at most 2."),
        ({"frequency_penalty": "much"}, "Invalid frequency_penalty 'much': use a number"),
        ({"presence_penalty": True}, "Invalid presence_penalty True: use a number"),
        ({"presence_penalty": float("nan")}, "Invalid presence_penalty nan: use a number"),
        ({"logit_bias": [1, 2]}, "logit_bias is a dict of token ids to numbers, not list: give such as"),
        ({"logit_bias": {"cat": 1}}, "logit_bias is by token ids, whole numbers from 0, not 'cat': give such as"),
        ({"logit_bias": {-1: 1}}, "logit_bias is by token ids, whole numbers from 0, not -1: give such as"),
        ({"logit_bias": {True: 1}}, "logit_bias is by token ids, whole numbers from 0, not True: give such as"),
        ({"logit_bias": {3: 101}}, "Invalid logit_bias of token 3 101: use a number of at least -100 and at most 100."),
        ({"logit_bias": {3: None}}, "Invalid logit_bias of token 3 None: use a number"),
        ({"logit_bias": {999: 1}}, "logit_bias names token 999, and the model's end at 29: leave it out."),
        ({"presence_penality": 1}, "There is no argument 'presence_penality' .*: did you mean 'presence_penalty'"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(model, tokenizer, options, told):
    with pytest.raises(InputError, match=told) as refused:
        tokens(model, tokenizer, **options)
    assert "\n" not in str(refused.value)


def test_logits_that_come_in_are_left_as_they_are():
    scores, ids = torch.randn(1, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([[1, 2, 3, 3, 5, 3]])
    before = scores.clone()
    penalised = CountPenalty(2, presence=0.5, frequency=0.25)(ids, scores)
    assert (before - penalised).tolist()[0] == pytest.approx([0, 0, 0, 1.25, 0, 0.75], abs=1e-6)
    biased = LogitBias([(np.int64(1), 2.0), (4, -1.0)], 6, "cpu")(ids, scores)
    assert (biased - before).tolist()[0] == pytest.approx([0, 2, 0, 0, -1, 0], abs=1e-6)
    assert torch.equal(scores, before)
    assert torch.equal(CountPenalty(6, presence=2.0)(ids, scores), before)  # nothing generated yet
