"""The playground: its files, and the page itself in a real browser against the real server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from fastapi import FastAPI
from fastapi.testclient import TestClient

from depthdial.routes import Route
from depthdial.serve.playground import FACTS_PATH, PAGE, PUBLIC_PATHS, playground_router
from depthdial.serve.playground.facts import OfferedDepth, PageFacts, dial_stops, full_depth

FACTS = PageFacts("tiny", 6, False, "full", (full_depth(6),), (full_depth(6), OfferedDepth("lossless", "Lossless")))


@pytest.fixture
def client() -> Iterator[TestClient]:
    app = FastAPI()
    app.include_router(playground_router(lambda: FACTS))
    with TestClient(app) as client:
        yield client


def test_every_file_is_served_with_a_policy_that_lets_nothing_else_in(client: TestClient) -> None:
    assert "/" in PUBLIC_PATHS and FACTS_PATH not in PUBLIC_PATHS
    assert {f"/playground/{path.name}" for path in PAGE.iterdir()} - PUBLIC_PATHS == {"/playground/index.html"}
    for path in PUBLIC_PATHS:
        answer = client.get(path)
        assert answer.status_code == 200
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/").headers["content-type"].startswith("text/html")
    assert client.get("/playground/app.js").headers["content-type"].startswith("text/javascript")
    assert client.get("/playground/..%2Ffacts.py").status_code == 404


@pytest.mark.parametrize("file", sorted(path.name for path in PAGE.iterdir()))
def test_no_file_names_an_outside_address_or_needs_what_the_policy_forbids(file: str) -> None:
    text = (PAGE / file).read_text(encoding="utf-8")
    assert not re.findall(r"https?:|//[a-z0-9-]+\.[a-z]|@import|url\(", text)
    assert not re.findall(r"\bon[a-z]+=\"|\bstyle=\"|<script>|<style>|javascript:|\beval\(|innerHTML|Storage\b|cookie", text)


def test_what_the_page_names_is_there() -> None:
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8")
        named = re.findall(r'(?:href|src)="(playground/[^"]+)"', text) + re.findall(r'from "\./([^"]+)"', text)
        assert all((PAGE / name.removeprefix("playground/")).is_file() for name in named)


def test_the_page_is_told_what_it_needs(client: TestClient) -> None:
    told = client.get(FACTS_PATH).json()
    assert told["n_layers"] == 6 and told["dial"][0]["layers"] == [0, 1, 2, 3, 4, 5]
    assert [depth["depth"] for depth in told["named"]] == ["full", "lossless"]


def test_the_dial_stops_at_the_routes_that_its_counts_choose(model) -> None:
    stops = dial_stops(model)
    assert [stop.depth for stop in stops] == ["2", "3", "4", "5", "full"]
    assert stops[1].layers == Route.parse("unified:3", 6).layers
    known = [Route((0, 2, 5), 6), Route((0, 1, 2, 5), 6)]
    assert [(stop.depth, stop.layers) for stop in dial_stops(model, known)[:-1]] == [("3", (0, 2, 5)), ("4", (0, 1, 2, 5))]
