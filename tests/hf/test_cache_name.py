"""The KV cache goes by either of its names: `past_key_values` until transformers 5.23, `cache` from 5.24 on."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM
from transformers.modeling_outputs import BaseModelOutputWithPast

from depthdial.errors import InputError
from depthdial.hf.cache_name import (
    CACHE_NAMES,
    argument_name,
    cache_argument,
    cache_in,
    cache_name,
    cache_of,
    renamed,
    without_cache,
)
from depthdial.views.prompted import prompted_view
from depthdial.views.tokens.view import token_view
from depthdial.views.view import view
from tests.views.test_generate import (
    FIRST,
    KINDS,
    PROMPTS,
    RAN,
    ROUTE,
    base,
    expected,
    full_cache,
    made,
    prompt,
    written,
)
from tests.views.tokens.dense import Table


def test_the_name_is_the_one_that_is_installed() -> None:
    assert cache_name() in inspect.signature(LlamaForCausalLM.forward).parameters
    assert hasattr(BaseModelOutputWithPast(), cache_name())
    assert argument_name({"input_ids", "cache"}) == "cache"
    assert argument_name({"input_ids", "past_key_values"}) == "past_key_values"
    assert argument_name({"args", "kwargs"}) == cache_name()
    cache = DynamicCache()
    assert cache_argument(base(), cache) == {cache_name(): cache}
    output = BaseModelOutputWithPast(torch.zeros(1), cache)
    assert cache_of(output) is cache
    assert list(without_cache(output)) == ["last_hidden_state"]


def test_arguments_are_renamed_and_nothing_else() -> None:
    cache = DynamicCache()
    for name in CACHE_NAMES:
        assert renamed({"use_cache": True}, name) == {"use_cache": True}
        for given in ({"cache": cache}, {"past_key_values": cache, "cache": None}, dict.fromkeys(CACHE_NAMES, cache)):
            assert renamed({"use_cache": True, **given}, name) == {"use_cache": True, name: cache}
            assert cache_in(given) is cache
        assert renamed({"past_key_values": None}, name) == {name: None}
        with pytest.raises(InputError, match=f"The KV caches in .* are two, .*: pass one of them, as {name}"):
            renamed({each: DynamicCache() for each in CACHE_NAMES}, name)


@pytest.mark.parametrize("kind", KINDS)
def test_views_take_the_cache_by_either_name(kind: str) -> None:
    """To the same numbers, and without a warning, whichever the installed transformers prefers."""
    model, [wanted], seen = made(kind), expected(kind, "llama", 1), []
    for name in CACHE_NAMES:
        assert written(model, FIRST, **{name: full_cache("llama", FIRST, 5)}) == [wanted]
        with torch.no_grad():
            output = model(**PROMPTS.inputs(base(), 8), **{name: full_cache("llama", PROMPTS, 8)})
            token = output.logits[:, -1:].argmax(-1)
            mask = torch.cat([PROMPTS.mask, torch.ones_like(token)], dim=1)
            seen.append((output.logits, model(token, attention_mask=mask, **{name: cache_of(output)}).logits))
    for one, other in zip(*seen, strict=True):
        assert torch.equal(one, other)
    for call in (model, model.generate):
        with pytest.raises(InputError, match=r"The KV caches in .* are two"):
            call(**prompt(), **{name: DynamicCache() for name in CACHE_NAMES})


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_a_view_checks_a_cache_of_either_name(name: str) -> None:
    """Of the module that holds the layers, which may be called by itself."""
    inner = view(base(), ROUTE).model
    with pytest.raises(InputError, match="The KV cache is of 6 layers, and this view runs 3"):
        inner(PROMPTS.ids[:, 8:], **{name: full_cache("llama", PROMPTS, 8)})


class OwnCode(LlamaForCausalLM):
    """As a checkpoint's own Python code may have it, which does not know the name of today."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, past_key_values: Any = None, **more: Any) -> Any:
        return super().forward(input_ids, attention_mask, **{cache_name(): past_key_values}, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_whose_own_code_has_the_old_name_gets_its_cache(kind: str) -> None:
    own = OwnCode(base().config).eval()
    own.load_state_dict(base().state_dict())
    model = prompted_view(own, ROUTE) if kind == "prompted" else token_view(own, Table(RAN))
    passes: list[int] = []
    model.model.register_forward_pre_hook(
        lambda _, __, given: passes.append(cache_in(given).get_seq_length()), with_kwargs=True
    )
    assert written(model) == expected(kind, "llama")
    assert passes[-1] == PROMPTS.ids.shape[1] + len(expected(kind, "llama")[0]) - 2
