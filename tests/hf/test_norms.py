"""Norms in one kernel against transformers' own."""

from __future__ import annotations

import pytest
import torch

import depthdial as dd
from depthdial.hf.norms import fuse_norms
from tests.tiny import N_LAYERS, tiny


def stirred(name, dtype=torch.float32):
    """A tiny model whose norms have weights."""
    model = tiny(name).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "norm" in key:
                weight.copy_(0.5 + torch.rand(weight.shape, generator=generator))
    return model


@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_norms_are_those_of_transformers(name, dtype):
    model = stirred(name, dtype)
    view = dd.view(model, "full")
    assert fuse_norms(view) >= 2 * N_LAYERS + 1
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected, found = model(ids).logits.float(), view(ids).logits.float()
    off = (found - expected).abs().max() / expected.abs().max()
    assert off < (1e-5 if dtype is torch.float32 else 0.05)


@pytest.mark.parametrize("name", ["gemma3_text", "gpt2"])
def test_other_norms_stay_as_they_are(name):
    model = stirred(name)
    view = dd.view(model, "full")
    assert fuse_norms(view) == 0
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, view(ids).logits)


def test_norms_with_hooks_or_a_forward_of_their_own_stay(model):
    view = dd.view(model, "full")
    view.model.norm.register_forward_hook(lambda *_: None)
    view.model.layers[0].input_layernorm.__dict__["forward"] = lambda states: states
    assert fuse_norms(view) == 11


def test_the_model_of_the_user_keeps_its_norms(model):
    fuse_norms(dd.view(model, "full"))
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert fuse_norms(dd.view(dd.view(model, "full"), "full")) == 13
