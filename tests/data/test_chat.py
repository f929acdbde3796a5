"""Chat templates that people have: each message comes out, or one sentence says why it does not."""

from __future__ import annotations

import pytest

from depthdial.data.chat import ChatTemplate, check_conversation
from depthdial.data.templates import Prompter
from depthdial.errors import InputError
from tests.data.test_templates import CHAT, make_tokenizer

PARTS = "{% for m in messages %}{% for c in m['content'] %}{{ c['text'] }};{% endfor %}{% endfor %}"
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "the sea?"},
    {"role": "assistant", "content": "A lake."},
    {"role": "user", "content": "the river?"},
]


def chat(template):
    return ChatTemplate(make_tokenizer(chat_template=template))


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("{{ messages[0]['content'] | trim | upper }}", "THE SEA"),
        ("{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}", "the sea"),
        ({"default": "{{ messages[0]['content'] }}", "rag": "x"}, "the sea"),
        ("{{ strftime_now('') }}{{ messages[0]['content'] }}", "the sea"),
        (PARTS, "the sea;"),
        ("{% for m in messages %}{{ m['content'][0]['text'] + 'x' }}{% endfor %}", "the seax"),
    ],
)
def test_a_user_message_comes_out_as_text_or_as_parts(template, prompt):
    tokenizer = make_tokenizer(chat_template=template)
    assert tokenizer.decode(Prompter("chat", "prompt", tokenizer).ids("the sea")) == prompt


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('A system message is required') }}", "refused a user message .A system message is required.:"),
        ("{{ 'S: ' + none + messages[0]['content'] }}", "refused a user message .can only concatenate str"),
        ("{% for m in messages %}{{ m['content'] }}", "refused a user message .Unexpected end of template"),
        ("{{ messages[0]['content'] | nosuch }}", "refused a user message .No filter named 'nosuch'.:"),
        ("{{ messages[7]['content'] + 'x' }}", "refused a user message"),
        ("{{ 1 // 0 }}{{ messages[0]['content'] }}", "refused a user message"),
        ({"tool_use": CHAT, "rag": CHAT}, r"several chat templates \('rag', 'tool_use'\)"),
        ("{% if false %}x{% endif %}", "leaves the user message out of the prompt"),
        ("{{ bos_token }}[INST]", "leaves the user message out of the prompt"),
    ],
)
def test_a_template_that_cannot_be_used_says_why_in_one_sentence(template, reason):
    prompter = Prompter("chat", "prompt", make_tokenizer(chat_template=template))
    with pytest.raises(InputError, match=reason) as refused:
        prompter.ids("the sea")
    assert "'plain'." in str(refused.value) and "\n" not in str(refused.value)


def test_a_conversation_is_what_the_template_makes_of_it():
    tokenizer = make_tokenizer(chat_template=CHAT)
    for talk in (TALK[1:2], TALK[:2], TALK):
        text, ids = ChatTemplate(tokenizer).render(check_conversation(talk))
        assert text == tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
        assert ids == tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)


def test_an_answer_that_was_begun_is_continued():
    text, _ = chat(CHAT).render(TALK[:3])
    assert text.endswith("<|assistant|>\nA lake.")


def test_content_may_be_given_and_taken_either_way():
    as_parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in TALK]
    for template in (CHAT, PARTS):
        assert chat(template).render(TALK) == chat(template).render(as_parts)
    assert chat(PARTS).render(TALK)[0] == "Be brief.;the sea?;A lake.;the river?;"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages[-1]['content'] }}", r"leaves message 0 \(system\) out of the prompt: give messages"),
        ("{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}", "No system role"),
    ],
)
def test_a_message_is_not_left_out_silently(template, reason):
    with pytest.raises(InputError, match=reason):
        chat(template).render(TALK)


@pytest.mark.parametrize(
    ("conversation", "reason"),
    [
        ([], "give at least one message"),
        ("hello", "not 'hello': give at least one message"),
        ({"role": "user", "content": "hello"}, "Messages are a list"),
        (["hello"], "Message 0 is 'hello': write it as"),
        ([{"content": "hello"}], "Message 0 is"),
        ([{"role": "user"}], "The content of message 0 is None: give its text"),
        ([{"role": "user", "content": 7}], "The content of message 0 is 7"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "part of type 'image'"),
        ([TALK[0], {"role": "user", "content": "a\ud83d"}], "Message 1 has half of a character"),
    ],
)
def test_what_is_no_conversation(conversation, reason):
    with pytest.raises(InputError, match=reason):
        check_conversation(conversation)


def test_a_lone_surrogate_is_refused_before_the_tokenizer_sees_it():
    for template, name in ((CHAT, "chat"), (None, "plain")):
        with pytest.raises(InputError, match=r"lone surrogate '\\ud83d', at place 4: "):
            Prompter(name, "prompt", make_tokenizer(chat_template=template)).ids("the \ud83d sea")
