from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from depthdial.control.certify import certification_plan, certify_rows, price_grid
from depthdial.control.controller import SequenceController
from depthdial.control.fit import measure_for
from depthdial.control.memory import CERTIFIED_FILE
from depthdial.control.prediction import Prediction
from depthdial.data.leakage import prompt_hashes
from depthdial.errors import InputError
from depthdial.guarantee.plan import Certificate
from depthdial.oracles.prices import choose_routes


@pytest.fixture
def controller(model, tokenizer, many):
    learned = replace(many, examples=many.examples[:36])
    return SequenceController.fit(
        model, tokenizer, task=learned, routes=["full", "ee:3", "0-2,4-5"], budget=5, response_tokens=4, n_folds=3
    )


def rest(many):
    return replace(many, split="validation", examples=many.examples[36:])


def test_the_grid_is_fixed_before_rows_are_read(controller):
    prices = price_grid(controller)
    assert list(prices) == sorted(set(prices))
    known, costs = controller.calibration, controller.expected_costs(controller.calibration)
    rows = np.arange(len(costs))
    spent = [costs[rows, choose_routes(known.quality, costs, price)].mean() for price in prices]
    assert all(one >= other for one, other in itertools.pairwise(spent))
    assert spent[-1] == pytest.approx(costs[:, 0].mean())
    plan = certification_plan(controller, 0.5)
    assert plan.settings[0] == "full" and len(plan.settings) == len(prices) + 1
    assert plan.bounds == (0.0, 1.0)
    assert plan == certification_plan(controller, 0.5)
    assert plan.digest != certification_plan(controller, 0.4).digest


def test_a_generous_epsilon_is_certified_and_its_price_is_taken(controller, model, tokenizer, many):
    certificate = controller.certify(model, tokenizer, task=rest(many), epsilon=0.95, delta=0.2)
    assert certificate.certified is not None and certificate.n_rows == 12
    at = controller.certified(certificate)
    assert at.price == certificate.plan.about["prices"][certificate.certified - 1]
    assert at.certificate is certificate
    assert at.at("90%").certificate is None and at.online("90%").controller.certificate is None


def test_the_losses_are_those_of_what_it_picks(controller, model, tokenizer, many):
    certificate = controller.certify(model, tokenizer, task=rest(many), epsilon=0.9)
    last = certificate.plan.about["prices"][-1]
    cheapest = list(certificate.costs)
    assert cheapest[0] == pytest.approx(1) and cheapest[-1] == pytest.approx(0.5, abs=0.1)
    assert (certificate.plan.metric, certificate.plan.answer_tokens) == ("agreement", 4)
    assert certificate.plan.cost_unit == "layer_steps"
    assert "of agreement in expectation against the full model on answers of at most 4 tokens" in certificate.statement
    assert f"saves {100 * certificate.saving:.1f}%" in certificate.statement
    assert "of the full model's layer-steps" in certificate.statement
    assert certificate.risks[0] == 0 and certificate.risks[-1] > 0 and last > 0


def test_savings_are_counted_by_step(controller, model, tokenizer, many):
    """r01: by hand, from the rows that were measured, and not one count for each sequence however short its answer."""
    rows = measure_for(controller, model, tokenizer, rest(many), batch_size=4, out=None, identity=None, progress=False)
    plan = certification_plan(controller, 0.9)
    certificate = certify_rows(controller, plan, rows, {})
    steps = rows.steps(controller.routes)[:, 0]
    predicted = controller.predict(rows.features)
    costs = controller.expected_costs(predicted)
    for place, price in enumerate(plan.about["prices"], start=1):
        layers = np.array([3, 5, 6])[choose_routes(predicted.quality, costs, price)]
        assert certificate.costs[place] == pytest.approx((layers * steps).sum() / (6 * steps).sum())


def test_too_few_rows_certify_nothing(controller, model, tokenizer, many):
    certificate = controller.certify(model, tokenizer, task=rest(many), epsilon=0.02)
    assert certificate.certified is None
    assert certificate.reason.startswith("Cannot be certified with 12 rows")
    with pytest.raises(InputError, match="Cannot be certified with 12 rows"):
        controller.certified(certificate)


def test_a_certificate_is_saved_with_its_controller(controller, model, tokenizer, many, tmp_path):
    certificate = controller.certify(model, tokenizer, task=rest(many), epsilon=0.95, delta=0.2)
    controller.certified(certificate).save_pretrained(tmp_path)
    again = SequenceController.from_pretrained(tmp_path)
    assert again.certificate == certificate
    assert again.price == controller.certified(certificate).price
    assert again.certified(Certificate.from_dict(certificate.to_dict())).price == again.price


def test_a_certificate_does_not_outlive_its_price(controller, model, tokenizer, many, tmp_path):
    certificate = controller.certify(model, tokenizer, task=rest(many), epsilon=0.95, delta=0.2)
    path = controller.certified(certificate).save_pretrained(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "price": 99.0}))
    with pytest.raises(InputError, match="another price than its certificate"):
        SequenceController.from_pretrained(tmp_path)


def test_another_controllers_certificate_is_refused(controller, model, tokenizer, many):
    certificate = controller.certify(model, tokenizer, task=rest(many), epsilon=0.95, delta=0.2)
    known = controller.calibration
    other = replace(controller, calibration=Prediction(np.ascontiguousarray(known.quality[:, ::-1]), known.steps))
    with pytest.raises(InputError, match="belongs to another controller"):
        other.certified(certificate)


@pytest.mark.parametrize("name", ["predictor.weight", "predictor.intercept", "steps.weight", "steps.intercept"])
def test_other_weights_are_another_controller(controller, model, tokenizer, many, tmp_path, name):
    """r12: the certificate is bound to what predicts, quality and steps alike."""
    certificate = controller.certify(model, tokenizer, task=rest(many), epsilon=0.95, delta=0.2)
    controller.certified(certificate).save_pretrained(tmp_path)
    arrays = load_file(tmp_path / "controller.safetensors")
    arrays[name] = arrays[name] + 1e-3
    save_file(arrays, tmp_path / "controller.safetensors")
    with pytest.raises(InputError, match="or its weights were changed since: certify this one"):
        SequenceController.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0}, "Invalid epsilon 0"),
        ({"epsilon": 2}, "Invalid epsilon 2"),
        ({"epsilon": 1, "delta": 1.5}, "delta"),
    ],
)
def test_numbers_out_of_range(controller, model, tokenizer, many, options, message):
    with pytest.raises(InputError, match=message):
        controller.certify(model, tokenizer, task=rest(many), **options)


def test_rows_of_the_fit_certify_nothing(controller, model, tokenizer, many):
    with pytest.raises(InputError, match="were used to fit the controller"):
        controller.certify(model, tokenizer, task=many, epsilon=0.5)


def part(many, start, stop):
    return replace(many, split="validation", examples=many.examples[start:stop])


def test_rows_are_certified_on_once(controller, model, tokenizer, many):
    first = controller.certify(model, tokenizer, task=rest(many), epsilon=0.02)
    assert first.certified is None
    for epsilon, task in ((0.95, rest(many)), (0.02, part(many, 36, 47))):
        with pytest.raises(InputError, match=r"of the 1[12] sequences were used to certify this controller before"):
            controller.at("90%").certify(model, tokenizer, task=task, epsilon=epsilon)
    with pytest.raises(InputError, match="a second try certifies nothing"):
        controller.certify(model, tokenizer, task=rest(many), epsilon=0.02, seed=1)
    assert controller.certify(model, tokenizer, task=rest(many), epsilon=0.02) == first


def test_plans_that_were_made_together_may_be_looked_at_again(controller, many):
    plans, hashes = [certification_plan(controller, epsilon) for epsilon in (0.1, 0.2)], prompt_hashes(rest(many))
    controller.certified_on.note(plans, hashes)
    controller.certified_on.require_untried(plans[::-1], hashes)
    with pytest.raises(InputError, match="12 of the 12 sequences were used to certify"):
        controller.certified_on.require_untried([certification_plan(controller, 0.3)], hashes)


def test_a_controllers_folder_remembers_what_was_tried(controller, model, tokenizer, many, tmp_path):
    controller.save_pretrained(tmp_path / "fit")
    assert not (tmp_path / "fit" / CERTIFIED_FILE).exists()
    given = {"task": part(many, 36, 42), "delta": 0.2}
    read = SequenceController.from_pretrained(tmp_path / "fit")
    certificate = read.certify(model, tokenizer, epsilon=0.95, **given)
    again = SequenceController.from_pretrained(tmp_path / "fit")
    with pytest.raises(InputError, match="6 of the 6 sequences were used to certify this controller before"):
        again.certify(model, tokenizer, epsilon=0.9, **given)
    assert again.certify(model, tokenizer, epsilon=0.95, **given) == certificate  # a stopped run goes on
    again.certify(model, tokenizer, task=part(many, 42, 48), epsilon=0.9)  # other rows
    again.certified(certificate).save_pretrained(tmp_path / "certified")
    (tmp_path / "certified" / CERTIFIED_FILE).unlink()  # the certificate itself says it, too
    with pytest.raises(InputError, match="6 of the 12 sequences"):
        SequenceController.from_pretrained(tmp_path / "certified").certify(model, tokenizer, task=rest(many), epsilon=0.9)


def test_another_controller_may_be_certified_on_the_same_rows(controller, model, tokenizer, many):
    controller.certify(model, tokenizer, task=rest(many), epsilon=0.95)
    learned = replace(many, examples=many.examples[:35])
    options = {"routes": ["full", "ee:3"], "budget": 5, "response_tokens": 4, "n_folds": 3}
    other = SequenceController.fit(model, tokenizer, task=learned, **options)
    assert other.certify(model, tokenizer, task=rest(many), epsilon=0.9).n_rows == 12


def test_a_damaged_memory_is_not_taken_for_none(controller, tmp_path):
    controller.save_pretrained(tmp_path)
    (tmp_path / CERTIFIED_FILE).write_text("{}")
    with pytest.raises(InputError, match="says which rows a certificate used"):
        SequenceController.from_pretrained(tmp_path)
