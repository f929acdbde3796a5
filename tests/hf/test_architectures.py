"""What is read off an architecture: its decoder stack, its configuration cut to a route, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import CONFIG_MAPPING, LlamaConfig, PreTrainedConfig, PreTrainedModel

from depthdial.errors import InputError
from depthdial.hf.architectures import accepts, count_layers, cut_config, decoder_stack, unwrap
from depthdial.routes import Route
from depthdial.views.view import view
from tests.tiny import ARCHITECTURES, N_LAYERS, shared, tiny

SMALL: dict[str, Any] = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}


def cut(config: PreTrainedConfig, layers: tuple[int, ...]) -> PreTrainedConfig:
    return cut_config(config, layers)[id(config)]


def llama(**fields: Any) -> LlamaConfig:
    """A configuration of six layers that says more than Llama's own."""
    return LlamaConfig(num_hidden_layers=6, **fields)


routes = st.sets(st.integers(0, N_LAYERS - 1), min_size=1).map(lambda layers: tuple(sorted(layers)))


# ------------------------------------------------------------------ configurations


@pytest.mark.parametrize(
    "name", ["layer_types", "mlp_layer_types", "no_rope_layers", "attention_layers", "sliding_windows", "layer_rope_theta"]
)
def test_lists_with_an_entry_a_layer_are_cut(name: str) -> None:
    entries = list("abcdef") if "types" not in name else ["full_attention", "sliding_attention"] * 3
    assert getattr(cut(llama(**{name: entries}), (1, 2, 5)), name) == [entries[1], entries[2], entries[5]]


def test_a_list_that_only_happens_to_be_as_long_is_left_alone() -> None:
    small = cut(llama(eos_token_id=[2, 3, 4, 5, 6, 7], some_list=list("abcdef"), layer_types=None), (1, 2, 5))
    assert small.eos_token_id == [2, 3, 4, 5, 6, 7]
    assert small.some_list == list("abcdef")
    assert small.layer_types is None


def test_a_list_of_another_length_is_left_alone() -> None:
    assert cut(llama(moe_topk=[1, 2]), (1, 2, 5)).moe_topk == [1, 2]


@given(layers=routes, positions=st.lists(st.integers(0, 5), unique=True))
def test_positions_move_with_their_layers(layers: tuple[int, ...], positions: list[int]) -> None:
    small = cut(llama(mlp_only_layers=positions, moe_layers=positions), layers)
    assert [layers[new] for new in small.mlp_only_layers] == [old for old in positions if old in layers]
    assert small.moe_layers == small.mlp_only_layers


@given(layers=routes, n_dense=st.integers(0, 6))
def test_the_count_of_dense_first_layers_is_that_of_the_kept_ones(layers: tuple[int, ...], n_dense: int) -> None:
    small = cut(llama(first_k_dense_replace=n_dense, num_dense_layers=n_dense), layers)
    was, now = (lambda old: old < n_dense), (lambda new: new < small.first_k_dense_replace)
    assert [now(new) for new in range(len(layers))] == [was(old) for old in layers]
    assert small.num_dense_layers == small.first_k_dense_replace


@given(layers=routes, step=st.integers(1, 4), dense=st.sets(st.integers(0, 5)))
def test_every_nth_layer_of_experts_stays_where_it_is(layers: tuple[int, ...], step: int, dense: set[int]) -> None:
    def has_experts(config: Any, layer: int) -> bool:  # as the models of Qwen-MoE say it
        return layer not in config.mlp_only_layers and (layer + 1) % config.decoder_sparse_step == 0

    config = llama(decoder_sparse_step=step, mlp_only_layers=sorted(dense))
    small = cut(config, layers)
    assert [has_experts(small, new) for new in range(len(layers))] == [has_experts(config, old) for old in layers]


@given(data=st.data(), name=st.sampled_from(ARCHITECTURES), first=routes)
def test_cutting_twice_is_cutting_once(data: st.DataObject, name: str, first: tuple[int, ...]) -> None:
    second = data.draw(st.sets(st.integers(0, len(first) - 1), min_size=1).map(lambda s: tuple(sorted(s))))
    once = cut(shared(name).config, tuple(first[i] for i in second))
    assert cut(cut(shared(name).config, first), second).to_dict() == once.to_dict()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_full_route_leaves_what_a_configuration_says(name: str) -> None:
    config = shared(name).config
    whole = cut(config, tuple(range(N_LAYERS)))
    assert whole is not config
    if name == "qwen3_moe_sparse":  # the same experts, spelled out
        assert (whole.decoder_sparse_step, whole.mlp_only_layers) == (1, [0, 2, 3, 4])
    elif name == "gpt_neo":  # the same kinds of attention
        assert whole.attention_layers == config.attention_layers
    else:
        assert whole.to_dict() == config.to_dict()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_cut_configuration_shares_nothing_with_the_whole_one(name: str) -> None:
    config = shared(name).config
    before = config.to_dict()
    small = cut(config, (1, 3))
    assert small.num_hidden_layers == 2
    for value in vars(small).values():
        if isinstance(value, dict | list):
            value.clear()
    assert config.to_dict() == before


def test_the_text_part_of_a_composite_configuration_is_cut() -> None:
    text = {"model_type": "llama", **SMALL, "layer_types": ["full_attention"] * 4}
    config = transformers.LlavaConfig(text_config=text)
    copies = cut_config(config, (0, 3))
    whole = copies[id(config)]
    assert whole.text_config is copies[id(config.text_config)]
    assert whole.vision_config is copies[id(config.vision_config)]
    assert (whole.text_config.num_hidden_layers, whole.text_config.layer_types) == (2, ["full_attention"] * 2)
    assert whole.vision_config.num_hidden_layers == config.vision_config.num_hidden_layers
    assert config.text_config.num_hidden_layers == 4


@pytest.mark.skipif(not hasattr(PreTrainedConfig, "per_layer_config"), reason="transformers before 5.23")
def test_fields_that_differ_from_layer_to_layer_move_with_their_layers() -> None:
    config = LlamaConfig(num_hidden_layers=6, per_layer_config={1: {"head_dim": 16}, 2: {"head_dim": 8}, 5: {"head_dim": 4}})
    small = cut(config, (0, 2, 5))
    assert [layer.head_dim for layer in small.per_layer_config] == [config.per_layer_config[i].head_dim for i in (0, 2, 5)]
    assert small.per_layer_config[1].head_dim == 8
    assert len(small.per_layer_config) == 3


def test_a_configuration_whose_depth_cannot_be_set_is_refused() -> None:
    with pytest.raises(InputError, match="ProphetNetConfig cannot describe a model of 2 layers"):
        cut_config(transformers.ProphetNetConfig(is_encoder_decoder=False), (0, 3))


# ------------------------------------------------------------------ the stack


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_stack_is_found(name: str) -> None:
    model = tiny(name, n_layers=6)
    stack = decoder_stack(model)
    assert stack.n_layers == count_layers(model) == N_LAYERS
    assert model.get_submodule(".".join(stack.path)) is stack.layers
    assert stack.norm is not None
    if name != "opt":  # which changes the size of the state after the norm
        seen: list[torch.Tensor] = []
        stack.norm.register_forward_hook(lambda _, __, output: seen.append(output))
        with torch.no_grad():
            out = model(torch.arange(3, 9)[None], output_hidden_states=True)
        assert torch.equal(seen[-1], out.hidden_states[-1])


def test_a_model_without_a_final_norm() -> None:
    post_norm = tiny("opt", do_layer_norm_before=False)
    assert decoder_stack(post_norm).norm is None


def test_a_model_of_one_layer() -> None:
    assert len(decoder_stack(view(tiny("llama", n_layers=1), "full")).layers) == 1


def test_a_model_without_a_head() -> None:
    bare = tiny("llama").model
    assert count_layers(bare) == N_LAYERS
    assert len(view(bare, "ee:2").layers) == 2


def test_a_decoder_made_of_bert() -> None:
    config = transformers.BertConfig(**SMALL, intermediate_size=48, is_decoder=True, add_cross_attention=True)
    assert count_layers(transformers.BertLMHeadModel(config)) == 4


def test_unwrap_takes_off_peft_and_compile() -> None:
    model = tiny("llama")
    assert unwrap(model) is model
    assert unwrap(torch.compile(model, backend="eager")) is model
    peft = pytest.importorskip("peft")
    # PEFT asks for a name that transformers 5.23 is about to drop.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreTrainedModel, "is_gradient_checkpointing", False)
        assert unwrap(peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))) is model


def test_accepts_asks_the_forward_of_the_class() -> None:
    model = tiny("llama")
    assert accepts(model, "position_ids")
    assert accepts(view(model, "ee:2"), "logits_to_keep")
    assert not accepts(tiny("bloom"), "position_ids_of_no_model")


# ------------------------------------------------------------------ what is refused


def build(kind: str, **fields: Any) -> Callable[[], PreTrainedModel]:
    """A builder of one of transformers' classes, of small size."""

    def make() -> PreTrainedModel:
        model_class = getattr(transformers, kind)
        config_class = model_class.config_class
        return model_class(config_class(**{**SMALL, "intermediate_size": 48, "pad_token_id": 0, **fields})).eval()

    return make


def t5() -> PreTrainedModel:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_heads=4)
    )


def gemma3n(**fields: Any) -> Callable[[], PreTrainedModel]:
    kinds = ["sliding_attention", "full_attention"] * 2
    sizes = {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "layer_types": kinds,
        "vocab_size_per_layer_input": 96,
        "laurel_rank": 4,
    }
    return build(
        "Gemma3nForCausalLM", **{**sizes, "intermediate_size": [48] * 4, "activation_sparsity_pattern": [0.0] * 4, **fields}
    )


NOT_DECODERS = {
    "bert": build("BertModel"),
    "bert for masked words": build("BertForMaskedLM"),
    "bert with a causal head that is not one": build("BertLMHeadModel"),
    "roberta": build("RobertaModel"),
    "roformer": build("RoFormerForMaskedLM"),
    "electra": build("ElectraModel"),
    "modernbert": build("ModernBertForMaskedLM"),
    "gemma3 that looks both ways": build("Gemma3ForCausalLM", use_bidirectional_attention=True, head_dim=8),
}
HYBRIDS = {
    "mamba": build("MambaForCausalLM"),
    "jamba": build("JambaForCausalLM", attn_layer_period=2, attn_layer_offset=1, num_experts=2, use_mamba_kernels=False),
    "recurrent gemma": build("RecurrentGemmaForCausalLM", head_dim=8, lru_width=32),
    "lfm2": build("Lfm2ForCausalLM", layer_types=["conv", "full_attention"] * 2),
    "zamba": build(
        "ZambaForCausalLM", layers_block_type=["linear_attention", "hybrid"] * 2, attention_head_dim=16, n_mamba_heads=2
    ),
    "rwkv": build("RwkvForCausalLM"),
}
SHARING = {
    "gemma3n": gemma3n(num_kv_shared_layers=0),
    "gemma3n with shared keys": gemma3n(num_kv_shared_layers=2),
}


@pytest.mark.parametrize("name", NOT_DECODERS)
def test_an_encoder_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="is not a decoder"):
        view(NOT_DECODERS[name](), (0, 2))


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_hybrid_or_recurrent_stack_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="is a hybrid or recurrent stack"):
        view(HYBRIDS[name](), (0, 2))


@pytest.mark.parametrize("name", SHARING)
def test_layers_that_feed_one_another_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="so none can be skipped alone"):
        view(SHARING[name](), (0, 2))


def test_an_encoder_decoder_model_is_refused() -> None:
    with pytest.raises(InputError, match="T5ForConditionalGeneration is an encoder-decoder model"):
        view(t5(), (0, 2))
    with pytest.raises(InputError, match="BartForCausalLM is an encoder-decoder model"):
        view(build("BartForCausalLM", d_model=32, decoder_layers=4, encoder_layers=2, decoder_attention_heads=4)(), (0, 2))


def test_cross_attention_at_fixed_places_is_refused() -> None:
    model = tiny("llama", cross_attention_layers=[1, 3])
    with pytest.raises(InputError, match="cross-attention to images at fixed places"):
        view(model, (0, 2))


def test_a_model_with_two_lists_of_layers_is_refused() -> None:
    model = tiny("llama")
    model.other = nn.ModuleList(tiny("llama").model.layers)
    with pytest.raises(InputError, match=r"no single stack of decoder layers \(lists found: "):
        view(model, (0, 2))


@pytest.mark.parametrize("model", [None, "gpt2", nn.Linear(2, 2), SimpleNamespace(config=LlamaConfig())], ids=repr)
def test_anything_but_a_model_is_refused(model: Any) -> None:
    with pytest.raises(InputError, match="is not a Hugging Face model"):
        view(model, (0, 2))


@pytest.mark.parametrize(
    ("route", "message"),
    [
        (Route((0, 1), 4), "is for a model of 4 layers but this one has 6"),
        ("ee:7", "asks for 7 of 6 layers"),
        ("rls:3@0", "is a rule, not one route"),
        (Route.parse("rls-wo1:3@0", 6), "is a rule, not one route"),
        ((0, 6), "Layer 6 does not exist"),
        ((2, 1), "must rise"),
        ((1, 1), "stands twice"),
        ((), "is empty"),
        ("layers", "Unknown route"),
        ((0, -1), "must rise"),
        ((0, 1.5), "whole numbers"),
    ],
)
def test_a_route_that_does_not_fit_is_refused(route: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        view(tiny("llama"), route)


@pytest.mark.parametrize(
    "route", [[1, 4], torch.tensor([1, 4]), range(1, 5, 3), iter((1, 4))], ids=lambda route: type(route).__name__
)
def test_any_sequence_of_indices_is_a_route(route: Any) -> None:
    assert view(tiny("llama"), route).depthdial_route == Route((1, 4), 6)


@pytest.mark.parametrize("route", [3, None, 0.5, [[1]]], ids=repr)
def test_what_is_no_route_at_all_is_refused(route: Any) -> None:
    with pytest.raises(InputError):
        view(tiny("llama"), route)


def test_every_configuration_of_the_tests_is_known() -> None:
    assert all(shared(name).config.model_type in CONFIG_MAPPING for name in ARCHITECTURES)
