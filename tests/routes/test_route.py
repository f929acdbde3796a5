"""Routes: the grammar, the families against the paper's definitions, random rules, and every refusal."""

from __future__ import annotations

import ast
import dataclasses
import os
import pickle
import re
import subprocess
import sys
import tracemalloc
from collections import Counter
from fractions import Fraction
from itertools import pairwise
from math import floor, sqrt
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import depthdial.routes.route
from depthdial.errors import InputError
from depthdial.routes import (
    FAMILIES,
    RANDOM_FAMILIES,
    RandomRoute,
    Route,
    family_routes,
    require_depth,
    split_routes,
    stored_route,
)
from depthdial.routes.route import format_layers

DEPTHS = st.integers(1, 60)


@st.composite
def routes(draw: st.DrawFn) -> Route:
    n_layers = draw(DEPTHS)
    layers = draw(st.sets(st.integers(0, n_layers - 1), min_size=1))
    return Route(tuple(sorted(layers)), n_layers)


def parse_fixed(text: str, n_layers: int) -> Route:
    route = Route.parse(text, n_layers)
    assert isinstance(route, Route)
    return route


def parse_random(text: str, n_layers: int) -> RandomRoute:
    route = Route.parse(text, n_layers)
    assert isinstance(route, RandomRoute)
    return route


ACCEPTED = [  # text, layers of the model, layers that run, name
    ("full", 4, (0, 1, 2, 3), "full"),
    (" FULL ", 2, (0, 1), "full"),
    ("ee:1", 4, (0,), "ee:1"),
    ("ee:3", 4, (0, 1, 2), "ee:3"),
    ("EE: 3 ", 4, (0, 1, 2), "ee:3"),
    ("uls:2", 4, (0, 2), "uls:2"),
    ("uls:4", 4, (0, 1, 2, 3), "uls:4"),
    ("uls:3", 7, (0, 2, 4), "uls:3"),
    ("uls:50%", 30, tuple(range(0, 30, 2)), "uls:15"),
    ("uls: 50 %", 4, (0, 2), "uls:2"),
    ("uls:12.5%", 8, (0,), "uls:1"),
    ("ee:100%", 3, (0, 1, 2), "ee:3"),
    ("unified:1", 4, (3,), "unified:1"),
    ("unified:2", 4, (0, 3), "unified:2"),
    ("unified:3", 7, (0, 2, 6), "unified:3"),
    ("drop:1", 3, (0, 2), "drop:1"),
    ("drop:1-2", 4, (0, 3), "drop:1-2"),
    ("drop:0,2-3", 5, (1, 4), "drop:0,2-3"),
    ("drop: 1 , 3", 5, (0, 2, 4), "drop:1,3"),
    ("0-3,8,12-29", 30, (0, 1, 2, 3, 8, *range(12, 30)), "0-3,8,12-29"),
    ("0, 1, 5", 6, (0, 1, 5), "0-1,5"),
    ("0 - 2", 4, (0, 1, 2), "0-2"),
    ("2-2", 4, (2,), "2-2"),
    (" 5 - 5 ", 6, (5,), "5-5"),
    ("0-0", 1, (0,), "full"),
    ("0-0,2", 4, (0, 2), "0,2"),
    ("0-3", 4, (0, 1, 2, 3), "full"),
]


@pytest.mark.parametrize(("text", "n_layers", "layers", "name"), ACCEPTED)
def test_grammar(text: str, n_layers: int, layers: tuple[int, ...], name: str) -> None:
    route = parse_fixed(text, n_layers)
    assert (route.layers, route.n_layers, route.name) == (layers, n_layers, name)


NINES = "9" * 5000
REFUSED = [  # text, layers of the model, what the sentence says is wrong, what it says would be right
    ("", 30, "is empty", "uls:12"),
    ("   ", 30, "is empty", "uls:12"),
    ("uls", 30, "Unknown route 'uls'", "uls:12"),
    ("half", 30, "Unknown route 'half'", "uls:12"),
    ("full:3", 30, "Unknown route 'full:3'", "uls:12"),
    ("skip:3", 30, "Unknown route 'skip:3'", "uls:12"),
    ("uls=3", 30, "Unknown route 'uls=3'", "uls:12"),
    ("uls:", 30, "Route 'uls:' needs a number", "from 1 to 30"),
    ("uls:x", 30, "Route 'uls:x' needs a number", "from 1 to 30"),
    ("uls:-2", 30, "Route 'uls:-2' needs a number", "from 1 to 30"),
    ("uls:1.5", 30, "Route 'uls:1.5' needs a number", "from 1 to 30"),
    ("uls:1e1", 30, "Route 'uls:1e1' needs a number", "from 1 to 30"),
    ("uls:nan%", 30, "Route 'uls:nan%' needs a number", "percentage"),
    ("uls:-50%", 30, "Route 'uls:-50%' needs a number", "percentage"),
    ("uls:12@3", 30, "Route 'uls:12@3' needs a number", "rls:12@0"),
    ("ee:12,14", 30, "Route 'ee:12,14' needs a number", "from 1 to 30"),
    ("uls:0", 30, "asks for 0 of 30 layers", "from 1 to 30"),
    ("uls:0%", 30, "asks for 0 of 30 layers", "up to 100%"),
    ("uls:1%", 30, "asks for 0 of 30 layers", "from 1 to 30"),
    ("ee:31", 30, "asks for 31 of 30 layers", "from 1 to 30"),
    ("unified:150%", 30, "asks for 45 of 30 layers", "up to 100%"),
    ("rls:0@1", 30, "asks for 0 of 30 layers", "from 1 to 30"),
    ("rls-wo1:31@1", 30, "asks for 31 of 30 layers", "from 1 to 30"),
    ("rls:@1", 30, "Route 'rls:@1' needs a number", "from 1 to 30"),
    ("rls:3@", 30, "Route 'rls:3@' needs a whole number from 0 as its seed", "rls:3@0"),
    ("rls:3@x", 30, "as its seed", "rls:3@0"),
    ("rls:3@-1", 30, "as its seed", "rls:3@0"),
    ("rls:3@1.5", 30, "as its seed", "rls:3@0"),
    ("drop:", 30, "Unknown route 'drop:'", "drop:20-24"),
    ("drop:x", 30, "Unknown route 'drop:x'", "drop:20-24"),
    ("drop:0-2", 3, "leaves no layer to run", "keep at least one of the 3"),
    ("drop:30", 30, "Layer 30 does not exist", "layers 0 to 29"),
    ("drop:5-3", 30, "The range '5-3' in route 'drop:5-3' runs backwards", "3-5"),
    ("drop:3,3", 30, "Layer 3 stands twice", "once"),
    ("drop:5,3", 30, "3 follows 5", "'3,5'"),
    ("0,0", 3, "Layer 0 stands twice", "once"),
    ("0-3,3", 30, "Layer 3 stands twice", "once"),
    ("3,1", 30, "1 follows 3", "'1,3'"),
    ("4-6,0-1", 30, "0 follows 6", "'0-1,4-6'"),
    ("0,30", 30, "Layer 30 does not exist", "layers 0 to 29"),
    ("0-30", 30, "Layer 30 does not exist", "layers 0 to 29"),
    ("0-", 30, "Unknown route '0-'", "0-3,8,12-29"),
    ("-1", 30, "Unknown route '-1'", "0-3,8,12-29"),
    ("0,,1", 30, "Unknown route '0,,1'", "0-3,8,12-29"),
    ("0,1,", 30, "Unknown route '0,1,'", "0-3,8,12-29"),
    ("0;1", 30, "Unknown route '0;1'", "0-3,8,12-29"),
    ("0 1", 30, "Unknown route '0 1'", "0-3,8,12-29"),
    ("1-2-3", 30, "Unknown route '1-2-3'", "0-3,8,12-29"),
    ("9-8", 30, "The range '9-8' in route '9-8' runs backwards", "8-9"),
    # Python refuses to turn thousands of digits into a number, and so many as a float are infinite.
    (f"uls:{NINES}", 30, "needs a number", "from 1 to 30"),
    (f"uls:{NINES}%", 30, "needs a number", "percentage"),
    (f"rls:3@{NINES}", 30, "as its seed", "rls:3@0"),
    (NINES, 30, "Unknown route", "0-3,8,12-29"),
    ("24", 30, "Route '24' is a bare number", "uls:24 or ee:24 for 24 of the 30 layers, 24-24 for layer 24 alone"),
    (" 24 ", 30, "Route '24' is a bare number", "24-24 for layer 24 alone"),
    ("0", 30, "Route '0' is a bare number", "write 0-0 for layer 0 alone."),
    ("30", 30, "Route '30' is a bare number", "write uls:30 or ee:30 for 30 of the 30 layers."),
    ("99", 30, "Route '99' is a bare number", "uls:30 or less"),
    ("50%", 30, "Route '50%' is a bare number", "uls:50% or ee:50%"),
    ("0.5", 30, "Route '0.5' is a bare number", "uls:50% or ee:50%"),
    (f"drop:{NINES}", 30, "Unknown route", "drop:20-24"),
]


def is_one_sentence(message: str) -> bool:
    return "\n" not in message and message.endswith(".") and ". " not in message


@pytest.mark.parametrize(("text", "n_layers", "wrong", "right"), REFUSED, ids=[text[:20] or "empty" for text, *_ in REFUSED])
def test_refusals_say_what_is_wrong_and_what_would_be_right(text: str, n_layers: int, wrong: str, right: str) -> None:
    with pytest.raises(ValueError) as caught:
        Route.parse(text, n_layers)
    assert type(caught.value) is InputError
    message = str(caught.value)
    assert is_one_sentence(message)
    assert wrong in message
    assert right in message.replace(wrong, "", 1)


@pytest.mark.parametrize("text", [None, 12, 0.5, b"full", ("uls", 12)])
def test_only_text_is_parsed(text: object) -> None:
    with pytest.raises(InputError, match="written as text"):
        Route.parse(text, 30)  # type: ignore[arg-type]


@pytest.mark.parametrize("n_layers", [0, -1, 2.0, "30", None, True])
def test_the_depth_is_a_whole_number_from_one(n_layers: object) -> None:
    for refused in (
        lambda: Route.parse("full", n_layers),  # type: ignore[arg-type]
        lambda: Route((0,), n_layers),  # type: ignore[arg-type]
        lambda: RandomRoute("rls", 1, n_layers),  # type: ignore[arg-type]
        lambda: family_routes("uls", n_layers),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError, match="Invalid n_layers") as caught:
            refused()
        assert is_one_sentence(str(caught.value))


@given(text=st.text(alphabet="0123456789-,:@%. ;eulsrdwo1fnipd", max_size=24), n_layers=DEPTHS)
def test_any_text_is_a_route_or_an_input_error(text: str, n_layers: int) -> None:
    try:
        route = Route.parse(text, n_layers)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert route.n_layers == n_layers
        assert Route.parse(str(route), n_layers) == route
        assert Route.parse(route.name, n_layers) == route


@given(routes())
def test_a_route_is_what_its_text_says(route: Route) -> None:
    again = Route.parse(str(route), route.n_layers)
    assert again == route
    assert hash(again) == hash(route)
    assert str(again) == str(route)


@given(routes())
def test_the_skipped_layers_and_the_cost_add_up(route: Route) -> None:
    assert sorted((*route.layers, *route.skipped)) == list(range(route.n_layers))
    assert len(route) == route.cost_layers == len(route.layers)
    assert route.cost == pytest.approx(len(route.layers) / route.n_layers)
    assert 0 < route.cost <= 1
    assert route.is_full == (route.skipped == ())
    assert route.for_sequence("any") is route
    if route.skipped:
        assert parse_fixed(f"drop:{format_layers(route.skipped)}", route.n_layers) == route


def test_routes_are_equal_by_layers_and_depth_whatever_their_name() -> None:
    named = Route((0, 2), 4, "mine")
    assert named == parse_fixed("uls:2", 4)
    assert hash(named) == hash(parse_fixed("uls:2", 4))
    assert len({named, parse_fixed("uls:50%", 4), parse_fixed("0,2", 4)}) == 1
    assert named != Route((0, 2), 5)
    assert named != Route((0, 3), 4)


def test_routes_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Route((0,), 2).layers = (1,)  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        RandomRoute("rls", 1, 2).seed = 1  # type: ignore[misc]


def test_routes_travel_between_processes() -> None:
    for route in (Route((0, 2), 4, "mine"), RandomRoute("rls", 2, 4, 9)):
        again = pickle.loads(pickle.dumps(route))
        assert (again, again.name) == (route, route.name)


@pytest.mark.parametrize("layers", [[0, 1, 5], range(0, 6, 2), np.array([0, 1]), (np.int32(0), np.uint8(5)), iter((0, 1))])
def test_layers_may_come_in_any_collection_that_keeps_its_order(layers: object) -> None:
    route = Route(layers, 6)  # type: ignore[arg-type]
    assert isinstance(route.layers, tuple)
    assert all(type(layer) is int for layer in route.layers)
    assert Route.parse(str(route), 6) == route


@pytest.mark.parametrize(
    ("layers", "wrong"),
    [
        ((), "is empty"),
        ((True,), "whole numbers, not True"),
        ((0, False), "whole numbers, not False"),
        ((np.True_,), "whole numbers, not"),
        ((0.0, 1.0), "whole numbers, not 0.0"),
        ((np.float32(1),), "whole numbers, not"),
        (("0",), "whole numbers, not '0'"),
        ((None,), "whole numbers, not None"),
        ((int,), "whole numbers, not"),
        ((np.array([0, 1]),), "whole numbers, not"),
        ("0,1", "not '0,1': use Route.parse for text"),
        (b"01", "use Route.parse for text"),
        (3, "takes layer indices, not 3"),
        ((1, 0), "0 follows 1: write it as '0-1'"),
        ((1, 1), "Layer 1 stands twice"),
        ((-1, 0), "Layer -1 does not exist: this model has layers 0 to 5"),
        ((0, 6), "Layer 6 does not exist: this model has layers 0 to 5"),
    ],
)
def test_refused_layers(layers: object, wrong: str) -> None:
    with pytest.raises(InputError) as caught:
        Route(layers, 6)  # type: ignore[arg-type]
    assert wrong in str(caught.value)
    assert is_one_sentence(str(caught.value))


def test_unknown_keywords_are_refused() -> None:
    for refused in (
        lambda: Route((0,), 2, layer=1),  # type: ignore[call-arg]
        lambda: Route.parse("full", 2, strict=True),  # type: ignore[call-arg]
        lambda: RandomRoute("rls", 1, 2, seeds=1),  # type: ignore[call-arg]
        lambda: family_routes("uls", 2, seeds=1),  # type: ignore[call-arg]
    ):
        with pytest.raises(TypeError):
            refused()


# Families, by the paper's definitions


def test_known_routes_of_the_paper() -> None:
    assert parse_fixed("uls:12", 24).layers == (0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22)
    assert parse_fixed("unified:12", 24).layers == (0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 23)
    assert parse_fixed("ee:12", 24).layers == tuple(range(12))
    # ULS always drops the last layer; unified never does.
    assert all(23 not in parse_fixed(f"uls:{c}", 24).layers for c in range(1, 24))
    assert all(23 in parse_fixed(f"unified:{c}", 24).layers for c in range(1, 25))


@given(DEPTHS.flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_uniform_layer_skipping_is_floor_of_i_times_l_over_c(case: tuple[int, int]) -> None:
    n_layers, c = case
    assert parse_fixed(f"uls:{c}", n_layers).layers == tuple(floor(i * Fraction(n_layers, c)) for i in range(c))


@pytest.mark.parametrize("n_layers", [1, 2, 3, 7, 24, 30, 61])
@pytest.mark.parametrize("family", FAMILIES)
def test_families_have_every_cost_once(family: str, n_layers: int) -> None:
    members = family_routes(family, n_layers, seed=3)
    assert [len(route) for route in members] == list(range(1, n_layers + 1))
    assert [route.cost_layers for route in members] == list(range(1, n_layers + 1))
    for route in members:
        drawn = route.for_sequence("a")
        assert len(drawn.layers) == route.cost_layers
        assert drawn.cost == route.cost
        assert drawn.is_full == route.is_full
        assert list(drawn.layers) == sorted(set(drawn.layers))
        assert 0 <= drawn.layers[0] <= drawn.layers[-1] < n_layers
        assert drawn.name == route.name  # a drawn route goes by the name of its rule
        assert Route.parse(route.name, n_layers) == route
    assert members[-1].for_sequence("a").layers == tuple(range(n_layers))


def test_families_take_a_seed_and_refuse_what_is_none() -> None:
    assert [route.name for route in family_routes("rls", 2, seed=5)] == ["rls:1@5", "rls:2@5"]
    assert [route.name for route in family_routes("uls", 2, seed=5)] == ["uls:1", "uls:2"]
    with pytest.raises(InputError, match="Unknown family 'ULS2': use one of ee, uls, unified, rls, rls-wo1"):
        family_routes("ULS2", 4)
    with pytest.raises(InputError, match="as its seed"):
        family_routes("rls", 4, seed=-1)


@given(n_layers=DEPTHS, tenths=st.integers(0, 1000))
def test_percentages_round_half_up(n_layers: int, tenths: int) -> None:
    exact = Fraction(tenths, 1000) * n_layers
    expected = floor(exact + Fraction(1, 2))
    text = f"uls:{tenths // 10}.{tenths % 10}%"
    if expected == 0:
        with pytest.raises(InputError, match="asks for 0"):
            Route.parse(text, n_layers)
    else:
        assert len(parse_fixed(text, n_layers)) == expected


@pytest.mark.parametrize(
    ("percent", "n_layers", "count"),
    # 14.5 and 28.5 layers: in floats 29 / 100 * 50 and 57 / 100 * 50 are less than that.
    [(50, 15, 8), (50, 5, 3), (10, 5, 1), (29, 50, 15), (57, 50, 29), (33, 30, 10)],
)
def test_half_a_layer_rounds_up(percent: int, n_layers: int, count: int) -> None:
    assert len(parse_fixed(f"ee:{percent}%", n_layers)) == count


# Random rules


def test_random_rules_keep_their_text() -> None:
    rule = parse_random("RLS-wo1:3@42", 8)
    assert (rule.kind, rule.cost_layers, rule.n_layers, rule.seed) == ("rls-wo1", 3, 8, 42)
    assert str(rule) == rule.name == "rls-wo1:3@42"
    assert parse_random("rls:3", 8) == parse_random("rls:3@0", 8)
    assert parse_random("rls:50%@007", 8) == RandomRoute("rls", 4, 8, 7)
    assert len({parse_random("rls:3@1", 8), RandomRoute("rls", 3, 8, 1), parse_random("rls:3@2", 8)}) == 2
    assert rule.cost == 3 / 8
    assert len(rule) == 3


@given(
    kind=st.sampled_from(RANDOM_FAMILIES),
    case=DEPTHS.flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))),
    seed=st.integers(0, 2**32),
    sequence=st.one_of(st.text(max_size=8), st.integers()),
)
def test_a_random_rule_draws_a_valid_route(kind: str, case: tuple[int, int], seed: int, sequence: object) -> None:
    n_layers, c = case
    rule = RandomRoute(kind, c, n_layers, seed)
    assert Route.parse(str(rule), n_layers) == rule
    route = rule.for_sequence(sequence)
    assert len(route) == c
    assert route.n_layers == n_layers
    assert kind != "rls" or route.layers[0] == 0
    assert rule.for_sequence(sequence) == route


@pytest.mark.parametrize("kind", RANDOM_FAMILIES)
def test_random_layers_are_uniform_over_sequences(kind: str) -> None:
    n_layers, c, n_sequences = 12, 5, 4000
    rule = RandomRoute(kind, c, n_layers, seed=1)
    drawn = [rule.for_sequence(f"task-test-{i:05d}").layers for i in range(n_sequences)]
    counts = Counter(layer for layers in drawn for layer in layers)
    free = list(range(1 if kind == "rls" else 0, n_layers))
    if kind == "rls":
        assert counts[0] == n_sequences
    share = (c - 1) / (n_layers - 1) if kind == "rls" else c / n_layers
    # Fixed ids and seed: nothing random is left, and five standard deviations hold for any sound draw.
    tolerance = 5 * sqrt(share * (1 - share) / n_sequences)
    assert all(abs(counts[layer] / n_sequences - share) < tolerance for layer in free)
    # Not only each layer but each pair of them: a draw in blocks would pass the above.
    pairs = Counter((a, b) for layers in drawn for a in layers for b in layers if a < b and a in free)
    k, n = (c - 1, n_layers - 1) if kind == "rls" else (c, n_layers)
    both = k * (k - 1) / (n * (n - 1))
    assert len(pairs) == n * (n - 1) // 2
    assert all(abs(count / n_sequences - both) < 5 * sqrt(both * (1 - both) / n_sequences) for count in pairs.values())


def test_draws_differ_by_seed_sequence_cost_and_kind() -> None:
    draw = RandomRoute("rls", 8, 16, 0).for_sequence("a").layers
    assert RandomRoute("rls", 8, 16, 1).for_sequence("a").layers != draw
    assert RandomRoute("rls", 8, 16, 0).for_sequence("b").layers != draw
    assert RandomRoute("rls-wo1", 8, 16, 0).for_sequence("a").layers != draw
    # The draw of another cost is a fresh one and not this one with a layer more.
    nested = [
        set(RandomRoute("rls", 8, 16).for_sequence(i).layers) < set(RandomRoute("rls", 9, 16).for_sequence(i).layers)
        for i in range(20)
    ]
    assert not all(nested)


def test_a_sequence_is_known_by_its_text() -> None:
    rule = RandomRoute("rls", 4, 16)
    assert rule.for_sequence(7) == rule.for_sequence("7") == rule.for_sequence(np.int64(7))
    assert rule.for_sequence("7") != rule.for_sequence("07")


CHILD = """
from depthdial.routes import Route
for text in ("rls:7@3", "rls-wo1:9@0"):
    for sequence in ("alpaca-test-00012", 7, "\\u00e9"):
        print(Route.parse(text, 30).for_sequence(sequence))
"""


def test_draws_are_the_same_in_every_process() -> None:
    expected = [
        str(parse_random(text, 30).for_sequence(sequence))
        for text in ("rls:7@3", "rls-wo1:9@0")
        for sequence in ("alpaca-test-00012", 7, "é")
    ]
    for seed in ("0", "12345"):
        child = subprocess.run(
            [sys.executable, "-c", CHILD],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert child.stdout.split() == expected


def test_draws_are_pinned() -> None:
    # Rows that were measured on drawn routes are kept: a change of the recipe would part them from new ones in silence.
    assert parse_random("rls:4@0", 12).for_sequence("a").layers == (0, 7, 8, 11)
    assert parse_random("rls-wo1:4@0", 12).for_sequence("a").layers == (1, 4, 6, 10)


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (("uls", 2, 4, 0), "Unknown random family 'uls': use one of rls, rls-wo1"),
        (("rls", 0, 4, 0), "asks for 0 of 4 layers"),
        (("rls", 5, 4, 0), "asks for 5 of 4 layers"),
        (("rls", 2.5, 4, 0), "Invalid cost_layers of a random route 2.5: use a whole number of at least 0"),
        (("rls", True, 4, 0), "Invalid cost_layers of a random route True: use a whole number of at least 0"),
        (("rls", 2, 4, -1), "Invalid seed of a random route -1: use a whole number of at least 0"),
        (("rls", 2, 4, "x"), "Invalid seed of a random route 'x': use a whole number of at least 0"),
        (("rls", 2, 4, None), "Invalid seed of a random route None: use a whole number of at least 0"),
    ],
)
def test_refused_random_rules(arguments: tuple[object, ...], wrong: str) -> None:
    with pytest.raises(InputError) as caught:
        RandomRoute(*arguments)  # type: ignore[arg-type]
    assert wrong in str(caught.value)
    assert is_one_sentence(str(caught.value))


# Helpers and limits


def test_a_route_for_another_depth_is_refused() -> None:
    for text in ("uls:2", "rls:2@1"):
        route = Route.parse(text, 4)
        assert require_depth(route, 4) is route
        with pytest.raises(InputError, match="is for a model of 4 layers but this one has 5") as caught:
            require_depth(route, 5)
        assert repr(route.name) in str(caught.value)
        assert "n_layers=5" in str(caught.value)
        assert is_one_sentence(str(caught.value))


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n))))
def test_one_layer_is_written_as_a_range_and_no_number_is_ever_an_index(place: tuple[int, int]) -> None:
    layer, n_layers = place
    alone = Route((layer,), n_layers)
    assert str(alone) == alone.name == ("full" if n_layers == 1 else f"{layer}-{layer}")
    assert Route.parse(f"{layer}-{layer}", n_layers) == alone == stored_route(str(layer), n_layers)
    assert stored_route(str(alone), n_layers) == alone
    with pytest.raises(InputError, match="bare number") as caught:
        Route.parse(str(layer), n_layers)
    assert is_one_sentence(str(caught.value))
    for remedy in re.findall(r"(?:uls|ee):\d+|\d+-\d+", str(caught.value)):
        Route.parse(remedy, n_layers)


@pytest.mark.parametrize(
    ("layers", "text"), [((0, 1, 2, 5), "0-2,5"), ((0,), "0"), ((0, 1), "0-1"), ((1, 3, 5), "1,3,5"), ((), "")]
)
def test_format_layers(layers: tuple[int, ...], text: str) -> None:
    assert format_layers(layers) == text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        (" , ;", []),
        ("full", ["full"]),
        ("full,uls:12,0-3,8,drop:4-6", ["full", "uls:12", "0-3,8", "drop:4-6"]),
        ("drop:4-6,8,uls:50%", ["drop:4-6,8", "uls:50%"]),
        ("DROP:4,8", ["DROP:4,8"]),
        ("uls:12,3", ["uls:12", "3"]),
        ("0-3,8;0,1", ["0-3,8", "0,1"]),
        ("0-3,8 0,1\n2", ["0-3,8", "0,1", "2"]),
        ("0-3, 8, 12-29", ["0-3,8,12-29"]),
        ("full, uls:12 ,ee:3", ["full", "uls:12", "ee:3"]),
        ("rls:3@1,rls-wo1:3@2,5", ["rls:3@1", "rls-wo1:3@2", "5"]),
        ("full,,ee:3,", ["full", "ee:3"]),
    ],
)
def test_split_routes(text: str, parts: list[str]) -> None:
    assert split_routes(text) == parts


def routes_of_depth(n_layers: int) -> list[str]:
    whole = ["full", "uls:50%", f"ee:{n_layers}", "rls:1@3", f"rls-wo1:{n_layers}@12", "unified:2", "drop:1", "drop:0"]
    return [*whole, "0-0", f"0-{n_layers - 1}", f"0,{n_layers - 1}", "path/to/family.json"]


LISTS_OF_ROUTES = st.integers(2, 40).flatmap(lambda n: st.lists(st.sampled_from(routes_of_depth(n)), max_size=8))


@given(LISTS_OF_ROUTES, st.sampled_from("; "))
def test_split_routes_undoes_joining(parts: list[str], separator: str) -> None:
    assert split_routes(separator.join(parts)) == parts
    # A comma does as well, unless what follows could belong to the layer list before it.
    ambiguous = any(
        (before[0].isdigit() or before.startswith("drop:")) and after[0].isdigit() for before, after in pairwise(parts)
    )
    if not ambiguous:
        assert split_routes(",".join(parts)) == parts


# Huge, and yet no more than a machine survives should the check go missing.
@pytest.mark.parametrize("text", ["0-2999999", "drop:1-2999999", "2999998-2999999", ",".join(["0-2999999"] * 3)])
def test_a_huge_range_is_an_error_and_not_a_full_memory(text: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="Layer 2999999 does not exist"):
            Route.parse(text, 30)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_huge_depth_is_an_error_and_not_a_full_memory() -> None:
    tracemalloc.start()
    try:
        for refused in (lambda: Route.parse("full", 3_000_000), lambda: family_routes("uls", 3_000_000)):
            with pytest.raises(InputError, match="Invalid n_layers 3000000"):
                refused()
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_routes_need_only_the_standard_library() -> None:
    tree = ast.parse(Path(depthdial.routes.route.__file__).read_text(encoding="utf-8"))
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            modules.add(node.module or "")
    assert "re" in modules  # the walk sees something
    foreign = {name for name in modules if name.partition(".")[0] not in sys.stdlib_module_names}
    assert foreign == {"depthdial.checks", "depthdial.errors"}
