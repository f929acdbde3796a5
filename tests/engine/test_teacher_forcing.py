from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depthdial.engine.prefill import left_padded, prefill
from depthdial.engine.teacher_forcing import (
    Predictions,
    by_route,
    forced_logits,
    forced_states,
    nll,
    right_padded,
    row_slices,
)
from depthdial.routes import Route

PROMPTS = [[1, 5, 9, 4], [1, 7], [1, 8, 8, 3, 12, 20]]
RESPONSES = [[4, 5], [6, 7, 8, 9, 10], [11]]
ROUTES = [(0, 2, 3, 5), (1, 2, 4), (0, 1, 2), (3,), (0, 1, 2, 3, 4, 5)]


@pytest.fixture
def batch(model):
    return prefill(model, *left_padded(PROMPTS, 0, "cpu")), *right_padded(RESPONSES, 0, "cpu")


@pytest.mark.parametrize("layers", ROUTES)
def test_logits_and_states_equal_the_dense_reference(model, dense_reference, batch, layers):
    route = Route(layers, 6)
    logits = forced_logits(model, route, *batch)
    hidden = forced_states(model, route, *batch)
    assert len(hidden.states) == len(layers) + 1
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        states, final, expected = dense_reference(model, prompt, response, route)
        n, start = len(response), len(prompt)
        torch.testing.assert_close(logits[i, :n], expected[start - 1 : start + n - 1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(hidden.final[i, :n], final[start:], atol=1e-4, rtol=1e-4)
        for j, layer in enumerate(layers, start=1):
            torch.testing.assert_close(hidden.states[j][i, :n], states[layer + 1][start:], atol=1e-4, rtol=1e-4)


def test_the_full_model_is_at_no_distance_from_itself(model, batch):
    logits = forced_logits(model, Route(tuple(range(6)), 6), *batch)[0]
    assert Predictions.of(logits).fidelity(logits) == (0.0, 1.0)


def test_kl_and_agreement_by_hand():
    p, q = torch.tensor([[0.5, 0.5, 0.0], [0.9, 0.05, 0.05]]), torch.tensor([[0.25, 0.75, 0.0], [0.9, 0.05, 0.05]])
    kl, agreement = Predictions.of((p + 1e-12).log()).fidelity((q + 1e-12).log())
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert kl == pytest.approx(expected / 2, abs=1e-5)
    assert agreement == 0.5


def test_nll_is_the_cross_entropy_of_the_tokens():
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 3.0]])
    expected = -sum(logits[i].log_softmax(-1)[t].item() for i, t in enumerate([1, 0])) / 2
    assert nll(logits, torch.tensor([1, 0])) == pytest.approx(expected)


def test_right_padding():
    tokens, mask = right_padded([[5], [6, 7, 8]], 0, "cpu")
    assert tokens.tolist() == [[5, 0, 0], [6, 7, 8]]
    assert mask.tolist() == [[1, 0, 0], [1, 1, 1]]


@given(
    lengths=st.dictionaries(st.integers(0, 99), st.integers(1, 5000), min_size=1, max_size=40),
    vocabulary=st.integers(100, 200_000),
)
def test_slices_cover_the_rows_stay_small_and_pad_little(lengths, vocabulary):
    slices = list(row_slices(list(lengths), lengths, vocabulary))
    assert sorted(i for part in slices for i in part) == sorted(lengths)
    assert all(len(part) == 1 or len(part) * max(lengths[i] for i in part) * vocabulary <= 32_000_000 for part in slices)
    assert max(map(len, slices)) - min(map(len, slices)) <= 1
    in_order = [lengths[i] for part in slices for i in part]
    assert in_order == sorted(in_order)


def test_no_rows_no_slices():
    assert list(row_slices([], {}, 100)) == []


def test_rows_by_route():
    a, b = Route((0,), 3), Route((1, 2), 3)
    assert by_route([a, b, a]) == {a: [0, 2], b: [1]}
