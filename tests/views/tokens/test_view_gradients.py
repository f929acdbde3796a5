"""Gradients through a token view equal those of the dense reference, whatever runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from depthdial.hf.cache_name import cache_name, cache_of
from depthdial.views.tokens.policy import TokenPolicy
from depthdial.views.tokens.view import token_view
from tests.tiny import VOCAB, tiny
from tests.views.tokens.dense import KEY_VALUES, MAIN, Batch, Dense, Table, batch, drawn, error

BATCH = batch((8, 5, 7), seed=6)
WEIGHTS = torch.randn(3, 8, VOCAB, generator=torch.Generator().manual_seed(7))


def awkward() -> torch.Tensor:
    """A row that runs nothing, a layer that nobody runs, layer 0 skipped by most."""
    ran = drawn(3, 8, seed=8)
    ran[1] = False
    ran[..., 3] = False
    ran[0, :5, 0] = False
    return ran


def of_view(
    model: Any, given: Batch, ran: torch.Tensor, ends: tuple[int, ...] = (8,), **options: Any
) -> dict[str, torch.Tensor]:
    """Gradients of a loss with respect to input embeddings, by row, and all parameters."""
    model.zero_grad()
    embedded = model.get_input_embeddings()(given.ids).detach().requires_grad_()
    routed = token_view(model, Table(ran), prompt_depth="route", **options)
    cache, first, loss = None, 0, torch.zeros(())
    for last in ends:
        inputs = given.inputs(model, first, last)
        inputs["inputs_embeds"] = embedded[:, first:last]
        del inputs["input_ids"]
        output = routed(**inputs, **{cache_name(): cache}, use_cache=True)
        mask = given.mask[:, first:last, None]
        loss = loss + (output.logits * WEIGHTS[:, first:last] * mask).sum()
        cache, first = cache_of(output), last
    loss.backward()
    rows = given.rows(embedded.grad)
    return {f"row {i}": row for i, row in enumerate(rows)} | parameters(model)


def of_reference(model: Any, given: Batch, ran: torch.Tensor, key_values: str) -> dict[str, torch.Tensor]:
    dense, rows = Dense(model), {}
    dense.model.zero_grad()
    for i, (ids, runs, weights) in enumerate(zip(given.rows(), ran, given.rows(WEIGHTS), strict=True)):
        embedded = model.get_input_embeddings()(ids)[None].detach().requires_grad_()
        (dense(ids, runs[: len(ids)], key_values, inputs_embeds=embedded).logits[0] * weights).sum().backward()
        rows[f"row {i}"] = embedded.grad[0]
    return rows | parameters(dense.model)


def parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(bool(torch.isfinite(grad).all()) for grad in ours.values())
    assert error(list(ours.values()), list(theirs.values())) < 1e-5
    scale = max(float(grad.abs().max()) for grad in theirs.values())
    for name, grad in theirs.items():
        torch.testing.assert_close(ours[name], grad, rtol=1e-3, atol=1e-6 * scale, msg=name)


@pytest.mark.parametrize("key_values", KEY_VALUES)
@pytest.mark.parametrize("name", MAIN)
def test_gradients_equal_those_of_the_dense_reference(name: str, key_values: str) -> None:
    model, ran = tiny(name), awkward()
    expected = of_reference(model, BATCH, ran, key_values)
    assert max(float(grad.abs().max()) for grad in expected.values()) > 0.1
    assert_same(of_view(model, BATCH, ran, key_values=key_values), expected)
    assert_same(of_view(model, BATCH, ran, key_values=key_values, execution="dense"), expected)
    assert_same(of_view(model, BATCH, ran, ends=(3, 4, 8), key_values=key_values), expected)


@pytest.mark.parametrize("key_values", KEY_VALUES)
def test_gradients_where_nothing_runs_at_all(key_values: str) -> None:
    model, ran = tiny("llama", attn_implementation="eager"), torch.zeros(3, 8, 6, dtype=torch.bool)
    for execution in ("gather", "dense"):
        expected = of_reference(model, BATCH, ran, key_values)
        assert_same(of_view(model, BATCH, ran, key_values=key_values, execution=execution), expected)


class Weighted(TokenPolicy):
    """Floats of 0 and 1 that carry a gradient, as straight-through gates give them."""

    def __init__(self, weights: torch.Tensor) -> None:
        self.weights = weights

    def start(self, step: Any) -> Any:
        return lambda layer, hidden: self.weights[step.keys[:, None], step.positions][..., layer]


@pytest.mark.parametrize("key_values", KEY_VALUES)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_dense_execution_gives_gradients_to_decisions(name: str, key_values: Any) -> None:
    model = tiny(name)
    ours, theirs = (awkward().float().requires_grad_() for _ in range(2))
    routed = token_view(model, Weighted(ours), key_values=key_values, prompt_depth="route", execution="dense")
    logits = routed(**BATCH.inputs(model), use_cache=False).logits
    (logits * WEIGHTS * BATCH.mask[..., None]).sum().backward()
    dense = Dense(model)
    for ids, runs, weights in zip(BATCH.rows(), theirs, BATCH.rows(WEIGHTS), strict=True):
        (dense(ids, runs[: len(ids)], key_values).logits[0] * weights).sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    real = [slice(int(n)) for n in BATCH.mask.sum(1)]
    assert (
        error([g[n] for g, n in zip(ours.grad, real, strict=True)], [g[n] for g, n in zip(theirs.grad, real, strict=True)])
        < 1e-5
    )
    assert theirs.grad.abs().max() > 0.1
    with torch.no_grad():  # gathered, the same floats are decisions and nothing else
        gathered = token_view(model, Weighted(ours), key_values=key_values, prompt_depth="route")
        assert error(BATCH.rows(gathered(**BATCH.inputs(model)).logits), BATCH.rows(logits.detach())) < 1e-5


def test_prompt_tokens_give_no_gradient_to_decisions() -> None:
    model, weights = tiny("llama"), awkward().float().requires_grad_()
    routed = token_view(model, Weighted(weights), execution="dense")
    routed(**BATCH.inputs(model), prompt_columns=5, labels=BATCH.ids).loss.backward()
    assert weights.grad is not None
    for row, n in zip(weights.grad, BATCH.mask[:, :5].sum(1), strict=True):
        assert not row[: int(n)].any() and row[int(n) :].any()
