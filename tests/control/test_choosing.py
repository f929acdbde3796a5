"""Depth in numbers, and depth by a controller."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import depthdial as dd
from depthdial.control.controller import SequenceController
from depthdial.engine.session import Session
from depthdial.errors import InputError, RouteWarning
from depthdial.hf.adapter import AdapterCard, attach_card
from depthdial.routes import Route
from tests.conftest import make_task

PROMPTS = ["the cat sat", "a was one of", "one dog", "it ran to the mat and", "two dog", "in the by four", "six", "a"]
ROUTES = ["full", "ee:3", "0,2,4,5"]


def fitted(model, tokenizer, many, **options):
    given = {"task": many, "routes": ROUTES, "budget": 4, "response_tokens": 4, "n_folds": 3}
    return SequenceController.fit(model, tokenizer, **{**given, **options})


def torn(model, tokenizer, many):
    """A controller at a price at which some of PROMPTS are worth more than others."""
    controller = fitted(model, tokenizer, many)
    predicted = np.array(
        [list(a.predicted.values()) for a in dd.generate(model, tokenizer, PROMPTS, depth=controller, max_new_tokens=1)]
    )
    return replace(controller, price=float(np.median((predicted[:, 2] - predicted[:, 0]) / 0.5)))


def test_each_answer_is_that_of_its_route_and_says_why(model, tokenizer, many, weights_of, assert_same):
    controller = torn(model, tokenizer, many)
    before = weights_of(model)
    answers = dd.generate(model, tokenizer, PROMPTS, depth=controller, max_new_tokens=6, batch_size=4)
    assert_same(before, weights_of(model))
    assert len({answer.route for answer in answers}) > 1
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        alone = dd.generate(model, tokenizer, prompt, depth=answer.route, max_new_tokens=6)[0]
        assert answer.tokens == alone.tokens and alone.predicted is None
        assert list(answer.predicted) == ["ee:3", "0,2,4-5", "full"]
        layers = {"ee:3": 3, "0,2,4-5": 4, "full": 6}
        share = {n: layers[n] * steps / (6 * controller.card.mean_steps) for n, steps in answer.predicted_steps.items()}
        worth = {n: q - answer.price * share[n] for n, q in answer.predicted.items()}
        assert answer.route.name == max(worth, key=worth.get)
        assert answer.price == controller.price


def test_one_full_pass_serves_all_routes_of_a_batch(model, tokenizer, many, monkeypatch):
    controller = torn(model, tokenizer, many)
    passes, real = [], Session.prefill_ids
    monkeypatch.setattr(Session, "prefill_ids", lambda self, *a, **k: (passes.append(1), real(self, *a, **k))[1])
    answers = dd.generate(model, tokenizer, PROMPTS, depth=controller, max_new_tokens=3)
    assert len({answer.route for answer in answers}) > 1
    assert len(passes) == 1


def test_a_sweep_and_similarity_run_each_sequence_on_the_route_that_a_controller_assigns(model, tokenizer, many, tmp_path):
    controller = torn(model, tokenizer, many)
    controller.save_pretrained(tmp_path)
    task = replace(make_task(PROMPTS, PROMPTS, "new"), template="plain", split="test")
    controller = replace(controller, card=replace(controller.card, template="plain"))
    options = {"task": task, "fidelity_tokens": 4, "batch_size": 4, "allow_searched_rows": True}  # some fitted it
    rows = dd.sweep(model, tokenizer, routes=[controller, *ROUTES], max_new_tokens=4, **options).to_pylist()
    assert [row["route"] for row in rows[:: len(PROMPTS)]] == ["controller", *ROUTES[:2], "0,2,4-5"]
    own, fixed = rows[: len(PROMPTS)], {(row["sequence_id"], row["route_layers"]): row for row in rows[len(PROMPTS) :]}
    assert len({row["route_layers"] for row in own}) > 1
    chosen = dd.generate(model, tokenizer, PROMPTS, depth=controller, template="plain", max_new_tokens=4, batch_size=4)
    for row, answer in zip(own, chosen, strict=True):
        same = fixed[row["sequence_id"], row["route_layers"]]
        assert row["route_layers"] == str(answer.route) and row["layers_run"] == len(answer.route)
        assert (row["answer_hash"], row["agreement"]) == (same["answer_hash"], same["agreement"])
        assert row["kl"] == pytest.approx(same["kl"], abs=1e-5)
    near = dd.similarity(model, tokenizer, routes=controller, **options).to_pylist()
    assert [row["route_layers"] for row in near] == [row["route_layers"] for row in own]
    with pytest.raises(InputError, match="were used to fit the controller"):
        dd.sweep(model, tokenizer, routes=tmp_path, task=many)


def test_the_choice_does_not_depend_on_the_batch(model, tokenizer, many):
    controller = fitted(model, tokenizer, many)
    by_size = [dd.generate(model, tokenizer, PROMPTS, depth=controller, max_new_tokens=3, batch_size=n) for n in (1, 6)]
    for one, other in zip(*by_size, strict=True):
        assert one.route == other.route and one.tokens == other.tokens
        assert list(one.predicted.values()) == pytest.approx(list(other.predicted.values()), abs=1e-4)


def test_prompts_on_the_route(model, tokenizer, many):
    controller = fitted(model, tokenizer, many, routes=["full", "0-1,3", "0-3"], prompt_depth="route", budget=4)
    with pytest.raises(InputError, match="was fitted with prompt_depth='route'"):
        dd.generate(model, tokenizer, PROMPTS, depth=controller)
    for answer in dd.generate(model, tokenizer, PROMPTS, depth=controller, prompt_depth="route", max_new_tokens=5):
        alone = dd.generate(model, tokenizer, answer.prompt, depth=answer.route, prompt_depth="route", max_new_tokens=5)[0]
        assert answer.tokens == alone.tokens


def test_with_an_adapter_prompts_and_the_full_route_run_untouched(model, tokenizer, many, with_lora):
    bare = {p: dd.generate(model, tokenizer, p, max_new_tokens=6)[0] for p in PROMPTS}
    adapted = with_lora(model)
    controller = fitted(adapted, tokenizer, many)
    for answer in dd.generate(adapted, tokenizer, PROMPTS, depth=controller.at("100%"), max_new_tokens=6):
        if answer.route.is_full:
            assert answer.tokens == bare[answer.prompt].tokens
    shallow = dd.generate(adapted, tokenizer, PROMPTS, depth=controller.at(3.0), max_new_tokens=6)
    assert {len(answer.route) for answer in shallow} == {3}
    # The first token is the prompt's, which no adapter touched.
    assert all(answer.tokens[0] == bare[answer.prompt].tokens[0] for answer in shallow)
    assert any(answer.tokens != bare[answer.prompt].tokens for answer in shallow)


def test_online_the_stream_keeps_its_budget(model, tokenizer, many):
    controller = fitted(model, tokenizer, many)
    online = controller.online(4.2)
    answers = dd.generate(model, tokenizer, PROMPTS * 4, depth=online, max_new_tokens=2, batch_size=5)
    assert online.state.n_done == 32
    # Settled by what the answers really took: layers times steps, in units of the fit's mean full answer.
    taken = sum(len(answer.route) * (len(answer.tokens) - 1) for answer in answers)
    assert online.state.spent == pytest.approx(taken / (6 * controller.card.mean_steps))
    assert online.state.mean_cost <= 0.7 + online.state.slack / 32


def test_online_every_answer_says_its_own_price(model, tokenizer, many):
    online = fitted(model, tokenizer, many).online(4.2)
    start = online.state.price
    prices = [answer.price for answer in dd.generate(model, tokenizer, PROMPTS, depth=online, max_new_tokens=2)]
    assert prices[0] == start and len(set(prices)) > 1


def test_prompts_of_another_template_are_refused(model, tokenizer, many):
    controller = fitted(model, tokenizer, many)
    with pytest.raises(InputError, match="fitted to prompts of template 'paper': give template='paper'"):
        dd.generate(model, tokenizer, PROMPTS, depth=controller, template="plain")


def test_a_number_takes_the_deepest_route_that_fits(model, tokenizer):
    def depth(share, **options):
        return dd.generate(model, tokenizer, "the cat", depth=share, max_new_tokens=2, **options)[0].route

    family = dd.RouteFamily("own", 6, tuple(Route.parse(text, 6) for text in ("ee:2", "0,2,4,5", "full")))
    assert depth(0.7, routes=family).layers == (0, 2, 4, 5)
    assert depth(0.5, routes=family).layers == (0, 1)
    assert depth(1.0, routes=family).is_full
    with pytest.raises(InputError, match=r"No known route of this model costs at most 0.2"):
        depth(0.2, routes=family)
    with pytest.warns(RouteWarning, match="Nothing is known of which layers"):
        assert depth(0.5).layers == Route.parse("unified:3", 6).layers
    for bad in (0, 1.5, -0.1, float("nan"), True, None):
        with pytest.raises(InputError, match="depth is a"):
            depth(bad)
    with pytest.raises(InputError, match="routes= says what a depth in numbers"):
        depth("full", routes=family)


def test_of_an_adapted_model_the_adapters_own_routes_are_known(model, tokenizer, with_lora):
    adapted = with_lora(model)
    attach_card(adapted, AdapterCard("elastic", "base", "0" * 64, "float32", 6, "full", (Route((0, 1, 4), 6, "own:3"),)))
    assert dd.generate(adapted, tokenizer, "the cat", depth=0.5, max_new_tokens=2)[0].route.layers == (0, 1, 4)


def test_a_controller_for_another_model_or_family_is_refused(model, tokenizer, many):
    controller = fitted(model, tokenizer, many)
    other = type(model)(model.config).eval()
    with pytest.raises(InputError, match="The controller is for"):
        dd.generate(other, tokenizer, "the cat", depth=controller)
    with pytest.raises(InputError, match="chooses among other routes"):
        dd.generate(model, tokenizer, "the cat", depth=controller, routes=["ee:2", "full"])
    assert dd.generate(model, tokenizer, "the cat", depth=controller, routes=ROUTES, max_new_tokens=2)


def test_predictions_are_the_controllers(model, tokenizer, many):
    controller = fitted(model, tokenizer, many)
    answers = dd.generate(model, tokenizer, [e.instruction for e in many.examples[:8]], depth=controller, max_new_tokens=2)
    table = np.array([list(answer.predicted.values()) for answer in answers])
    assert table.std(axis=0)[:2].min() > 0 and (table[:, 2] == 1).all()
