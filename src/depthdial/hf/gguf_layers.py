"""What a GGUF file says layer by layer, how that is cut to the layers of a route, and how a file is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from depthdial.errors import InputError

# Keys behind the architecture's name whose arrays have one entry a layer. Cut by name and never by length alone.
PER_LAYER_KEYS = frozenset(
    {
        "attention.head_count",
        "attention.head_count_kv",
        "attention.sliding_window_pattern",
        "attention.recurrent_layers",
        "expert_feed_forward_length",
        "feed_forward_length",
        "swiglu_clamp_exp",
        "swiglu_clamp_shexp",
    }
)
# "The first n layers are dense": n becomes the number of those that are kept.
PREFIX_COUNT_KEYS = frozenset({"leading_dense_block_count"})
WINDOW_KEY, PATTERN_KEY = "attention.sliding_window", "attention.sliding_window_pattern"
# llama.cpp's own for gemma3, where a file does not say; older versions take it whatever a file says.
DEFAULT_PERIOD = 6


def sliding_layers(pattern: int | Sequence[bool] | None, n_layers: int) -> tuple[bool, ...]:
    """Whether each layer of a gemma3 file has a sliding window.

    Args:
        pattern: the file's: a period, of which the last layer sees everything, or one entry a layer; None where it has none.
    """
    if isinstance(pattern, Sequence):
        return tuple(map(bool, pattern))
    period = DEFAULT_PERIOD if pattern is None else pattern
    return tuple(period == 0 or (i + 1) % period != 0 for i in range(n_layers))


def sliding_pattern(sliding: Sequence[bool]) -> int | list[bool]:
    """The pattern of a file with such layers: their period, which more versions of llama.cpp read, or one entry a layer.

    Example:
        >>> from depthdial.hf.gguf_layers import sliding_pattern
        >>> sliding_pattern((True, True, False, True, True, False, True)), sliding_pattern((False, True))
        (3, [False, True])
    """
    period = list(sliding).index(False) + 1 if False in sliding else len(sliding) + 1
    return period if tuple(sliding) == sliding_layers(period, len(sliding)) else [bool(one) for one in sliding]


def cut_array(key: str, value: Any, layers: Sequence[int], n_layers: int) -> Any:
    """The value of a key (without the architecture's name) for a model of `layers` alone."""
    if key == "block_count":
        return len(layers)
    if key in PREFIX_COUNT_KEYS and isinstance(value, int):
        return sum(i < value for i in layers)
    if key in PER_LAYER_KEYS and isinstance(value, list):
        if len(value) != n_layers:
            raise InputError(f"The GGUF file has {len(value)} entries in {key} for {n_layers} layers: download it again.")
        return [value[i] for i in layers]
    return value


def write_file(writer: Any, tensors: Iterable[Any]) -> None:
    """Write a GGUF file whose metadata and tensors gguf-py's writer knows of, one tensor in memory at a time."""
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for data in tensors:
            writer.write_tensor_data(data, tensor_endianess=writer.endianess)
    finally:
        writer.close()
