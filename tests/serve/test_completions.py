"""`/v1/completions`, asked by the openai client, as lm-eval's `local-completions` asks too."""

from __future__ import annotations

import openai
import pytest
import torch

import depthdial as dd

IDS = [4, 6, 8, 10]


def ask(client, **given):
    return client.completions.create(**{"model": "tiny", "prompt": "the cat", "temperature": 0, "max_tokens": 4, **given})


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("the cat", ["the cat"]),
        (["the cat", "a dog"], ["the cat", "a dog"]),
        ([4, 6], ["the cat"]),
        ([[4, 6], [5, 7]], ["the cat", "a dog"]),
    ],
)
def test_texts_and_tokens(server, client, prompt, texts):
    answer = ask(client, prompt=prompt, extra_body={"depth": "mine-3"})
    own = server.engine.run(texts, depth=dd.Route((0, 1, 5), 6), max_new_tokens=4, template="plain")
    assert [choice.text for choice in answer.choices] == [one.text for one in own]
    assert [choice.index for choice in answer.choices] == list(range(len(texts)))
    assert answer.usage.prompt_tokens == 2 * len(texts)


def test_several_answers_to_several_prompts(client):
    options = {"prompt": ["the cat", "a dog"], "n": 2, "temperature": 1.0, "seed": 1}
    whole = ask(client, **options)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    chunks = [one.choices[0] for one in ask(client, stream=True, **options)]
    for choice in whole.choices:
        assert "".join(one.text for one in chunks if one.index == choice.index) == choice.text
        assert [one.finish_reason for one in chunks if one.index == choice.index][-1] == choice.finish_reason


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("depth", ["full", "mine-3"])
def test_likelihoods_of_a_prompt(server, client, depth, max_tokens):
    """What lm-eval reads: all tokens but the first are scored on the depth, the prompt's too."""
    options = {"prompt": [IDS, IDS[:2]], "max_tokens": max_tokens, "logprobs": 1, "echo": True}
    answer = ask(client, extra_body={"depth": depth}, **options)
    ready = server.app.state.service.ready
    view = dd.view(ready.depths.model, ready.depths.read(depth).route)
    with torch.no_grad():
        logits = view(torch.tensor([IDS])).logits[0].log_softmax(-1)
    told = answer.choices[0].logprobs
    assert told.tokens[:4] == ["the", "cat", "sat", "on"] and told.token_logprobs[0] is told.top_logprobs[0] is None
    assert told.text_offset[:4] == [0, 3, 6, 9] and len(told.tokens) == 4 + max_tokens
    for place in range(1, 4):
        assert told.token_logprobs[place] == pytest.approx(logits[place - 1, IDS[place]].item(), abs=1e-4)
        assert max(told.top_logprobs[place].values()) == pytest.approx(logits[place - 1].max().item(), abs=1e-4)
    assert answer.choices[0].text.startswith("the cat sat on") and answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 2 * max_tokens
    pieces = [one.choices[0] for one in ask(client, stream=True, extra_body={"depth": depth}, **options)]
    first = [one for one in pieces if one.index == 0]
    assert "".join(one.text for one in first) == answer.choices[0].text and first[-1].finish_reason == "length"
    assert [token for one in first if one.logprobs for token in one.logprobs.tokens] == told.tokens
    assert [n for one in first if one.logprobs for n in one.logprobs.text_offset] == told.text_offset


def test_an_echo_without_logprobs(client):
    answer = ask(client, echo=True)
    assert answer.choices[0].text.startswith("the cat") and answer.choices[0].logprobs is None
    assert ask(client, echo=True, max_tokens=0).choices[0].text == "the cat"


def test_logprobs_of_answers(client):
    answer = ask(client, logprobs=2)
    told = answer.choices[0].logprobs
    assert len(told.tokens) == 4 and all(len(top) == 2 for top in told.top_logprobs) and told.text_offset[0] == 0
    chunks = [one.choices[0] for one in ask(client, logprobs=2, stream=True)]
    assert [one for chunk in chunks if chunk.logprobs for one in chunk.logprobs.token_logprobs] == told.token_logprobs


@pytest.mark.parametrize(
    ("given", "param", "code"),
    [
        ({"prompt": ""}, "prompt", "invalid"),
        ({"prompt": []}, "prompt", "invalid_type"),
        ({"prompt": [["the"]]}, "prompt", "invalid_type"),
        ({"prompt": [99]}, None, "invalid"),
        ({"prompt": [-1]}, None, "invalid"),
        ({"prompt": [4] * 128}, "prompt", "context_length_exceeded"),
        ({"max_tokens": 0}, "max_tokens", "invalid"),
        ({"suffix": "x"}, "suffix", "unsupported_parameter"),
        ({"best_of": 3}, "best_of", "unsupported_parameter"),
        ({"logprobs": 21}, "logprobs", "invalid_type"),
        ({"prompt": ["the cat"] * 200}, None, None),
    ],
)
def test_what_is_refused(server, client, given, param, code):
    with pytest.raises(openai.BadRequestError) as found:
        ask(client, **given)
    assert param is None or found.value.param == param
    assert code is None or found.value.code == code
    assert server.engine.stats().running == 0  # nothing of it runs


def test_defaults_that_ask_for_nothing_are_taken(client):
    assert ask(client, best_of=1, suffix="", user="me", presence_penalty=0, logit_bias={}).choices[0].text
