from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from depthdial.engine.decode import decode
from depthdial.engine.prefill import left_padded, prefill
from depthdial.errors import InputError
from depthdial.routes import Route
from depthdial.views.passes import positions
from depthdial.views.prompted import prompted_view
from depthdial.views.view import view

PROMPTS = [[1, 5, 9, 4], [1, 7], [1, 8, 8, 3, 12, 20], [6]]
ROUTES = [(0, 2, 3, 5), (1, 2, 4), (0, 1, 2), (3,), (0, 1, 2, 3, 4, 5)]


def filled(model):
    return prefill(model, *left_padded(PROMPTS, 0, "cpu"))


@pytest.mark.parametrize("layers", ROUTES)
def test_decoding_behind_a_full_prompt_equals_the_dense_reference(model, dense_reference, layers):
    """Cached, left-padded, batched == one sequence at a time, uncached, every layer computed and masked."""
    route = Route(layers, 6)
    decoded = decode(model, route, filled(model), max_new_tokens=9, eos_token_ids=(), pad_token_id=0)
    for prompt, answer in zip(PROMPTS, decoded.tokens, strict=True):
        assert len(answer) == 9
        _, _, logits = dense_reference(model, prompt, answer[:-1], route)
        predicted = logits[len(prompt) - 1 :].argmax(-1).tolist()
        assert predicted == list(answer)


def test_the_reference_can_tell_routes_apart(model):
    one, other = (
        decode(model, Route(layers, 6), filled(model), max_new_tokens=9, eos_token_ids=(), pad_token_id=0).tokens
        for layers in ((0, 2, 3, 5), (1, 2, 4))
    )
    assert one != other
    assert [a[0] for a in one] == [b[0] for b in other]  # the first token comes from every layer


def test_generate_on_a_prompted_view_equals_decoding_behind_a_shared_prefill(model):
    ids, mask = left_padded(PROMPTS, 0, "cpu")
    route = Route((1, 2, 4), 6)
    shared = decode(model, route, filled(model), max_new_tokens=7, eos_token_ids=(), pad_token_id=0)
    running = prompted_view(model, route)
    out = running.generate(ids, attention_mask=mask, max_new_tokens=7, do_sample=False, eos_token_id=None)
    assert [tuple(row) for row in out[:, ids.shape[1] :].tolist()] == list(shared.tokens)


def test_full_route_equals_the_untouched_model(model):
    ids, mask = left_padded(PROMPTS, 0, "cpu")
    expected = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    out = prompted_view(model, "full").generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    assert torch.equal(out, expected)


def test_beam_search_and_sampling_run_through_the_switch(model):
    ids, mask = left_padded(PROMPTS, 0, "cpu")
    running = prompted_view(model, "full")
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    assert torch.equal(
        running.generate(ids, attention_mask=mask, **options), model.generate(ids, attention_mask=mask, **options)
    )
    torch.manual_seed(3)
    expected = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=True, temperature=0.9)
    torch.manual_seed(3)
    assert torch.equal(
        running.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=True, temperature=0.9), expected
    )


def test_one_prefill_serves_many_routes_in_any_order(model):
    prefilled = filled(model)

    def answers(layers):
        route = Route(layers, 6)
        return decode(model, route, prefilled, max_new_tokens=6, eos_token_ids=(), pad_token_id=0).tokens

    first = [answers(layers) for layers in ROUTES]
    assert first == [answers(layers) for layers in reversed(ROUTES)][::-1]
    assert all(layer.keys.shape[2] == prefilled.input_ids.shape[1] for layer in prefilled.cache.layers)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True))
def test_selected_rows_decode_as_in_the_whole_batch(model, rows):
    prefilled, route = filled(model), Route((0, 3, 4), 6)
    whole = decode(model, route, prefilled, max_new_tokens=5, eos_token_ids=(), pad_token_id=0).tokens
    some = decode(model, route, prefilled.select(torch.tensor(rows)), max_new_tokens=5, eos_token_ids=(), pad_token_id=0)
    assert some.tokens == tuple(whole[i] for i in rows)


def test_a_prompt_on_the_route_equals_the_view(model):
    route = Route((1, 2, 4), 6)
    ids, mask = left_padded(PROMPTS, 0, "cpu")
    prefilled = prefill(model, ids, mask, route)
    decoded = decode(model, route, prefilled, max_new_tokens=6, eos_token_ids=(), pad_token_id=0)
    expected = view(model, route).generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert [tuple(row) for row in expected[:, ids.shape[1] :].tolist()] == list(decoded.tokens)


def test_a_layer_that_did_not_see_the_prompt_is_refused(model):
    ids, mask = left_padded(PROMPTS, 0, "cpu")
    prefilled = prefill(model, ids, mask, Route((1, 2, 4), 6))
    with pytest.raises(InputError, match=r"Layer 3 .* did not see the prompt"):
        prefilled.cache_for(Route((1, 3), 6))


def test_a_prompted_view_needs_a_dynamic_cache(model):
    ids, mask = left_padded(PROMPTS, 0, "cpu")
    running = prompted_view(model, "uls:3")
    with pytest.raises(InputError, match="dynamic KV cache"):
        running.generate(ids, attention_mask=mask, max_new_tokens=3, cache_implementation="static")


def test_the_base_is_bit_identical_afterwards(model, weights_of, assert_same):
    before = weights_of(model)
    test_one_prefill_serves_many_routes_in_any_order(model)
    test_beam_search_and_sampling_run_through_the_switch(model)
    assert_same(before, weights_of(model))


def test_positions_count_real_tokens_only():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    assert positions(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]
    assert positions(mask, n_last=2).tolist() == [[1, 2], [3, 4]]


def test_a_prompted_view_is_not_cut_again(model):
    with pytest.raises(InputError, match="cannot be cut again"):
        view(prompted_view(model, "uls:3"), "ee:2")


def test_it_cannot_be_saved_as_if_it_were_a_plain_view(model, with_lora, tmp_path):
    for base in (model, with_lora(model)):
        with pytest.raises(
            InputError, match=r"runs its prompt at full depth, which a saved folder would not do: save dd.view"
        ):
            prompted_view(base, "uls:3").save_pretrained(tmp_path / "out")
    assert not list(tmp_path.iterdir())
