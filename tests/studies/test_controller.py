"""A controller judged on a tiny random model: once for all tests, which each take up a copy of its folders."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import depthdial as dd
from depthdial.control.baselines import LENGTH_ONLY, NO_QUALITY, NO_STEPS
from depthdial.control.certify import certification_plan
from depthdial.control.controller import SequenceController
from depthdial.control.memory import CERTIFIED_FILE
from depthdial.data.leakage import prompt_hashes
from depthdial.errors import InputError
from depthdial.report.controller.scores import read_scores
from depthdial.rows.store import UnitStore
from depthdial.studies import controller as controller_studies
from depthdial.studies.controller import EvaluationSettings, evaluate_controller
from tests.conftest import make_llama, make_tokenizer
from tests.tiny_controllers import ROUTES, fit_tiny, rows

SETTINGS = EvaluationSettings(
    budgets=(0.7, 0.9),
    samples=2,
    seeds=2,
    rivals=("mean",),
    rouge=True,
    epsilons=(0.9, 0.02),
    batch_size=16,
    timed_prompts=2,
    n_bootstrap=100,
)
NAMES = ["ee:3", "0,2,4-5", "full"]
OF_AGREEMENT = [
    "agreement",
    "agreement weighted by tokens",
    "agreement by layers per sequence",
    "agreement by ms",
]


def judge(model, tokenizer, folder, out, **options):
    given = {"task": rows("test"), "calibration": rows("validation"), "settings": SETTINGS, "name": "tiny"}
    return evaluate_controller(model, tokenizer, folder, out=out, **{**given, **options})


def untimed(scores):
    """What must be the same whenever and wherever it is found: all but times, and what is paid in them."""
    document = scores.to_dict()
    kept = {name: score for name, score in document["scores"].items() if not name.endswith("by ms")}
    for score in kept.values():
        score["overhead"] = None
        del score["gaps"], score["curves"]
        score["methods"] = [one for one in score["methods"] if one["name"] != "controller"]
        for one in score["methods"]:  # the overhead moves the controller along the mixture, and so all that is behind it
            one["behind"] = one["behind_intervals"] = None
    return kept, document["certificates"]


@pytest.fixture(scope="module")
def words():
    return make_tokenizer()


@pytest.fixture(scope="module")
def fitted(words, tmp_path_factory):
    """Folder of a controller and its measured rows; not to be changed."""
    folder = tmp_path_factory.mktemp("fit") / "controller"
    fit_tiny(make_llama(), words, folder)
    return folder


@pytest.fixture(scope="module")
def whole(words, fitted, tmp_path_factory):
    """(folder, result) of a finished evaluation; not to be changed."""
    folder = tmp_path_factory.mktemp("evaluation") / "out"
    model = make_llama()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config, mode = model.config.to_dict(), model.training
    result = judge(model, words, fitted, folder)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert (config, mode) == (model.config.to_dict(), model.training)
    return folder, result


@pytest.fixture
def no_report(monkeypatch):
    """Figures take longer than a tiny evaluation."""
    monkeypatch.setattr(controller_studies, "write_controller_report", lambda folder: folder / "report.html")


@pytest.fixture
def nothing_runs(monkeypatch):
    def runs(*_, **__):
        raise AssertionError("something was measured")

    monkeypatch.setattr(controller_studies, "measure_for", runs)


@pytest.fixture
def refused(words, fitted, tmp_path, nothing_runs):
    """What is refused is refused in one sentence, before anything is measured or written."""

    def go(message, model=None, folder=fitted, **options):
        with pytest.raises(InputError, match=message) as raised:
            judge(model or make_llama(), words, folder, tmp_path / "out", **options)
        assert "\n" not in str(raised.value)
        assert not (tmp_path / "out").exists()

    return go


# What an evaluation leaves


def test_a_page_figures_tables_rows_and_scores_are_left(whole):
    folder, result = whole
    assert result.report == folder / "report.html" and result.report.stat().st_size > 10_000
    figures = {path.name for path in (folder / "figures").iterdir()}
    for name in ("controller-agreement", "controller-agreement-by-ms", "controller-rouge_l", "controller-shares"):
        assert {f"{name}.png", f"{name}.svg"} <= figures, figures
    assert (folder / "tables" / "certificates.csv").exists() and (folder / "tables" / "controller-agreement.md").exists()
    for part in ("test/scores", "test/features", "test/known", "test/answers", "calibration/scores"):
        assert (folder / part / "rows.parquet").exists(), part
    again = read_scores(folder)
    assert again is not None and again.to_dict() == result.scores.to_dict()


def test_every_score_has_its_methods_and_its_own_unit(whole):
    scores = whole[1].scores.scores
    assert list(scores) == [*OF_AGREEMENT, "rouge_l"]
    for name, score in scores.items():
        assert score.routes == tuple(NAMES) and (score.n_sequences, score.n_seeds, score.n_bootstrap) == (12, 2, 100)
        methods = {method.name for method in score.methods}
        expected = {"controller", "mean instead", LENGTH_ONLY, NO_STEPS, NO_QUALITY, "random"}
        assert methods == expected
        assert {gap.name for gap in score.gaps} == ({"oracle"} if name == "rouge_l" else {"oracle", "predictable oracle"})
        assert score.n_known == (0 if name == "rouge_l" else 2)
        units = {"agreement by ms": "ms", "agreement by layers per sequence": "layers"}
        assert score.cost == units.get(name, "layer_steps")
        assert score.quality == ("tokens" if name == "agreement weighted by tokens" else "sequences")
        assert score.overhead > 0
        assert np.isfinite(score.controller.values).all() and np.allclose(score.shares.sum(axis=1), 1)
    assert scores["agreement"].budgets.tolist() == pytest.approx([0.7, 0.9])
    assert scores["rouge_l"].budgets.tolist() == pytest.approx([0.7, 0.9])
    assert scores["agreement by layers per sequence"].budgets.tolist() == pytest.approx([4.2, 5.4])
    by_ms = whole[1].scores.overhead["route_ms"]
    assert list(by_ms) == NAMES and [one.cost for one in scores["agreement by ms"].fixed] == pytest.approx([*by_ms.values()])
    # Of noisy times on a tiny model, few budgets may be above the cheapest route.
    shares = scores["agreement by ms"].budgets / by_ms["full"]
    assert len(shares) and min(by_ms.values()) / by_ms["full"] <= shares.min() <= shares.max() <= 1


def test_the_values_are_the_routes_agreement_and_the_full_routes_is_one(whole, words):
    score = whole[1].scores.scores["agreement"]
    swept = dd.sweep(
        make_llama(),
        words,
        task=rows("test"),
        routes=ROUTES,
        metrics=("agreement", "rouge_l"),
        max_new_tokens=5,
        fidelity_tokens=5,
    )
    named = {"ee:3": "ee:3", "0,2,4-5": "0,2,4-5", "full": "full"}
    for metric in ("agreement", "rouge_l"):
        for one in whole[1].scores.scores[metric].fixed:
            found = [row[metric] for row in swept.to_pylist() if row["route"] == named[one.route]]
            assert len(found) == 12 and one.value == pytest.approx(np.mean(found)), (metric, one.route)
    assert [one.route for one in score.fixed] == NAMES
    # All routes are paid at the steps of the full model's answer, which agreement is taken on.
    assert [one.cost for one in score.fixed] == pytest.approx([3 / 6, 4 / 6, 1])
    own = {row["route"]: [] for row in swept.to_pylist()}
    for row in swept.to_pylist():
        own[row["route"]].append(row["layers_run"] * (row["new_tokens"] - 1))
    shares = [sum(own[name]) / sum(own["full"]) for name in NAMES]
    assert [one.cost for one in whole[1].scores.scores["rouge_l"].fixed] == pytest.approx(shares)
    assert score.fixed[-1].value == 1.0 and score.fixed[0].value < 1


def test_each_epsilon_has_its_certificate_on_the_calibration_rows(whole):
    generous, strict = whole[1].scores.certificates
    assert (generous.plan.epsilon, strict.plan.epsilon) == (0.9, 0.02)
    for certificate in (generous, strict):
        assert certificate.n_rows == 14 and certificate.plan.delta == 0.05
        assert certificate.provenance["task"] == "tiny-validation" and certificate.risks[0] == 0
    assert generous.certified is not None
    assert strict.certified is None and strict.reason.startswith("Cannot be certified with 14 rows")


def test_overhead_and_provenance_are_on_record(whole):
    overhead, about = whole[1].scores.overhead, whole[1].scores.controller
    assert overhead["n_prompts"] == 2 and overhead["choose_ms"] > 0 and overhead["overhead_ms"] >= overhead["choose_ms"]
    assert overhead["share"] == pytest.approx(overhead["overhead_ms"] / overhead["sequence_ms"])
    assert about["task"] == "tiny-test, test" and about["n_sequences"] == 12 and about["predictor"] == "ridge"
    assert about["fitted_on"]["n_sequences"] == 38 and about["r2"]["full"] is None


def test_without_calibration_rows_there_is_no_certificate(words, fitted, tmp_path, no_report):
    bare = replace(SETTINGS, samples=0, rouge=False, seeds=1, rivals=())
    scores = judge(make_llama(), words, fitted, tmp_path, calibration=None, settings=bare).scores
    assert list(scores.scores) == OF_AGREEMENT and scores.certificates == ()
    score = scores.scores["agreement"]
    assert {method.name for method in score.methods} == {"controller", LENGTH_ONLY, NO_STEPS, NO_QUALITY, "random"}
    assert [gap.name for gap in score.gaps] == ["oracle"] and score.n_known == 0
    assert not any((tmp_path / part).exists() for part in ("calibration", "test/known", "test/answers"))


# Stopped and started again


def test_a_killed_evaluation_goes_on_with_the_rows_it_has(whole, words, fitted, tmp_path, monkeypatch, no_report):
    written, real = [], UnitStore.write
    n_units = len(list(whole[0].rglob("units/*.parquet")))

    def dies(self, unit, found):
        if len(written) == n_units // 2:
            raise KeyboardInterrupt
        written.append((self.folder, unit))
        real(self, unit, found)

    monkeypatch.setattr(UnitStore, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        judge(make_llama(), words, fitted, tmp_path)
    assert not (tmp_path / "controller_scores.json").exists()
    monkeypatch.setattr(UnitStore, "write", lambda self, u, r: (written.append((self.folder, u)), real(self, u, r))[1])
    again = judge(make_llama(), words, fitted, tmp_path)
    assert len(written) == len(set(written)) == n_units
    assert untimed(again.scores) == untimed(whole[1].scores)


def test_a_finished_evaluation_measures_nothing_again(whole, words, fitted, tmp_path, monkeypatch, no_report):
    copied = Path(shutil.copytree(whole[0], tmp_path / "copy"))
    monkeypatch.setattr(UnitStore, "write", lambda *_: pytest.fail("measured again"))
    assert untimed(judge(make_llama(), words, fitted, copied).scores) == untimed(whole[1].scores)


# The model, and its adapter


@pytest.mark.slow
def test_of_an_adapted_model_the_full_route_is_untouched_and_nothing_changes(
    words, tmp_path, with_lora, weights_of, assert_same, no_report
):
    adapted = with_lora(make_llama())
    fit_tiny(adapted, words, tmp_path / "controller")
    before = weights_of(adapted)
    bare = replace(SETTINGS, samples=2, rouge=False, seeds=1, rivals=(), epsilons=(0.9,))
    result = judge(adapted, words, tmp_path / "controller", tmp_path / "out", settings=bare)
    assert_same(before, weights_of(adapted))
    score = result.scores.scores["agreement"]
    assert score.fixed[-1].value == 1.0
    known = pq.read_table(tmp_path / "out" / "test" / "known" / "rows.parquet").to_pylist()
    assert {row["agreement"] for row in known if row["route"] == "full"} == {1.0}
    assert {row["sample"] for row in known} == {0, 1}
    plain = dd.sweep(make_llama(), words, task=rows("test"), routes=["ee:3"], metrics=("agreement",), fidelity_tokens=5)
    assert score.fixed[0].value != pytest.approx(np.mean(plain["agreement"].to_pylist()))


def test_a_controller_of_rouge_and_time_is_judged_in_time_alone_and_not_by_agreement(words, tmp_path, no_report):
    fit_tiny(make_llama(), words, tmp_path / "controller", metric="rouge_l", cost="ms", budget="90%")
    bare = replace(SETTINGS, budgets=(0.9,), samples=2, seeds=1, rivals=(), epsilons=())
    scores = judge(make_llama(), words, tmp_path / "controller", tmp_path / "out", settings=bare, calibration=None).scores
    assert list(scores.scores) == ["rouge_l", "rouge_l weighted by tokens", "rouge_l by layers per sequence"]
    assert scores.scores["rouge_l"].cost == "ms"
    # Agreement on other answers is no guess of ROUGE-L.
    assert [gap.name for gap in scores.scores["rouge_l"].gaps] == ["oracle"]
    assert not (tmp_path / "out" / "test" / "known").exists()


def test_the_least_rows_that_a_fit_takes_can_be_judged(words, tmp_path, no_report):
    """Of 32 rows none can be left out; of 3 test rows the guesses are cross-fitted in 3 parts."""
    few = rows("train")
    fit_tiny(make_llama(), words, tmp_path / "controller", task=replace(few, examples=few.examples[:32]))
    tested = replace(rows("test"), examples=rows("test").examples[:3])
    bare = replace(SETTINGS, seeds=1, rouge=False, rivals=(), epsilons=())
    result = judge(
        make_llama(), words, tmp_path / "controller", tmp_path / "out", task=tested, calibration=None, settings=bare
    )
    score = result.scores.scores["agreement"]
    assert (score.n_sequences, score.n_folds) == (3, 3)


# What is refused


def test_rows_of_the_fit_judge_nothing(refused):
    learned, tested = rows("train"), rows("test")
    mixed = replace(tested, examples=(*tested.examples, learned.examples[3]))
    refused(r"1 of the 13 sequences \(such as 'tiny-train-3'\) were used to fit the controller", task=mixed)
    mixed = replace(rows("validation"), examples=learned.examples[:2])
    refused("2 of the 2 sequences .* were used to fit the controller", calibration=mixed)


def test_calibration_rows_are_none_of_the_test(refused):
    held = replace(rows("test"), split="validation")
    refused("12 of the 12 sequences .* were used as calibration rows", calibration=held)
    tested = replace(rows("validation"), split="test")
    refused("tiny-validation's test split is for evaluation alone: certify", calibration=tested)


def test_rows_of_a_certificate_judge_nothing_and_are_certified_on_once(refused, fitted, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(fitted, copied, ignore=shutil.ignore_patterns(CERTIFIED_FILE))
    controller = SequenceController.from_pretrained(copied)
    controller.certified_on.note([certification_plan(controller, 0.5)], prompt_hashes(rows("validation"))[:1])
    refused(r"1 of the \d+ sequences were used to certify this controller before", folder=copied)
    seen = replace(rows("validation"), split="test")
    refused(r"1 of the .* were used to certify the controller", folder=copied, task=seen, calibration=None)


def test_one_test_row_says_nothing(refused):
    refused("give at least two test sequences", task=replace(rows("test"), examples=rows("test").examples[:1]))


def test_another_model_or_adapter(refused, with_lora):
    refused("The controller is for tiny|The controller is for LlamaForCausalLM", model=make_llama(seed=3))
    refused("load that model with its adapter", model=with_lora(make_llama()))


def test_the_rows_of_the_fit_are_needed(refused, fitted, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("controller.json", "controller.safetensors"):
        shutil.copy(fitted / name, alone / name)
    refused("The rows of the fit are not in .*measured", folder=alone)
    refused("There is no controller file", folder=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budgets": (0.4, 0.9)}, "The budget 0.4 is below the cheapest routes"),
        ({"n_bootstrap": 20}, "Invalid n_bootstrap 20"),
    ],
)
def test_settings_that_do_not_fit_the_controller(refused, options, message):
    refused(message, settings=replace(SETTINGS, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilons": (0.02, 0.0)}, "Invalid epsilon 0"),
        ({"delta": 1.5}, "delta"),
        ({"samples": 3}, "Invalid samples"),
        ({"samples": -2}, "Invalid samples"),
        ({"samples": 2.0}, "Invalid samples"),
        ({"samples": False}, "Invalid samples"),
        ({"budgets": ()}, "name shares of the full cost"),
        ({"budgets": (0.5, 1.2)}, "Invalid budget"),
        ({"budgets": (0.0,)}, "Invalid budget"),
        ({"budgets": (float("nan"),)}, "Invalid budget"),
        ({"seeds": 0}, "Invalid seeds"),
        ({"batch_size": True}, "Invalid batch_size"),
        ({"timed_prompts": 0}, "Invalid timed_prompts"),
        ({"rivals": ("oracle",)}, "Unknown rival 'oracle'"),
    ],
)
def test_settings_that_are_none(options, message):
    with pytest.raises(InputError, match=message):
        EvaluationSettings(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"settings": replace(SETTINGS, samples=4)},
            r"a controller's evaluation with another samples \(2 then, 4 now\)",
        ),
        ({"settings": replace(SETTINGS, budgets=(0.8,))}, "with another budgets"),
        ({"task": replace(rows("test"), examples=rows("test").examples[:6])}, r"another sequences \(12 then, 6 now\)"),
    ],
)
def test_another_evaluation_in_the_same_folder(whole, words, fitted, tmp_path, nothing_runs, options, message):
    (tmp_path / "out").mkdir()
    shutil.copy(whole[0] / "evaluation.json", tmp_path / "out")
    with pytest.raises(InputError, match=message):
        judge(make_llama(), words, fitted, tmp_path / "out", **options)
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["samples"] == 2
