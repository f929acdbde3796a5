"""Route families as files, and what `--routes` reads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.errors import InputError
from depthdial.routes import RandomRoute, Route, family_routes
from depthdial.routes.families import RouteFamily, distinct_routes, listed_routes, read_routes


def family(**changes: Any) -> RouteFamily:
    routes = (Route((0, 1, 3), 4, "greedy-kl:3"), Route((0, 3), 4, "greedy-kl:2"), Route((0, 1, 2, 3), 4, "full"))
    return RouteFamily(**{"name": "greedy-kl", "n_layers": 4, "routes": routes, "made_by": {"kl": [0.5, 1.25]}, **changes})


@st.composite
def families(draw: st.DrawFn) -> RouteFamily:
    n_layers = draw(st.integers(1, 20))
    names = draw(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=6, unique=True))
    some_layers = st.sets(st.integers(0, n_layers - 1), min_size=1)
    routes = tuple(Route(tuple(sorted(draw(some_layers))), n_layers, name) for name in names)
    made_by = draw(st.dictionaries(st.text(max_size=5), st.integers() | st.floats(allow_nan=False, allow_infinity=False)))
    return RouteFamily(draw(st.text(min_size=1, max_size=8)), n_layers, routes, made_by)


@given(made=families())
def test_a_saved_family_is_read_back_whole(made: RouteFamily, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = made.save(tmp_path_factory.mktemp("family") / "routes.json")
    again = RouteFamily.load(path)
    assert again == made
    assert [route.name for route in again.routes] == [route.name for route in made.routes]
    assert again.made_by == made.made_by


def test_cheapest_first() -> None:
    assert [route.name for route in family().cheapest_first()] == ["greedy-kl:2", "greedy-kl:3", "full"]


def test_the_file_is_plain_json_in_the_grammar_of_routes(tmp_path: Path) -> None:
    document = json.loads(family().save(tmp_path / "a" / "routes.json").read_text())
    assert document["routes"][0] == {"name": "greedy-kl:3", "layers": "0-1,3"}
    # and so one can be written by hand
    document["routes"].append({"name": "mine", "layers": "uls:25%"})
    (tmp_path / "b.json").write_text(json.dumps(document))
    assert RouteFamily.load(tmp_path / "b.json").routes[-1] == Route((0,), 4)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"routes": ()}, "Route family 'greedy-kl' is empty"),
        ({"routes": (Route((0,), 4, "a"), Route((1,), 4, "a"))}, "two routes called 'a'"),
        ({"routes": (Route((0,), 4, "a"), Route((0,), 5, "b"))}, "Route 'b' of family 'greedy-kl' is for 5 layers, not 4"),
    ],
)
def test_refused_families(changes: dict[str, Any], wrong: str) -> None:
    with pytest.raises(InputError, match=wrong):
        family(**changes)


def test_numbers_that_json_does_not_have_are_not_saved(tmp_path: Path) -> None:
    path = family().save(tmp_path / "routes.json")
    with pytest.raises(ValueError):
        family(made_by={"kl": [float("nan")]}).save(path)
    assert RouteFamily.load(path).made_by == family().made_by


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in whole().items() if key not in keys}


def whole(**changes: Any) -> dict[str, Any]:
    routes = [{"name": "a", "layers": "0-1"}, {"name": "b", "layers": "0"}]
    document = {"format": "depthdial-routes", "version": 1, "name": "n", "n_layers": 4, "routes": routes, "made_by": {}}
    return {**document, **changes}


DAMAGED = [  # file, what the sentence says
    ("", "is not a readable route family file"),
    ("{", "is not a readable route family file"),
    (b"\xff\xfe\x00", "is not a readable route family file"),
    ([], "is not a route family file"),
    ("3", "is not a route family file"),
    ({}, "is not a route family file"),
    (whole(format="other"), "is not a route family file"),
    (without("format"), "is not a route family file"),
    (whole(version=2), "is of version 2, not 1"),
    (without("version"), "is of version None, not 1"),
    (without("name"), "damaged route family file (KeyError('name'))"),
    (without("n_layers"), "damaged route family file (KeyError('n_layers'))"),
    (without("routes"), "damaged route family file (KeyError('routes'))"),
    (whole(name=3), "a name is text, not 3"),
    (whole(name=None), "a name is text, not None"),
    (whole(n_layers="4"), "Invalid n_layers '4': use a whole number of at least 1"),
    (whole(n_layers=0), "Invalid n_layers 0: use a whole number of at least 1"),
    (whole(n_layers=1), "Layer 1 does not exist: this model has layers 0 to 0"),
    (whole(routes=None), "damaged route family file"),
    (whole(routes="full"), "damaged route family file"),
    (whole(routes=["full"]), "damaged route family file"),
    (whole(routes={"a": "full"}), "damaged route family file"),
    (whole(routes=[]), "is empty"),
    (whole(routes=[{"name": "a"}]), "KeyError('layers')"),
    (whole(routes=[{"layers": "full"}]), "KeyError('name')"),
    (whole(routes=[{"name": 1, "layers": "full"}]), "a name is text, not 1"),
    (whole(routes=[{"name": "", "layers": "full"}]), "a name is text, not ''"),
    (whole(routes=[{"name": "a", "layers": [0, 1]}]), "written as text, not [0, 1]"),
    (whole(routes=[{"name": "a", "layers": "uls:9"}]), "asks for 9 of 4 layers"),
    (whole(routes=[{"name": "a", "layers": "2,1"}]), "1 follows 2"),
    (whole(routes=[{"name": "a", "layers": "rls:2@1"}]), "rls:2@1 is a random rule"),
    (whole(routes=[{"name": "a", "layers": "0"}, {"name": "a", "layers": "1"}]), "two routes called 'a'"),
    (whole(made_by=3), "damaged route family file"),
]


@pytest.mark.parametrize(("content", "wrong"), DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_files(tmp_path: Path, content: Any, wrong: str) -> None:
    path = tmp_path / "routes.json"
    data = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    for read in (RouteFamily.load, lambda path: read_routes(str(path), 4)):
        with pytest.raises(InputError) as caught:
            read(path)
        assert wrong in str(caught.value)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_undamaged_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "routes.json").write_text(json.dumps(whole()))
    assert RouteFamily.load(tmp_path / "routes.json").routes == (Route((0, 1), 4), Route((0,), 4))
    (tmp_path / "bare.json").write_text(json.dumps(without("made_by")))
    assert RouteFamily.load(tmp_path / "bare.json").made_by == {}


def test_a_missing_file_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no route family file .*nowhere\.json: check the path"):
        RouteFamily.load(tmp_path / "nowhere.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError, match=r"folder\.json is not a readable route family file"):
        RouteFamily.load(tmp_path / "folder.json")


# What --routes reads


def names(text: str | Path, n_layers: int = 4) -> list[str]:
    return [route.name for route in read_routes(str(text), n_layers)]


def test_lists_of_routes_and_families() -> None:
    assert names("full,uls:50%,0-1,3,drop:1-2,3") == ["full", "uls:2", "0-1,3", "drop:1-3"]
    assert names("ee") == ["ee:1", "ee:2", "ee:3", "ee:4"]
    assert names("full,ULS,rls:2@7", 2) == ["full", "uls:1", "uls:2", "rls:2@7"]
    assert read_routes("rls-wo1", 3) == family_routes("rls-wo1", 3)
    assert read_routes("rls:2@7", 4) == (RandomRoute("rls", 2, 4, 7),)


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ["greedy-kl:3", "greedy-kl:2", "full"]
    family().save(tmp_path / "routes.json")
    for odd in ("with, comma and space.json", "no-suffix", "full,uls:2"):
        family().save(tmp_path / odd)
        assert names(tmp_path / odd) == expected
    assert names(tmp_path / "routes.json") == expected
    monkeypatch.chdir(tmp_path)
    assert names("routes.json") == names("./routes.json") == expected


def test_files_in_lists(tmp_path: Path) -> None:
    path = family().save(tmp_path / "routes.json")
    expected = ["greedy-kl:3", "greedy-kl:2", "full"]
    assert names(f"{path},uls:50%") == [*expected, "uls:2"]
    assert names(f"uls:50%,{path}") == ["uls:2", *expected]  # the whole text ends in .json too
    assert names(f"ee:1,{path},ee:2") == ["ee:1", *expected, "ee:2"]
    with pytest.raises(InputError, match=r"There is no route family file .*other\.json"):
        names(f"full,{tmp_path / 'other.json'}")


def test_a_long_list_is_no_file_name() -> None:
    # Longer than any name that a file system takes: asking it for such a file is an error of its own.
    assert names(";".join(["0,1"] * 2000)) == ["0-1"] * 2000


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "No route was given"),
        (" ,; ", "No route was given"),
        ("nonsense", "Unknown route 'nonsense'"),
        ("full,uls:9", "asks for 9 of 4 layers"),
        ("missing.json", "There is no route family file missing.json"),
        ("missing/routes.JSON", "There is no route family file missing/routes.JSON"),
        (f"{os.sep}", "Unknown route"),
    ],
)
def test_refused_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, wrong: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        read_routes(text, 4)
    assert wrong in str(caught.value)


# What an argument `routes` takes

ONE = Route((0, 1, 3), 4)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (ONE, [ONE]),
        ("full", ["full"]),
        ("full,ee:2", ["full", "ee:2"]),
        ("ee", ["ee:1", "ee:2", "ee:3", "ee:4"]),
        ((0, 1, 3), [ONE]),
        (range(2), ["0-1"]),
        ([(0, 1, 3), "full", ONE, [0, 1], range(1, 3)], [ONE, "full", ONE, "0-1", "1-2"]),
        (("full", (0, 1, 3)), ["full", ONE]),
        ((route for route in ["full"]), ["full"]),
        (RouteFamily("own", 4, (ONE,)), [ONE]),
        ([RouteFamily("own", 4, (ONE,)), "full"], [ONE, "full"]),
        ((3,), ["3-3"]),
        ([], []),
        ([ONE, 4.5j], [ONE, 4.5j]),  # what is no route is for the caller to judge
    ],
)
def test_routes_are_given_in_any_form(given: Any, expected: list[Any]) -> None:
    routes = [Route.parse(one, 4) if isinstance(one, str) else one for one in expected]
    assert list(listed_routes(given, 4)) == routes


def test_a_path_is_a_family_file(tmp_path: Path) -> None:
    path = family().save(tmp_path / "routes.json")
    assert listed_routes(path, 4) == listed_routes([path], 4) == family().routes


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        (3, "Route '3' is a bare number"),
        ([0, 1], "Route '0' is a bare number"),
        (0.5, "Route '0.5' is a bare number"),
        ("", "No route was given"),
        ((0, 4), "layer 4"),
        ([(0, 0)], "layer 0"),
        (["full", "nonsense"], "Unknown route 'nonsense'"),
        (RouteFamily("deep", 6, (Route((0, 1), 6),)), "for a model of 6 layers"),
    ],
)
def test_refused_forms(given: Any, wrong: str) -> None:
    with pytest.raises(InputError) as caught:
        listed_routes(given, 4)
    assert wrong.lower() in str(caught.value).lower()


def test_a_file_for_another_depth_is_refused(tmp_path: Path) -> None:
    path = family().save(tmp_path / "routes.json")
    for text in (str(path), f"full,{path}"):
        with pytest.raises(InputError, match=r"routes\.json is for 4 layers but this model has 6: search again"):
            read_routes(text, 6)


def test_what_routes_were_searched_on_stays_with_them_in_any_family(tmp_path):
    own, theirs = Route((0, 1), 4, "own:2", frozenset({"a"})), Route((0, 1, 2), 4, "theirs:3", frozenset({"b", "c"}))
    plain, full = Route((0, 3), 4, "plain"), Route((0, 1, 2, 3), 4, "full")
    for about, tags in (({}, ["a", "bc", "", ""]), ({"prompts": ["d", "a"]}, ["ad", "abcd", "ad", ""])):
        family = RouteFamily("mixed", 4, (own, theirs, plain, full), about)
        again = RouteFamily.load(family.save(tmp_path / "mixed.json"))
        for one in (family, again):
            assert ["".join(sorted(route.searched_on)) for route in one.routes] == tags
        entries = json.loads((tmp_path / "mixed.json").read_text())["routes"]
        assert [entry.get("searched_on") for entry in entries] == [["a"] if not about else None, ["b", "c"], None, None]


def test_a_route_that_is_given_twice_remembers_every_search():
    plain, searched = Route((0, 1), 4, "ee:2"), Route((0, 1), 4, "own:2", frozenset({"a"}))
    other = Route((0, 1), 4, "other:2", frozenset({"b"}))
    for routes in ((plain, searched, other), (searched, other, plain)):
        (one,) = distinct_routes(routes)
        assert one.name == routes[0].name and one.searched_on == {"a", "b"}
    assert plain.searched_on == frozenset()
    assert distinct_routes((plain, Route((0, 2), 4))) == (plain, Route((0, 2), 4))


def test_a_family_says_how_prompts_ran_in_its_search_and_its_routes_remember(tmp_path):
    routes, full = (Route((0, 1), 4, "own:2"), Route((0, 1, 2), 4, "own:3")), Route((0, 1, 2, 3), 4, "full")
    family = RouteFamily("own", 4, (*routes, full), prompt_depth="route")
    again = RouteFamily.load(family.save(tmp_path / "own.json"))
    for one in (family, again):
        assert one.prompt_depth == "route"
        assert [route.searched_for for route in one.routes] == ["route", "route", None]
    mixed = RouteFamily("mixed", 4, (*family.routes[:1], Route((0, 3), 4, "plain")), prompt_depth="full")
    again = RouteFamily.load(mixed.save(tmp_path / "mixed.json"))
    assert [route.searched_for for route in again.routes] == ["route", "full"]
    stored = json.loads((tmp_path / "mixed.json").read_text())
    assert stored["prompt_depth"] == "full"
    assert [entry.get("searched_for") for entry in stored["routes"]] == ["route", None]


@pytest.mark.parametrize(
    ("made_by", "prompt_depth"),
    [
        ({"metric": "KL", "settings": {"prompt_depth": "full"}}, "full"),
        ({"settings": {"prompt_depth": "full"}}, None),  # block influence and the like look at no prompt depth
        ({"metric": "KL", "settings": {"prompt_depth": 3}}, None),
        ({}, None),
    ],
)
def test_a_file_from_before_says_it_in_its_record(tmp_path, made_by, prompt_depth):
    path = RouteFamily("own", 4, (Route((0, 1), 4, "own:2"),), made_by).save(tmp_path / "own.json")
    document = json.loads(path.read_text())
    del document["prompt_depth"]
    path.write_text(json.dumps(document))
    family = RouteFamily.load(path)
    assert family.prompt_depth == family.routes[0].searched_for == prompt_depth


def test_an_unknown_prompt_depth_is_refused(tmp_path):
    with pytest.raises(InputError, match="Unknown prompt depth 'half': use full or route"):
        RouteFamily("own", 4, (Route((0, 1), 4),), prompt_depth="half")
    path = RouteFamily("own", 4, (Route((0, 1), 4, "a", searched_for="route"),)).save(tmp_path / "own.json")
    path.write_text(path.read_text().replace('"searched_for": "route"', '"searched_for": "half"'))
    with pytest.raises(InputError, match="damaged route family file"):
        RouteFamily.load(path)


def test_layers_that_searches_of_both_kinds_found_are_for_any_prompts():
    one, other = (Route((0, 1), 4, f"{depth}:2", searched_for=depth) for depth in ("full", "route"))
    plain = Route((0, 1), 4, "ee:2")
    assert distinct_routes((one, other))[0].searched_for is None
    assert distinct_routes((one, plain))[0].searched_for == "full"
    assert distinct_routes((plain, one))[0].searched_for is None
