"""Several answers to a prompt: those of a prompt that is repeated, in transformers' order."""

from __future__ import annotations

import pytest

import depthdial as dd
from depthdial.errors import InputError
from depthdial.routes import Route

PROMPTS = ["the cat", "a dog sat on the mat", "one two three"]
HOT = {"do_sample": True, "temperature": 3.0, "top_k": 0, "eos_token_id": None, "max_new_tokens": 6, "seed": 5}


def tokens(answers):
    return [(a.prompt, a.tokens) for a in answers]


@pytest.mark.parametrize("name", ["num_return_sequences", "n"])
def test_they_are_those_of_a_repeated_prompt(model, tokenizer, name):
    several = dd.generate(model, tokenizer, PROMPTS, **{name: 3}, **HOT)
    repeated = [prompt for prompt in PROMPTS for _ in range(3)]
    assert [a.prompt for a in several] == repeated
    assert tokens(several) == tokens(dd.generate(model, tokenizer, repeated, **HOT))
    assert len({a.tokens for a in several[:3]}) == 3
    for size in (1, 4):
        assert tokens(several) == tokens(dd.generate(model, tokenizer, PROMPTS, **{name: 3}, batch_size=size, **HOT))
    assert tokens(several)[::3] == tokens(dd.generate(model, tokenizer, PROMPTS, **HOT))


def test_answers_to_one_prompt_take_its_depth(model, tokenizer):
    rule = Route.parse("rls:3@1", 6)
    drawn = dd.generate(model, tokenizer, PROMPTS, depth=rule, n=2, **HOT)
    assert [a.route for a in drawn] == [rule.for_sequence(i) for i in (0, 0, 1, 1, 2, 2)]
    own = dd.generate(model, tokenizer, PROMPTS, depth=["full", "uls:3", "full"], n=2, **HOT)
    assert [len(a.route) for a in own] == [6, 6, 3, 3, 6, 6]
    gated = dd.generate(model, tokenizer, PROMPTS[0], depth=dd.Bernoulli((0.5,) * 6, seed=1), n=4, **HOT)
    assert len({a.layers_run for a in gated}) > 1  # layers are drawn anew for each answer
    with pytest.raises(InputError, match="a list of 6 for 3 prompts"):
        dd.generate(model, tokenizer, PROMPTS, depth=["full"] * 6, n=2, **HOT)


def test_the_models_own_setting_counts(model, tokenizer):
    model.generation_config.num_return_sequences = 2
    assert len(dd.generate(model, tokenizer, PROMPTS, **HOT)) == 6
    assert len(dd.generate(model, tokenizer, PROMPTS, num_return_sequences=1, **HOT)) == 3
    assert len(dd.generate(model, tokenizer, PROMPTS, n=3, **HOT)) == 9
    assert len(dd.generate(model, tokenizer, PROMPTS, max_new_tokens=2, num_return_sequences=None)) == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_return_sequences": 2}, "num_return_sequences=2 is for sampled answers, .*: give do_sample=True too."),
        ({"n": 3}, "The option n=3 is for sampled answers, .*: give do_sample=True too."),
        ({"n": 0}, "Invalid n 0: use a whole number of at least 1."),
        ({"num_return_sequences": "2"}, "Invalid num_return_sequences '2': use a whole number"),
        ({"n": True}, "Invalid n True: use a whole number"),
        (
            {"n": 2, "num_return_sequences": 3, "do_sample": True},
            "num_return_sequences=3 and n=2 are the same setting: give one",
        ),
        ({"n": 2, "do_sample": True, "on_text": print}, "One answer can be streamed, not 2: leave on_text out"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_for_is_one_sentence(model, tokenizer, options, told):
    with pytest.raises(InputError, match=told) as refused:
        dd.generate(model, tokenizer, "the cat", max_new_tokens=2, **options)
    assert "\n" not in str(refused.value)


def test_one_greedy_answer_may_be_asked_for(model, tokenizer):
    plain = dd.generate(model, tokenizer, PROMPTS, max_new_tokens=3)
    assert tokens(dd.generate(model, tokenizer, PROMPTS, max_new_tokens=3, n=1, num_return_sequences=1)) == tokens(plain)
