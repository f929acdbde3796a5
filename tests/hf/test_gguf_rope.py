"""Llama 3's rotary frequencies as factors, and the parameters back from them."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from depthdial.hf.gguf_rope import llama3_factors, llama3_parameters

PARAMETERS = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize("head_dim", [64, 128])
def test_factors_are_those_of_transformers(head_dim: int) -> None:
    config = LlamaConfig(hidden_size=4 * head_dim, num_attention_heads=4, head_dim=head_dim, rope_parameters=PARAMETERS)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 500000.0 ** -(torch.arange(0, head_dim, 2) / head_dim)
    torch.testing.assert_close(torch.tensor(llama3_factors(PARAMETERS, head_dim)), plain / scaled, rtol=1e-4, atol=1e-4)


def test_parameters_come_back() -> None:
    assert llama3_parameters(llama3_factors(PARAMETERS, 64), 500000.0) == PARAMETERS
    other = llama3_factors({**PARAMETERS, "high_freq_factor": 8.0}, 64)
    assert llama3_parameters(other, 500000.0) is None
