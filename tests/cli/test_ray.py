"""Options of runs on Ray. Nothing here needs Ray itself: see tests/scale for what does."""

from __future__ import annotations

import importlib.util

import pytest

VERBS = {
    "sweep": ("base", "--depth", "full", "--out", "rows"),
    "search": ("base", "--out", "routes.json"),
    "serve": ("base",),
}


@pytest.mark.parametrize("verb", VERBS)
def test_without_ray_the_command_names_the_extra(command_line, monkeypatch, tmp_path, verb):
    monkeypatch.chdir(tmp_path)
    there = importlib.util.find_spec
    monkeypatch.setattr("depthdial.scale.settings.find_spec", lambda name: None if name == "ray" else there(name))
    status, out, err = command_line(verb, *VERBS[verb], "--ray")
    assert (status, out) == (2, "")
    assert err == "depthdial: Runs on Ray need the package ray: pip install 'depthdial[ray]'.\n"


@pytest.mark.parametrize(
    ("verb", "given", "message"),
    [
        ("sweep", ("--ray-actors", "2"), "--ray-actors is of runs on Ray: give --ray too."),
        ("search", ("--ray-address", "auto"), "--ray-address is of runs on Ray: give --ray too."),
        ("serve", ("--replicas", "2"), "--replicas is of servers on Ray: give --ray too."),
        ("serve", ("--ray", "--replicas", "0"), "replicas"),
        ("sweep", ("--ray", "--ray-actors", "0"), "ray_actors"),
    ],
)
def test_options_of_ray_that_cannot_be_meant(command_line, monkeypatch, tmp_path, verb, given, message):
    monkeypatch.chdir(tmp_path)
    status, _, err = command_line(verb, *VERBS[verb], *given)
    assert status == 2 and message in err and "Traceback" not in err


def test_a_search_that_tries_no_routes_needs_no_processes(command_line, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("depthdial.scale.settings.find_spec", lambda name: object())
    status, _, err = command_line("search", *VERBS["search"], "--method", "angular", "--ray")
    assert status == 2 and "The search by angular tries no routes" in err
