"""Keys and values of one layer: where tokens land, what rows that leave do to the others, and room that grows."""

from __future__ import annotations

import pytest
import torch

import depthdial as dd
from depthdial.engine.slabs import LayerCache, Slab, window_for


def filled(lengths, *, width=5, capacity=4, window=64, heads=2):
    """A slab of rows whose tokens hold their row and place, from a left-padded pass."""
    keys = torch.zeros(len(lengths), heads, width, 3)
    for row, n in enumerate(lengths):
        for place in range(n):
            keys[row, :, width - n + place] = 10 * row + place + 1
    slab = Slab(keys, keys, capacity, window)
    slab.append(range(len(lengths)), keys, -keys, [width - n for n in lengths], width)
    return slab


def held(slab, row, n):
    return slab.keys[row, 0, :n, 0].tolist()


def test_prompts_are_aligned_to_the_left():
    slab = filled([5, 2, 3])
    assert [held(slab, row, n) for row, n in enumerate([5, 2, 3])] == [[1, 2, 3, 4, 5], [11, 12], [21, 22, 23]]
    assert torch.equal(slab.values, -slab.keys)


def test_what_a_sliding_window_has_kept_lies_at_its_own_slots():
    keys = torch.arange(1.0, 4.0).view(1, 1, 3, 1).expand(2, 1, 3, 1)  # the latest three of five columns
    slab = Slab(keys, keys, 2, 64)
    slab.append([0, 1], keys, keys, [0, 3], 5)
    assert held(slab, 0, 6) == [0, 0, 1, 2, 3, 0]
    assert held(slab, 1, 3) == [2, 3, 0]


def test_tokens_are_written_at_the_slots_of_their_rows():
    slab = filled([5, 2])
    new = torch.arange(8.0).view(2, 2, 2, 1).expand(2, 2, 2, 3)
    keys, values = LayerCache(slab.keys, slab.values, torch.tensor([[5, 6], [2, 3]]), attended_tokens=8).update(new, -new, 0)
    assert keys.shape == (2, 2, 8, 3)
    assert held(slab, 0, 8) == [1, 2, 3, 4, 5, 0, 1, 0]
    assert held(slab, 1, 5) == [11, 12, 4, 5, 0]
    assert slab.keys[1, 1, 2:4, 0].tolist() == [6, 7]
    assert torch.equal(values, slab.values[:, :, :8])


def test_a_hole_is_filled_with_the_last_row_that_stays_and_no_other_moves():
    slab = filled([5, 2, 3, 1])
    slab.keep([True, False, True, True], [0, -1, 1, 2])
    assert slab.members == [0, 2, 1]
    assert [held(slab, row, 1) for row in range(3)] == [[1], [31], [21]]


@pytest.mark.parametrize("kept", [[False] * 4, [True] * 4, [False, False, True, True], [True, False, False, False]])
def test_rows_keep_what_is_theirs_whoever_leaves(kept):
    slab = filled([5, 2, 3, 1])
    numbers = [sum(kept[:i]) for i in range(4)]
    slab.keep(kept, numbers)
    staying = [i for i in range(4) if kept[i]]
    assert sorted(slab.members) == list(range(len(staying)))
    for row, member in enumerate(slab.members):
        assert held(slab, row, 1) == [10 * staying[member] + 1]


def test_room_grows_by_doubling_and_keeps_what_is_held():
    slab = filled([5, 2], capacity=2)
    slab.reserve(3, 65)
    assert (slab.capacity_rows, slab.window_tokens) == (4, 128)
    assert held(slab, 0, 6) == [1, 2, 3, 4, 5, 0]
    slab.reserve(1, 1)
    assert (slab.capacity_rows, slab.window_tokens) == (4, 128)


def test_windows_are_multiples():
    assert [window_for(n) for n in (1, 64, 65, 128)] == [64, 64, 128, 128]


def test_a_row_in_anothers_place_finds_nothing_that_it_left_behind():
    slab = filled([5, 2, 3])
    slab.keys[1:] = torch.nan
    slab.values[1:] = torch.nan
    slab.keep([True, False, False], [0, -1, -1])
    new = torch.ones(2, 2, 1, 3)
    slab.append([1, 2], new, -new, [0, 0], 1)
    assert [held(slab, row, 4) for row in range(3)] == [[1, 2, 3, 4], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert slab.keys.isfinite().all() and slab.values.isfinite().all()


def test_what_is_no_number_in_one_request_stays_there(model, tokenizer):
    weight = model.get_input_embeddings().weight.data
    weight[tokenizer.convert_tokens_to_ids("six")] = torch.nan
    given = {"max_new_tokens": 6, "eos_token_id": None}
    expected = dd.generate(model, tokenizer, "a dog", **given)[0].tokens
    with dd.Engine(model, tokenizer, max_rows=2) as engine:
        engine.submit("the cat", max_new_tokens=100, eos_token_id=None)  # so that a row is free, and the slabs stay
        for _ in range(3):
            engine.submit("six six six six", **given).result()
            assert engine.submit("a dog", **given).result().tokens == expected
