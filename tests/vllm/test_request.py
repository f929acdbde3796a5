"""What is asked of vLLM, and in which order of precedence."""

from __future__ import annotations

import subprocess
import sys

import pytest

from depthdial.errors import InputError
from depthdial.routes import Route
from depthdial.routes.route_file import RouteFile
from depthdial.vllm.request import Request, requested

MID = Route((0, 1, 4, 5), 6)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    monkeypatch.delenv("DEPTHDIAL_ROUTE", raising=False)
    monkeypatch.delenv("DEPTHDIAL_PROMPT_DEPTH", raising=False)


def route_file(folder):
    return RouteFile(MID, "mine", ".", "0" * 64, "float32").save(folder)


def test_nothing_is_asked_for(tmp_path) -> None:
    assert requested(tmp_path, None) is None
    assert requested("org/model", {"rope_theta": 1e6}) is None
    assert requested(tmp_path, lambda config: config) is None


def test_a_route_in_overrides() -> None:
    asked = requested("org/model", {"depthdial_route": "0-1,4-5"})
    assert asked == Request("0-1,4-5", "full")
    assert asked.on(6) == MID
    assert requested("org/model", {"depthdial_route": "uls:50%", "depthdial_prompt_depth": "route"}).prompt_depth == "route"


def test_overrides_come_before_the_environment_and_that_before_the_file(tmp_path, monkeypatch) -> None:
    route_file(tmp_path)
    assert requested(tmp_path, {}).on(6) == MID
    monkeypatch.setenv("DEPTHDIAL_ROUTE", "ee:3")
    monkeypatch.setenv("DEPTHDIAL_PROMPT_DEPTH", "route")
    assert requested(tmp_path, {}) == Request("ee:3", "route")
    assert requested(tmp_path, {"depthdial_route": "ee:2", "depthdial_prompt_depth": "full"}) == Request("ee:2", "full")


def test_the_environment_and_overrides_may_name_a_route_file(tmp_path, monkeypatch) -> None:
    file = route_file(tmp_path)
    assert requested("org/model", {"depthdial_route": str(tmp_path)}).on(6) == MID
    monkeypatch.setenv("DEPTHDIAL_ROUTE", str(file))
    assert requested("org/model", None).on(6) == MID


def test_a_draft_model_follows_the_file_beside_it_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DEPTHDIAL_ROUTE", "ee:3")
    assert requested(tmp_path, lambda config: config) is None
    route_file(tmp_path)
    asked = requested(tmp_path, lambda config: config)
    assert (asked.on(6), asked.prompt_depth) == (MID, "route")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"depthdial_route": 3}, "A route for vLLM is written as text, such as '0-3,8,12-29', not 3: put it in quotes."),
        (
            {"depthdial_rout": "ee:3"},
            "Unknown option 'depthdial_rout' in hf-overrides: did you mean depthdial_route?",
        ),
        (
            {"depthdial_route": "ee:3", "depthdial_prompt_depth": "half"},
            "Unknown prompt depth 'half': use full or route.",
        ),
        (
            {"depthdial_prompt_depth": "route"},
            "A prompt depth (route) without a route says nothing: give depthdial_route as well.",
        ),
        ({"depthdial_route": "nowhere/depthdial_route.json"}, "There is no route file nowhere/depthdial_route.json: check"),
    ],
)
def test_what_cannot_be_asked_for(given, told) -> None:
    with pytest.raises(InputError, match="^" + told.replace("(", r"\(").replace(")", r"\)")):
        requested("org/model", given)


@pytest.mark.parametrize(
    ("route", "told"),
    [
        ("ee:7", "Route 'ee:7'"),
        ("24", "Route '24' is a bare number"),
        ("rls:3@0", "'rls:3@0' is a rule, not one route"),
        ("elastic", "'elastic'"),
    ],
)
def test_routes_that_do_not_fit_the_model(route, told) -> None:
    with pytest.raises(InputError, match=told):
        requested("org/model", {"depthdial_route": route}).on(6)


def test_a_file_for_another_number_of_layers(tmp_path) -> None:
    route_file(tmp_path)
    with pytest.raises(InputError, match="is for a model of 6 layers but this one has 30"):
        requested(tmp_path, None).on(30)


def test_the_plugin_imports_neither_vllm_nor_torch_before_it_is_called() -> None:
    code = "import sys, depthdial.vllm; print(sorted({'vllm', 'torch', 'transformers'} & sys.modules.keys()))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "[]"
