from __future__ import annotations

import pytest

from depthdial.hf.ends import eos_ids, turn_end
from tests.conftest import make_llama, make_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}{{ '<|head|>' + m['role'] + '<|/head|>\n\n' }}"
    "{{ (m['content'] | trim) + '<|eot_id|>' }}{% endfor %}"
)
GEMMA = "{% for m in messages %}{{ '<start_of_turn>' + m['role'] + '\n' + m['content'] + '<end_of_turn>\n' }}{% endfor %}"
PHI3 = "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}{{ eos_token }}"
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
PARTS = "{% for m in messages %}{{ m['content'][0]['text'] + '<|im_end|>' }}{% endfor %}"
PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
REFUSES = "{{ raise_exception('no assistants here') }}"


def chatty(template, *added):
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(added)})
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        (LLAMA3, "<|eot_id|>"),
        (GEMMA, "<end_of_turn>"),
        (PHI3, "<|end|>"),
        (LLAMA2, "</s>"),
        (PARTS, "<|im_end|>"),
    ],
)
def test_the_templates_own_end_token(template, end):
    added = (
        "<|im_start|>",
        "<|im_end|>",
        "<|head|>",
        "<|/head|>",
        "<|eot_id|>",
        "<start_of_turn>",
        "<end_of_turn>",
        "<|end|>",
    )
    tokenizer = chatty(template, *added)
    found = turn_end(tokenizer)
    assert found == tokenizer.convert_tokens_to_ids(end)
    model = make_llama()
    assert eos_ids(model, tokenizer) == tuple(sorted({tokenizer.eos_token_id, found}))


@pytest.mark.parametrize("template", [None, PLAIN, REFUSES, "nothing"])
def test_a_template_without_one(template):
    tokenizer = chatty(template)
    assert turn_end(tokenizer) is None
    assert eos_ids(make_llama(), tokenizer) == (tokenizer.eos_token_id,)


def test_an_end_that_is_no_token_of_its_own_is_text():
    assert turn_end(chatty(CHATML, "<|im_start|>")) is None
