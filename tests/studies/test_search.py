"""A whole comparison of searches on a tiny random model: once for all tests, which each take up a copy of its folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pyarrow.parquet as pq
import pytest

from depthdial.data.leakage import prompt_hashes
from depthdial.errors import InputError
from depthdial.measure.sweep import sweep
from depthdial.routes.families import RouteFamily
from depthdial.search.run import family_name, options_of
from depthdial.studies import search as search_studies
from depthdial.studies.search import SearchStudySettings, search_study
from tests.conftest import make_llama, make_task, make_tokenizer

SETTINGS = SearchStudySettings(
    methods=("greedy", "beam-nll-each", "single-drop", "block-influence", "angular"),
    fractions=(0.67, 0.5),
    screen=2,
    beam_width=2,
    answer_tokens=3,
    batch_size=4,
    fidelity_tokens=3,
)
NAMES = ("greedy-kl", "beam-nll-each", "single-drop-kl", "block-influence", "angular")


def tasks():
    seen = make_task(["one cat sat", "two dog ran", "a mat"], ["on the mat", "to it", "was in"], "seen")
    unseen = make_task(["the cat was on it", "six dog", "four", "it ran", "five"], ["a dog", "a cat", "mat", "in", "on"])
    return {"task": unseen, "calibration": replace(seen, split="train")}


def run(folder, settings=SETTINGS, **changes):
    return search_study(make_llama(), make_tokenizer(), **{**tasks(), **changes}, out=folder, settings=settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search") / "study"
    run(folder)
    return folder


def test_the_folder_holds_families_rows_comparison_and_page(whole: Path) -> None:
    families = {path.stem: RouteFamily.load(path) for path in (whole / "families").iterdir()}
    assert set(families) == set(NAMES)
    for name, family in families.items():
        assert family.name == name
        assert family.made_by["prompts"] == list(prompt_hashes(tasks()["calibration"]))
        assert [len(route) for route in family.routes] == [3, 4, 5, 6]
    rows = json.loads((whole / "comparison.json").read_text())
    assert {(row["method"], row["layers"]) for row in rows} == {
        (m, n) for m in (*NAMES, "uls", "unified", "ee") for n in (4, 3)
    }
    assert (whole / "report.html").exists() and (whole / "tables" / "search.md").exists()


def test_the_comparison_is_that_of_a_sweep(whole: Path) -> None:
    model, tokenizer, task = make_llama(), make_tokenizer(), tasks()["task"]
    for row in json.loads((whole / "comparison.json").read_text()):
        if row["method"] in ("greedy-kl", "uls") and row["layers"] == 4:
            route = f"drop:{row['skipped'].replace(' ', '')}"
            alone = sweep(model, tokenizer, task=task, routes=[route], metrics=("kl", "agreement"), fidelity_tokens=3)
            for metric in ("kl", "agreement"):
                values = alone[metric].to_pylist()
                assert row[metric]["mean"] == pytest.approx(sum(values) / len(values), abs=1e-4)


def test_a_route_that_several_found_is_measured_once(whole: Path) -> None:
    rows = pq.read_table(whole / "sweep" / "rows.parquet").to_pylist()
    layers = {(row["route_layers"], row["sequence_id"]) for row in rows}
    assert len(layers) == len(rows)


def test_a_study_that_was_stopped_does_only_what_is_missing(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    (folder / "families" / "angular.json").unlink()
    searched, real = [], search_studies.search_routes

    def seen(*arguments, **options):
        searched.append(options["method"])
        return real(*arguments, **options)

    with (
        mock.patch.object(search_studies, "search_routes", seen),
        mock.patch.object(search_studies, "write_search_report", lambda folder: folder / "report.html"),
    ):
        run(folder)
    assert searched == ["angular"]
    again, before = (json.loads((one / "comparison.json").read_text()) for one in (folder, whole))
    for row in (*again, *before):
        row.pop("search_sec")
    assert again == before


def test_another_study_is_refused_in_the_same_folder(whole: Path) -> None:
    with pytest.raises(InputError, match="holds a search study with another screen"):
        run(whole, replace(SETTINGS, screen=3))


def test_rows_that_were_searched_on_are_refused(tmp_path: Path) -> None:
    task, calibration = tasks()["task"], tasks()["calibration"]
    shared = replace(task, examples=(*task.examples, replace(calibration.examples[1], id="another-name")))
    with pytest.raises(InputError, match=r"1 of the 6 sequences \(such as 'another-name'\) were used to search the routes"):
        run(tmp_path / "out", task=shared)
    with pytest.raises(InputError, match="test split is for evaluation alone: search routes on train or validation rows"):
        run(tmp_path / "out", calibration=replace(calibration, split="test"))
    assert not (tmp_path / "out").exists()


def test_families_left_by_another_search_are_held_against_the_rows_too(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    family = RouteFamily.load(folder / "families" / "angular.json")
    seen = {**family.made_by, "prompts": list(prompt_hashes(tasks()["task"]))[:1]}
    replace(family, made_by=seen).save(folder / "families" / "angular.json")
    with pytest.raises(InputError, match="were used to search the routes"):
        run(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ("gready",)}, "No search is called 'gready': use greedy-kl, greedy-nll,"),
        ({"methods": ("angular-kl",)}, "No search is called 'angular-kl'"),
        ({"methods": ("greedy-kl-each",)}, "No search is called 'greedy-kl-each'"),
        ({"methods": ("greedy", "greedy-kl")}, "Method 'greedy-kl' is named twice"),
        ({"fractions": ()}, "Fractions of the layers lie between 0 and 1"),
        ({"fractions": (0.9, 27)}, "not 0.9, 27"),
        ({"cost": "bytes"}, "Unknown cost 'bytes'"),
        ({"screen": 0}, "Invalid screen"),
        ({"beam_width": 0}, "Invalid beam_width"),
        ({"methods": ("greedy-speculation",)}, "The search 'greedy-speculation' needs measured times"),
        ({"latency": "bench.json"}, "A latency model is for cost='ms' or methods such as greedy-speculation"),
    ],
)
def test_bad_settings(change, message) -> None:
    with pytest.raises(InputError, match=message):
        SearchStudySettings(**change)


def test_a_fraction_that_drops_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="One of the fractions comes to 6 of 6 layers"):
        SearchStudySettings(fractions=(0.99,)).sizes(6)
    assert SearchStudySettings().sizes(30) == (27, 24, 20)


def test_without_references_nll_is_left_out() -> None:
    assert "greedy-nll" in SearchStudySettings().names(True)
    assert "greedy-nll" not in SearchStudySettings().names(False)


def test_methods_that_draft_count_time_by_themselves() -> None:
    settings = SearchStudySettings(methods=("greedy-speculation", "angular"), cost="ms", latency="bench.json")
    of_drafts, of_angular = (settings.of_search(name) for name in settings.names(True))
    assert (of_drafts["metric"], of_drafts["cost"], of_drafts["latency"]) == ("speculation", "layers", "bench.json")
    assert (of_angular["cost"], of_angular["latency"]) == ("ms", "bench.json")
    assert "latency" not in SearchStudySettings().of_search("angular")


@pytest.mark.parametrize("name", [*NAMES, "beam-kl", "greedy-nll", "single-drop-nll", "beam-kl-each"])
def test_a_full_name_is_its_own(name: str) -> None:
    assert family_name(name) == name
    assert options_of(name)["method"] in name
