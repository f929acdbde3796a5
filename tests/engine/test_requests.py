"""Prompts and messages."""

from __future__ import annotations

import pytest

import depthdial as dd
from depthdial.errors import InputError

CHAT = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
TALK = [
    {"role": "system", "content": "in one"},
    {"role": "user", "content": "the cat"},
    {"role": "assistant", "content": "sat"},
    {"role": "user", "content": "a dog"},
]


@pytest.fixture
def chatty(tokenizer):
    tokenizer.chat_template = CHAT
    return tokenizer


def test_messages_are_answered_as_the_chat_template_puts_them(model, chatty):
    for talk in (TALK[1:2], TALK):
        text = chatty.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
        (answer,) = dd.generate(model, chatty, messages=talk, depth="uls:4", max_new_tokens=5)
        (plain,) = dd.generate(model, chatty, text, template="plain", depth="uls:4", max_new_tokens=5)
        assert (answer.prompt, answer.tokens) == (text, plain.tokens)
    (prompt,) = dd.generate(model, chatty, "the cat", max_new_tokens=5)
    assert prompt.tokens == dd.generate(model, chatty, messages=TALK[1:2], max_new_tokens=5)[0].tokens


def test_several_chats_are_each_answered_as_alone(model, chatty):
    chats = [TALK, TALK[:2], tuple(TALK[1:2]), TALK[:3]]
    together = dd.generate(model, chatty, messages=chats, max_new_tokens=5)
    assert [a.tokens for a in together] == [
        dd.generate(model, chatty, messages=c, max_new_tokens=5)[0].tokens for c in chats
    ]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "either prompts or messages: give one of them"),
        ({"prompts": "the cat", "messages": TALK}, "either prompts or messages: give one of them"),
        ({"messages": []}, "give at least one message"),
        ({"messages": "the cat"}, "Messages are a list"),
        ({"messages": ["the cat"]}, "Message 0 is 'the cat'"),
        ({"messages": [TALK, []]}, "give at least one message"),
        ({"messages": TALK, "template": "plain"}, "Messages need the tokenizer's chat template, not 'plain'"),
        ({"prompts": []}, "give at least one"),
        ({"prompts": ["a", 7]}, "Prompts are a text or a list of texts"),
        ({"prompts": b"the cat"}, "Prompts are a text or a list of texts"),
        ({"prompts": {"a": 1}}, "Prompts are a text or a list of texts"),
        ({"prompts": 7}, "Prompts are a text or a list of texts"),
        ({"prompts": ["the cat", ""], "template": "plain"}, "Prompt 1 of 2 is empty: write something"),
        ({"prompts": " ", "template": "plain"}, "A prompt is empty: write something"),
        ({"prompts": "a \ud83d", "template": "plain"}, "lone surrogate"),
        ({"prompts": ["a", "the " * 200], "template": "plain"}, "has 200 tokens but the model's context is 128: shorten"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(model, chatty, given, told):
    with pytest.raises(InputError, match=told):
        dd.generate(model, chatty, **given)


def test_messages_need_a_chat_template(model, tokenizer):
    with pytest.raises(InputError, match="no chat template, which messages need: give prompts"):
        dd.generate(model, tokenizer, messages=TALK)
