"""Adapters are put on plain linear modules that are called as such, and only where they load again."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from depthdial.errors import InputError
from depthdial.routes import Route
from depthdial.train.depth.settings import FinetuneSettings
from depthdial.train.depth.student import student
from depthdial.train.targets import linear_targets, place_of
from tests.tiny import tiny

FULL = Route(tuple(range(6)), 6)
SETTINGS = FinetuneSettings(rank=2)
SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
ATTENTION = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
MIXTURES = ["llama4_text", "qwen3_moe_sparse", "gpt_oss", "deepseek_v3", "mixtral", "ernie4_5_moe", "phimoe", "laguna"]


def mixture(name: str) -> Any:
    fields: dict[str, Any] = {
        "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
        "laguna": {
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "sliding_window": 8,
            "layer_types": ["full_attention"] * 6,
        },
    }
    if name not in fields:
        return tiny(name)
    if name not in CONFIG_MAPPING:
        pytest.skip(f"a transformers without {name}")
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**SMALL, **fields[name])).eval()


@pytest.mark.parametrize("name", MIXTURES)
def test_what_is_adapted_runs_learns_and_loads(name: str, tmp_path: Any, weights_of: Any, assert_same: Any) -> None:
    from peft import PeftModel

    model, ids = mixture(name), torch.arange(3, 15).view(2, 6)
    before = weights_of(model)
    with student(model, [FULL], SETTINGS, in_place=False) as trained:
        for parameter_name, parameter in trained.named_parameters():
            if "lora_B" in parameter_name:
                nn.init.normal_(parameter, std=0.3)
        # Every token of two sequences and all experts: what no token met learns nothing.
        trained(input_ids=ids).logits.square().sum().backward()
        silent = [n for n, p in trained.named_parameters() if p.requires_grad and "experts" not in n and p.grad is None]
        assert not silent
        expected = trained(input_ids=ids).logits.detach()
        trained.save_pretrained(tmp_path)
    assert_same(weights_of(model), before)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys")
        warnings.filterwarnings("error", "Found missing adapter keys")
        loaded = PeftModel.from_pretrained(model, tmp_path)
    torch.testing.assert_close(loaded(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)


def test_routers_that_give_more_than_scores_are_left_alone() -> None:
    targets = set(linear_targets(tiny("llama4_text"), []))
    assert targets >= ATTENTION and "feed_forward.router" not in targets
    assert "feed_forward.shared_expert.gate_proj" in targets


class Reads(LlamaMLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.act_fn(self.gate_proj(x)) * self.up_proj(x), self.down_proj.weight)


def test_a_weight_that_is_read_without_a_call_is_left_alone() -> None:
    model: Any = tiny("llama")
    for layer in model.model.layers:
        layer.mlp = Reads(model.config)
    assert set(linear_targets(model, [])) == ATTENTION | {"mlp.gate_proj", "mlp.up_proj"}


def test_gpt2s_convolutions_are_linear_too() -> None:
    assert linear_targets(tiny("gpt2"), []) == ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]


def test_where_layers_are_left_out_whole_paths_are_named() -> None:
    targets = linear_targets(tiny("llama"), [1, 2, 3, 4, 5])
    assert len(targets) == 7 and all(name.startswith("model.layers.0.") for name in targets)


def test_a_model_on_the_meta_device_goes_by_class() -> None:
    with torch.device("meta"):
        model = type(tiny("llama"))(tiny("llama").config)
    assert set(linear_targets(model, [])) == set(linear_targets(tiny("llama"), []))


def test_no_target_is_one_sentence() -> None:
    with pytest.raises(InputError, match="hold no linear modules"):
        linear_targets(tiny("llama"), range(6))


def test_places() -> None:
    assert place_of("model.layers.10.mlp.experts.3.w1") == "model.layers.*.mlp.experts.*.w1"
    assert place_of("h.0.c_fc2") == "h.*.c_fc2"


def test_an_adapter_that_would_not_load_is_known_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    from depthdial.train.depth import student as room

    places = {f"model.layers.*.mlp.{name}_proj" for name in ("gate", "up", "down")}
    monkeypatch.setattr(room, "unloadable", lambda adapted, base: places)
    with (
        pytest.raises(InputError, match=r"would not load again \(PEFT loses model.layers.\*.mlp.down_proj\)"),
        student(tiny("llama"), [FULL], replace(SETTINGS), in_place=False),
    ):
        pass
