"""The decode loop against transformers' own `generate` on a prompted view, greedy and sampled, with left padding."""

from __future__ import annotations

import pytest
import torch

from depthdial.engine.loop import decode_tokens
from depthdial.engine.prefill import left_padded, prefill
from depthdial.engine.sampler import Sampler
from depthdial.engine.sampling import GREEDY, DecodingPolicy, draw_tokens
from depthdial.routes import Route
from depthdial.views.prompted import prompted_view
from tests.tiny import tiny

PROMPTS = [[1, 5, 9], [1, 7], [1, 8, 8, 4, 6]]
MECHANISMS = ("llama", "gpt2", "opt", "gemma2", "qwen3_moe_sparse", "falcon_alibi", "mpt", "gpt_neo")
N_TOKENS = 7


def looped(model, route, policy=GREEDY, draws=None, ends=(), told=None):
    ready = prefill(model, *left_padded(PROMPTS, 0, "cpu"))
    sampler = Sampler.from_draws(policy, draws, ends, len(PROMPTS), N_TOKENS)
    with torch.no_grad():
        return decode_tokens(
            model,
            route,
            ready,
            sampler,
            max_new_tokens=N_TOKENS,
            pad_token_id=0,
            on_tokens=None if told is None else told.append,
        )


def by_transformers(model, route, ends=(), **options):
    ids, mask = left_padded(PROMPTS, 0, "cpu")
    given = {"max_new_tokens": N_TOKENS, "do_sample": False, "eos_token_id": list(ends) or None, "pad_token_id": 0}
    output = prompted_view(model, route).generate(ids, attention_mask=mask, **given, **options)
    return output[:, ids.shape[1] :].tolist()


def some_route(n_layers):
    return Route(tuple(range(1, n_layers)), n_layers) if n_layers > 1 else Route((0,), 1)


@pytest.mark.parametrize("name", MECHANISMS)
def test_greedy_answers_are_those_of_transformers(name):
    model = tiny(name).eval()
    model.generation_config.eos_token_id = None
    route = some_route(model.config.get_text_config().num_hidden_layers)
    assert looped(model, route) == by_transformers(model, route)


def test_sampled_answers_are_those_of_transformers_with_the_same_draws(model):
    draws = torch.rand(3, N_TOKENS, generator=torch.Generator().manual_seed(3))
    policy, route, width = DecodingPolicy(1.3, 0.8), Route((0, 2, 3), 6), max(map(len, PROMPTS))

    def leave_one(ids, scores):
        drawn = draw_tokens(scores, draws[:, ids.shape[1] - width], policy)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn[:, None], 0.0)

    expected = by_transformers(model, route, logits_processor=[leave_one])
    assert looped(model, route, policy, draws) == expected != looped(model, route)


def test_rows_that_are_over_are_padded_and_all_of_them_end_the_batch(model):
    route = Route((0, 2, 5), 6)
    free = looped(model, route)
    ends = (free[0][2], free[1][1], free[2][3])
    told: list[torch.Tensor] = []
    found = looped(model, route, ends=ends, told=told)
    assert found == by_transformers(model, route, ends=ends)
    assert [list(row) for row in torch.stack(told, dim=1).tolist()] == found
    assert len(found[0]) < N_TOKENS


def test_a_prefill_is_left_as_it_was_also_where_an_answer_is_over_at_once(model):
    ready = prefill(model, *left_padded(PROMPTS, 0, "cpu"))
    before = ready.logits.clone()
    ends = (int(ready.logits[1, -1].argmax()),)

    def run():
        sampler = Sampler.from_draws(GREEDY, None, ends, len(PROMPTS), N_TOKENS)
        return decode_tokens(model, Route((0, 2, 3), 6), ready, sampler, max_new_tokens=N_TOKENS, pad_token_id=0)

    first = run()
    assert torch.equal(ready.logits, before) and run() == first
