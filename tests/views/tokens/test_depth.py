from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from depthdial.engine.decode import decode
from depthdial.engine.prefill import continuing, left_padded, prefill
from depthdial.errors import InputError
from depthdial.hf.cache_name import cache_name
from depthdial.routes import Route
from depthdial.views.tokens.depth import TokenDepth
from depthdial.views.tokens.policy import (
    Bernoulli,
    ConfidenceExit,
    FunctionPolicy,
    StaticRoutes,
    TokenPolicy,
    sequence_key,
    uniform_draws,
)
from depthdial.views.tokens.view import TokenTrace, TracedPass, token_view

ROUTE = Route((0, 2, 3, 5), 6)
RATES = (1.0, 0.6, 0.3, 0.6, 0.3, 1.0)
PROMPTS = [[1, 5, 9, 4, 7], [1, 7], [6, 8, 11]]
IDS = ["a", "b", "c"]


def ready_for(model):
    return prefill(model, *left_padded(PROMPTS, 0, "cpu"))


class Silent(TokenPolicy):
    """A policy that writes nothing about itself."""


def test_a_name_to_read_and_a_text_that_tells_policies_apart():
    depths = [
        TokenDepth(Bernoulli(RATES), 6),
        TokenDepth(Bernoulli(RATES, seed=1), 6),
        TokenDepth(Bernoulli((1.0,) * 6), 6),
        TokenDepth(Bernoulli(RATES), 6, "drop"),
        TokenDepth(ConfidenceExit("margin", 0.5), 6),
        TokenDepth(ConfidenceExit("saturation", 0.5), 6),
        TokenDepth(StaticRoutes((ROUTE,)), 6),
        TokenDepth(FunctionPolicy(lambda layer, hidden: None), 6),
        TokenDepth(FunctionPolicy(lambda layer, hidden: None), 6),
        TokenDepth(Silent(), 6),
        TokenDepth(Silent(), 6),
    ]
    assert depths[0].name == "bernoulli:project" and depths[3].name == "bernoulli:drop"
    assert TokenDepth(Bernoulli(RATES), 6, name="mine").name == "mine"
    assert len({str(depth) for depth in depths}) == len(depths)
    assert all(str(depth).startswith(f"token-wise:{depth.key_values}:") for depth in depths)
    assert str(TokenDepth(Bernoulli(RATES), 6)) == str(depths[0]) and not depths[0].is_full


def test_an_address_that_is_used_again_is_no_policys_name():
    """A function is gone when its policy is, and the next one may be put in the same place."""
    texts = [str(TokenDepth(FunctionPolicy(lambda layer, hidden: None), 6)) for _ in range(50)]
    texts += [str(TokenDepth(Silent(), 6)) for _ in range(50)]
    assert len(set(texts)) == 100
    policy = FunctionPolicy(lambda layer, hidden: None)
    assert str(TokenDepth(policy, 6)) == str(TokenDepth(policy, 6)) and policy.fingerprint == policy.fingerprint


def test_what_is_no_policy_or_one_batchs_own_is_refused():
    with pytest.raises(InputError, match="takes a token policy"):
        TokenDepth(lambda layer, hidden: None, 6)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has one route per row and cannot be swept"):
        TokenDepth(StaticRoutes((ROUTE, Route((0, 1), 6))), 6)


def test_a_batch_has_keys_by_sequence_and_a_trace_of_its_own():
    depth = TokenDepth(Bernoulli(RATES), 6)
    assert depth.for_sequence("a") is depth and depth.trace is depth.keys is None
    one, two = depth.for_batch(["a", "b"]), depth.for_batch(["b", ("a", 3)])
    assert one.keys == (sequence_key("a"), sequence_key("b")) and two.keys == (sequence_key("b"), sequence_key(("a", 3)))
    assert one.trace is not None and one.trace is not two.trace
    assert one == depth == two and hash(one) == hash(depth) and str(one) == str(depth)


def test_mean_layers_of_the_first_tokens_of_each_sequence():
    depth = TokenDepth(Bernoulli(RATES), 6)
    assert depth.mean_layers([2, 1]) == [None, None]
    trace = TokenTrace()
    bound = replace(depth, trace=trace)
    assert bound.mean_layers([2, 1]) == [None, None]
    ran = torch.zeros(3, 3, 6, dtype=torch.bool)
    ran[0, 0, :5], ran[0, 1, :2], ran[0, 2] = True, True, True
    ran[1, 0, :1], ran[1, 1:] = True, True
    trace.passes.append(TracedPass(ran, torch.ones(3, 3, dtype=torch.bool)))
    assert bound.mean_layers([2, 1, 0]) == [3.5, 1.0, None]


@pytest.mark.parametrize("key_values", ["project", "drop", "copy"])
def test_a_static_policy_continues_as_the_route_does(model, key_values):
    """Both behind the same prefill; the policy's view leaves the skipped layers' slots, which nobody looks at."""
    ready = ready_for(model)
    before = [layer.keys.clone() for layer in ready.cache.layers]
    tokens = torch.tensor([[5, 6], [7, 8], [9, 10]])
    mask = torch.cat([ready.attention_mask, torch.ones_like(tokens)], dim=1)
    places = mask.cumsum(1)[:, -2:] - 1
    logits = []
    for depth in (ROUTE, TokenDepth(StaticRoutes((ROUTE,)), 6, key_values)):
        running, cache = continuing(model, depth, ready)
        with torch.no_grad():
            output = running(tokens, attention_mask=mask, position_ids=places, **{cache_name(): cache}, use_cache=True)
        logits.append(output.logits)
    assert torch.equal(*logits)
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(ready.cache.layers, before, strict=True))


def test_generating_behind_a_prefill_is_generating_from_the_prompt(model):
    ready = ready_for(model)
    depth = TokenDepth(Bernoulli(RATES, seed=4), 6).for_batch(IDS)
    options = {"attention_mask": ready.attention_mask, "max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    ours = decode(model, depth, ready, max_new_tokens=5, eos_token_ids=(), pad_token_id=0)
    plain = token_view(model, depth.policy, keys=depth.keys).generate(ready.input_ids, **options)
    assert [list(row) for row in ours.tokens] == plain[:, ready.input_ids.shape[1] :].tolist()


def test_decoding_tells_which_layers_ran_for_each_token_of_an_answer(model):
    """Held against the draws themselves: token t of an answer stands at place n_prompt + t, and the last is never read."""
    ready, depth = ready_for(model), TokenDepth(Bernoulli(RATES, seed=4), 6)
    options = {"max_new_tokens": 6, "pad_token_id": 0}
    free = decode(model, depth.for_batch(IDS), ready, eos_token_ids=(), **options)
    end = free.tokens[1][2]
    found = decode(model, depth.for_batch(IDS), ready, eos_token_ids=(end,), **options)
    assert len({len(tokens) for tokens in found.tokens}) > 1  # some answers are over before others
    assert found.ran is not None
    for name, prompt, tokens, ran in zip(IDS, PROMPTS, found.tokens, found.ran, strict=True):
        assert ran.shape == (len(tokens) - 1, 6)
        places = torch.arange(len(prompt), len(prompt) + len(tokens) - 1)[None]
        chance = uniform_draws(4, torch.tensor([sequence_key(name)]), places, 6)[:, 0].T
        assert torch.equal(ran, chance < torch.tensor(RATES))


def test_answers_of_one_token_ran_nothing(model):
    ready, depth = ready_for(model), TokenDepth(Bernoulli(RATES), 6)
    found = decode(model, depth.for_batch(IDS), ready, max_new_tokens=1, eos_token_ids=(), pad_token_id=0)
    assert [tuple(ran.shape) for ran in found.ran or ()] == [(0, 6)] * 3
    assert decode(model, depth, ready, max_new_tokens=2, eos_token_ids=(), pad_token_id=0).ran is None  # nobody listened
    assert decode(model, ROUTE, ready, max_new_tokens=2, eos_token_ids=(), pad_token_id=0).ran is None
