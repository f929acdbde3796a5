"""The card of a controller: it comes back as it was written, and what cannot be one is refused."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest

from depthdial.control.card import ControllerCard, check_family
from depthdial.control.controller import _FILE
from depthdial.errors import InputError
from depthdial.measure.features import FeatureSpec
from depthdial.routes import Route

SHALLOW, MIDDLE, FULL = Route((0, 5), 6, "own:2"), Route((0, 1, 4, 5), 6), Route(range(6), 6, "full")


@pytest.fixture
def card() -> ControllerCard:
    return ControllerCard(
        model="tiny + elastic",
        weights_hash="ab" * 32,
        dtype="float32",
        n_layers=6,
        routes=(SHALLOW, MIDDLE, FULL),
        metric="agreement",
        cost_unit="ms",
        route_costs=(1.25, 2.5, 4.0),
        prompt_depth="full",
        features=FeatureSpec(6, 6, (1, 2, 4, 5), 32),
        template="plain",
        max_prompt_tokens=None,
        response_tokens=16,
        mean_steps=9.5,
        r2=(0.25, -0.1, None),
        steps_r2=(0.5, 0.5, 0.5),
        means=(0.5, 0.75, 1.0),
        fitted_on={"task": "many", "prompts": ["0" * 16], "n_folds": 3},
    )


def test_a_card_comes_back_from_json_as_it_was(card):
    document = json.loads(json.dumps(card.to_dict(), allow_nan=False))
    again = ControllerCard.from_dict(document)
    assert again == card and again.fitted_on == card.fitted_on  # which does not count in ==
    assert [route.name for route in again.routes] == ["own:2", "0-1,4-5", "full"]
    assert again.to_dict() == card.to_dict()
    assert ControllerCard.from_dict({**document, "price": 0.5, "unknown": 1}) == card  # the file holds more than the card


def test_a_random_rules_name_can_be_a_routes(card):
    """A family may call fixed layers by any name; the layers are what count."""
    named = replace(card, routes=(Route((0, 5), 6, "greedy-kl:2"), MIDDLE, FULL))
    assert ControllerCard.from_dict(json.loads(json.dumps(named.to_dict()))).routes[0].layers == (0, 5)


def test_the_full_route_is_found_wherever_it_stands(card):
    assert (card.full, card.full_cost) == (2, 4.0)
    turned = replace(card, routes=(FULL, SHALLOW, MIDDLE), route_costs=(4.0, 1.25, 2.5))
    assert (turned.full, turned.full_cost) == (0, 4.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "kl"}, "Unknown metric of a controller 'kl'"),
        ({"prompt_depth": "half"}, "Unknown prompt depth 'half'"),
        ({"route_costs": (1.0, 2.0)}, "a cost above 0, a mean and an R2 for each"),
        ({"route_costs": (0.0, 2.0, 3.0)}, "a cost above 0"),
        ({"route_costs": (float("nan"), 2.0, 3.0)}, "a cost above 0"),
        ({"r2": (0.5, 0.5)}, "a cost above 0, a mean and an R2 for each"),
        ({"means": ()}, "a cost above 0, a mean and an R2 for each"),
        ({"routes": (SHALLOW, MIDDLE)}, "has no full route"),
    ],
)
def test_parts_that_do_not_fit(card, changes, message):
    with pytest.raises(InputError, match=message):
        replace(card, **changes)


def read(document, folder):
    return _FILE.read(_FILE.write(folder / "controller.json", document), ControllerCard.from_dict)


@pytest.mark.parametrize("name", [f.name for f in fields(ControllerCard)])
def test_a_card_without_one_of_its_parts_is_damaged(card, name, tmp_path):
    document = card.to_dict()
    assert read(document, tmp_path) == card
    del document[name]
    with pytest.raises(InputError, match=f"is a damaged controller file .*{name}.*: fit one"):
        read(document, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"routes": None},
        {"routes": [{"name": "full"}]},
        {"routes": [{"name": "x", "layers": "0-9"}, {"name": "full", "layers": "0-5"}]},
        {"n_layers": "six"},
        {"n_layers": 7},
        {"route_costs": ["much", 1, 2]},
        {"r2": 3},
        {"features": {"n_layers": 6, "prompt_layers": 7, "watched": [1], "width": 32}},
        {"features": {"n_layers": 6, "prompt_layers": 6, "watched": [6], "width": 32}},
        {"metric": ["agreement"]},
    ],
)
def test_a_damaged_card_is_one_sentence(card, changes, tmp_path):
    with pytest.raises(InputError, match="damaged") as raised:
        read({**card.to_dict(), **changes}, tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        ((SHALLOW, MIDDLE), r"The family \(own:2, 0-1,4-5\) has no full route: add 'full'"),
        ((FULL,), "two routes or more"),
        ((Route.parse("rls:3@0", 6), FULL), "Controllers choose among fixed routes, and 'rls:3@0' is random"),
        ((Route((0, 5), 7), FULL), "layers"),
        ((SHALLOW, replace(MIDDLE, name="own:2"), FULL), "own:2"),
    ],
)
def test_families_that_nothing_can_choose_among(routes, message):
    with pytest.raises(InputError, match=message):
        check_family(routes, 6)
    check_family((SHALLOW, FULL), 6)
