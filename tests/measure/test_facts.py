"""What a layer costs, held against torch's FLOP counter over real passes, the real cache, and real attention."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from depthdial.errors import InputError
from depthdial.hf.architectures import decoder_stack
from depthdial.hf.cache_name import cache_of
from depthdial.measure.cost import model_cost
from depthdial.measure.facts import layer_costs, matrix_size
from tests.hf.test_weights import Halved
from tests.tiny import ARCHITECTURES, tiny

# Their experts compute all of them for every token, or are chosen by the model's own dense product.
DENSE_EXPERTS = {"llama4_text"}
MORE: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"kv_lora_rank": 8, "q_lora_rank": None, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12},
    "deepseek_v3": {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16},
    "minicpm3": {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 3},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gemma": {"head_dim": 16},
    "codegen": {"n_embd": 32, "n_head": 4, "n_layer": 3, "rotary_dim": 4, "n_inner": 48},
}
SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
LATENT = {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2}


@functools.cache
def build(name: str) -> Any:
    if not name.startswith("more "):
        model = tiny(name)
    else:
        kind = name.removeprefix("more ")
        if kind not in CONFIG_MAPPING:
            pytest.skip(f"a transformers without {kind}")
        experts = {**LATENT, "moe_intermediate_size": 16, "first_k_dense_replace": 1} if "deepseek" in kind else {}
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**{**SMALL, **experts, **MORE[kind]})).eval()
    model.set_attn_implementation("eager")
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # one expert after another, for the tokens that are sent to it
    return model


def counted(model: Any, n_tokens: int) -> list[int]:
    """FLOPs of each layer in a real pass of so many tokens."""
    layers, flops = decoder_stack(model).layers, [0] * decoder_stack(model).n_layers

    def add(i: int, sign: int, counter: FlopCounterMode) -> Any:
        def hook(*_: Any) -> None:
            flops[i] += sign * counter.get_total_flops()

        return hook

    # Falcon has no eager attention once it is built, and the counter does not know the CPU's fused kernel.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        hooks = [layer.register_forward_pre_hook(add(i, -1, counter)) for i, layer in enumerate(layers)]
        hooks += [layer.register_forward_hook(add(i, 1, counter)) for i, layer in enumerate(layers)]
        model(input_ids=torch.arange(3, 3 + n_tokens)[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    return flops


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*ARCHITECTURES, *(f"more {kind}" for kind in MORE)])
def test_facts_are_what_a_real_pass_computes_and_caches(name: str) -> None:
    model = build(name)
    facts = layer_costs(model)
    if name not in DENSE_EXPERTS:
        for n in (3, 5, 12):
            assert counted(model, n) == [one.flops_per_token * n + one.flops_per_token_pair * n * n for one in facts]
    with torch.no_grad():
        for n in (3, 11):
            cache: Any = cache_of(model(input_ids=torch.arange(3, 3 + n)[None], use_cache=True))
            for one, layer in zip(facts, cache.layers, strict=True):
                held = sum(t.numel() * t.element_size() for t in (layer.keys, layer.values))
                assert held == one.kv_bytes_per_token * min(n, one.cached_tokens or n)


def seen(model: Any, n_tokens: int) -> list[int]:
    """How many tokens the last of so many attends to, in each layer."""
    with torch.no_grad():
        attentions = model(input_ids=torch.arange(3, 3 + n_tokens)[None], output_attentions=True, use_cache=False).attentions
    return [int((attention[0, :, -1, :n_tokens] != 0).any(0).sum()) for attention in attentions]


WINDOWED = (
    "mistral",
    "gemma3_text",
    "gpt_neo",
    "cohere2",
    "llama4_text",
    "gpt_oss",
    "modernbert-decoder",
    "gemma4_unified_text",
)


@pytest.mark.parametrize("name", WINDOWED)
def test_windows_and_chunks_are_what_attention_sees(name: str) -> None:
    model = build(name)
    layers = layer_costs(model)
    for n in (2, 7, 9, 12):
        assert seen(model, n) == [int(layer.in_sight(torch.tensor(n).numpy())) for layer in layers]


def test_of_experts_those_count_that_a_token_is_sent_to() -> None:
    model = build("llama4_text")
    dense, sparse = layer_costs(model)[0], layer_costs(model)[1]
    experts = model.model.layers[1].feed_forward.experts
    one = sum(p.numel() for p in experts.parameters()) / 4
    whole = sum(p.numel() * 4 for p in model.model.layers[1].parameters())
    assert sparse.weight_bytes == whole - 4 * one * (4 - model.config.num_experts_per_tok)
    assert dense.weight_bytes == sum(p.numel() * 4 for p in model.model.layers[0].parameters())


def test_biases_of_experts_are_read_and_are_no_matrices() -> None:
    model = build("gpt_oss")
    layer, facts = model.model.layers[0], layer_costs(model)[0]
    experts = sum(p.numel() * 4 for p in layer.mlp.experts.parameters())
    assert facts.weight_bytes == sum(p.numel() * 4 for p in layer.parameters()) - experts / 2
    matrices = sum(p.numel() for name, p in layer.named_parameters() if p.ndim == 2 and "experts" not in name)
    assert facts.flops_per_token == 2 * (
        matrices + sum(p.numel() for p in layer.mlp.experts.parameters() if p.ndim == 3) / 2
    )


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gpt2"])
def test_the_model_stays_as_it_is(name: str, weights_of: Any, assert_same: Any) -> None:
    model, calls = tiny(name), []
    decoder_stack(model).layers[0].register_forward_hook(lambda *_: calls.append(1))
    before, attention, state = weights_of(model), model.config._attn_implementation, torch.get_rng_state()
    layer_costs(model)
    assert_same(before, weights_of(model))
    assert (model.config._attn_implementation, calls) == (attention, []) and torch.equal(state, torch.get_rng_state())


def test_nothing_need_be_in_memory_and_halves_take_half() -> None:
    whole = layer_costs(tiny("llama"))
    with torch.device("meta"):
        absent = type(tiny("llama"))(tiny("llama").config)
    assert layer_costs(absent) == whole
    half = layer_costs(tiny("llama").bfloat16())
    assert [one.kv_bytes_per_token * 2 for one in half] == [one.kv_bytes_per_token for one in whole]
    assert [one.weight_bytes * 2 for one in half] == [one.weight_bytes for one in whole]
    assert [one.flops_per_token for one in half] == [one.flops_per_token for one in whole]


class Packed(nn.Module):
    """A linear module as a quantising library has it: half a byte a weight, in a tensor of another shape."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        packed = torch.zeros(plain.weight.numel() // 2, 1, dtype=torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)


def test_packed_weights_count_by_what_they_multiply_and_what_they_hold() -> None:
    model: Any = tiny("llama")
    plain = layer_costs(model)[0]
    held = sum(p.numel() for p in model.model.layers[0].mlp.parameters())
    for layer in model.model.layers:
        for name, child in list(layer.mlp.named_children()):
            if isinstance(child, nn.Linear):
                setattr(layer.mlp, name, Packed(child))
    packed = layer_costs(model)[0]
    assert packed.flops_per_token == plain.flops_per_token
    assert packed.weight_bytes == plain.weight_bytes - 4 * held + held / 2


def test_weights_that_are_tensors_of_their_own_kind_count_as_they_are_stored() -> None:
    model: Any = tiny("llama")
    plain = layer_costs(model)[0]
    for layer in model.model.layers:
        weight = layer.mlp.up_proj.weight
        wrapped = Halved(torch.zeros(weight.shape, dtype=torch.int8), torch.ones(weight.shape[0], 1))
        layer.mlp.up_proj.weight = nn.Parameter(wrapped, requires_grad=False)
    stored = layer_costs(model)[0]
    n_out, n_in = model.model.layers[0].mlp.up_proj.weight.shape
    assert stored.flops_per_token == plain.flops_per_token
    assert stored.weight_bytes == plain.weight_bytes - 4 * n_out * n_in + n_out * n_in + 4 * n_out


@pytest.mark.filterwarnings("ignore")  # PyTorch means to drop it
def test_dynamically_quantised_modules_count_by_what_they_pack() -> None:
    model: Any = tiny("llama")
    plain, matrices = model_cost(model), matrix_size(model.model.layers[0])
    packed = model_cost(torch.ao.quantization.quantize_dynamic(model, {nn.Linear}))
    assert packed.layers[0].flops_per_token == plain.layers[0].flops_per_token > 0
    assert packed.head_flops_per_token == plain.head_flops_per_token > 0
    for now, before, n in (
        (packed.layers[0].weight_bytes, plain.layers[0].weight_bytes, matrices),
        (packed.head_bytes, plain.head_bytes, matrix_size(model.lm_head)),
    ):
        assert before - 3 * n <= now < before - 2.5 * n  # a byte for a number; scales, zero points and no biases beside
    assert packed.embedding_bytes == plain.embedding_bytes


def test_a_model_that_does_not_run_on_tokens_is_one_sentence() -> None:
    model: Any = tiny("llama")
    model.model.layers[2].mlp.down_proj = nn.Linear(7, 7)
    with pytest.raises(InputError, match="The cost of LlamaForCausalLM cannot be counted"):
        layer_costs(model)
