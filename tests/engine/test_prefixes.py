"""Passes that begin with what other routes have computed: the same numbers, bit for bit, and fewer layers run."""

from __future__ import annotations

import pytest
import torch

from depthdial.engine.prefill import prefill
from depthdial.engine.prefixes import SharedPrefixes
from depthdial.engine.teacher_forcing import forced_logits, forced_states, right_padded
from depthdial.hf.architectures import decoder_stack
from depthdial.routes import Route
from depthdial.views.view import quiet_view
from tests.tiny import tiny

LAYERS = ((0, 1, 2, 3, 4, 5), (0, 1, 3, 4, 5), (0, 1, 3), (0, 1, 2), (1, 2, 5), (0,), (0, 1, 3, 5))
ROUTES = [Route(layers, 6) for layers in LAYERS]


def batch_of(model):
    quiet_view(model, (0, 2))  # the first view of a kind of model is checked by some passes
    ids, mask = right_padded([[5, 6, 7, 8], [9, 10, 11, 12]], 0, "cpu")
    with torch.no_grad():
        return prefill(model, ids, mask), *right_padded([[3, 4, 5, 6], [7, 8]], 0, "cpu")


@pytest.fixture
def count(monkeypatch):
    """Counts the calls of a Llama's decoder layers."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    calls, real = [], LlamaDecoderLayer.forward

    def forward(self, *args, **kwargs):
        calls.append(self.self_attn.layer_idx)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", forward)
    return calls


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "opt", "bloom", "mpt", "gemma2", "gemma3_text", "qwen3", "mixtral", "falcon"]
)
@pytest.mark.parametrize("asked", ["never", "before", "always"])
def test_known_prefixes_change_no_number(name: str, asked: str) -> None:
    model = tiny(name)
    if asked == "before":  # transformers hooks the layers for good
        model(torch.tensor([[1, 2]]), output_hidden_states=True)
    model.config.output_hidden_states = asked == "always"
    batch, prefixes = batch_of(model), SharedPrefixes()
    for route in ROUTES:
        assert torch.equal(forced_logits(model, route, *batch, prefixes), forced_logits(model, route, *batch)), route
        known, plain = forced_states(model, route, *batch, prefixes.on("states")), forced_states(model, route, *batch)
        assert torch.equal(known.final, plain.final)
        assert all(torch.equal(a, b) for a, b in zip(known.states, plain.states, strict=True))


def test_only_what_is_new_runs(count) -> None:
    model = tiny("llama")
    batch, prefixes = batch_of(model), SharedPrefixes()
    for _ in range(2):  # the second pass of a model that was never tried is run both ways
        forced_logits(model, ROUTES[0], *batch, prefixes)
    count.clear()
    for route, new in zip(ROUTES, (0, 3, 0, 0, 3, 0, 1), strict=True):
        forced_logits(model, route, *batch, prefixes)
        assert len(count) == new, route
        count.clear()
    forced_logits(model, ROUTES[0], *batch, prefixes.on("other texts"))
    assert len(count) == 6


def test_what_was_used_longest_ago_goes_first(count) -> None:
    model = tiny("llama")
    batch = batch_of(model)
    size = 2 * 3 * 32 * 4  # of hidden states of two texts, of which the last token is not read
    prefixes = SharedPrefixes(6 * size)
    for route in (ROUTES[0], ROUTES[0], ROUTES[4]):  # the last one's three push out the longest three
        forced_logits(model, route, *batch, prefixes)
    count.clear()
    forced_logits(model, ROUTES[0], *batch, prefixes)
    assert len(count) == 3
    nothing = SharedPrefixes(0)
    for _ in range(2):
        count.clear()
        forced_logits(model, ROUTES[0], *batch, nothing)
        assert len(count) == 6


def test_hooks_of_the_model_count_once() -> None:
    model = tiny("llama")
    decoder_stack(model).layers[1].register_forward_hook(lambda module, arguments, output: 2 * output)
    batch, prefixes = batch_of(model), SharedPrefixes()
    for route in ROUTES[:3]:
        assert torch.equal(forced_logits(model, route, *batch, prefixes), forced_logits(model, route, *batch))


def test_a_model_that_gives_other_numbers_from_the_middle_on_runs_all_layers(count) -> None:
    model = tiny("llama")
    batch, prefixes = batch_of(model), SharedPrefixes()
    last = decoder_stack(model).layers[5]
    last.register_forward_hook(lambda module, arguments, output: output + len(count))
    forced_logits(model, ROUTES[0], *batch, prefixes)
    count.clear()
    forced_logits(model, ROUTES[1], *batch, prefixes)  # both ways: 5 layers and then 3
    assert len(count) == 8
    count.clear()
    forced_logits(model, ROUTES[1], *batch, prefixes)
    assert len(count) == 5
