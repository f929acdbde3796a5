"""Vision-language folders load whole, and are routed as their text decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import depthdial as dd
from depthdial.hf.load import auto_class
from tests.conftest import WORDS, make_task

TEXT: dict[str, Any] = {
    "vocab_size": len(WORDS) + 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}


def llava() -> Any:
    text, vision = transformers.LlamaConfig(**TEXT), transformers.CLIPVisionConfig(**VISION)
    return transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=29)


def qwen2_5_vl() -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    vision = {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 8}
    return transformers.Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": rope}, vision_config=vision, image_token_id=29, video_token_id=28
    )


def smolvlm() -> Any:
    text = transformers.LlamaConfig(**TEXT)
    return transformers.SmolVLMConfig(text_config=text, vision_config=VISION, image_token_id=29)


def saved(config: Any, tokenizer: Any, folder: Path) -> Any:
    torch.manual_seed(0)
    model = auto_class(config).from_config(config).eval()  # type: ignore[union-attr]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize("make", [llava, qwen2_5_vl, smolvlm])
def test_a_vision_language_folder_is_routed_as_its_decoder(make: Any, tokenizer: Any, tmp_path: Path) -> None:
    stored = saved(make(), tokenizer, tmp_path / "whole")
    model, own = dd.load(tmp_path / "whole", device="cpu")
    ids = torch.arange(5, 13)[None]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, stored(input_ids=ids).logits)
    assert len(dd.model_cost(model).layers) == 6
    assert (
        dd.sweep(model, own, task=make_task(["the cat"], ["sat"]), routes=["full", "drop:3"], max_new_tokens=3).num_rows == 2
    )
    shallow = dd.view(model, "drop:3")
    shallow.save_pretrained(tmp_path / "cut")
    tokenizer.save_pretrained(tmp_path / "cut")
    again, _ = dd.load(tmp_path / "cut", device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, shallow(input_ids=ids).logits, atol=1e-5, rtol=1e-5)
    assert len(dd.generate(model, own, ["the cat"], depth="drop:1,3", max_new_tokens=2)) == 1


def test_what_has_no_decoder_of_its_own_stays_refused() -> None:
    assert auto_class(transformers.T5Config()) is None
    assert auto_class(transformers.CLIPConfig()) is None
    assert auto_class(transformers.LlamaConfig()) is transformers.AutoModelForCausalLM
