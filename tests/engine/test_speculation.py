"""Speculation gives the plain answers, whatever drafts; rows accept by themselves; keys and values are the plain run's."""

from __future__ import annotations

import pytest

from depthdial.engine.loop import decode_tokens
from depthdial.engine.prefill import left_padded, prefill
from depthdial.engine.row_sampler import RowSampler
from depthdial.engine.sampler import Sampler
from depthdial.engine.speculation import Drafting
from depthdial.routes import Route

N_LAYERS = 6
FULL = Route(tuple(range(N_LAYERS)), N_LAYERS, "full")
PROMPTS = [[1, 5, 9], [1, 7], [1, 8, 8, 4, 6], [1, 9], [1, 4, 4, 4], [1, 12], [1, 20, 3, 7, 9, 11, 5], [1, 6, 6]]
ROUTES = {
    "late": Route((0, 1, 2, 3, 5), N_LAYERS),
    "early": Route((1, 2, 3, 4, 5), N_LAYERS),
    "hostile": Route((5,), N_LAYERS),
    "sparse": Route((0, 2, 4), N_LAYERS),
}


def answered(model, prompts, n_tokens, drafting=None, ends=(), told=None, samplers=None):
    ready = prefill(model, *left_padded(prompts, 0, "cpu"))
    sampler = Sampler(samplers or [RowSampler(ends, limit=n_tokens) for _ in prompts])
    decode_tokens(
        model,
        FULL,
        ready,
        sampler,
        max_new_tokens=n_tokens,
        pad_token_id=0,
        on_tokens=None if told is None else told.append,
        drafting=drafting,
    )
    return [sampler.answer(row) for row in range(len(prompts))]


@pytest.mark.parametrize("n_rows", [1, 2, 5, 8])
@pytest.mark.parametrize("k", [1, 2, 4, 8])
@pytest.mark.parametrize("name", ROUTES)
def test_tokens_are_those_of_plain_decoding(model, n_rows, k, name):
    model.eval()
    plain = answered(model, PROMPTS[:n_rows], 12)
    drafting = Drafting(ROUTES[name], k)
    assert answered(model, PROMPTS[:n_rows], 12, drafting) == plain
    for row, counts in enumerate(drafting.counts):
        assert sum(counts.accepted) + counts.rounds + counts.steps == len(plain[row][0]) - 1
        assert all(a <= d for a, d in zip(counts.accepted, counts.drafted, strict=True))
