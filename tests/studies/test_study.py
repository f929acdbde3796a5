from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest

from depthdial.control.controller import SequenceController
from depthdial.data.leakage import prompt_hash, prompt_hashes
from depthdial.errors import InputError
from depthdial.hf.adapter import AdapterCard, attach_card
from depthdial.hf.load import load
from depthdial.hf.trained import note_training
from depthdial.routes import Route
from depthdial.routes.families import RouteFamily
from depthdial.rows.store import load_study_rows
from depthdial.studies import controller as controller_studies
from depthdial.studies import study as studies
from depthdial.studies.controller import EvaluationSettings
from depthdial.studies.study import StudySettings, similarity_routes, study, sweep_routes
from depthdial.train.depth.finetune import finetune
from depthdial.train.depth.settings import FinetuneSettings
from tests.conftest import make_task

SMALL = StudySettings(
    max_new_tokens=4, batch_size=4, similarity_sequences=3, similarity_tokens=4, fidelity_tokens=3, search_tokens=3
)


def split(task):
    """The two halves of a task, without the sequence that has no reference."""
    having = tuple(example for example in task.examples if example.reference is not None)
    return replace(task, examples=having[:4]), replace(task, examples=having[4:])


def run(model, tokenizer, task, out, **options):
    evaluate, calibrate = split(task)
    return study(model, tokenizer, task=evaluate, calibration=calibrate, out=out, **{"settings": SMALL, **options})


def test_a_study_leaves_everything_in_its_folder_goes_on_there_and_refuses_another(tmp_path, model, tokenizer, small_task):
    steps: list[str] = []
    result = run(model, tokenizer, small_task, tmp_path, say=steps.append)
    assert [step.split(" ")[0] for step in steps] == ["1/6", "2/6", "3/6", "4/6", "5/6", "6/6"]
    assert result.report.name == "report.html" and "No controller: " in result.report.read_text()
    timed = json.loads((tmp_path / "timing.json").read_text())["routes"]
    assert {row["route"] for row in timed} == set(result.rows["route"].to_pylist())
    assert result.controller is None and not (tmp_path / "controller").exists()
    assert not [name for name in json.loads((tmp_path / "study.json").read_text()) if "controller" in name]
    assert set(result.oracles) == {"rouge_l", "agreement"} == set(json.loads((tmp_path / "oracle.json").read_text()))
    assert {"full", "uls:5"} < set(result.rows["route"].to_pylist())  # of 6 layers uls:5 and ee:5 are one route
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("units/*")}
    again = run(model, tokenizer, small_task, tmp_path)
    assert again.rows.equals(result.rows)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("units/*")} == stamps
    # Another study is refused there.
    with pytest.raises(InputError, match="another max_new_tokens"):
        run(model, tokenizer, small_task, tmp_path, settings=replace(SMALL, max_new_tokens=5))


def test_a_study_of_prompts_on_the_route_searches_for_them_and_warns_of_nothing(
    tmp_path, model, tokenizer, small_task, monkeypatch
):
    monkeypatch.setattr(studies, "write_report", lambda folder, **_: folder / "report.html")
    result = run(model, tokenizer, small_task, tmp_path, settings=replace(SMALL, prompt_depth="route"))
    family = RouteFamily.load(tmp_path / "routes.json")
    assert (family.name, family.prompt_depth) == ("greedy-kl-route", "route")
    assert "greedy-kl-route:5" in result.rows["route"].to_pylist()
    assert "--prompt-depth route" in result.verdict.next_line


def test_nothing_is_both_searched_on_and_evaluated(tmp_path, model, tokenizer, small_task):
    with pytest.raises(InputError, match="were used to search the routes"):
        study(model, tokenizer, task=small_task, calibration=small_task, out=tmp_path, settings=SMALL)
    assert not list(tmp_path.iterdir())


def test_routes_of_a_thirty_layer_study():
    searched = tuple(Route((0, *range(31 - n, 30)), 30, f"greedy-kl:{n}") for n in range(18, 30))
    family = RouteFamily("greedy-kl", 30, (*searched, Route(tuple(range(30)), 30, "full")))
    names = [route.name for route in sweep_routes(family, 30)]
    assert names[:2] == ["full", "uls:24"] and len(names) >= 8
    assert len(set(names)) == len(names)
    similar = similarity_routes(family, 30)
    assert {len(route) for route in similar} == {8, 15, 23, 27, 30}
    assert {route.name.split(":")[0] for route in similar} >= {"full", "greedy-kl", "uls", "rls", "rls-wo1"}


@pytest.fixture
def adapted(model, tokenizer, small_task, tmp_path):
    """A model with an elastic adapter, trained for a moment."""
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    prompts = [f"in {example.instruction} {word}" for word in ("to", "by") for example in small_task.examples]
    lessons = make_task(prompts, prompts, "lesson")
    settings = FinetuneSettings(rank=2, answers="model", distill=True)
    out = tmp_path / "adapter"
    base, _ = load(tmp_path / "base")
    finetune(base, tokenizer, task=lessons, routes=["full", "uls:5", "0,1,5", "uls:3"], out=out, settings=settings)
    return load(tmp_path / "base", adapter=out)[0]


@pytest.mark.slow
def test_an_adapters_routes_stand_beside_those_of_the_untouched_model(tmp_path, model, adapted, tokenizer, small_task):
    out = tmp_path / "out"
    result = run(model, tokenizer, small_task, out, adapted=adapted)
    rows = result.rows.to_pandas()
    assert {"full", "greedy-kl:5", "elastic:5", "elastic:uls:3", "elastic:0-1,5"} <= set(rows.route)
    assert rows.groupby("route").sequence_id.nunique().nunique() == 1
    own = rows.route.str.startswith("elastic")
    assert set(rows[own].weights_hash).isdisjoint(rows[~own].weights_hash)
    assert result.rows.equals(load_study_rows(out)) and "elastic:5" in result.oracles["rouge_l"].routes
    assert "elastic:5" in result.report.read_text()
    with pytest.raises(InputError, match="another adapted_weights_hash"):
        run(model, tokenizer, small_task, out)
    with pytest.raises(InputError, match="names no routes that skip layers"):
        run(model, tokenizer, small_task, tmp_path / "other", adapted=model)


def test_what_an_adapter_saw_is_neither_judged_nor_fitted_on(tmp_path, model, tokenizer, small_task, many, monkeypatch):
    monkeypatch.setattr(studies, "search_routes", lambda *_, **__: pytest.fail("a search began"))
    taught, (evaluate, calibrate) = copy.deepcopy(model), split(small_task)
    seen = prompt_hashes(evaluate)[0]
    learned = replace(many, examples=tuple(e for e in many.examples if prompt_hash(e) not in prompt_hashes(small_task)))
    routes = (Route((0, 5), 6, "own", frozenset({seen})), Route((0, 1, 5), 6, "more"))
    about = {"base_name": "", "base_weights_hash": "", "base_dtype": "float32", "n_layers": 6, "prompt_depth": "full"}
    attach_card(taught, AdapterCard("elastic", routes=routes, **about))
    given = {"task": evaluate, "calibration": calibrate, "out": tmp_path / "out", "settings": SMALL}
    with pytest.raises(InputError, match=r"^1 of the 4 .* were used to search the routes: take .* from another split\.$"):
        study(model, tokenizer, adapted=taught, **given)
    note_training(taught, [prompt_hash(learned.examples[0])])
    attach_card(taught, AdapterCard("elastic", routes=routes[1:], **about))
    task = replace(evaluate, examples=(*evaluate.examples, *many.examples[-8:]))
    learned = replace(learned, examples=learned.examples[:-8])
    with pytest.raises(InputError, match=r"^1 of the 3\d .* were used to train the model: take .* from another split\.$"):
        study(model, tokenizer, adapted=taught, controller_rows=learned, **{**given, "task": task})
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_controller_of_an_adapted_model_chooses_among_its_routes(tmp_path, model, adapted, tokenizer, many, monkeypatch):
    monkeypatch.setattr(studies, "write_report", lambda folder, keep: folder)
    monkeypatch.setattr(controller_studies, "write_controller_report", lambda folder: folder)
    parts = (many.examples[:32], many.examples[32:-4], many.examples[-4:])
    rows, evaluate, calibrate = (replace(many, examples=part) for part in parts)
    brief = EvaluationSettings(seeds=2, samples=0, rivals=(), epsilons=(), n_bootstrap=100, timed_prompts=2)
    out = tmp_path / "out"
    given = {"task": evaluate, "calibration": calibrate, "controller_rows": rows, "evaluation": brief, "settings": SMALL}
    result = study(model, tokenizer, adapted=adapted, out=out, **given)
    controller = SequenceController.from_pretrained(out / "controller")
    assert {route.name for route in controller.routes} == {"elastic:5", "elastic:uls:3", "elastic:0-1,5", "full"}
    controller.check(adapted)
    with pytest.raises(InputError, match="with its adapter"):
        controller.check(load(tmp_path / "base")[0])
    # Its full route is the untouched model, whose own answer agreement is taken on.
    assert result.controller is not None
    assert result.controller.scores["agreement"].fixed[-1].value == 1.0


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"min_layers_fraction": 1.0}, {"max_new_tokens": -1}])
def test_bad_settings(bad):
    with pytest.raises(InputError):
        StudySettings(**bad)
