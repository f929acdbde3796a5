"""`search` by other methods, `search-study` and its report from the command line, on a tiny random model."""

from __future__ import annotations

import json
from unittest import mock

import pytest

from depthdial.cli.options import named_files
from depthdial.errors import InputError
from depthdial.routes.families import RouteFamily
from tests.latencies import make_latency

STUDY = (
    *("--methods", "greedy,angular", "--fractions", "67%", "--screen", "2", "--answer-tokens", "2"),
    *("--fidelity-tokens", "2", "--batch-size", "4", "--calibration-limit", "4", "--limit", "2"),
)
SEARCH = ("--answer-tokens", "2", "--limit", "3", "--min-layers", "4")


@pytest.mark.parametrize(
    ("arguments", "name", "shown"),
    [
        (
            ("--method", "beam", "--metric", "nll", "--beam-width", "2", "--no-nested", "--screen", "0"),
            "beam-nll-each",
            "NLL",
        ),
        (("--method", "angular"), "angular", "–"),
        (("--method", "block-influence", "--cost", "ms"), "block-influence-ms", "one after the other"),
    ],
)
def test_every_method_can_be_asked_for(run, paths, arguments, name, shown):
    status, out, err = run("search", *SEARCH, *arguments, out="routes.json")
    assert status == 0, err
    assert shown in out and f"routes: {paths / 'routes.json'}" in out
    family = RouteFamily.load(paths / "routes.json")
    assert family.name == name and [len(route) for route in family.routes] == [4, 5, 6]


def test_a_search_for_saved_folders(run, paths):
    status, out, err = run("search", *SEARCH, "--prompt-depth", "route", out="routes.json")
    assert status == 0, err
    assert "--prompt-depth route" in out.splitlines()[-1]
    family = RouteFamily.load(paths / "routes.json")
    assert (family.name, family.prompt_depth) == ("greedy-kl-route", "route")


def test_a_study_and_its_report(run, paths):
    # The figures are drawn once, by the verb for them.
    with mock.patch("depthdial.studies.search.write_search_report", lambda folder: folder / "report.html"):
        status, out, err = run("search-study", *STUDY)
    assert status == 0, err
    assert "1/2 greedy-kl on 4 calibration prompts" in err and "unified" in out
    about = json.loads((paths / "out" / "study.json").read_text())
    assert (about["split"], about["calibration_split"]) == ("test", "train")
    status, out, err = run("report", paths / "out")
    assert status == 0, err
    assert "Searches compared: KL at each number of layers" in (paths / "out" / "report.html").read_text()


def test_routes_that_draft_well(run, paths):
    n_layers = 6
    make_latency(n_layers).save(paths / "bench.json")
    arguments = ("--metric", "speculation", "--latency", paths / "bench.json", "--screen", "2")
    status, out, err = run("search", *SEARCH, *arguments, out="routes.json")
    assert status == 0, err
    assert "expected speed-up" in out
    assert RouteFamily.load(paths / "routes.json").name == "greedy-speculation"


@pytest.mark.parametrize(
    ("verb", "arguments", "complaint"),
    [
        ("search", ("--metric", "speculation"), "The metric 'speculation' needs measured times"),
        ("search", ("--method", "best"), "Unknown search method 'best'"),
        ("search", ("--beam-width", "3"), "beam_width is an option of beam and not of greedy"),
        ("search", ("--method", "angular", "--screen", "3"), "screen is an option of greedy and beam and not of angular"),
        ("search", ("--screen", "few"), "--screen takes a number of layers, 0 for all, not 'few'"),
        ("search", ("--metric", "ppl"), "Unknown search metric 'ppl'"),
        ("search", ("--cost", "joules"), "Unknown cost 'joules'"),
        ("search", ("--prompt-depth", "half"), "Unknown prompt depth 'half'"),
        ("search", ("--method", "angular", "--prompt-depth", "route"), "behind prompts at full depth, whatever"),
        ("search", ("--min-layers", "6"), "min_layers is 6 but the model has 6"),
        ("search-study", ("--methods", "greedy,best"), "No search is called 'best'"),
        ("search-study", ("--fractions", "most"), "--fractions takes fractions such as 0.9,0.75 or 90%"),
        ("search-study", ("--split", "train", "--calibration-split", "train"), "were used to search the routes"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(run, paths, verb, arguments, complaint):
    status, _, err = run(verb, *arguments)
    assert status == 2
    assert complaint in err and "Traceback" not in err
    assert not (paths / "out").exists()


def test_out_is_checked_before_anything_is_loaded(command_line, tmp_path):
    (tmp_path / "file").write_text("")
    for verb, out in (
        (["search", "no-such-model"], tmp_path),
        (["search", "no-such-model"], tmp_path / "file" / "routes.json"),
        (["sweep", "no-such-model", "--routes", "full"], tmp_path / "file"),
        (["similarity", "no-such-model"], tmp_path / "file" / "new"),
        (["study", "no-such-model"], tmp_path / "file"),
        (["finetune", "no-such-model", "--route", "ee:3"], tmp_path / "file"),
        (["controller", "fit", "no-such-model"], tmp_path / "file"),
        (["routes", "--layers", "4", "--family", "ee"], tmp_path),
    ):
        status, said, error = command_line(*verb, "--out", out)
        assert status == 2 and str(out) in error and "choose another --out" in error and said == ""


def test_a_family_that_is_not_there_is_missed_before_anything_is_loaded(command_line, tmp_path):
    for depth in ("none.json", "full,none.json:24", "none.json:80%"):
        for verb in (("sweep", "no-model", "--out", tmp_path), ("generate", "no-model", "the cat")):
            status, _, error = command_line(*verb, "--depth", depth)
            assert status == 2 and error == "depthdial: There is no route family file none.json: check the path.\n"
    (tmp_path / "a,b.json").write_text("")
    for depth in (tmp_path / "a,b.json", f"{tmp_path / 'a,b.json'}:24", "0-3," * 200 + "5", None):
        assert named_files(None if depth is None else str(depth)) == (None if depth is None else str(depth))


def test_what_was_found_is_shown_where_it_cannot_be_written(model, tokenizer, small_task, tmp_path, monkeypatch):
    from depthdial.search.run import search_routes

    def full(family, path):
        raise InputError("Cannot write: no space left on device.")

    monkeypatch.setattr(RouteFamily, "save", full)
    shown = []
    with pytest.raises(InputError, match="no space left"):
        search_routes(
            model, tokenizer, task=small_task, method="angular", out=tmp_path / "routes.json", on_found=shown.append
        )
    assert len(shown) == 1 and shown[0].routes
