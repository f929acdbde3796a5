"""Pictures of routes: what is filled, and where."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from depthdial.errors import InputError
from depthdial.report.study.routes_plot import draw_family, draw_routes, family_text, plot_family
from depthdial.routes import FAMILIES, Route, family_routes


def _filled(figure: Figure) -> dict[tuple[int, int], tuple[float, ...]]:
    """(x, y) of every filled cell, with its colour."""
    (cells,) = figure.axes[0].collections
    colors, found = cells.get_facecolors(), {}
    for path, color in zip(cells.get_paths(), colors, strict=True):
        left, bottom, _, top = path.get_extents().extents
        for y in range(round(bottom + 0.5), round(top + 0.5)):
            found[round(left + 0.5), y] = tuple(color)
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_family_is_layer_against_cost(name: str) -> None:
    routes = family_routes(name, 8)
    filled = set(_filled(draw_family(routes, "title")))
    assert filled == {(len(r) - 1, layer) for r in routes for layer in r.for_sequence("0").layers}


def test_routes_are_rows_and_random_rules_are_shaded_by_how_often_a_layer_ran() -> None:
    filled = _filled(draw_routes(["full", "rls:1@0"], np.array([[1.0, 1.0], [1.0, 0.5]]), "title"))
    assert filled[0, 0] == filled[1, 0] == filled[0, 1]
    assert filled[1, 1][2] > filled[1, 0][2]  # paler


@given(st.sampled_from(FAMILIES), st.integers(1, 90))
def test_text_has_a_mark_for_every_layer(name: str, n_layers: int) -> None:
    routes = family_routes(name, n_layers)
    lines = family_text(routes).splitlines()
    assert len(lines) == n_layers + 2
    for route, line in zip(routes, lines[1:-1], strict=True):
        bar = line.split()[-1]
        assert line.startswith(route.name)
        assert [i for i, mark in enumerate(bar) if mark == "█"] == list(route.for_sequence("0").layers)
        assert len(bar) == n_layers
        assert len(line) == len(lines[1])


def test_ruler_stands_over_the_layers() -> None:
    ruler, first, *_ = family_text(family_routes("ee", 24)).splitlines()
    assert ruler.index("20") == first.index("█") + 20


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_family_is_written_in_each_format_and_always_the_same(tmp_path: Path, ending: str) -> None:
    routes = family_routes("uls", 6)
    one, two = (plot_family(routes, tmp_path / f"{name}{ending}") for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert one.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml", b"%PDF-")


def test_svg_text_is_text(tmp_path: Path) -> None:
    path = plot_family(family_routes("rls", 6), tmp_path / "family.svg")
    texts = {element.text for element in ElementTree.parse(path).iter() if element.tag.endswith("}text")}
    assert {"cost (layers run)", "layer", "runs", "skipped"} <= texts
    assert any(text is not None and "as drawn for sequence" in text for text in texts)


def test_a_mixed_list_is_drawn_by_route(tmp_path: Path) -> None:
    routes = [Route.parse(text, 6) for text in ("full", "uls:3", "ee:3", "0-1")]
    path = plot_family(routes, tmp_path / "mixed.svg")
    assert {"uls:3", "ee:3", "0-1"} <= {e.text for e in ElementTree.parse(path).iter()}


def test_drawing_leaves_no_trace_in_matplotlib(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    plot_family(family_routes("uls", 4), tmp_path / "family.png")
    assert dict(matplotlib.rcParams) == before


def test_bad_input_is_told_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no route to show"):
        family_text([])
    with pytest.raises(InputError, match="models of 4 and 6 layers"):
        plot_family([Route.parse("full", 4), Route.parse("full", 6)], tmp_path / "a.png")
    with pytest.raises(InputError, match=r"ends in \.png, \.svg or \.pdf"):
        plot_family([Route.parse("full", 4)], tmp_path / "a.jpg")
