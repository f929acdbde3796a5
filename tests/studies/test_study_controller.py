"""A study with rows for a controller: the section on its page, going on after a stop, and what is refused at once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from depthdial.control.controller import SequenceController
from depthdial.control.predictors.base import LEAST_ROWS
from depthdial.data.leakage import prompt_hashes
from depthdial.errors import InputError
from depthdial.files import write_text
from depthdial.report.controller.scores import read_scores
from depthdial.rows.store import UnitStore
from depthdial.studies import controller as controller_studies
from depthdial.studies import study as studies
from depthdial.studies.controller import EvaluationSettings, kept_budgets
from depthdial.studies.study import StudySettings, study

SMALL = StudySettings(
    max_new_tokens=4, batch_size=16, similarity_sequences=2, similarity_tokens=3, fidelity_tokens=3, search_tokens=3
)
BRIEF = EvaluationSettings(seeds=2, samples=2, rivals=(), epsilons=(), n_bootstrap=100, timed_prompts=2)


def parts(many):
    """Rows to fit on, to judge on and to search on."""
    fit, judge, search = many.examples[:LEAST_ROWS], many.examples[LEAST_ROWS:-4], many.examples[-4:]
    return many_of(many, fit), replace(many, examples=judge, split="test"), many_of(many, search)


def many_of(many, examples):
    return replace(many, examples=tuple(examples))


@pytest.fixture
def run(model, tokenizer, many, tmp_path):
    """A study in tmp_path; with `rows` one with a controller."""
    _, judge, search = parts(many)

    def run(rows=None, **options):
        given = {"task": judge, "calibration": search, "out": tmp_path, "settings": SMALL, "evaluation": BRIEF}
        return study(model, tokenizer, controller_rows=rows, **{**given, **options})

    return run


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without a picture, which take most of the time."""

    def write(folder, **given):
        return write_text(folder / "report.html", "a page")

    monkeypatch.setattr(controller_studies, "write_controller_report", write)
    monkeypatch.setattr(studies, "write_report", write)


@pytest.mark.slow
@pytest.mark.parametrize("drawn", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_study_with_rows_to_learn_from_has_a_controller_on_its_page(request, run, many, tmp_path, drawn):
    if not drawn:
        request.getfixturevalue("undrawn")
    rows, steps = parts(many)[0], []
    result = run(rows, say=steps.append)
    assert [step.split(" ")[0] for step in steps] == [f"{i}/7" for i in range(1, 8)]
    assert steps[5] == "6/7 controller: fitted on 32 sequences, judged on 12"
    if drawn:
        page = result.report.read_text()
        assert "No controller: " not in page and "best static mixture of routes" in page
        assert (tmp_path / "figures" / "controller-agreement.svg").exists()

    controller = SequenceController.from_pretrained(tmp_path / "controller")
    assert [route.name for route in controller.routes] == ["greedy-kl:4", "greedy-kl:5", "full"]
    assert controller.card.fitted_on["prompts"] == list(prompt_hashes(rows))
    assert (controller.card.response_tokens, controller.card.prompt_depth) == (4, "full")
    score = read_scores(tmp_path).scores["agreement"]
    assert score.to_dict() == result.controller.scores["agreement"].to_dict()
    # 60% of the layers is less than the cheapest route has; the full model agrees with itself.
    assert score.n_sequences == 12 and score.budgets.tolist() == pytest.approx([0.7, 0.8, 0.9])
    assert score.fixed[-1].value == 1.0


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_finished_study_is_given_a_controller_and_keeps_it(run, many, tmp_path):
    rows = parts(many)[0]
    assert run().controller is None
    assert not (tmp_path / "controller").exists()
    before = {path: path.read_bytes() for path in [tmp_path / "study.json", *tmp_path.rglob("units/*")]}
    run(rows)
    assert all(path.read_bytes() == held for path, held in before.items())
    made = [*(tmp_path / "controller").rglob("*"), tmp_path / "controller_scores.json"]
    held = {path: path.read_bytes() for path in made if path.is_file()}
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "controller").rglob("*.json")}
    run(rows)
    assert held == {path: path.read_bytes() for path in held}
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    with pytest.raises(InputError, match=r"controller holds a controller with another prompts"):
        run(many_of(rows, reversed(rows.examples)))
    with pytest.raises(InputError, match="with another evaluation"):
        run(rows, evaluation=replace(BRIEF, seeds=3))
    run()
    assert held == {path: path.read_bytes() for path in held}


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_killed_again_and_again_it_goes_on(run, many, monkeypatch):
    rows, real, written, ends = parts(many)[0], UnitStore.write, [], []

    def write(self, unit, units):
        if len(written) in ends:
            ends.remove(len(written))
            raise KeyboardInterrupt
        written.append((self.folder, unit))
        real(self, unit, units)

    monkeypatch.setattr(UnitStore, "write", write)
    run()
    # In the features of the fit, in its scores, in the evaluation's.
    ends = [len(written) + n for n in (1, 4, 10)]
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run(rows)
    assert not ends
    assert run(rows).controller is not None
    assert len(set(written)) == len(written)


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_fitted_controller_is_not_fitted_again(run, many, tmp_path, monkeypatch):
    rows = parts(many)[0]
    draw = controller_studies.write_controller_report

    def stopped(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(controller_studies, "write_controller_report", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(rows)
    assert read_scores(tmp_path / "controller" / "evaluation") is not None and read_scores(tmp_path) is None
    monkeypatch.setattr(controller_studies, "write_controller_report", draw)
    monkeypatch.setattr(SequenceController, "fit", None)
    assert run(rows).controller is not None
    assert (tmp_path / "controller" / "evaluation" / "report.html").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda fit, judge, search: {"rows": many_of(fit, fit.examples[:31])},
            "31 sequences are too few to fit a controller",
        ),
        (lambda fit, judge, search: {"rows": replace(fit, split="test")}, "for evaluation alone: fit a controller on train"),
        (lambda fit, judge, search: {"task": many_of(judge, judge.examples[:9])}, "9 sequences are too few to judge"),
        (
            lambda fit, judge, search: {"rows": many_of(fit, [*fit.examples, judge.examples[0]])},
            "1 of the 12 sequences .* were used to fit the controller",
        ),
        (
            lambda fit, judge, search: {"rows": many_of(fit, [*fit.examples, search.examples[0]])},
            "1 of the 33 sequences .* were used to search the routes",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(run, many, tmp_path, change, told):
    fit, judge, search = parts(many)
    with pytest.raises(InputError, match=told):
        run(**{"rows": fit, **change(fit, judge, search)})
    assert not list(tmp_path.iterdir())


def test_budgets_that_the_cheapest_route_keeps():
    assert kept_budgets((0.6, 0.7, 0.8), 0.6) == (0.6, 0.7, 0.8)
    assert kept_budgets((0.6, 0.7, 0.8), 18 / 30) == (0.6, 0.7, 0.8)
    assert kept_budgets((0.6, 0.7, 0.8), 0.65) == (0.7, 0.8)
    assert kept_budgets((0.6, 0.7, 0.8), 0.9) == (0.95,)
