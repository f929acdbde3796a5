"""The card of an adapter: its file, the base that it belongs to, and what is said of routes that are none of its own."""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from depthdial.engine.decode import decode
from depthdial.engine.prefill import left_padded, prefill
from depthdial.errors import InputError, RouteWarning
from depthdial.hf import adapter
from depthdial.hf.adapter import (
    CARD_FILE,
    AdapterCard,
    adapter_card,
    attach_card,
    check_base,
    shipped_adapter,
    warn_if_outside,
)
from depthdial.hf.weights import weights_hash
from depthdial.routes import Route
from depthdial.studies.study import adapter_routes
from depthdial.views.prompted import prompted_view
from depthdial.views.view import as_route, quiet_view, view
from tests.tiny import tiny
from tests.views.test_view_adapters import adapted

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

ROUTES = (
    Route((0, 5), 6, "own:2"),
    Route((0, 1, 2, 5), 6, "own:4"),
    Route((0, 3, 4, 5), 6, "late:4"),
    Route((0, 1, 2, 3, 4, 5), 6, "full"),
)


def card_for(base: Any, **changes: Any) -> AdapterCard:
    about = {"base_weights_hash": weights_hash(base), "base_dtype": str(base.dtype).removeprefix("torch.")}
    fields = {"kind": "elastic", "base_name": "tiny", "n_layers": 6, "prompt_depth": "full", "routes": ROUTES, **about}
    return AdapterCard(**{**fields, **changes})


@pytest.fixture
def card() -> AdapterCard:
    return card_for(tiny("llama"), training={"steps": 3, "loss": [1.5, 0.5]})


# ---------------------------------------------------------------- the file


def test_a_card_comes_back_as_it_was_saved(card: AdapterCard, tmp_path: Path) -> None:
    assert card.save(tmp_path / "new") == tmp_path / "new" / CARD_FILE
    again = AdapterCard.load(tmp_path / "new")
    assert again == card and again.training == card.training
    assert [route.name for route in again.routes] == [route.name for route in card.routes]
    assert [path.name for path in (tmp_path / "new").iterdir()] == [CARD_FILE]
    document = json.loads((tmp_path / "new" / CARD_FILE).read_text())
    assert (document["format"], document["version"]) == ("depthdial-adapter", 1)


def edit(**changes: Any) -> Any:
    return lambda text: json.dumps({**json.loads(text), **changes})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "is not a readable adapter card file"),
        (lambda text: "[]", "is not an adapter card file"),
        (edit(format="other"), "is not an adapter card file"),
        (edit(version=2), "is of version 2, not 1"),
        (edit(routes=[]), r"damaged adapter card file \(.*is empty"),
        (edit(routes=[{"name": "x"}]), "damaged adapter card file.*layers"),
        (edit(routes=[{"name": "x", "layers": "0-9"}]), "damaged adapter card file"),
        (edit(routes=[{"name": "x", "layers": "rls:2@0"}]), "damaged adapter card file.*random rule"),
        (edit(routes=5), "damaged adapter card file"),
        (edit(n_layers="six"), "damaged adapter card file"),
        (edit(kind="other"), "damaged adapter card file.*elastic or specialist"),
        (edit(base_dtype="nn"), "damaged adapter card file.*such as float32"),
        (edit(base_name=None), "damaged adapter card file.*are texts"),
        (edit(training=3), "damaged adapter card file"),
    ],
)
def test_a_damaged_or_foreign_file_is_told(card: AdapterCard, tmp_path: Path, damage: Any, message: str) -> None:
    path = card.save(tmp_path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(InputError, match=message) as caught:
        AdapterCard.load(tmp_path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no adapter card file"):
        AdapterCard.load(tmp_path)


@pytest.mark.parametrize("changes", [{"routes": ()}, {"n_layers": 7}, {"kind": "lora"}, {"routes": (*ROUTES, ROUTES[0])}])
def test_a_card_that_makes_no_sense_is_refused(card: AdapterCard, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        replace(card, **changes)


# ---------------------------------------------------------------- the base


def test_the_card_is_found_again_on_wrapper_inner_model_and_views(card: AdapterCard) -> None:
    model = adapted("llama")
    assert adapter_card(model) is None and adapter_card(view(model, (0, 1))) is None
    attach_card(model, card)
    for one in (
        model,
        model.get_base_model(),
        view(model, (0, 5)),
        view(quiet_view(model, (0, 2, 5)), (0, 1)),
        copy.deepcopy(model),
    ):
        assert adapter_card(one) == card
    assert adapter_card(tiny("llama")) is None


def test_its_own_base_passes_and_another_is_told(card: AdapterCard) -> None:
    check_base(card, tiny("llama"), Path("folder"), "here")
    other = tiny("llama")
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1
    message = (
        r"The adapter folder is for tiny \(6 layers, float32, weights .*\), and this is here \(6 layers, float32, weights"
    )
    with pytest.raises(InputError, match=message):
        check_base(card, other, Path("folder"), "here")
    with pytest.raises(InputError, match="6 layers"):
        check_base(card, view(tiny("llama"), range(5)), Path("folder"), "here")


def test_in_a_wider_type_the_weights_are_still_known() -> None:
    half = tiny("llama").to(torch.bfloat16)
    card = card_for(half)
    assert card.base_dtype == "bfloat16"
    widened = copy.deepcopy(half).float()
    check_base(card, widened, Path("folder"), "here")
    with torch.no_grad():
        widened.lm_head.weight[0, 0] += 1
    with pytest.raises(InputError, match=r"float32, weights \w+ as bfloat16"):
        check_base(card, widened, Path("folder"), "here")


def test_in_a_narrower_type_only_the_depth_can_be_checked(card: AdapterCard) -> None:
    check_base(card, tiny("llama").to(torch.bfloat16), Path("folder"), "here")
    check_base(card_for(tiny("llama").to(torch.float16)), tiny("llama").to(torch.bfloat16), Path("folder"), "here")
    with pytest.raises(InputError, match="5 layers"):
        check_base(card, view(tiny("llama").to(torch.bfloat16), range(5)), Path("folder"), "here")


# ---------------------------------------------------------------- the one that ships


def test_other_models_have_none() -> None:
    with pytest.raises(InputError, match=r"No elastic adapter ships for owner/base: .* is for smollm2-135m"):
        shipped_adapter("owner/base")


def test_it_is_found_by_the_alias(card: AdapterCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "__file__", str(tmp_path / "depthdial" / "models" / "adapter.py"))
    with pytest.raises(InputError, match="is not in this build"):
        shipped_adapter("smollm2-135m")
    folder = tmp_path / "depthdial" / "adapters" / "smollm2-135m-elastic"
    card.save(folder)
    assert shipped_adapter("smollm2-135m") == folder


# ---------------------------------------------------------------- routes outside the family


@pytest.mark.parametrize(
    ("route", "nearest"),
    [
        ("0-2,4", "own:4"),  # as many layers, and three of them in common
        ("0,3,4,2", "late:4"),
        ("0,4,5,2", "own:4"),  # a tie
        ("1,4", "own:2"),  # as many layers comes before what is in common
        ("0,1,2", "own:4"),
        ("0-0", "own:2"),
        ("0-4", "full"),
        ("rls:2@0", "own:2"),
    ],
)
def test_the_nearest_route(card: AdapterCard, route: str, nearest: str) -> None:
    layers = ",".join(sorted(route.split(","))) if route[0].isdigit() else route
    assert card.nearest(Route.parse(layers, 6)).name == nearest


def test_the_full_route_is_not_near_to_everything() -> None:
    routes = tuple(Route.parse(text, 30) for text in ("full", "uls:20"))
    card = AdapterCard("elastic", "base", "0" * 64, "float32", 30, "full", routes)  # type: ignore[arg-type]
    assert [card.nearest(Route.parse(f"uls:{n}", 30)).name for n in (12, 16, 29)] == ["uls:20", "uls:20", "full"]


def test_a_route_outside_is_warned_of_once_with_its_nearest(card: AdapterCard) -> None:
    model = adapted("llama")
    attach_card(model, card)
    inside, outside = Route((0, 5), 6, "another name"), Route((0, 4), 6)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for one in (model, model.get_base_model(), view(model, inside), model):
            for route in (inside, outside, Route.parse("full", 6), Route((0,), 2)):
                warn_if_outside(one, route, stacklevel=2)
    assert [w.category for w in caught] == [RouteWarning]
    assert caught[0].filename == __file__
    message = "The elastic adapter of tiny was not trained for route '0,4': the nearest is 'own:2' (2 layers: 0,5)."
    assert str(caught[0].message) == message
    # Another adapter, or the same one on another model, is another story.
    again = adapted("llama")
    attach_card(again, card)
    with pytest.warns(RouteWarning, match="'0,4'"):
        warn_if_outside(again, outside)


def test_the_full_route_is_warned_of_where_it_was_not_trained(card: AdapterCard) -> None:
    model = adapted("llama")
    attach_card(model, replace(card, kind="specialist", routes=ROUTES[:1]))
    with pytest.warns(RouteWarning, match=r"not trained for route 'full': .*dd\.untouched\(model\) runs the full"):
        warn_if_outside(model, Route.parse("full", 6))


def test_a_model_without_a_card_never_warns() -> None:
    for model in (tiny("llama"), adapted("llama")):
        warn_if_outside(model, Route((0, 4), 6))


@pytest.mark.parametrize("make", [view, prompted_view])
def test_views_warn_at_the_line_that_makes_them_and_only_there(make: Any, card: AdapterCard) -> None:
    model = adapted("llama")
    attach_card(model, card)
    for inside in ((0, 5), "full", Route((0, 1, 2, 5), 6)):
        make(model, inside if make is view else as_route(inside, 6))
    with pytest.warns(RouteWarning, match=r"for route '0,4': the nearest is 'own:2'") as caught:
        make(model, "0,4")
    assert [w.filename for w in caught] == [__file__]
    make(model, "0,4")
    quiet_view(model, "1,4")
    prefilled = prefill(model, *left_padded([[5, 6, 7]], 0, "cpu"), route=Route((2, 4), 6))
    decode(model, Route((2,), 6), prefilled, max_new_tokens=3, eos_token_ids=(), pad_token_id=0)


def test_searched_routes_of_a_card_keep_their_prompts(card: AdapterCard, tmp_path: Path) -> None:
    searched = (replace(ROUTES[0], searched_on=frozenset({"b2", "a1"})), *ROUTES[1:])
    replace(card, routes=searched).save(tmp_path)
    read = AdapterCard.load(tmp_path)
    assert [route.searched_on for route in read.routes] == [{"a1", "b2"}, set(), set(), set()]
    assert [entry.get("searched_on") for entry in json.loads((tmp_path / CARD_FILE).read_text())["routes"]] == [
        ["a1", "b2"],
        None,
        None,
        None,
    ]
    assert [route.searched_on for route in adapter_routes(read) if len(route) == 2] == [{"a1", "b2"}]
    (tmp_path / CARD_FILE).write_text((tmp_path / CARD_FILE).read_text().replace('"a1"', "5"))
    with pytest.raises(InputError, match=r"damaged adapter card file.*searched_on is a list of hashes"):
        AdapterCard.load(tmp_path)
