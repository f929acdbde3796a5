"""The route file: written, read back, and refused in one sentence where it is not one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from depthdial.errors import InputError
from depthdial.routes import Route
from depthdial.routes.route_file import HERE, ROUTE_FILE, RouteFile

FILE = RouteFile(Route((0, 1, 5), 6, "mine:3", frozenset({"ab"})), "llama", "org/llama", "0" * 64, "bfloat16", "adapter")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = FILE.save(tmp_path)
    assert path == tmp_path / ROUTE_FILE
    for found in (RouteFile.load(path), RouteFile.load(tmp_path)):
        assert found == FILE
        assert (found.route.name, found.route.searched_on) == ("mine:3", frozenset({"ab"}))
    document = json.loads(path.read_text())
    assert (document["format"], document["version"], document["layers"]) == ("depthdial-route", 1, [0, 1, 5])


@pytest.mark.parametrize("layers", [(5,), tuple(range(6))])
def test_any_route_comes_back(tmp_path: Path, layers: tuple[int, ...]) -> None:
    file = RouteFile(Route(layers, 6), "llama", HERE, "1" * 64, "float32")
    assert RouteFile.load(file.save(tmp_path)).route.layers == layers


def test_the_checkpoint_is_named_or_stands_beside(tmp_path: Path) -> None:
    assert FILE.folder(tmp_path) == "org/llama"
    beside = RouteFile(FILE.route, "llama", HERE, "0" * 64, "float32")
    assert beside.folder(tmp_path) == beside.folder(tmp_path / ROUTE_FILE) == str(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "another"}, "not a route file"),
        ({"version": 2}, "of version 2"),
        ({"n_layers": 4}, "Layer 5 does not exist"),
        ({"route": {"name": "r", "layers": "rls:3@0"}}, "random rule"),
        ({"route": None}, "damaged"),
        ({"checkpoint": 5}, "are texts"),
        ({"adapter": 5}, "are texts"),
        ({"weights_hash": None}, "are texts"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: dict, told: str) -> None:
    path = FILE.save(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=told) as caught:
        RouteFile.load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no route file"):
        RouteFile.load(tmp_path)
