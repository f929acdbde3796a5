"""Routes are checked on a configuration alone, and cut it as a view does."""

from __future__ import annotations

import pytest

from depthdial.errors import InputError
from depthdial.routes import Route
from depthdial.views.view import view
from depthdial.vllm.request import Request
from depthdial.vllm.skeleton import Served, served
from tests.tiny import tiny


def test_the_configuration_of_a_route_is_the_view_s(model) -> None:
    before = model.config.to_json_string()
    found, cut = served(model.config, Request("0-1,4-5", "route"))
    assert found == Served(Route((0, 1, 4, 5), 6), "route", "layers")
    assert cut.to_dict() == view(model, "0-1,4-5").config.to_dict()
    assert model.config.to_json_string() == before


def test_a_full_prompt_needs_the_whole_model(model) -> None:
    found, config = served(model.config, Request("ee:2", "full"))
    assert config is model.config
    assert Served.of_json(found.to_json()) == found
    assert found.route == Route((0, 1), 6)


def test_lists_of_layers_are_cut() -> None:
    config = tiny("gemma3_text").config
    _, cut = served(config, Request("1,3-4", "route"))
    assert list(cut.layer_types) == [config.layer_types[i] for i in (1, 3, 4)]


def test_the_list_of_gpt2_has_its_own_name() -> None:
    assert served(tiny("gpt2").config, Request("ee:50%", "route"))[0].list_name == "h"


def test_routes_that_do_not_fit_are_refused(model) -> None:
    with pytest.raises(InputError, match="Layer 6 does not exist: this model has layers 0 to 5"):
        served(model.config, Request("0,6"))


def test_a_model_that_is_no_decoder_is_refused() -> None:
    from transformers import T5Config

    with pytest.raises(InputError, match=r"^A T5Config does not describe a text-only decoder: serve a route of a causal"):
        served(T5Config(), Request("ee:2"))
