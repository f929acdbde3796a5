"""What a GGUF file says layer by layer, cut by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.errors import InputError
from depthdial.hf.gguf_layers import cut_array, sliding_layers, sliding_pattern


@given(st.integers(1, 12), st.integers(1, 40))
def test_a_period_is_found_again(period: int, n_layers: int) -> None:
    sliding = sliding_layers(period, n_layers)
    assert sliding_layers(sliding_pattern(sliding), n_layers) == sliding


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_any_pattern_is_written_and_read(sliding: list[bool]) -> None:
    pattern = sliding_pattern(sliding)
    assert sliding_layers(pattern, len(sliding)) == tuple(sliding)
    periods = {sliding_layers(period, len(sliding)) for period in range(1, len(sliding) + 2)}
    assert isinstance(pattern, int) is (tuple(sliding) in periods)


def test_a_file_that_does_not_say_has_every_sixth_layer_full() -> None:
    assert sliding_layers(None, 7) == (True,) * 5 + (False, True)


@pytest.mark.parametrize(
    ("key", "value", "cut"),
    [
        ("block_count", 4, 2),
        ("attention.head_count_kv", [1, 2, 3, 4], [1, 4]),
        ("attention.head_count_kv", 2, 2),
        ("attention.sliding_window_pattern", [True, False, True, False], [True, False]),
        ("feed_forward_length", [5, 6, 7, 8], [5, 8]),
        ("leading_dense_block_count", 2, 1),
        ("rope.dimension_sections", [1, 2, 3, 4], [1, 2, 3, 4]),  # four numbers, and none of a layer
        ("tokenizer.ggml.tokens", ["a", "b", "c", "d"], ["a", "b", "c", "d"]),
    ],
)
def test_arrays_are_cut_by_name(key: str, value: Any, cut: Any) -> None:
    assert cut_array(key, value, (0, 3), 4) == cut


def test_an_array_of_another_length_is_refused() -> None:
    with pytest.raises(InputError, match=r"has 3 entries in attention.head_count for 4 layers"):
        cut_array("attention.head_count", [1, 2, 3], (0, 3), 4)
