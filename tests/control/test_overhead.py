"""What choosing costs: measured times of a controller beside those of the sequences themselves."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from depthdial.control.controller import SequenceController
from depthdial.control.overhead import ChoosingTime, time_choosing
from depthdial.data.tasks import encode
from depthdial.errors import InputError
from tests.conftest import make_llama, make_tokenizer
from tests.tiny_controllers import fit_tiny, rows

TIME = ChoosingTime(pool_ms=1.0, choose_ms=2.0, prompt_ms=10.0, step_ms=5.0, tokens=9.0, n_prompts=4)


@pytest.fixture(scope="module")
def words():
    return make_tokenizer()


@pytest.fixture(scope="module")
def controller(words) -> SequenceController:
    return fit_tiny(make_llama(), words)


@pytest.fixture(scope="module")
def examples(words):
    return encode(rows("test"), words, context_tokens=128)[:4]


def test_the_share_is_of_the_prompt_and_the_steps_behind_it():
    assert TIME.overhead_ms == 3.0
    assert TIME.sequence_ms == 10 + 8 * 5  # the first of nine tokens comes out of the prompt's pass
    assert TIME.share == pytest.approx(3 / 50)
    assert replace(TIME, tokens=1.0).sequence_ms == replace(TIME, tokens=0.0).sequence_ms == 10.0


def test_in_another_unit_the_overhead_is_as_many_tokens_share_of_it():
    """A response token of the full model costs 6 layers and 5 ms: 3 ms are 3.6 layers, spread over 8 steps."""
    assert TIME.overhead_in(6.0) == pytest.approx(3.6 / 8)
    assert TIME.overhead_in(5.0) == pytest.approx(3 / 8)
    assert TIME.overhead_in(12.0) == pytest.approx(2 * TIME.overhead_in(6.0))
    assert replace(TIME, pool_ms=0.0, choose_ms=0.0).overhead_in(6.0) == 0.0


def test_a_record_is_ready_for_json_and_holds_what_was_measured():
    record = json.loads(json.dumps(TIME.record(), allow_nan=False))
    assert {name: record[name] for name in vars(TIME)} == vars(TIME)
    assert (record["overhead_ms"], record["sequence_ms"], record["share"]) == (3.0, 50.0, 0.06)


@pytest.mark.filterwarnings("error")
def test_times_are_measured_one_prompt_at_a_time(controller, words, examples, weights_of, assert_same):
    model = make_llama()
    before = weights_of(model)
    found = time_choosing(model, words, controller, examples, 5)
    assert_same(before, weights_of(model))
    assert found.n_prompts == 4  # those that warmed up do not count
    assert found.pool_ms >= 0 and min(found.choose_ms, found.prompt_ms, found.step_ms) > 0
    assert 1 < found.tokens <= 5
    assert found.share > 0 and found.overhead_in(6.0) > 0


def test_tokens_are_those_of_the_untouched_full_models_answers(controller, words, examples, with_lora):
    model = make_llama()
    bare = time_choosing(model, words, controller, examples, 5).tokens
    adapted = with_lora(make_llama(), scale=4.0)
    assert time_choosing(adapted, words, controller, examples, 5).tokens == bare


def test_a_slow_choice_shows(controller, words, examples, monkeypatch):
    import time

    def slowly(self, features):
        time.sleep(0.05)
        return real(self, features)

    real = SequenceController.predict
    monkeypatch.setattr(SequenceController, "predict", slowly)
    found = time_choosing(make_llama(), words, controller, examples, 3)
    assert found.choose_ms >= 50 and found.overhead_ms >= found.choose_ms


def test_with_prompts_on_the_route_the_shared_layers_are_the_overhead(words, examples):
    """Their pass is no part of a prompt's pass at full depth, and is charged whole."""
    controller = fit_tiny(make_llama(), words, routes=["full", "0-1,3", "0-3"], prompt_depth="route", budget=4)
    found = time_choosing(make_llama(), words, controller, examples, 3)
    assert found.pool_ms > 0 and found.prompt_ms > 0


def test_answers_without_a_step_have_no_time_to_compare_with(controller, words, examples):
    with pytest.raises(InputError, match="None of the full model's 4 answers is longer than one token"):
        time_choosing(make_llama(), words, controller, examples, 1)
    model = make_llama()
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[2] = 0  # all tokens tie, and the end token is not the first: the answer goes on
    assert time_choosing(model, words, controller, examples, 3).tokens == 3
