"""Rows in decoding against each row alone, through transformers' own cache: any routes, joining and leaving."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depthdial.engine import batch as batches
from depthdial.engine import walk
from depthdial.engine.batch import RowBatch, in_rows, why_not_in_rows
from depthdial.engine.prefill import continue_on, continuing, left_padded, prefill
from depthdial.errors import InputError
from depthdial.routes import Route
from depthdial.views.snapshot import snapshot
from tests.conftest import make_llama
from tests.tiny import ARCHITECTURES, N_LAYERS, tiny

PROMPTS = [[1, 5, 9], [1, 7], [1, 8, 8, 4, 6], [2, 9, 3, 3]]
ROUTES = [Route((0, 1, 2, 3, 4, 5), 6), Route((1, 3, 5), 6), Route((0, 1, 2, 3), 6), Route((4,), 6)]
# Their layers look at positions in a way that rows of unlike length cannot follow, or take no mask of four dimensions.
ELSEWHERE = {"bloom", "falcon_alibi", "mpt", "gpt_neo", "llama4_text"}


def prefilled(model, prompts=PROMPTS):
    with torch.no_grad():
        return prefill(model, *left_padded(prompts, 0, "cpu"))


def alone(model, prompt, route, tokens):
    """Logits behind each token of one answer, by a view and transformers' cache; (n_tokens, vocabulary)."""
    ready = prefilled(model, [prompt])
    running, cache = continuing(model, route, ready)
    mask, found = ready.attention_mask, []
    for token in tokens:
        mask = torch.cat([mask, mask.new_ones(1, 1)], dim=1)
        with torch.no_grad():
            found.append(continue_on(running, cache, torch.tensor([[token]]), mask).logits[0, -1])
    return torch.stack(found)


def stepped(batch, tokens):
    """Logits by key of one step, given the token of each key."""
    logits = batch.step(torch.tensor([tokens[key] for key in batch.keys]))
    return dict(zip(batch.keys, logits, strict=True))


@pytest.fixture(scope="module")
def base():
    return snapshot(make_llama())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_architecture_runs_in_rows_or_says_why_not(name):
    reason = why_not_in_rows(snapshot(tiny(name)))
    assert (reason is not None) == (name in ELSEWHERE), reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_whose_rows_would_see_other_tokens_is_not_run_in_rows(dtype, monkeypatch):
    model = snapshot(make_llama().to(dtype))
    assert batches._tried(model) is None
    mask_of = walk.mask_of
    monkeypatch.setattr(walk, "mask_of", lambda *given: torch.zeros_like(mask_of(*given)))
    assert "off by" in batches._tried(model)


def test_in_halves_rows_may_be_off_by_what_rounding_does_to_transformers_own(monkeypatch):
    model = snapshot(make_llama().to(torch.bfloat16))
    step, theirs = RowBatch.step, batches._their_logits
    rounded = 1 + 0.08 * (torch.arange(model.config.vocab_size) % 2)
    monkeypatch.setattr(RowBatch, "step", lambda self, tokens: step(self, tokens) * rounded)
    assert "off by" in batches._tried(model)

    def alone(model, depth, ready, rows):
        return [logits * (rounded if len(rows) == 1 else 1) for logits in theirs(model, depth, ready, rows)]

    monkeypatch.setattr(batches, "_their_logits", alone)
    assert batches._tried(model) is None


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen3_moe", "opt", "gpt2", "gpt_oss", "falcon", "deepseek_v3"])
def test_rows_of_unlike_routes_and_lengths_are_each_as_if_alone(name):
    model = snapshot(tiny(name))
    routes = [Route(tuple(range(N_LAYERS)), N_LAYERS), Route((1, 2), N_LAYERS), Route((0, N_LAYERS - 1), N_LAYERS)]
    batch = RowBatch(model)
    batch.join(prefilled(model, PROMPTS[:3]), routes, keys="abc")
    answers = {"a": [3, 4, 5, 6, 7, 8], "b": [9, 9, 2, 2, 1, 1], "c": [4, 3, 2, 1, 5, 6]}
    found = {key: [] for key in answers}
    for step in range(6):
        for key, logits in stepped(batch, {key: answers[key][step] for key in answers}).items():
            found[key].append(logits)
    for i, key in enumerate("abc"):
        expected = alone(model, PROMPTS[i], routes[i], answers[key])
        torch.testing.assert_close(torch.stack(found[key]), expected, rtol=1e-4, atol=1e-4)


@given(data=st.data())
def test_rows_may_join_and_leave_at_any_step(base, data):
    batch, tokens, seen, plans = RowBatch(base), {}, {}, {}
    waiting = list(range(len(PROMPTS)))
    for step in range(6):
        n_joining = data.draw(st.integers(0, len(waiting)), label="joining")
        if n_joining:
            joining, waiting = waiting[:n_joining], waiting[n_joining:]
            for i in joining:
                plans[i] = data.draw(st.sampled_from(ROUTES), label="route")
                tokens[i], seen[i] = [], []
            batch.join(prefilled(base, [PROMPTS[i] for i in joining]), [plans[i] for i in joining], keys=joining)
        batch.leave(data.draw(st.sets(st.sampled_from(batch.keys)), label="leaving") if batch.keys else ())
        if len(batch):
            now = {key: (step + key) % 7 + 3 for key in batch.keys}
            for key, logits in stepped(batch, now).items():
                tokens[key].append(now[key])
                seen[key].append(logits)
    for i, answer in tokens.items():
        if answer:
            expected = alone(base, PROMPTS[i], plans[i], answer)
            torch.testing.assert_close(torch.stack(seen[i]), expected, rtol=1e-4, atol=1e-4)


def test_nested_routes_that_join_together_are_gathered_nowhere(base):
    batch = RowBatch(base)
    nested = [Route((0, 5), 6), Route((0, 1, 4, 5), 6), Route(tuple(range(6)), 6), Route((0, 5), 6)]
    batch.join(prefilled(base), nested, keys=range(4))
    assert all(isinstance(segment.rows, slice) for segment in batch._plan(None))
    assert [segment.n_rows for segment in batch._plan(None)] == [4, 2, 1, 2, 4]


def test_rows_of_one_route_are_gathered_nowhere_after_some_have_left(base):
    batch = RowBatch(base)
    batch.join(prefilled(base), [ROUTES[1]] * 4, keys=range(4))
    batch.leave([0, 2])
    assert sorted(batch.keys) == [1, 3]
    assert [segment.rows for segment in batch._plan(None)] == [slice(0, 2)]


def test_several_tokens_in_one_pass_are_as_one_by_one(base):
    answers = [[3, 4, 5], [9, 9, 2], [4, 3, 2], [7, 7, 7]]
    batch = RowBatch(base)
    batch.join(prefilled(base), ROUTES, keys=range(4))
    logits = batch.run(torch.tensor([answers[key] for key in batch.keys]))
    for key, found in zip(batch.keys, logits, strict=True):
        expected = alone(base, PROMPTS[key], ROUTES[key], answers[key])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_tokens_that_do_not_count_leave_nothing_behind(base):
    batch = RowBatch(base)
    batch.join(prefilled(base), ROUTES, keys=range(4))
    batch.run(torch.tensor([[8, 8, 8]] * 4))  # a draft that is refused whole
    batch.run(torch.tensor([[5, 5]] * 4), layers=frozenset({0, 1}))
    assert sorted(batch.lengths) == sorted(map(len, PROMPTS))
    for key, found in stepped(batch, dict.fromkeys(range(4), 3)).items():
        torch.testing.assert_close(found, alone(base, PROMPTS[key], ROUTES[key], [3])[0], rtol=1e-4, atol=1e-4)


def test_slots_that_are_not_a_rows_own_are_never_attended(base):
    batch = RowBatch(base)
    batch.join(prefilled(base), ROUTES, keys=range(4))
    expected = batch.run(torch.tensor([[3]] * 4))
    for slab in batch._slabs.values():
        for row, member in enumerate(slab.members):
            slab.keys[row, :, batch.lengths[member] + 1 :] = 1e4
            slab.values[row, :, batch.lengths[member] + 1 :] = 1e4
    assert torch.equal(batch.run(torch.tensor([[3]] * 4)), expected)


def test_a_row_goes_on_beyond_the_window_that_it_was_given(base):
    tokens = [(7 * i) % 20 + 4 for i in range(100)]  # past one window of 64
    batch = RowBatch(base)
    batch.join(prefilled(base, PROMPTS[:1]), ROUTES[:1], keys=[0])
    found = torch.stack([stepped(batch, {0: token})[0] for token in tokens])
    torch.testing.assert_close(found, alone(base, PROMPTS[0], ROUTES[0], tokens), rtol=1e-4, atol=1e-4)


def test_only_layers_that_a_row_runs_hold_keys_and_the_rest_is_freed(base):
    ready = prefilled(base)
    whole = sum(layer.keys.nbytes + layer.values.nbytes for layer in ready.cache.layers)
    batch = RowBatch(base)
    batch.join(ready, [Route((1, 3), 6)] * 4, keys=range(4))
    assert set(batch._slabs) == {1, 3}
    assert batch.freed_bytes == whole * 4 // 6
    batch.leave(range(4))
    assert (len(batch), batch.n_bytes) == (0, 0)


def test_a_route_whose_layers_did_not_see_the_prompt_is_refused(base):
    with torch.no_grad():
        ready = prefill(base, *left_padded(PROMPTS, 0, "cpu"), Route((0, 1), 6))
    with pytest.raises(InputError, match=r"Layer 5 of route .* did not see the prompt"):
        RowBatch(base).join(ready, [Route((0, 5), 6)] * 4, keys=range(4))


def test_the_model_of_the_user_stays_as_it_is():
    model = make_llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attention = model.config._attn_implementation
    fields = set(model.model.layers[0].__dict__)
    base = snapshot(model)
    batch = RowBatch(base)
    batch.join(prefilled(base), ROUTES, keys=range(4))
    batch.step(torch.tensor([3, 3, 3, 3]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.config._attn_implementation == attention
    assert set(model.model.layers[0].__dict__) == fields


def test_a_model_that_cannot_run_in_rows_is_named_once(monkeypatch, caplog):
    monkeypatch.setattr(batches, "_told", set())
    model = snapshot(tiny("bloom"))
    with caplog.at_level(logging.WARNING, "depthdial"):
        assert not in_rows(model)
        assert not in_rows(model)
    assert [record.message.split(" is decoded")[0] for record in caplog.records] == [type(model).__name__]


def test_hooks_of_layers_run_once_a_step():
    model, calls = make_llama(), []
    for i, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda *_, i=i: calls.append(i))
        layer.register_forward_pre_hook(lambda *_, i=i: calls.append(-i))
    base = snapshot(model)
    batch = RowBatch(base)
    batch.join(prefilled(base), [Route((0, 4), 6)] * 4, keys=range(4))
    batch.step(torch.tensor([3, 3, 3, 3]))  # the first of a class also asks what its layers return
    calls.clear()
    batch.step(torch.tensor([3, 3, 3, 3]))
    assert calls == [0, 0, -4, 4]
