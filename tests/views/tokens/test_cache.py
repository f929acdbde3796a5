"""Slots of a token cache hold what was written, whatever is done to the cache in between."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache

from depthdial.engine.decode import decode
from depthdial.engine.prefill import prefill
from depthdial.errors import InputError
from depthdial.hf.cache_name import cache_of
from depthdial.views.tokens.cache import Gathered, KeysWritten, TokenCacheLayer, token_cache
from depthdial.views.tokens.depth import TokenDepth
from depthdial.views.tokens.layer import gathered
from depthdial.views.tokens.view import token_view
from tests.tiny import tiny
from tests.views.tokens.dense import Batch, Dense, Table, batch, drawn, error, in_chunks

BATCH, RAN = batch(), drawn()
WIDTH = 3

Slots = list[list[float | None]]  # by sequence and place; None where a slot is masked


class Naive:
    """Two layers of slots as plain lists."""

    def __init__(self, n_sequences: int) -> None:
        self.layers: list[Slots] = [[[] for _ in range(n_sequences)] for _ in range(2)]

    def write(self, layer: int, keys: torch.Tensor, runs: torch.Tensor, key_values: str) -> None:
        for i, slots in enumerate(self.layers[layer]):
            for own, ran in zip(keys[i].tolist(), runs[i].tolist(), strict=True):
                copied = self.layers[0][i][len(slots)] if key_values == "copy" and layer else None
                slots.append(own if ran or key_values == "project" else copied)


class Pair:
    """The same in two TokenCacheLayers, and what has been drawn so far."""

    def __init__(self, n_sequences: int) -> None:
        self.ours, self.naive = [TokenCacheLayer(), TokenCacheLayer()], Naive(n_sequences)

    def fork(self) -> Pair:
        other = copy.copy(self)
        other.ours, other.naive = [copy.copy(layer) for layer in self.ours], copy.deepcopy(self.naive)
        return other

    @property
    def n_sequences(self) -> int:
        return len(self.naive.layers[0])

    def run(self, n_tokens: int, rate: float, key_values: Any, generator: torch.Generator) -> None:
        for index, slots in enumerate(self.ours):
            keys = torch.rand(self.n_sequences, n_tokens, generator=generator)
            runs = torch.rand(self.n_sequences, n_tokens, generator=generator) < rate
            self.naive.write(index, keys, runs, key_values)
            slots.begin(
                self.n_sequences, n_tokens, None if runs.all() else runs, key_values, self.ours[0] if index else None
            )
            if runs.all():
                self._update(slots, keys, Gathered())
            else:
                if key_values == "project":
                    self._update(slots, keys, gathered(~runs, only_keys=True))
                self._update(slots, keys, gathered(runs))
            slots.finish()

    @staticmethod
    def _update(slots: TokenCacheLayer, keys: torch.Tensor, plan: Gathered | None) -> None:
        if plan is None:
            return
        slots.expect(plan)
        taken = keys if plan.rows is None else keys[plan.rows[:, None], plan.columns]
        states = taken[:, None, :, None].expand(-1, 2, -1, WIDTH)
        if plan.only_keys:
            with pytest.raises(KeysWritten):
                slots.update(states, -states)
            return
        seen, _ = slots.update(states, -states)
        assert seen.shape[2] == slots.n_slots

    def check(self) -> None:
        for slots, expected in zip(self.ours, self.naive.layers, strict=True):
            assert slots.get_seq_length() == len(expected[0])
            for i, row in enumerate(expected):
                valid = [True] * len(row) if slots.valid is None else slots.valid[i].tolist()
                assert valid == [one is not None for one in row]
                for place, one in enumerate(row):
                    if one is not None:
                        assert slots.keys is not None and slots.values is not None
                        assert torch.equal(slots.keys[i, :, place], torch.full((2, WIDTH), one))
                        assert torch.equal(slots.values[i, :, place], torch.full((2, WIDTH), -one))


PASSES = st.tuples(
    st.just("run"), st.integers(1, 40), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from(["project", "drop", "copy"])
)
CHANGES = st.one_of(
    st.tuples(st.just("crop"), st.integers(0, 5)),
    st.tuples(st.just("select"), st.lists(st.integers(0, 9), min_size=1, max_size=3)),
    st.tuples(st.just("repeat"), st.integers(1, 2)),
    st.tuples(st.just("fork")),
    st.tuples(st.just("grad")),
    st.tuples(st.just("reset")),
)


@given(steps=st.lists(st.one_of(PASSES, CHANGES), min_size=1, max_size=8), seed=st.integers(0, 2**30))
def test_slots_hold_what_was_written_whatever_happens_in_between(steps: list[tuple[Any, ...]], seed: int) -> None:
    generator, with_gradient = torch.Generator().manual_seed(seed), False
    pairs = [Pair(3)]
    for step, *values in steps:
        pair = pairs[-1]
        naive = pair.naive
        if step == "run":
            for one in pairs:  # forks go on one beside the other, each with its own tokens
                with torch.set_grad_enabled(with_gradient):
                    one.run(*values, generator)
        elif step == "crop":
            n_slots = len(naive.layers[0][0])
            for slots in pair.ours:
                slots.crop(-min(values[0], n_slots))
            naive.layers = [[row[: n_slots - min(values[0], n_slots)] for row in layer] for layer in naive.layers]
        elif step == "select":
            rows = [i % pair.n_sequences for i in values[0]]
            for slots in pair.ours:
                slots.batch_select_indices(torch.tensor(rows))
            naive.layers = [[list(layer[i]) for i in rows] for layer in naive.layers]
        elif step == "repeat":
            for slots in pair.ours:
                slots.batch_repeat_interleave(values[0])
            naive.layers = [[list(row) for row in layer for _ in range(values[0])] for layer in naive.layers]
        elif step == "reset":
            for slots in pair.ours:
                slots.reset()
            naive.layers = [[[] for _ in layer] for layer in naive.layers]
        elif step == "fork":
            pairs.append(pair.fork())
        else:
            with_gradient = not with_gradient
        for one in pairs:
            one.check()


@pytest.mark.parametrize("key_values", ["project", "drop", "copy"])
def test_two_forks_of_one_cache_go_on_independently(key_values: Any) -> None:
    model = tiny("qwen3")
    view = token_view(model, Table(RAN), key_values=key_values, prompt_depth="route")
    other = Batch(torch.where(torch.arange(12) < 7, BATCH.ids, (BATCH.ids + 5) % 90 + 3), BATCH.mask)
    dense = Dense(model)
    with torch.no_grad():
        cache = cache_of(view(**BATCH.inputs(model, 0, 7), use_cache=True))
        fork = copy.copy(cache)
        fork.layers = [copy.copy(layer) for layer in cache.layers]
        deep = copy.deepcopy(cache)
        for step in range(7, 12):  # in turn, a token at a time
            ours = {
                "base": in_chunks(view, BATCH, (step + 1,), cache, first=step),
                "fork": in_chunks(view, other, (step + 1,), fork, first=step),
                "deep": in_chunks(view, other, (step + 1,), deep, first=step),
            }
        for name, given in (("base", BATCH), ("fork", other), ("deep", other)):
            expected = [
                dense(ids, ran[: len(ids)], key_values).logits[0, -1] for ids, ran in zip(given.rows(), RAN, strict=True)
            ]
            assert error(list(ours[name][:, -1]), expected) < 1e-5


@pytest.mark.parametrize("key_values", ["project", "drop", "copy"])
def test_a_cache_cropped_selected_and_repeated_goes_on_as_if_made_so(key_values: Any) -> None:
    model, rows = tiny("llama"), [3, 1, 1]
    view = token_view(model, Table(RAN), key_values=key_values, prompt_depth="route", keys=rows)
    whole = token_view(model, Table(RAN), key_values=key_values, prompt_depth="route")
    few = Batch(BATCH.ids[rows], BATCH.mask[rows])
    with torch.no_grad():
        cache = cache_of(whole(**BATCH.inputs(model, 0, 9), use_cache=True))
        cache.crop(-2)
        cache.batch_select_indices(torch.tensor([3, 1]))
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([0, 2, 3]))
        ours = in_chunks(view, few, (8, 12), cache, first=7)
        expected = in_chunks(view, few, (12,))
    assert error([ours], [expected[:, 7:]]) < 1e-5


def test_a_layer_that_nobody_ran_has_slots_and_no_tensors() -> None:
    model = tiny("llama")
    ran = RAN.clone()
    ran[..., 0] = False
    view = token_view(model, Table(ran), key_values="drop", prompt_depth="route")
    with torch.no_grad():
        cache = cache_of(view(**BATCH.inputs(model, 0, 9), use_cache=True))
        cache.batch_select_indices(torch.tensor([0, 2]))
        cache.batch_repeat_interleave(1)
        assert [layer.get_seq_length() for layer in cache.layers] == [9] * 6
        two = Batch(BATCH.ids[[0, 2]], BATCH.mask[[0, 2]])
        ran = ran[[0, 2]]
        ran[:, 9:, 0] = True
        view = token_view(model, Table(ran), key_values="drop", prompt_depth="route")
        ours = in_chunks(view, two, (12,), cache, first=9)[0]
        expected = Dense(model)(BATCH.ids[0], ran[0], "drop").logits[0, 9:]
    assert error([ours], [expected]) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3"])
def test_an_ordinary_cache_is_taken_over_and_its_tensors_left_alone(name: str) -> None:
    model = tiny(name)
    ran = RAN.clone()
    ran[:, :9] = True
    with torch.no_grad():
        cache = cache_of(model(**Batch(BATCH.ids[:1], BATCH.mask[:1]).inputs(model, 0, 9), use_cache=True))
        layers, before = list(cache.layers), [layer.keys.clone() for layer in cache.layers]
        view = token_view(model, Table(ran))
        ours = in_chunks(view, Batch(BATCH.ids[:1], BATCH.mask[:1]), (10, 12), cache, first=9)
        expected = Dense(model)(BATCH.ids[0], ran[0]).logits[:, 9:]
    assert error([ours], [expected]) < 1e-5
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(layers, before, strict=True))
    assert cache.get_seq_length() == 12


def test_one_prefill_serves_many_policies() -> None:
    model = tiny("mistral")
    prefilled = prefill(model, BATCH.ids, BATCH.mask)
    before = [layer.keys.clone() for layer in prefilled.cache.layers]
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    inputs = {"input_ids": BATCH.ids, "attention_mask": BATCH.mask}
    tables = [Table(drawn(5, 20, seed=seed)) for seed in (1, 2)]
    own = [token_view(model, table).generate(**inputs, **options) for table in tables]
    for table, expected in [*zip(tables, own, strict=True)] * 2:
        ours = decode(model, TokenDepth(table, 6), prefilled, max_new_tokens=5, eos_token_ids=(), pad_token_id=0)
        assert torch.equal(torch.tensor(ours.tokens), expected[:, BATCH.ids.shape[1] :])
    assert not torch.equal(*own)
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(prefilled.cache.layers, before, strict=True))


def test_a_cache_made_in_inference_mode_goes_on_outside_it() -> None:
    model = tiny("llama")
    view = token_view(model, Table(RAN), prompt_depth="route")
    with torch.inference_mode():
        cache = cache_of(view(**BATCH.inputs(model, 0, 9), use_cache=True))
    with torch.no_grad():
        ours = in_chunks(view, BATCH, (10, 12), cache, first=9)
        assert error([ours], [in_chunks(view, BATCH, (12,))[:, 9:]]) < 1e-5


def test_a_layer_that_asks_before_it_writes_learns_where_its_tokens_start() -> None:
    slots = TokenCacheLayer()
    states = torch.ones(2, 1, 3, 4)
    for start in (0, 3):
        slots.begin(2, 3, None, "project", None)
        for plan in (gathered(torch.tensor([[True, False, False]] * 2), only_keys=False), Gathered()):
            assert plan is not None
            slots.expect(plan)
            assert slots.get_seq_length() == start
            slots.update(
                states[:, :, :1] if plan.rows is not None else states, states[:, :, :1] if plan.rows is not None else states
            )
            assert slots.get_seq_length() == start + 3
        slots.finish()


def test_beams_are_refused_and_an_empty_cache_is_empty() -> None:
    cache = token_cache(4)
    assert len(cache.layers) == 4 and cache.get_seq_length() == 0 and cache.get_mask_sizes(3, 0) == (3, 0)
    assert not cache.is_compileable and isinstance(cache, DynamicCache)
    with pytest.raises(InputError, match="Beam search is not supported"):
        cache.reorder_cache(torch.tensor([0]))
