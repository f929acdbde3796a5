"""Tiny random models of the kinds that GGUF files are written of, of the tokens of `checkpoints`. Not a test."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.hf.checkpoints import SIZES
from tests.tiny import CONFIG_MAPPING

N_LAYERS = 6
# Rows of 32, so that Q8_0 fits; windows shorter than the sequences of the tests.
_SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
KINDS = ["sliding_attention", "sliding_attention", "full_attention"] * 2
_FIELDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {"use_sliding_window": False},
    "qwen3": {"head_dim": 128},  # which transformers takes for the one of every file
    "llama3": {
        "rope_parameters": {
            **{
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
            "original_max_position_embeddings": 8192,
        }
    },
    "gemma3_text": {"sliding_window": 8, "layer_types": KINDS, "query_pre_attn_scalar": 16},
}
KNOWN = tuple(_FIELDS)


def tiny_for_gguf(kind: str, **changes: Any) -> PreTrainedModel:
    known = {**SIZES, **_SHAPE, **_FIELDS[kind], **changes}
    config = CONFIG_MAPPING["llama" if kind == "llama3" else kind](**known)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms and biases that tell one place of a layer from another
                parameter.add_(torch.randn(parameter.shape), alpha=0.1)
            assert parameter.isfinite().all(), name
    return model


def llama_cpp() -> Any:
    """llama.cpp's own Python package; a test that asks is skipped without it."""
    return pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, of the extra `peers`")


def logits_in_llama_cpp(file: Path, ids: list[int]) -> Any:
    """(tokens, vocabulary) logits of a GGUF file in llama.cpp."""
    engine = llama_cpp()
    os.environ.setdefault("GGML_LOG_LEVEL", "error")
    exact = {"type_k": engine.GGML_TYPE_F32, "type_v": engine.GGML_TYPE_F32}  # keys and values as they are, not in fp16
    loaded = engine.Llama(str(file), n_ctx=64, n_threads=1, logits_all=True, verbose=False, **exact)
    try:
        loaded.eval(ids)
        return loaded.scores[: len(ids)].copy()
    finally:
        loaded.close()
