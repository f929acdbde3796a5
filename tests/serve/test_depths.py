from __future__ import annotations

import os

import pytest

import depthdial as dd
from depthdial.engine.depth import LosslessDepth
from depthdial.hf.adapter import attach_card
from depthdial.serve.depths import Depths, UntouchedDepth
from depthdial.serve.errors import ApiError
from tests.serve.served import FAMILY


@pytest.fixture
def depths(model):
    return Depths(model, "tiny", families=[FAMILY], efforts={"low": "50%", "high": "full"})


@pytest.mark.parametrize(
    ("given", "layers"),
    [
        (("tiny",), "full"),
        ((None,), "full"),
        (("tiny:mine-3",), "0-1,5"),
        (("tiny:mine:4",), "0-2,5"),
        (("tiny:80%",), "0-2,5"),
        (("tiny:uls:50%",), "0,2,4"),
        ((None, "0-2,5"), "0-2,5"),
        ((None, 3), "0-1,5"),
        ((None, 0.5), "0-1,5"),
        ((None, 1.0), "full"),
        ((None, "mine-50%"), "0-1,5"),
        (("tiny", None, "low"), "0-1,5"),
        (("tiny", None, "high"), "full"),
    ],
)
def test_what_requests_may_name(depths, given, layers):
    assert str(depths.choose(*given).route) == layers


def test_usual_efforts_start_with_any_family_and_others_must_be_within_it(model):
    efforts = {"low": "20%", "medium": "uls:50%", "high": "full"}
    usual = Depths(model, "tiny", families=[FAMILY], efforts=efforts, are_usual=True)
    routes = [str(usual.choose("tiny", None, effort).route) for effort in efforts]
    assert routes == [str(min(FAMILY.routes, key=len)), "0,2,4", "full"]
    with pytest.raises(dd.InputError, match=r"No known route of this model costs at most 0\.2"):
        Depths(model, "tiny", families=[FAMILY], efforts=efforts)


def test_lossless(depths):
    chosen = depths.choose("tiny:lossless:uls:50%")
    assert isinstance(chosen.depth, LosslessDepth) and str(chosen.depth.route) == "0,2,4" and chosen.route.is_full
    assert depths.choose(None, "lossless:lookup").depth.route is None


@pytest.mark.parametrize(
    ("given", "status", "param", "message"),
    [
        (("other",), 404, "model", "There is no model 'other'"),
        (("tiny:",), 404, "model", "There is no model"),
        (("tiny:nothing-3",), 404, "model", "Unknown route"),
        ((None, "nothing"), 400, "depth", "Unknown route 'nothing'"),
        ((None, 7), 400, "depth", "asks for 7 of 6 layers"),
        ((None, 1), 400, "depth", "may mean one layer or the whole"),
        ((None, 1.5), 400, "depth", "A depth is a route"),
        ((None, "1%"), 400, "depth", "No known route"),
        ((None, "x" * 600), 400, "depth", "600 characters long"),
        ((None, ""), 400, "depth", "The route is empty"),
        ((None, "controller"), 400, "depth", "has no controller"),
        ((None, "lossless:full"), 400, "depth", "runs all 6 layers"),
        ((None, "lossless:rls:3"), 400, "depth", "is no one route"),
        ((None, "lossless:lossless"), 400, "depth", "is no one route"),
        (("tiny:80%", "full"), 400, "depth", "both say which layers run"),
        (("tiny", "full", "low"), 400, "reasoning_effort", "both say which layers run"),
        (("tiny", None, "medium"), 400, "reasoning_effort", "this server has low, high"),
    ],
)
def test_what_they_may_not(depths, given, status, param, message):
    with pytest.raises(ApiError, match=message) as found:
        depths.choose(*given)
    assert (found.value.status, found.value.param) == (status, param)


def test_no_text_is_a_path(depths, model, tmp_path, monkeypatch):
    """Family files, and folders of controllers and gates: what the command line takes is refused here, unread."""
    FAMILY.save(tmp_path / "routes.json")
    dd.TokenGates(dd.GateConfig(n_layers=6, width=32)).save_pretrained(tmp_path / "gates")
    monkeypatch.chdir(tmp_path)
    texts = [
        "routes.json",
        "routes.json:3",
        "gates",
        str(tmp_path / "gates"),
        "lossless:routes.json:3",
        "../gates",
        "./gates:50%",
    ]

    def refuse(*given):
        raise AssertionError(f"{given} was looked at")

    for name in ("stat", "open", "listdir"):
        monkeypatch.setattr(os, name, refuse)
    for text in texts:
        with pytest.raises(ApiError):
            depths.choose(None, text)
        with pytest.raises(ApiError):
            depths.choose(f"tiny:{text}")
    monkeypatch.undo()


def test_what_has_an_id_of_its_own(depths):
    assert [depths.model_id(one) for one in depths.listed()] == ["tiny:mine-3", "tiny:mine-4", "tiny:50%", "tiny:lossless"]


def test_a_controller(model, tokenizer, many):
    controller = dd.SequenceController.fit(model, tokenizer, task=many, routes=["uls:50%", "full"], response_tokens=2)
    depths = Depths(model, "tiny", families=[FAMILY], controller=controller, default="controller")
    assert depths.choose("tiny").depth is controller and depths.choose("tiny").template == "paper"
    assert depths.choose(None, "controller:60%").depth.price != controller.price
    with dd.Engine(model, tokenizer) as engine:
        chosen = depths.choose("tiny")
        answer = engine.submit(prompt_ids=[4, 6], depth=chosen.depth, template=chosen.template, max_new_tokens=4).result()
        scored = engine.score([4, 6, 8], depth=chosen.depth, template=chosen.template).result()
    assert answer.predicted is not None and scored.route in controller.card.routes
    assert [one.label for one in depths.listed()] == ["mine-3", "mine-4", "lossless", "controller", "full"]
    with pytest.raises(ApiError, match="has no budget"):
        depths.choose(None, "controller:much")


def test_full_is_the_untouched_model_where_there_is_an_adapter(model, tokenizer, with_lora):
    full = dd.generate(model, tokenizer, "the cat", max_new_tokens=6)[0]
    adapted = with_lora(model)
    attach_card(adapted, dd.AdapterCard("elastic", "tiny", "0" * 64, "float32", 6, "full", FAMILY.routes))
    depths = Depths(adapted, "tiny")
    assert isinstance(depths.choose("tiny").depth, UntouchedDepth)
    assert [one.label for one in depths.listed()][:2] == ["elastic-3", "elastic-4"]
    with dd.Engine(adapted, tokenizer) as engine:
        answer = engine.submit("the cat", depth=depths.choose("tiny").depth, max_new_tokens=6).result()
    assert answer.tokens == full.tokens and answer.route.is_full


def test_what_does_not_fit_is_refused_at_the_start(model):
    with pytest.raises(dd.InputError, match="is for 4 layers"):
        Depths(model, "tiny", families=[dd.RouteFamily("four", 4, (dd.Route((0,), 4),))])
    with pytest.raises(dd.InputError, match="Unknown route"):
        Depths(model, "tiny", families=[FAMILY], default="nothing")
