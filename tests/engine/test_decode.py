from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from depthdial.engine.decode import decode
from depthdial.engine.prefill import left_padded, prefill
from depthdial.engine.sampling import DecodingPolicy, cut_at_end, draw_tokens
from depthdial.errors import InputError
from depthdial.hf.ends import eos_ids
from depthdial.routes import Route

FULL = Route(tuple(range(6)), 6)
ROUTE = Route((0, 2, 3, 5), 6)


def test_answers_end_at_the_first_end_token():
    assert cut_at_end([5, 6, 2, 7, 2], (2,)) == ([5, 6, 2], "eos")
    assert cut_at_end([5, 6], (2,)) == ([5, 6], "length")
    assert cut_at_end([], (2,)) == ([], "length")


def test_every_end_token_of_model_and_tokenizer_counts(model):
    model.generation_config.eos_token_id = [2, 9]
    assert eos_ids(model, SimpleNamespace(eos_token_id=4)) == (2, 4, 9)
    model.generation_config.eos_token_id = None
    assert eos_ids(model, SimpleNamespace(eos_token_id=None)) == ()


def test_a_batch_stops_where_its_longest_answer_does(model):
    prefilled = prefill(model, *left_padded([[1, 5, 9], [1, 7]], 0, "cpu"))
    free = decode(model, FULL, prefilled, max_new_tokens=8, eos_token_ids=(), pad_token_id=0)
    assert free.finish_reasons == ("length", "length")
    assert free.steps == 7
    end = free.tokens[0][3]
    stopped = decode(model, FULL, prefilled, max_new_tokens=8, eos_token_ids=(end,), pad_token_id=0)
    assert stopped.tokens[0] == free.tokens[0][: free.tokens[0].index(end) + 1]
    assert stopped.finish_reasons[0] == "eos"
    assert stopped.steps == max(map(len, stopped.tokens)) - 1


def test_one_token_is_the_prompts_own(model):
    prefilled = prefill(model, *left_padded([[1, 5, 9]], 0, "cpu"))
    decoded = decode(model, Route((3,), 6), prefilled, max_new_tokens=1, eos_token_ids=(), pad_token_id=0)
    assert decoded.tokens == ((prefilled.logits[0, -1].argmax().item(),),)
    assert decoded.steps == 0


def test_greedy_sets_the_models_own_sampling_aside(model):
    prefilled = prefill(model, *left_padded([[1, 5, 9]], 0, "cpu"))
    options = {"max_new_tokens": 8, "eos_token_ids": (), "pad_token_id": 0}
    plain = decode(model, FULL, prefilled, **options).tokens
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.do_sample = True
    model.generation_config.temperature = 3.0
    assert decode(model, FULL, prefilled, **options).tokens == plain


def filled(model):
    return prefill(model, *left_padded([[1, 5, 9], [1, 7], [1, 8, 8, 4]], 0, "cpu"))


def sampled(model, draws, *, temperature=1.0, top_p=1.0, prefilled=None, route=ROUTE):
    options = {"max_new_tokens": 8, "eos_token_ids": (), "pad_token_id": 0}
    policy = DecodingPolicy(temperature, top_p)
    return decode(model, route, prefilled or filled(model), policy=policy, draws=draws, **options).tokens


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_tiny_temperature_is_greedy(model):
    greedy = decode(model, ROUTE, filled(model), max_new_tokens=8, eos_token_ids=(), pad_token_id=0).tokens
    assert sampled(model, uniform(3, 8), temperature=1e-4) == greedy
    assert sampled(model, uniform(3, 8), top_p=1e-6) == greedy
    assert sampled(model, uniform(3, 8)) != greedy


def test_a_draw_is_the_same_in_any_batch_and_whatever_the_global_generator(model):
    prefilled, draws = filled(model), uniform(6, 8)
    rows = torch.tensor([0, 0, 1, 1, 2, 2])
    torch.manual_seed(1)
    state = torch.get_rng_state()
    together = sampled(model, draws, prefilled=prefilled.select(rows))
    assert torch.equal(torch.get_rng_state(), state)
    assert together[0] != together[1]  # two samples behind one prompt
    for place, row in enumerate(rows.tolist()):
        alone = sampled(model, draws[place : place + 1], prefilled=prefilled.select(torch.tensor([row])))
        assert alone == (together[place],)


def test_repeated_rows_of_a_prefill_decode_as_their_own_and_leave_it_as_it_was(model):
    prefilled, options = filled(model), {"max_new_tokens": 6, "eos_token_ids": (), "pad_token_id": 0}
    whole = decode(model, ROUTE, prefilled, **options).tokens
    rows = [2, 0, 2, 2, 1]
    assert decode(model, ROUTE, prefilled.select(torch.tensor(rows)), **options).tokens == tuple(whole[i] for i in rows)
    assert decode(model, ROUTE, prefilled, **options).tokens == whole


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.65)])
def test_tokens_are_drawn_as_often_as_they_are_likely(temperature, top_p):
    logits = torch.tensor([2.0, -1.0, 0.5, -torch.inf, 1.0])
    draws = (torch.arange(20_000) + 0.5) / 20_000
    tokens = draw_tokens(logits.repeat(20_000, 1), draws, DecodingPolicy(temperature, top_p))
    expected = (logits / temperature).softmax(-1)
    if top_p < 1:  # the likeliest two are enough
        kept = expected.topk(2)
        assert kept.values[0] < top_p <= kept.values.sum()
        expected = torch.zeros(5).scatter(0, kept.indices, kept.values / kept.values.sum())
    torch.testing.assert_close(tokens.bincount(minlength=5) / 20_000, expected, atol=1e-4, rtol=0)


def test_a_draw_at_the_very_end_still_finds_a_token_that_can_be_drawn():
    logits = torch.tensor([[0.0, 1.0, -torch.inf, -200.0]])
    for top_p in (1.0, 0.99):
        assert draw_tokens(logits, torch.tensor([1.0]), DecodingPolicy(1.0, top_p)).item() in (0, 1)
        assert draw_tokens(logits, torch.tensor([0.0]), DecodingPolicy(1.0, top_p)).item() in (0, 1)


def test_logits_that_are_not_finite_cannot_be_drawn_from():
    with pytest.raises(InputError, match=r"not finite.*float32"):
        draw_tokens(torch.tensor([[0.0, torch.nan]]), torch.tensor([0.5]), DecodingPolicy(1.0))


def test_a_policy_that_draws_needs_its_draws(model):
    for draws in (None, uniform(3, 7), uniform(2, 8)):
        with pytest.raises(ValueError, match="3 answers of 8 tokens"):
            sampled(model, draws)


@pytest.mark.parametrize(
    ("temperature", "top_p", "message"),
    [
        (-1.0, 1.0, "Invalid temperature"),
        (1e-9, 1.0, "Invalid temperature"),
        (float("nan"), 1.0, "Invalid temperature"),
        (float("inf"), 1.0, "Invalid temperature"),
        ("hot", 1.0, "Invalid temperature 'hot'"),
        (1.0, 0.0, "Invalid top_p"),
        (1.0, 1.5, "Invalid top_p"),
        (1.0, True, "Invalid top_p"),
    ],
)
def test_a_policy_of_nonsense_is_refused(temperature, top_p, message):
    with pytest.raises(InputError, match=message):
        DecodingPolicy(temperature, top_p)
