"""What a decoder keeps by a layer's place outside its layers follows a route: Molmo2's list, DeepStack's images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import depthdial as dd
from depthdial.hf.architectures import decoder_stack
from depthdial.views.places import _moved_before, _moved_behind

TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
ROUTES = [(0, 1, 2, 3, 5), (0, 2, 3, 5), (1, 2, 3, 4, 5), (0, 1), (3, 4)]


def filled(model: Any) -> Any:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def qwen3_vl(kind: str) -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16} if kind.endswith("Moe") else {}
    vision: dict[str, Any] = {
        "num_position_embeddings": 16,
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "patch_size": 8,
    }
    config = getattr(transformers, f"{kind}Config")(
        text_config={**TEXT, **experts, "rope_parameters": rope},
        vision_config={
            **vision,
            "out_hidden_size": 32,
            "deepstack_visual_indexes": [0, 1, 2],
            "num_position_embeddings": 16,
        },
        image_token_id=90,
        video_token_id=91,
        vision_start_token_id=92,
        vision_end_token_id=93,
    )
    return filled(getattr(transformers, f"{kind}ForConditionalGeneration")(config))


def with_image() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[3, 92, 90, 90, 90, 90, 93, 5, 6, 7]])
    pixels = torch.randn(16, 3 * 2 * 8 * 8, generator=torch.Generator().manual_seed(5))
    grid = torch.tensor([[1, 4, 4]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels,
        "image_grid_thw": grid,
        "mm_token_type_ids": (ids == 90).int(),
    }


@contextmanager
def undone(layers: nn.ModuleList, kept: Sequence[int]) -> Iterator[None]:
    skipped = [layer for i, layer in enumerate(layers) if i not in kept]
    for layer in skipped:
        layer.forward = lambda hidden_states, *args, **kwargs: hidden_states  # type: ignore[method-assign]
    yield
    for layer in skipped:
        del layer.forward


@pytest.mark.parametrize("kind", ["Qwen3VL", "Qwen3VLMoe"])
def test_features_of_an_image_stay_behind_their_layers(kind: str, weights_of: Any, assert_same: Any) -> None:
    model = qwen3_vl(kind)
    before, stack = weights_of(model), decoder_stack(model).layers
    results = []
    for kept in ROUTES:
        with torch.no_grad():
            ours = dd.view(model, kept)(**with_image(), use_cache=False).logits
            with undone(stack, kept):
                theirs = model(**with_image(), use_cache=False).logits
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        results.append(ours)
    outer = dd.view(dd.view(model, (0, 2, 3, 5)), (1, 3))
    with torch.no_grad():
        torch.testing.assert_close(
            outer(**with_image(), use_cache=False).logits, dd.view(model, (2, 5))(**with_image(), use_cache=False).logits
        )
    assert_same(before, weights_of(model))


def test_images_and_generation_go_together() -> None:
    model = qwen3_vl("Qwen3VL")
    written = dd.view(model, (1, 2, 4)).generate(**with_image(), max_new_tokens=3, min_new_tokens=3, pad_token_id=0)
    assert written.shape == (1, 13)


def molmo2() -> Any:
    rope = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4}
    small = {"hidden_size": 32, "num_attention_heads": 4, "head_dim": 8, "intermediate_size": 48}
    config = transformers.Molmo2Config(
        text_config={**TEXT, "additional_vocab_size": 4, "rope_scaling_layers": [1, 4], "rope_parameters": rope},
        vision_config={**small, "num_hidden_layers": 2, "num_key_value_heads": 4, "image_size": [28, 28], "patch_size": 14},
        adapter_config={**small, "num_key_value_heads": 4, "text_hidden_size": 32, "vision_feature_layer": [-1, -2]},
    )
    return filled(transformers.Molmo2ForConditionalGeneration(config))


@pytest.mark.skipif(not hasattr(transformers, "Molmo2Config"), reason="a transformers without Molmo2")
def test_which_layers_scale_their_rotation_follows_the_route() -> None:
    model = molmo2()
    ids, layers = torch.arange(3, 43)[None], decoder_stack(model).layers
    for kept in ((0, 2, 3, 5), (1, 2, 4), (0, 1, 2, 3)):
        shallow = dd.view(model, kept)
        with torch.no_grad(), undone(layers, kept):
            theirs = model(input_ids=ids, use_cache=False).logits
        with torch.no_grad():
            assert torch.equal(shallow(input_ids=ids, use_cache=False).logits, theirs)
        assert shallow.model.language_model.rope_types == [model.model.language_model.rope_types[i] for i in kept]
    assert len(model.model.language_model.rope_types) == 6


def test_where_features_go() -> None:
    assert _moved_behind("abc", (0, 1, 2, 5)) == ([], [("a",), ("b",), ("c",), ()])
    assert _moved_behind("abc", (0, 2, 4)) == ([], [("a", "b"), ("c",), ()])
    assert _moved_behind("abc", (2, 4)) == (["a", "b"], [("c",), ()])
    assert _moved_behind("abc", (4,)) == (["a", "b", "c"], [()])
    one, two = torch.ones(1), torch.full((1,), 2.0)
    assert _moved_before({0: one, 3: two}, (0, 1, 3, 4)) == {0: one, 2: two}
    assert _moved_before({0: one, 3: two}, (4, 5)) == {0: torch.full((1,), 3.0)}
    with pytest.raises(dd.InputError, match="before its layer 3, and the route 0, 1 runs none from there on"):
        _moved_before({0: one, 3: two}, (0, 1))
