from __future__ import annotations

from types import SimpleNamespace

from depthdial.models.decode import cut_at_end, decode_greedy, eos_ids
from depthdial.models.prompt import left_padded, prefill
from depthdial.routes import Route

FULL = Route(tuple(range(6)), 6)


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
    free = decode_greedy(model, FULL, prefilled, max_new_tokens=8, eos_token_ids=(), pad_token_id=0)
    assert free.finish_reasons == ("length", "length")
    assert free.steps == 7
    end = free.tokens[0][3]
    stopped = decode_greedy(model, FULL, prefilled, max_new_tokens=8, eos_token_ids=(end,), pad_token_id=0)
    assert stopped.tokens[0] == free.tokens[0][: free.tokens[0].index(end) + 1]
    assert stopped.finish_reasons[0] == "eos"
    assert stopped.steps == max(map(len, stopped.tokens)) - 1


def test_one_token_is_the_prompts_own(model):
    prefilled = prefill(model, *left_padded([[1, 5, 9]], 0, "cpu"))
    decoded = decode_greedy(model, Route((3,), 6), prefilled, max_new_tokens=1, eos_token_ids=(), pad_token_id=0)
    assert decoded.tokens == ((prefilled.logits[0, -1].argmax().item(),),)
    assert decoded.steps == 0


def test_greedy_sets_the_models_own_sampling_aside(model):
    prefilled = prefill(model, *left_padded([[1, 5, 9]], 0, "cpu"))
    options = {"max_new_tokens": 8, "eos_token_ids": (), "pad_token_id": 0}
    plain = decode_greedy(model, FULL, prefilled, **options).tokens
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.do_sample = True
    model.generation_config.temperature = 3.0
    assert decode_greedy(model, FULL, prefilled, **options).tokens == plain
