"""Llama 3's rotary frequencies: parameters in a configuration of transformers, one factor a frequency in a GGUF file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

TENSOR = "rope_freqs.weight"
_ORIGINAL = "original_max_position_embeddings"
# Of every Llama 3 that was published; they differ in the factor alone.
_KNOWN = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, _ORIGINAL: 8192}


def llama3_factors(parameters: Mapping[str, Any], head_dim: int) -> list[float]:
    """What each of the `head_dim / 2` frequencies is divided by, as llama.cpp's converter computes it.

    Args:
        parameters: of a configuration (`rope_parameters`) of the kind `llama3`.
    """
    low, high, length = (float(parameters[name]) for name in ("low_freq_factor", "high_freq_factor", _ORIGINAL))
    found = []
    for i in range(0, head_dim, 2):
        wave_tokens = 2 * math.pi * float(parameters["rope_theta"]) ** (i / head_dim)
        if wave_tokens < length / high:
            found.append(1.0)
        elif wave_tokens > length / low:
            found.append(float(parameters["factor"]))
        else:
            smooth = (length / wave_tokens - low) / (high - low)
            found.append(1 / ((1 - smooth) / float(parameters["factor"]) + smooth))
    return found


def llama3_parameters(factors: Sequence[float], theta: float) -> dict[str, Any] | None:
    """The parameters that give these factors; None for factors of no Llama 3."""
    guess = {"rope_type": "llama3", "rope_theta": theta, "factor": float(max(factors)), **_KNOWN}
    again = llama3_factors(guess, 2 * len(factors))
    return guess if all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(factors, again, strict=True)) else None
