"""Conversations in rows: every usual shape gives the same messages, and what is no text is refused by its row."""

import json

import pytest

from depthdial.data.chat_rows import is_conversation, last_reply, read_conversation, split_reply
from depthdial.errors import InputError

SAID = (("system", "Be terse."), ("user", "Hi."), ("assistant", "Yo."), ("user", "Why?"), ("assistant", "So."))
OPENAI = [{"role": role, "content": text} for role, text in SAID]
SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}


@pytest.mark.parametrize(
    "value",
    [
        OPENAI,
        [{"from": SHAREGPT[role], "value": text} for role, text in SAID],
        {"role": [role for role, _ in SAID], "content": [text for _, text in SAID]},
        json.dumps(OPENAI),
        [{"role": role, "content": [{"type": "text", "text": text}], "tool_calls": None} for role, text in SAID],
    ],
)
def test_every_shape_gives_the_same_conversation(value):
    assert is_conversation(value)
    assert read_conversation(value, "Row 1") == SAID
    assert split_reply(SAID) == (SAID[:-1], "So.")


@pytest.mark.parametrize(
    "value", [None, "", "Hi.", [], ["Hi."], [["user", "Hi."]], {"text": ["a"], "answer_start": [1]}, 3, [{}]]
)
def test_other_values_are_no_conversations(value):
    assert not is_conversation(value)


def test_where_the_user_has_the_last_word_there_is_no_reply():
    assert split_reply(SAID[:-1]) == (SAID[:-1], None)
    assert last_reply(SAID[:-1]) == "Yo." and last_reply(SAID[:2]) is None


@pytest.mark.parametrize("name", ["human", "User", "chatgpt", "bing", "model", "tool", "observation"])
def test_usual_names_of_speakers_are_known(name):
    ((role, _),) = read_conversation([{"from": name, "value": "x"}], "Row 1")
    assert role in ("user", "assistant", "tool")


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "narrator", "content": "x"}, "^Row 4 has a message from 'narrator': call the roles"),
        ({"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}, "^Row 4 has a message that calls a tool"),
        ({"role": "user", "content": [{"type": "image", "url": "x"}]}, "^Row 4 has a message with a part that is not text"),
        ({"role": "user", "content": 3}, "^Row 4 has a message whose content is of type int"),
    ],
)
def test_what_is_no_text_is_refused_by_its_row(message, said):
    with pytest.raises(InputError, match=said):
        read_conversation([message], "Row 4")
