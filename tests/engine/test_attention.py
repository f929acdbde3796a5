"""Grouped attention: what transformers' own function gives, on views alone, and the rest left to transformers."""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from depthdial.engine.attention import grouped_attention, use_grouped_attention
from depthdial.hf.architectures import check_token_routing
from depthdial.hf.attention import stock_attention
from depthdial.views.snapshot import snapshot
from tests.tiny import shared, tiny

TAKEN = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "gpt_neox", "opt", "gpt2", "cohere2", "qwen3_moe")
# Other attention than sdpa, none by the interface, or code that asks for "sdpa" by name.
LEFT = ("falcon_alibi", "bloom", "mpt", "gpt_oss")


def tensors(rows: int = 3, tokens: int = 1, window: int = 24, dtype=torch.float32, groups: int = 3):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(rows, heads, n, 8, generator=generator).to(dtype)
        for heads, n in ((2 * groups, tokens), (2, window), (2, window))
    )
    ends = torch.randint(0, window - tokens + 1, (rows, 1), generator=generator) + torch.arange(tokens)
    hidden = torch.arange(window) > ends[..., None]
    mask = torch.zeros(rows, 1, tokens, window, dtype=dtype).masked_fill(hidden[:, None], torch.finfo(dtype).min)
    return SimpleNamespace(num_key_value_groups=groups, is_causal=True), query, key, value, mask


@pytest.mark.parametrize("tokens", [1, 4, 20])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_transformers_gives(tokens, groups, dtype):
    arguments = tensors(tokens=tokens, groups=groups, dtype=dtype)
    found, _ = grouped_attention(*arguments, scaling=0.3)
    expected, _ = stock_attention()(*arguments, scaling=0.3)
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-6)


def test_a_boolean_mask_and_one_for_each_head():
    module, query, key, value, mask = tensors(tokens=4)
    by_head = mask + torch.randn(1, 6, 1, 1)
    for one in (mask == 0, by_head, by_head[:1]):
        found, _ = grouped_attention(module, query, key, value, one)
        torch.testing.assert_close(found, stock_attention()(module, query, key, value, one)[0], rtol=1e-5, atol=1e-6)


def test_written_out_for_the_compiler_it_is_the_same():
    arguments = tensors(tokens=2)
    expected, _ = grouped_attention(*arguments, scaling=0.3)
    with mock.patch("torch.compiler.is_exporting", lambda: True):
        found, _ = grouped_attention(*arguments, scaling=0.3)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "unknown", [{"dropout": 0.1}, {"s_aux": torch.zeros(6)}, {"position_bias": torch.zeros(1)}, {"is_new": True}], ids=str
)
def test_what_it_does_not_know_goes_to_transformers(unknown):
    with mock.patch("depthdial.engine.attention.stock_attention", lambda: lambda *args, **given: (args, given)):
        _, given = grouped_attention(*tensors(), scaling=0.3, **unknown)
    assert given.items() >= {"scaling": 0.3, **unknown}.items()


def test_several_tokens_without_a_mask_are_masked_by_transformers():
    module, query, key, value, _ = tensors(tokens=4, window=4)
    found, _ = grouped_attention(module, query, key, value, None)
    assert torch.equal(found, stock_attention()(module, query, key, value, None)[0])
    assert not torch.allclose(found, grouped_attention(module, query, key, value, torch.zeros(3, 1, 4, 4))[0])


@pytest.mark.parametrize("name", TAKEN)
def test_a_view_gives_the_models_logits_without_transformers_function(name):
    model = shared(name)
    view = snapshot(model)
    assert use_grouped_attention(view) and use_grouped_attention(view)
    check_token_routing(view)  # takes what sdpa takes
    ids = torch.arange(3, 15).reshape(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    settings = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "output_logits": True, "eos_token_id": None}
    expected = model.generate(ids, **settings, return_dict_in_generate=True)
    with mock.patch("depthdial.engine.attention.stock_attention", side_effect=AssertionError):
        found = view.generate(ids, **settings, return_dict_in_generate=True)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LEFT)
def test_a_model_that_does_not_look_it_up_stays_as_it_is(name):
    view = snapshot(shared(name))
    before = view.config.to_dict(), view.config._attn_implementation
    assert not use_grouped_attention(view)
    assert (view.config.to_dict(), view.config._attn_implementation) == before


def test_the_users_model_is_not_touched(weights_of, assert_same):
    model = tiny("gemma3_text")
    before = weights_of(model)
    assert use_grouped_attention(snapshot(model))
    assert_same(before, weights_of(model))
    assert {m.config._attn_implementation for m in model.modules() if hasattr(m, "config")} == {"sdpa"}


def test_eager_attention_that_a_user_asked_for_is_kept():
    model = tiny("llama")
    model.set_attn_implementation("eager")
    assert not use_grouped_attention(snapshot(model))
