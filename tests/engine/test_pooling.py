from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from depthdial.engine.session import Session
from depthdial.routes import Route

PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12]]


def outputs_of(model, prompt):
    """What each layer gives for one prompt, by hooks of PyTorch's on the model itself."""
    seen = []
    hooks = [layer.register_forward_hook(lambda _, __, output: seen.append(output)) for layer in model.model.layers]
    with torch.no_grad():
        model(torch.tensor([prompt]))
    for hook in hooks:
        hook.remove()
    return [output[0] if isinstance(output, tuple) else output for output in seen]


def test_pooled_states_are_those_of_the_models_own_layers(model, tokenizer, weights_of, assert_same):
    before = weights_of(model)
    prefilled = Session.of(model, tokenizer).prefill_ids(PROMPTS, watch=(1, 3, 5))
    assert_same(before, weights_of(model))
    assert prefilled.pooled.layers == (1, 3, 5)
    for row, prompt in enumerate(PROMPTS):
        seen = outputs_of(model, prompt)
        for place, layer in enumerate((1, 3, 5)):
            torch.testing.assert_close(prefilled.pooled.last[row, place], seen[layer][0, -1], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(prefilled.pooled.mean[row, place], seen[layer][0].mean(0), atol=1e-5, rtol=1e-4)


def test_watching_changes_nothing_of_the_pass(model, tokenizer):
    session = Session.of(model, tokenizer)
    plain, watched = session.prefill_ids(PROMPTS), session.prefill_ids(PROMPTS, watch=(0, 5))
    assert plain.pooled is None
    assert torch.equal(plain.logits, watched.logits)
    for one, other in zip(plain.cache.layers, watched.cache.layers, strict=True):
        assert torch.equal(one.keys, other.keys) and torch.equal(one.values, other.values)


@pytest.mark.parametrize("n_tokens", [1, 2, 4])
def test_parts_of_a_pass_are_pooled_as_the_whole(model, tokenizer, n_tokens):
    session = Session.of(model, tokenizer)
    parts, made = session.prefill_in_parts(PROMPTS, watch=(1, 5)), None
    while made is None:
        with torch.no_grad():
            made = parts.advance(n_tokens)
    chunked = replace(session, chunk_tokens=n_tokens).prefill_ids(PROMPTS, watch=(1, 5))
    whole = session.prefill_ids(PROMPTS, watch=(1, 5)).pooled
    for pooled in (made.pooled, chunked.pooled):
        assert pooled.layers == (1, 5)
        torch.testing.assert_close(pooled.last, whole.last, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(pooled.mean, whole.mean, atol=1e-5, rtol=1e-4)


def test_layers_are_named_as_the_full_model_numbers_them(model, tokenizer):
    """On a route of layers 0, 2 and 5 the states after layer 2 are those of its second layer."""
    session = Session.of(model, tokenizer)
    route = Route((0, 2, 5), 6)
    prefilled = session.prefill_ids(PROMPTS, route, watch=(2, 5))
    alone = session.prefill_ids(PROMPTS, Route((0, 2), 6), watch=(2,))
    torch.testing.assert_close(prefilled.pooled.last[:, 0], alone.pooled.last[:, 0])
    with pytest.raises(ValueError, match="not in tuple"):
        session.prefill_ids(PROMPTS, route, watch=(1,))


def test_rows_are_selected_with_their_prompts(model, tokenizer):
    pooled = Session.of(model, tokenizer).prefill_ids(PROMPTS, watch=(2,))
    chosen = pooled.select(torch.tensor([2, 0]))
    assert torch.equal(chosen.pooled.last, pooled.pooled.last[[2, 0]])
    assert torch.equal(chosen.pooled.mean, pooled.pooled.mean[[2, 0]])


def test_half_precision_states_are_pooled_in_full(model, tokenizer):
    pooled = Session.of(model.to(torch.bfloat16), tokenizer).prefill_ids(PROMPTS, watch=(2,)).pooled
    assert pooled.last.dtype == pooled.mean.dtype == torch.float32
