"""Timed passes run what they say: rows, tokens, layers, and transformers' generate on the model as it was given."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from depthdial.engine.batch import RowBatch
from depthdial.engine.session import Session
from depthdial.measure.passes import Checks, hf_secs, made_prompts, step_secs
from depthdial.routes import Route
from tests.tiny import tiny


@pytest.fixture
def session(model, tokenizer):
    return Session.of(model.eval(), tokenizer)


def test_prompts_have_the_length_that_was_asked_for(tokenizer):
    prompts = made_prompts(tokenizer, 30, 3, 17, seed=0)
    assert [len(prompt) for prompt in prompts] == [17] * 3 and prompts[0] != prompts[1]
    assert prompts == made_prompts(tokenizer, 30, 3, 17, seed=0) != made_prompts(tokenizer, 30, 3, 17, seed=1)
    assert all(0 <= token < 30 for prompt in prompts for token in prompt)
    assert made_prompts(tokenizer, 1, 1, 2, seed=0) == [[0, 0]]


def test_steps_of_a_route(session):
    ready = session.prefill_ids([[5, 6, 7], [8, 9, 10]])
    seconds = step_secs(session, Route((0, 3), 6), ready, 4)
    assert len(seconds) == 4 and all(one > 0 for one in seconds)


@pytest.mark.parametrize("is_rows", [True, False])
def test_a_check_runs_its_tokens_behind_the_prompts_each_time(session, is_rows):
    ready = session.prefill_ids([[5, 6, 7], [8, 9, 10]])
    shapes, real = [], RowBatch.run
    with mock.patch("depthdial.measure.passes.in_rows", lambda model: is_rows):
        checks = Checks(session, Route((0, 3), 6), ready)

        def run(batch, tokens, **options):
            shapes.append((tuple(tokens.shape), batch.lengths))
            return real(batch, tokens, **options)

        with mock.patch.object(RowBatch, "run", run):
            assert checks.sec(2) > 0 and checks.sec(5) > 0 and checks.sec(5) > 0
    assert shapes == ([((2, 2), (3, 3)), ((2, 5), (3, 3)), ((2, 5), (3, 3))] if is_rows else [])


@pytest.mark.parametrize("is_training", [False, True])
def test_transformers_runs_on_the_given_model_and_leaves_it(session, is_training, weights_of, assert_same):
    model = session.given.train(is_training)
    before, state = weights_of(model), model.generation_config.to_dict()
    first, steps = hf_secs(session, [[5, 6, 7], [8, 9, 10]], 6)
    assert first > 0 and len(steps) == 6 and all(one > 0 for one in steps)
    assert_same(before, weights_of(model))
    assert model.training == is_training and model.generation_config.to_dict() == state


def test_answers_of_transformers_never_end(session):
    with torch.no_grad():  # every token is the end
        session.given.get_output_embeddings().weight.zero_()
    session.given.generation_config.eos_token_id = 0
    assert len(hf_secs(session, [[5, 6]], 7)[1]) == 7


def test_learned_positions_too(tokenizer):
    session = Session.of(tiny("gpt2").eval(), tokenizer)
    ready = session.prefill_ids([[5, 6, 7]])
    assert Checks(session, session.full, ready).sec(3) > 0
    assert len(hf_secs(session, [[5, 6, 7]], 2)[1]) == 2
