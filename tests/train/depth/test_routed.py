from __future__ import annotations

import pytest
import torch

from depthdial.engine.prefill import left_padded, prefill
from depthdial.engine.teacher_forcing import continued_logits, right_padded, whole_logits
from depthdial.errors import InputError
from depthdial.routes import Route
from depthdial.train.depth.routed import RoutedModel, refuse_checkpointing
from depthdial.views.view import view

PROMPTS = [[1, 5, 9, 4], [1, 7], [1, 8, 8, 3, 12, 20]]
RESPONSES = [[4, 5], [6, 7, 8, 9, 10], [11, 3, 5]]
ROUTES = [(0, 2, 3, 5), (1, 2, 4), (3,), tuple(range(6))]


@pytest.fixture
def batch():
    names = ("prompt_ids", "prompt_mask", "response_ids", "response_mask")
    return dict(zip(names, (*left_padded(PROMPTS, 0, "cpu"), *right_padded(RESPONSES, 0, "cpu")), strict=True))


@pytest.mark.parametrize("layers", ROUTES)
@pytest.mark.parametrize("prompt_gradient", [False, True])
def test_logits_equal_the_dense_reference(model, dense_reference, batch, layers, prompt_gradient):
    logits = RoutedModel(model, prompt_gradient=prompt_gradient)(**batch, layers=layers, group=0)
    first = batch["response_ids"].shape[1] - logits.shape[1]
    assert first == (not prompt_gradient and len(layers) < 6)
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        expected = dense_reference(model, prompt, response, Route(layers, 6))[2]
        n, start = len(response), len(prompt)
        ours, theirs = logits[i, : n - first], expected[start - 1 + first : start + n - 1]
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layers", ROUTES)
def test_a_prompt_on_the_route_is_the_view_of_it(model, batch, layers):
    logits = RoutedModel(model, prompt_depth="route")(**batch, layers=layers, group=0)
    assert torch.equal(logits, whole_logits(view(model, layers), **batch))


def gradients(model, logits, mask):
    model.zero_grad(set_to_none=True)
    logits[mask.bool()].square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_through_a_cache_are_those_of_one_pass(model, batch):
    """Continuing on a prompt's cache, with gradient, differentiates the same function as running both together."""
    mask, full = batch["response_mask"][:, 1:], Route(tuple(range(6)), 6)
    prompts = prefill(model, batch["prompt_ids"], batch["prompt_mask"], with_gradient=True)
    on_cache = gradients(model, continued_logits(model, full, prompts, batch["response_ids"], batch["response_mask"]), mask)
    whole = gradients(model, whole_logits(model, **batch)[:, 1:], mask)
    assert on_cache.keys() == whole.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(on_cache[name], gradient, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("prompt_gradient", [False, True])
def test_what_is_skipped_has_no_gradient(model, batch, prompt_gradient):
    routed = RoutedModel(model, prompt_gradient=prompt_gradient)
    logits = routed(**batch, layers=(1, 2, 4), group=0)
    first = batch["response_ids"].shape[1] - logits.shape[1]
    found = gradients(model, logits, batch["response_mask"][:, first:])
    touched = {int(name.split(".")[2]) for name in found if ".layers." in name}
    # Through the prompt even a skipped layer is differentiated: a specialist's stays out because it is frozen.
    assert touched == (set(range(6)) if prompt_gradient else {1, 2, 4})


def test_one_prompt_pass_serves_the_routes_of_a_group(model, batch, monkeypatch):
    from depthdial.train.depth import routed as module

    passes = []
    monkeypatch.setattr(module, "prefill", lambda *a, **k: passes.append(1) or prefill(*a, **k))
    routed = RoutedModel(model)
    alone = RoutedModel(model)(**batch, layers=(0, 2), group=7)
    for group in (0, 0, 1, 1, 1):
        shared = routed(**batch, layers=(0, 2), group=group)
    assert len(passes) == 1 + 2
    assert torch.equal(shared, alone)


def test_gradient_checkpointing_is_refused_where_it_would_drop_the_cache(model):
    shallow, full = Route((0, 2), 6), Route(tuple(range(6)), 6)
    refuse_checkpointing(model, [shallow], "full")
    for layer in model.model.layers:  # what gradient_checkpointing_enable() does, under its name of either version
        layer.gradient_checkpointing = True
    refuse_checkpointing(model, [full], "full")
    refuse_checkpointing(model, [shallow], "route")
    with pytest.raises(InputError, match=r"gradient_checkpointing_disable\(\)"):
        refuse_checkpointing(model, [full, shallow], "full")
