"""What `generate` and an engine refuse alike before anything runs."""

from __future__ import annotations

import pytest

import depthdial as dd
from depthdial.errors import InputError


def refused(model, tokenizer, message, prompt="the cat", **options):
    with pytest.raises(InputError, match=message):
        dd.generate(model, tokenizer, prompt, **options)
    with dd.Engine(model, tokenizer) as engine, pytest.raises(InputError, match=message):
        engine.submit(prompt, **options)


@pytest.mark.parametrize("name", ["logits_processor", "stopping_criteria"])
def test_functions_come_in_a_list(model, tokenizer, name):
    for given, what in ((lambda ids, scores: scores, "function"), (3, "int"), ("x", "str")):
        refused(model, tokenizer, f"{name} is a list of functions, not {what}: put it in a list", **{name: given})
    refused(model, tokenizer, f"{name} is a list of functions, and 3 is none", **{name: [3]})


def test_a_token_that_the_model_does_not_have_is_refused(model, tokenizer):
    model.resize_token_embeddings(20)
    assert dd.generate(model, tokenizer, "the cat", max_new_tokens=1)
    refused(model, tokenizer, "has token 29, and the model's end at 19: give the tokenizer", prompt="the six")


@pytest.mark.parametrize("name", ["flex_attention", "paged|sdpa"])
def test_an_attention_implementation_that_cannot_run_rows_is_refused(model, tokenizer, name):
    model.config._attn_implementation_internal = name
    message = f"attention implementation {name!r} cannot run .* attn_implementation='sdpa'"
    with pytest.raises(InputError, match=message.replace("|", "[|]")):
        dd.generate(model, tokenizer, "the cat")
    with pytest.raises(InputError, match=message.replace("|", "[|]")):
        dd.Engine(model, tokenizer)
