from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import depthdial as dd
from depthdial.control import rows as controller_rows
from depthdial.control.controller import SequenceController
from depthdial.control.fit import _spread
from depthdial.control.prediction import Prediction
from depthdial.data.leakage import prompt_hashes
from depthdial.engine.session import Session
from depthdial.errors import InputError, RouteWarning
from depthdial.hf.trained import note_training
from depthdial.hf.untouched import untouched
from depthdial.measure.features import features_of, watched_prefill
from depthdial.routes import Route
from depthdial.routes.families import fixed_routes
from depthdial.rows.store import UnitStore
from tests.latencies import make_latency

ROUTES = ["full", "ee:3", "0,2,4,5"]


@pytest.fixture
def fit(model, tokenizer, many):
    def run(model=model, **options):
        given = {"task": many, "routes": ROUTES, "budget": 4.5, "response_tokens": 5, "batch_size": 16, "n_folds": 3}
        return SequenceController.fit(model, tokenizer, **{**given, **options})

    return run


def features(controller, model, tokenizer, task):
    prompts = [tokenizer(example.instruction)["input_ids"] for example in task.examples]
    spec = controller.card.features
    return features_of(watched_prefill(Session.of(model, tokenizer), prompts, spec), spec)


def test_a_controller_knows_its_family_and_keeps_its_budget(fit, model, tokenizer, many, weights_of, assert_same):
    before = weights_of(model)
    controller = fit()
    assert_same(before, weights_of(model))
    assert [route.name for route in controller.routes] == ["ee:3", "0,2,4-5", "full"]
    assert controller.costs.tolist() == pytest.approx([3 / 6, 4 / 6, 1])
    assert controller.card.means[-1] == 1.0 and controller.card.r2[-1] is None
    assert controller.card.fitted_on["prompts"] == list(prompt_hashes(many))
    predicted = controller.predict(features(controller, model, tokenizer, many))
    assert predicted.quality.shape == predicted.steps.shape == (48, 3) and len(predicted) == 48
    assert (predicted.quality[:, 2] == 1.0).all()
    assert (predicted.steps >= 1).all() and (predicted.steps <= 4).all()
    # All routes are judged on the full model's answer, so its length is theirs.
    assert (predicted.steps == predicted.steps[:, :1]).all()
    # The price is set on predictions for rows that the predictors had not seen.
    assert 0.5 <= spent(controller) <= 4.5 / 6 * spent(controller.at("100%"), picked=2) + 1e-9
    assert controller.at(4.5).price == controller.price == controller.at("75%").price == controller.at(0.75).price
    assert (controller.at("51%").pick(controller.calibration) == 0).mean() > 0.5


def spent(controller, picked=None):
    """Mean predicted cost on the calibration rows."""
    costs = controller.expected_costs(controller.calibration)
    chosen = controller.pick(controller.calibration) if picked is None else np.full(len(costs), picked)
    return costs[np.arange(len(costs)), chosen].mean()


def test_a_short_answer_is_cheap_and_gets_its_depth(fit):
    """Of two prompts whose quality is predicted alike, the one with the shorter answer goes deeper."""
    controller = replace(fit(), price=0.5)
    quality = np.tile([0.7, 0.75, 1.0], (2, 1))
    steps = np.repeat([[0.5], [4.0]], 3, axis=1) * controller.card.mean_steps
    assert controller.pick(Prediction(quality, steps)).tolist() == [2, 0]
    by_layers = fit(cost="layers", budget=4.5)
    assert by_layers.costs.tolist() == [3, 4, 6]
    picked = by_layers.pick(Prediction(quality, steps))
    assert picked[0] == picked[1]


def test_a_bare_array_of_qualities_is_refused(fit):
    controller = fit()
    with pytest.raises(InputError, match="not by ndarray: give what `predict` returns"):
        controller.pick(controller.calibration.quality)


def test_answers_of_one_token_leave_nothing_to_choose(fit):
    with pytest.raises(InputError, match="longer than the one token"):
        fit(response_tokens=1)


def test_costs_add_up_to_layers_times_steps(fit, model, tokenizer, many):
    """As a share of the full model's on the same rows, counted by hand from a sweep's answers."""
    controller = fit()
    full = dd.sweep(model, tokenizer, task=many, routes=["full"], metrics=("rouge_l",), max_new_tokens=5)
    steps = np.array([n - 1 for n in full["new_tokens"].to_pylist()])
    assert controller.card.mean_steps == steps.mean()
    costs = controller.card.costs_of(np.repeat(steps[:, None], 3, axis=1))
    assert costs[:, 2].mean() == pytest.approx(1.0)
    chosen = np.arange(len(steps)) % 3
    layers = np.array([3, 4, 6])[chosen]
    assert costs[np.arange(len(steps)), chosen].mean() == pytest.approx((layers * steps).sum() / (6 * steps).sum())


def test_a_latency_model_says_what_steps_cost(fit, many, tmp_path):
    latency = make_latency()
    latency.save(tmp_path / "bench.json")
    controller = fit(cost="ms", latency=tmp_path, budget="90%")
    lengths = sorted(len(example.instruction.split()) for example in many.examples)
    context = lengths[len(lengths) // 2]
    expected = [1e3 * latency.route_sec(route, 1, context) for route in controller.card.routes]
    assert controller.card.route_costs == pytest.approx(expected, rel=0.01)
    with pytest.raises(InputError, match="A latency model gives milliseconds, and the cost is 'layer_steps'"):
        fit(latency=tmp_path)
    make_latency(8).save(tmp_path / "other.json")
    with pytest.raises(InputError, match="rows or routes are of a model with 6"):
        fit(cost="ms", latency=tmp_path / "other.json")


def test_the_values_are_the_routes_agreement(fit, model, tokenizer, many):
    rows = dd.sweep(
        model, tokenizer, task=many, routes=["ee:3"], metrics=("agreement",), max_new_tokens=5, fidelity_tokens=5
    )
    assert fit().card.means[0] == pytest.approx(np.mean(rows["agreement"].to_pylist()))


@pytest.mark.parametrize("kind", ["ridge", "mlp", "trees"])
def test_a_controller_round_trips(fit, model, tokenizer, many, tmp_path, kind):
    controller = fit(predictor=kind)
    controller.save_pretrained(tmp_path / "c")
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["controller.json", "controller.safetensors"]
    again = SequenceController.from_pretrained(tmp_path / "c")
    table = features(controller, model, tokenizer, many)
    for one, other in ((again.predict(table), controller.predict(table)), (again.calibration, controller.calibration)):
        assert np.array_equal(one.quality, other.quality) and np.array_equal(one.steps, other.steps)
    assert (again.card, again.price, again.certificate) == (controller.card, controller.price, None)


def test_a_killed_fit_goes_on_with_the_rows_it_has(fit, tmp_path, monkeypatch):
    whole = fit()
    written, real = [], UnitStore.write

    def dies(self, unit, rows):
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(unit)
        real(self, unit, rows)

    monkeypatch.setattr(UnitStore, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        fit(out=tmp_path)
    monkeypatch.setattr(UnitStore, "write", lambda self, unit, rows: (written.append(unit), real(self, unit, rows))[1])
    again = fit(out=tmp_path)
    assert len(written) == 3 + 3 * 3  # batches of features; of each route
    assert np.array_equal(again.calibration.quality, whole.calibration.quality)
    assert np.array_equal(again.calibration.steps, whole.calibration.steps)
    assert SequenceController.from_pretrained(tmp_path).card == whole.card


def test_of_an_adapted_model_the_full_route_is_the_untouched_one(fit, model, tokenizer, many, with_lora):
    plain = dd.sweep(model, tokenizer, task=many, routes=["ee:3"], metrics=("agreement",), fidelity_tokens=5)
    adapted = with_lora(model)
    controller = fit(model=adapted)
    assert controller.card.means[-1] == 1.0
    assert controller.card.means[0] != pytest.approx(np.mean(plain["agreement"].to_pylist()))
    controller.check(adapted)
    with untouched(adapted):
        controller.check(adapted)


def test_it_is_for_one_model_adapter_and_family(fit, model, tokenizer, many, with_lora):
    controller = fit()
    controller.check(model)
    other = dd.view(model, "full")
    controller.check(other)
    with torch.no_grad():
        changed = type(model)(model.config).eval()
    with pytest.raises(InputError, match=r"The controller is for LlamaForCausalLM .6 layers.*, and this model has 6 layers"):
        controller.check(changed)
    with pytest.raises(InputError, match="load that model with its adapter"):
        controller.check(with_lora(model))
    controller.check_routes([Route((0, 1, 2), 6), Route((0, 2, 4, 5), 6), Route(range(6), 6)])
    with pytest.raises(InputError, match="chooses among other routes"):
        controller.check_routes([Route((0, 1), 6), Route(range(6), 6)])


def unseen(task):
    """Validation rows of which `many` has none."""
    return replace(task, split="validation", examples=tuple(e for e in task.examples if e.instruction != "six"))


def test_a_model_in_a_narrower_type_cannot_be_told_from_others(fit, model):
    controller = fit()
    with pytest.raises(InputError, match="held in a narrower type"):
        controller.check(copy.deepcopy(model).to(torch.bfloat16))
    controller.check(copy.deepcopy(model).to(torch.float64))


def test_rows_that_the_routes_were_searched_on_are_refused(fit, model, tokenizer, small_task, tmp_path):
    prompts = prompt_hashes(unseen(small_task))
    family = dd.RouteFamily("own", 6, fixed_routes(ROUTES, 6), {"prompts": prompts})
    for routes in (family, family.routes, [*ROUTES, *family.routes]):  # given as texts beside, they are the same routes
        controller = fit(routes=routes)
        assert controller.card.fitted_on["searched_on"] == sorted(prompts)
    read = SequenceController.from_pretrained(controller.save_pretrained(tmp_path).parent)
    assert [len(route.searched_on) for route in read.routes] == [len(prompts), len(prompts), 0]
    for one in (controller, read):
        with pytest.raises(InputError, match="were used to search its routes"):
            one.certify(model, tokenizer, task=unseen(small_task), epsilon=0.5)
        with pytest.raises(InputError, match="were used to search the routes"):
            dd.sweep(model, tokenizer, task=unseen(small_task), routes=one.routes)


def test_a_fit_refuses_what_was_searched_or_trained_on_before_any_work(fit, model, many, monkeypatch):
    monkeypatch.setattr("depthdial.control.fit.measure_rows", lambda *_, **__: pytest.fail("rows were measured"))
    monkeypatch.setattr("depthdial.control.fit.encode", lambda *_, **__: pytest.fail("prompts were encoded"))
    family = dd.RouteFamily("own", 6, fixed_routes(ROUTES, 6), {"prompts": prompt_hashes(many)[:2]})
    renamed = replace(many, examples=tuple(replace(e, id=f"new {e.id}") for e in many.examples))
    with pytest.raises(InputError, match=r"^2 of the 48 sequences \(such as 'new .*\) were used to search the routes: take"):
        fit(task=renamed, routes=list(family.routes))
    trained = copy.deepcopy(model)
    note_training(trained, prompt_hashes(many)[:1])
    with pytest.raises(InputError, match=r"^1 of the 48 .* were used to train the model: .*allow_searched_rows=True"):
        fit(model=trained)
    with pytest.raises(pytest.fail.Exception, match="prompts were encoded"):
        fit(model=trained, allow_searched_rows=True)


def test_rows_that_the_model_was_trained_on_certify_nothing(fit, model, tokenizer, small_task):
    controller, trained = fit(), copy.deepcopy(model)
    note_training(trained, prompt_hashes(unseen(small_task))[:3])
    with pytest.raises(InputError, match=r"^3 of the 6 .* were used to train the model: take .* from another split\.$"):
        controller.certify(trained, tokenizer, task=unseen(small_task), epsilon=0.5)


def test_other_prompts_than_those_of_the_fit_are_refused(fit, model, tokenizer, small_task):
    shorter = replace(unseen(small_task), max_prompt_tokens=3, template="plain")
    with pytest.raises(InputError, match="give the same template and max_prompt_tokens"):
        fit().certify(model, tokenizer, task=shorter, epsilon=0.5)


def test_online_a_budget_holds_whatever_arrives(fit, model, tokenizer, many):
    controller = fit()
    online = controller.online(4.5)
    steps = controller.card.mean_steps
    tempting = Prediction(np.tile([0.1, 0.2, 1.0], (200, 1)), np.full((200, 3), steps))  # all want the full route
    costs = np.concatenate([controller.costs[online.pick(tempting[part])] for part in np.array_split(np.arange(200), 9)])
    assert costs.mean() <= 4.5 / 6 + online.state.slack / 200
    assert costs.mean() > 4.2 / 6
    assert online.controller.certificate is None


def test_online_what_answers_took_is_what_is_spent(fit):
    """Answers of half the predicted length leave room for more depth, those of double length for less."""
    controller, means = fit(), []
    for factor in (0.5, 1.0, 2.0):
        online = controller.online("70%")
        some = Prediction(np.tile([0.1, 0.2, 1.0], (20, 1)), np.full((20, 3), controller.card.mean_steps))
        chosen = []
        for _ in range(20):
            picked = online.pick(some)
            online.settle(some, picked, np.full(20, factor * controller.card.mean_steps))
            chosen.append(controller.costs[picked])
        means.append(np.concatenate(chosen).mean())
        assert online.state.spent == pytest.approx(factor * np.concatenate(chosen).sum())
    assert means[0] > means[1] > means[2]


def test_prompts_on_the_route_show_their_shared_layers_only(fit, model):
    controller = fit(prompt_depth="route", routes=["full", "0-1,3", "0-3"])
    assert controller.card.features.prompt_layers == 2
    with pytest.raises(InputError, match="do not share the first layer"):
        fit(prompt_depth="route", routes=["full", "1-3"])


def test_costs_can_be_flops(fit):
    controller = fit(cost="flops", budget="70%")
    assert controller.costs == pytest.approx(controller.costs[0] / 3 * np.array([3, 4, 6]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"routes": ["ee:3", "ee:4"]}, "has no full route"),
        ({"routes": ["full"]}, "two routes or more"),
        ({"routes": ["full", "rls:3@0"]}, "fixed routes"),
        ({"budget": 2.0}, "below the cheapest"),
        ({"budget": 0.8, "cost": "layers"}, "did you mean '80%'"),
        ({"n_folds": 1}, "Invalid n_folds 1: use a whole number of at least 2"),
        ({"routes": 5}, "Route .5. is a bare number"),
        ({"routes": []}, "There are no routes"),
        ({"budget": "much"}, "The budget 'much' is not a number"),
        ({"budget": True}, "The budget True is not a number"),
        ({"metric": "kl"}, "Unknown metric of a controller 'kl'"),
        ({"cost": "watts"}, "Unknown cost 'watts'"),
        ({"predictor": "oracle"}, "Unknown predictor 'oracle'"),
        ({"prompt_depth": "half"}, "Unknown prompt depth"),
        ({"seed": -1}, "Invalid seed"),
        ({"response_tokens": 0}, "Invalid response_tokens"),
    ],
)
def test_bad_arguments(fit, options, message):
    with pytest.raises(InputError, match=message):
        fit(**options)


def test_bad_rows_are_refused_before_anything_runs(fit, many, monkeypatch):
    monkeypatch.setattr(controller_rows, "sweep", lambda *_, **__: pytest.fail("something ran"))
    with pytest.raises(InputError, match="many's test split is for evaluation alone"):
        fit(task=replace(many, split="test"))
    with pytest.raises(InputError, match="20 rows are too few to fit a controller: give 32 or more"):
        fit(task=replace(many, examples=many.examples[:20]))


def test_features_that_are_all_the_same_teach_nothing(fit, many):
    same = replace(many, examples=tuple(replace(e, instruction="the cat") for e in many.examples))
    with pytest.raises(InputError, match="constant"):
        fit(task=same)


def test_a_damaged_controller_is_told(fit, tmp_path):
    fit(out=tmp_path)
    path = tmp_path / "controller.json"
    document = json.loads(path.read_text())
    for change, message in (
        ({"format": "x"}, "is not a controller"),
        ({"version": 9}, "is of version 9"),
        ({"routes": document["routes"][:2]}, "damaged"),
        ({"price": None}, "damaged"),
        ({"features": {}}, "damaged"),
        ({"route_costs": [3, 4]}, "damaged"),
        ({"predictor": {"kind": "ridge", "settings": []}}, "damaged"),
    ):
        path.write_text(json.dumps({**document, **change}))
        with pytest.raises(InputError, match=message):
            SequenceController.from_pretrained(tmp_path)
    path.write_text(json.dumps(document))
    (tmp_path / "controller.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="not a readable safetensors"):
        SequenceController.from_pretrained(tmp_path)
    (tmp_path / "controller.safetensors").unlink()
    with pytest.raises(InputError, match="There is no"):
        SequenceController.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="no controller file"):
        SequenceController.from_pretrained(tmp_path / "nowhere")


def test_of_a_long_family_that_nobody_named_six_routes_are_measured(fit, many):
    with pytest.warns(RouteWarning, match="Nothing is known"):
        controller = fit(routes=None)
    assert [len(route) for route in controller.routes] == [1, 2, 3, 4, 5, 6]
    spread = _spread([Route(range(n), 30) for n in range(15, 31)])
    assert [len(route) for route in spread] == [15, 18, 21, 24, 27, 30]
    assert [len(route) for route in _spread(spread[:3])] == [15, 18, 21]
