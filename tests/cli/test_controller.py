"""`controller fit`, `certify`, `evaluate`, `generate` with a depth or a controller, and `report`, on a tiny random model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from depthdial.cli.controller import _calibration_rows
from depthdial.cli.options import DataOptions
from depthdial.control.controller import SequenceController
from depthdial.data.leakage import prompt_hashes
from depthdial.report.controller.scores import read_scores
from depthdial.routes import Route
from depthdial.routes.families import RouteFamily
from tests.conftest import make_llama, make_tokenizer
from tests.tiny_controllers import fit_tiny, rows

SIZES = ("--response-tokens", "4", "--n-folds", "3", "--routes", "full,ee:3,0-2,4-5", "--budget", "5")
QUICK = ("--samples", "2", "--seeds", "1", "--rivals", "", "--epsilons", "0.9,0.02", "--budgets", "0.7,90%")


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    """The tiny model as base/, its rows as data/ in three splits, a fitted controller as fitted/; not to be changed."""
    folder = tmp_path_factory.mktemp("controller")
    model, words = make_llama(), make_tokenizer()
    for name, saved in (("base", model), ("other", make_llama(seed=3))):
        saved.save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    (folder / "data").mkdir()
    for split in ("train", "validation", "test"):
        written = [{"prompt": one.instruction, "reference": one.reference} for one in rows(split).examples]
        (folder / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    learned = DataOptions(data=folder / "data").read(None, split="train")
    fit_tiny(model, words, folder / "fitted", task=learned, response_tokens=4)
    return folder


@pytest.fixture
def run(places, tmp_path, command_line):
    """Runs a verb on the tiny model and its rows; `out` is in a folder of the test's own."""

    def go(verb: str, *arguments: Any, data="data", out="out"):
        fixed = () if verb in ("report", "generate") else ("--data", places / data, "--out", tmp_path / out)
        verbs = (verb,) if verb in ("report", "generate") else ("controller", verb)
        return command_line(*verbs, *arguments, *fixed)

    return go


@pytest.fixture
def refused(run, tmp_path):
    """Exit status 2 and one sentence; nothing is left behind."""

    def go(complaint: str, verb: str, *arguments: Any, **options: Any):
        status, _, err = run(verb, *arguments, **options)
        assert status == 2, err
        assert complaint in err and "Traceback" not in err
        assert len(err.strip().splitlines()) == 1 and err.startswith("depthdial: ")
        assert not (tmp_path / "out").exists()

    return go


@pytest.fixture
def nothing_loads(monkeypatch):
    """What can be told from the arguments is told before a model is loaded."""
    monkeypatch.setattr("depthdial.hf.load.load", lambda *_, **__: pytest.fail("a model was loaded"))


# All verbs, one after another


def test_fit_certify_evaluate_generate_and_report(run, places, tmp_path):
    base = places / "base"
    status, out, err = run("fit", base, *SIZES, out="mine")
    assert status == 0, err
    mine = tmp_path / "mine"
    assert "rows: 38 to fit a controller, 0 unused" in out
    assert f"controller: {mine}" in out and "ridge on 38 sequences, agreement" in out
    controller = SequenceController.from_pretrained(mine)
    assert [route.name for route in controller.routes] == ["ee:3", "0-2,4-5", "full"]
    assert controller.card.fitted_on["split"] == "train"

    unread = Path(shutil.copytree(mine, tmp_path / "unread"))  # rows are certified on once: the evaluation's are its own
    status, out, err = run("certify", mine, base, "--epsilon", "0.95", "--delta", "0.2", out="sure")
    assert status == 0, err
    assert "rows: 38 fitted, 14 to certify, 0 unused" in out
    sure = SequenceController.from_pretrained(tmp_path / "sure")
    assert sure.certificate is not None and sure.certificate.statement in " ".join(out.split())
    assert sure.certificate.n_rows == 14 and sure.certificate.provenance["split"] == "validation"
    assert sure.price == sure.certificate.plan.about["prices"][sure.certificate.certified - 1]

    # The figures are drawn once, by the verb for them.
    with mock.patch("depthdial.studies.controller.write_controller_report", lambda folder: folder / "report.html"):
        status, out, err = run("evaluate", unread, base, *QUICK, out="judged")
    assert status == 0, err
    assert "rows: 38 fitted, 14 to certify, 12 to judge, 0 unused" in out
    judged = read_scores(tmp_path / "judged")
    assert judged is not None and judged.scores["agreement"].budgets.tolist() == pytest.approx([0.7, 0.9])
    assert judged.controller["task"].endswith("test") and judged.scores["agreement"].n_sequences == 12
    assert [one.plan.epsilon for one in judged.certificates] == [0.9, 0.02]  # the folder has validation rows
    assert "agreement: mean over 2 budgets" in out and "Cannot be certified with 14 rows" in out
    assert f"report: {tmp_path / 'judged' / 'report.html'}" in out

    status, out, err = run("report", tmp_path / "judged")
    assert status == 0, err
    assert (tmp_path / "judged" / "report.html").stat().st_size > 10_000

    status, out, err = run("generate", base, "the cat sat", "--controller", tmp_path / "sure", "--max-new-tokens", "3")
    assert status == 0, err
    assert "predicted: ee:3 0." in err and "full 1.000" in err and f"price {sure.price:.4g}" in err


def test_a_fit_on_rows_that_were_searched_or_trained_on(refused, run, places, tmp_path, monkeypatch):
    """The family's own rows and those of an adapter's record are known, whatever their ids; the flag takes them."""
    learned = DataOptions(data=places / "data").read(None, split="train")
    routes = (Route((0, 2, 5), 6, "own:3"), Route(range(6), 6, "full"))
    RouteFamily("own", 6, routes, {"prompts": prompt_hashes(learned)[:3]}).save(tmp_path / "routes.json")
    sizes = ("--routes", tmp_path / "routes.json", *SIZES[:4])
    told = "3 of the 38 sequences (such as 'data-train-00001') were used to search the routes"
    refused(told, "fit", places / "base", *sizes)
    taught = Path(shutil.copytree(places / "base", tmp_path / "taught"))
    (taught / "depthdial.json").write_text(json.dumps({"training": {"data": {"prompts": prompt_hashes(learned)[3:5]}}}))
    refused("2 of the 38 sequences (such as 'data-train-00004') were used to train the model", "fit", taught, *SIZES)
    with monkeypatch.context() as patched:
        patched.setattr(
            SequenceController, "fit", lambda *_, allow_searched_rows, **__: pytest.fail(str(allow_searched_rows))
        )
        with pytest.raises(pytest.fail.Exception, match="True"):
            run("fit", taught, *sizes, "--allow-searched-rows")
    held = DataOptions(data=places / "data").read(None, split="validation")
    (taught / "depthdial.json").write_text(json.dumps({"training": {"data": {"prompts": prompt_hashes(held)[3:5]}}}))
    for verb, options in (("certify", ()), ("evaluate", QUICK)):
        told = "2 of the 14 sequences (such as 'data-validation-00004') were used to train the model: take rows"
        refused(told, verb, places / "fitted", taught, *options)


def test_a_controller_certified_in_place_can_be_judged(run, places, tmp_path):
    """The rows of the certificate lie beside those of the fit, which an evaluation needs."""
    mine = Path(shutil.copytree(places / "fitted", tmp_path / "mine"))
    status, _, err = run("certify", mine, places / "base", "--epsilon", "0.95", "--delta", "0.2", out="mine")
    assert status == 0, err
    with mock.patch("depthdial.studies.controller.write_controller_report", lambda folder: folder / "report.html"):
        again = run("evaluate", mine, places / "base", *QUICK, "--samples", "0", out="again")
        status, _, err = run("evaluate", mine, places / "base", *QUICK, "--samples", "0", "--epsilons", "", out="judged")
    assert again[0] == 2 and "were used to certify this controller before" in again[2]
    assert status == 0, err
    assert SequenceController.from_pretrained(mine).certificate is not None


def test_a_single_file_has_no_rows_to_certify_on(places):
    assert _calibration_rows(DataOptions(data=places / "data" / "test.jsonl"), None, 5) is None
    assert _calibration_rows(DataOptions(task="alpaca"), None, 5) is None  # nothing is fetched unasked
    assert len(_calibration_rows(DataOptions(data=places / "data"), None, 5).examples) == 5
    assert _calibration_rows(DataOptions(data=places / "data"), "train", 9).split == "train"


# Generate


@pytest.mark.filterwarnings("always::depthdial.errors.RouteWarning")
def test_a_depth_in_numbers_takes_a_known_route(run, places):
    shallow = ("--depth", "0.5", "--routes", "ee:2,0-1,4,full", "--max-new-tokens", "2")
    status, _, err = run("generate", places / "base", "the cat", *shallow)
    assert status == 0, err
    assert "3 of 6 layers" in err and "predicted" not in err
    status, _, err = run("generate", places / "base", "the cat", "--depth", "0.7", "--max-new-tokens", "2")
    assert status == 0, err
    assert "4 of 6 layers" in err and "Nothing is known of which layers" in err and "Traceback" not in err


def test_another_budget_is_another_price(run, places):
    folder, base = places / "fitted", places / "base"
    kept = ("--controller", folder, "--max-new-tokens", "2")
    prices = {}
    for budget in (None, "100%", "3"):
        status, _, err = run("generate", base, "the cat", *kept, *(() if budget is None else ("--budget", budget)))
        assert status == 0, err
        prices[budget] = float(err.rsplit("price ", 1)[1].split()[0])
        assert budget != "3" or "3 of 6 layers" in err
    controller = SequenceController.from_pretrained(folder)
    assert prices["100%"] == 0 < prices[None] < prices["3"]
    assert prices[None] == pytest.approx(controller.price, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--route", "ee:3", "--controller", "FITTED"), "--depth and --controller each say which layers run"),
        (("--depth", "0.5", "--controller", "FITTED"), "--depth and --controller each say which layers run"),
        (("--budget", "80%"), "--budget is for a controller"),
        (("--route", "full", "--budget", "80%"), "--budget is for a controller"),
        (("--controller", "FITTED", "--budget", "much"), "The budget 'much' is not a number"),
        (("--controller", "FITTED", "--budget", "2"), "is below the cheapest routes"),
        (("--controller", "nowhere"), "There is no controller file nowhere/controller.json"),
        (("--depth", "1.5"), "a share of the layers above 0 and at most 1 such as 0.5, not 1.5"),
        (("--depth", "0"), "a share of the layers above 0 and at most 1"),
        (("--depth", "150%"), "a share of the layers above 0 and at most 1"),
        (("--route", "1"), "may mean one layer or the whole model"),
        (("--depth", "ee:3", "--routes", "ee:3,full"), "--routes says"),
        (("--routes", "ee:3,full"), "--routes says what a depth in numbers chooses from"),
    ],
)
def test_generate_of_bad_input_is_one_sentence_and_status_2(refused, places, nothing_loads, arguments, complaint):
    given = [places / "fitted" if part == "FITTED" else part for part in arguments]
    refused(complaint, "generate", places / "base", "the cat", *given)


def test_generate_refuses_what_only_the_model_can_tell(refused, places):
    refused(
        "No known route of this model costs at most 0.3",
        "generate",
        places / "base",
        "a",
        "--depth",
        "0.3",
        "--routes",
        "ee:3,full",
    )
    refused(
        "chooses among other routes",
        "generate",
        places / "base",
        "a",
        "--controller",
        places / "fitted",
        "--routes",
        "ee:2,full",
    )


def test_generate_refuses_a_controller_for_another_model(refused, places):
    refused("The controller is for", "generate", places / "other", "a", "--controller", places / "fitted")


# Fit, certify, evaluate


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--predictor", "oracle"), "Unknown predictor 'oracle'"),
        (("--split", "test"), "test split is for evaluation alone: fit a controller"),
        (("--metric", "kl"), "Unknown metric of a controller 'kl'"),
        (("--cost", "watts"), "Unknown cost 'watts'"),
        (("--budget", "0"), "The budget '0' is not above 0"),
        (("--n-folds", "0"), "Invalid n_folds"),
        (("--prompt-depth", "half"), "Unknown prompt depth 'half'"),
        (("--task", "alpaca"), "--data and --task both say"),
    ],
)
def test_a_fit_of_bad_input_is_one_sentence_and_status_2(refused, places, nothing_loads, arguments, complaint):
    refused(complaint, "fit", places / "base", *SIZES, *arguments)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--limit", "20"), "20 rows are too few to fit a controller: give 32 or more"),
        (("--routes", "ee:3,ee:4"), "has no full route: add 'full'"),
        (("--routes", "full"), "two routes or more"),
    ],
)
def test_a_fit_that_the_model_does_not_fit(refused, places, arguments, complaint):
    refused(complaint, "fit", places / "base", *SIZES, *arguments)


@pytest.mark.parametrize("verb", ["certify", "evaluate"])
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({}, "There is no controller file"),
        ({"controller.json": "{"}, "is not a readable controller file"),
        ({"controller.json": "[]"}, "is not a controller file"),
        ({"controller.json": '{"format": "depthdial-controller", "version": 9}'}, "is of version 9"),
        ({"controller.json": '{"format": "depthdial-controller", "version": 2}'}, "is a damaged controller file"),
        ({"controller.json": None}, "There is no"),
        ({"controller.json": None, "controller.safetensors": "x"}, "is not a readable safetensors file"),
    ],
)
def test_a_folder_without_a_sound_controller(refused, places, tmp_path, nothing_loads, verb, change, complaint):
    folder = tmp_path / "broken"
    folder.mkdir()
    for name, text in change.items():
        (folder / name).write_text((places / "fitted" / name).read_text() if text is None else text)
    refused(complaint, verb, folder, places / "base")


@pytest.mark.parametrize(
    ("verb", "arguments", "complaint"),
    [
        ("certify", ("--epsilon", "0"), "Invalid epsilon 0"),
        ("certify", ("--epsilon", "2"), "Invalid epsilon 2"),
        ("certify", ("--delta", "1"), "delta"),
        ("certify", ("--method", "hope"), "hope"),
        ("evaluate", ("--samples", "3"), "Invalid samples"),
        ("evaluate", ("--budgets", "1.5"), "1.5"),
        ("evaluate", ("--budgets", ""), "name shares of the full cost"),
        ("evaluate", ("--budgets", "half"), "--budgets takes fractions"),
        ("evaluate", ("--rivals", "mlp,oracle"), "Unknown rival 'oracle'"),
        ("evaluate", ("--seeds", "0"), "Invalid seeds"),
        ("evaluate", ("--calibration-split", "nope"), "nope"),
    ],
)
def test_numbers_out_of_range(refused, places, nothing_loads, verb, arguments, complaint):
    refused(complaint, verb, places / "fitted", places / "base", *arguments)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--split", "train"), "were used to fit the controller: take rows that were not"),
        (("--calibration-split", "test"), "test split is for evaluation alone: certify on train or validation rows"),
        (("--budgets", "0.4"), "The budget 0.4 is below the cheapest routes"),
        (("--epsilons", "0.02,0"), "epsilon"),
        (("--limit", "1"), "give at least two test sequences"),
    ],
)
def test_an_evaluation_that_cannot_be(refused, places, arguments, complaint):
    refused(complaint, "evaluate", places / "fitted", places / "base", *QUICK, *arguments)


def test_an_epsilon_that_cannot_be_certified_saves_no_controller(run, places, tmp_path):
    status, _, err = run("certify", places / "fitted", places / "base", "--epsilon", "0.02")
    assert status == 2 and "Cannot be certified with 14 rows" in err and "Traceback" not in err
    assert not (tmp_path / "out" / "controller.json").exists()


def test_rows_of_the_fit_and_of_the_test_certify_nothing(refused, places):
    refused("were used to fit the controller", "certify", places / "fitted", places / "base", "--split", "train")
    refused("test split is for evaluation alone", "certify", places / "fitted", places / "base", "--split", "test")
