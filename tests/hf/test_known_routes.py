"""Routes that are known of a model without searching, and the one that a depth in numbers takes."""

from __future__ import annotations

import itertools
import warnings
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.errors import InputError, RouteWarning
from depthdial.hf import known_routes
from depthdial.hf.adapter import AdapterCard, attach_card
from depthdial.hf.builtin import ALIASES
from depthdial.hf.known_routes import best_known_routes, check_share, route_within
from depthdial.routes import Route
from depthdial.routes.families import RouteFamily

FAMILY = tuple(Route(range(n), 30) for n in (10, 15, 24, 30))


def shipped(name: str = "smollm2-135m") -> RouteFamily:
    with resources.as_file(resources.files("depthdial") / "searched" / f"{name}.json") as path:
        return RouteFamily.load(path)


# By model: its layers, the fewest of a route, and those without which it says nothing.
SHIPPED = {"smollm2-135m": (30, 15, {0, 1, 2, 8, 28, 29}), "qwen2.5-coder-1.5b": (28, 14, {0, 1, 3, 26, 27})}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_family_that_ships_is_nested_and_of_the_model_it_is_for(name: str):
    family, (n_layers, fewest, kept) = shipped(name), SHIPPED[name]
    assert family.n_layers == n_layers
    assert [len(route) for route in family.routes] == list(range(fewest, n_layers + 1))
    assert all(route.n_layers == n_layers for route in family.routes)
    for shallow, deep in itertools.pairwise(family.routes):
        assert set(shallow.layers) < set(deep.layers)
    assert all(kept <= set(route.layers) for route in family.routes)
    assert family.made_by["settings"]["model"] == name  # how it was searched, so that somebody can do it again


def test_every_name_of_a_model_has_its_family():
    with resources.as_file(resources.files("depthdial") / "searched") as folder:
        assert {path.name for path in folder.glob("*.json")} == set(known_routes._SHIPPED.values())
    assert known_routes._SHIPPED.keys() == SHIPPED.keys() == {model.alias for model in ALIASES.values()}


def test_a_model_of_that_name_has_the_searched_routes_and_the_full_one(model, monkeypatch):
    model.config.name_or_path = "smollm2-135m"
    monkeypatch.setattr(known_routes, "count_layers", lambda _: 30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        routes = best_known_routes(model)
    searched = [route for route in shipped().routes if not route.is_full]
    assert [route.layers for route in routes] == [*(route.layers for route in searched), tuple(range(30))]
    assert routes[-1].name == "full"


def test_a_name_alone_is_not_enough(model):
    """Somebody's model of six layers may have any name."""
    model.config.name_or_path = "smollm2-135m"
    with pytest.warns(RouteWarning, match="Nothing is known"):
        assert {route.n_layers for route in best_known_routes(model)} == {6}


def test_of_an_unknown_model_layers_are_skipped_uniformly_with_a_warning(model, weights_of, assert_same):
    before = weights_of(model)
    with pytest.warns(RouteWarning, match="`depthdial search` finds better routes, to be given as routes=FILE"):
        routes = best_known_routes(model)
    assert_same(before, weights_of(model))
    assert [len(route) for route in routes] == [1, 2, 3, 4, 5, 6]
    for route in routes[:-1]:
        assert route.layers == Route.parse(f"unified:{len(route)}", 6).layers and 5 in route.layers
    assert routes[-1].is_full and routes[-1].name == "full"


@pytest.mark.parametrize("with_full", [False, True])
def test_an_adapters_routes_come_first_and_the_full_one_is_among_them_once(model, with_lora, with_full):
    own = (Route((0, 1, 4, 5), 6, "own:4"), Route((0, 5), 6, "own:2"), *([Route(range(6), 6, "own:6")] if with_full else []))
    adapted = with_lora(model)
    model.config.name_or_path = "smollm2-135m"
    attach_card(adapted, AdapterCard("elastic", "base", "0" * 64, "float32", 6, "full", own))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        routes = best_known_routes(adapted)
    assert [route.name for route in routes] == ["own:2", "own:4", "full"]


# A depth in numbers


@pytest.mark.parametrize(
    ("share", "layers"),
    [(1.0, 30), (1, 30), (0.999, 24), (0.8, 24), (0.7999, 15), (0.5, 15), (0.4999, 10), (1 / 3, 10), (10 / 30, 10)],
)
def test_the_deepest_route_that_fits_is_taken(share, layers):
    assert len(route_within(FAMILY, share)) == layers
    assert len(route_within(FAMILY[::-1], share)) == layers


@given(st.integers(1, 97), st.data())
def test_a_share_that_is_a_routes_own_cost_takes_that_route(n_layers, data):
    """However the fraction is rounded: 0.8 of 30 layers is 24."""
    sizes = data.draw(st.sets(st.integers(1, n_layers), min_size=1))
    routes = tuple(Route(range(n), n_layers) for n in sizes)
    for n in sizes:
        assert len(route_within(routes, n / n_layers)) == n
        assert len(route_within(routes, 1 - (n_layers - n) / n_layers)) == n


def test_a_share_below_every_route_is_told_the_cheapest():
    with pytest.raises(InputError, match=r"costs at most 0.3 of its layers: the cheapest, '.*', costs 0.333; give more"):
        route_within(FAMILY, 0.3)


@pytest.mark.parametrize("bad", [0, 0.0, -0.5, 1.0001, 24, float("nan"), float("inf"), True, "0.5", None])
def test_what_is_no_share(bad):
    with pytest.raises(InputError, match=r"a share of the layers above 0 and at most 1 such as 0\.5"):
        check_share(bad)
    with pytest.raises(InputError, match="A depth is a route, or a share"):
        route_within(FAMILY, bad)


def test_a_share_comes_back():
    assert check_share(0.5) == 0.5 and check_share(1) == 1
