from __future__ import annotations

import pytest

from depthdial.errors import InputError
from depthdial.hf.adapter import AdapterCard, attach_card
from depthdial.hf.untouched import untouched
from depthdial.measure.plan import ModelIdentity, cut, make_plan, route_columns, unique_routes
from depthdial.routes import Route
from depthdial.routes.families import RouteFamily


def plan_of(model, tokenizer, task, **options):
    return make_plan(
        model, tokenizer, task, ["full", "ee:2"], **{"prompt_depth": "full", "identity": None, "settings": {}, **options}
    )


def test_settings_change_with_whatever_decides_about_rows(model, tokenizer, small_task):
    from dataclasses import replace

    base = plan_of(model, tokenizer, small_task).run.hash
    others = [
        plan_of(model, tokenizer, small_task, prompt_depth="route"),
        plan_of(model, tokenizer, small_task, settings={"batch_size": 3}),
        plan_of(model, tokenizer, replace(small_task, seed=1)),
        plan_of(model, tokenizer, replace(small_task, max_response_tokens=2)),
        plan_of(model, tokenizer, replace(small_task, source_fingerprint="1" * 64)),
        plan_of(model, tokenizer, small_task, identity=ModelIdentity("m", "w", "float32", "cpu", "eager")),
    ]
    assert len({base, *(plan.run.hash for plan in others)}) == 7
    # A smaller limit is the same run with fewer units.
    assert plan_of(model, tokenizer, replace(small_task, examples=small_task.examples[:2])).run.hash == base


def test_another_prompt_for_the_same_text_is_another_run(model, tokenizer, small_task):
    """As with a chat template that prints the date."""
    base = plan_of(model, tokenizer, small_task).run.settings
    tokenizer.chat_template = "{% for m in messages %}monday {{ m['content'] }}{% endfor %}"
    chat = plan_of(model, tokenizer, small_task).run.settings
    tokenizer.chat_template = tokenizer.chat_template.replace("monday", "the")
    other_day = plan_of(model, tokenizer, small_task).run.settings
    assert len({base["first_prompt"], chat["first_prompt"], other_day["first_prompt"]}) == 3
    assert (base["template"], chat["template"]) == ("paper", "chat")


def test_units_are_named_by_sequences_and_layers(model, tokenizer, small_task):
    plan = plan_of(model, tokenizer, small_task)
    batches = [plan.examples[:4], plan.examples[4:]]
    units = plan.units(batches)
    assert len(set(units)) == 4
    renamed = Route((0, 1), 6, "other")
    assert plan.unit(batches[0], renamed) not in units
    assert plan.unit(batches[0], Route((0, 2), 6, "ee:2")) not in units


def test_routes_are_unique_and_keep_their_first_name():
    routes = unique_routes(["ee:3", "0-2", "full", "uls:6", "rls:2@0", "rls:2@1"], 6)
    assert [route.name for route in routes] == ["ee:3", "full", "rls:2@0", "rls:2@1"]
    with pytest.raises(InputError, match="No route"):
        unique_routes([], 6)


def test_routes_may_be_one_or_layers_or_a_family():
    one = Route((0, 1), 6)
    assert unique_routes("full", 6) == unique_routes(["full"], 6)
    assert unique_routes((0, 1), 6) == unique_routes([(0, 1)], 6) == unique_routes(one, 6) == (one,)
    assert unique_routes(RouteFamily("own", 6, (one,)), 6) == (one,)
    assert len(unique_routes("full,ee:3;0,1", 6)) == 3


@pytest.mark.parametrize("given", [["4"], [4]])
def test_without_a_model_a_bare_number_is_refused(given):
    with pytest.raises(InputError, match=r"Route '4' is a bare number.*uls:4 or ee:4 .*, 4-4 for layer 4 alone"):
        unique_routes(given, 6)


@pytest.mark.parametrize("given", [None, [None], object(), [object()], {"a": 1}, [{}]])
def test_what_is_no_route_is_refused(given):
    with pytest.raises(InputError, match=r"^(A route is text such as|Unknown route 'a')"):
        unique_routes(given, 6)


def test_identity_says_which_weights(model):
    identity = ModelIdentity.of(model, "name")
    assert (identity.name, identity.dtype, identity.device, identity.attention) == ("name", "float32", "cpu", "sdpa")
    assert len(identity.weights_hash) == 64


def test_identity_tells_the_adapter_while_it_is_on(model, with_lora):
    bare = ModelIdentity.of(model, "name")
    adapted = with_lora(model)
    assert ModelIdentity.of(adapted, "name").name == "name + adapter"
    assert ModelIdentity.of(adapted).name == ModelIdentity.of(adapted.get_base_model()).name == "LlamaForCausalLM + adapter"
    assert ModelIdentity.of(adapted, "name").weights_hash != bare.weights_hash
    route = Route((0, 1), 6, "own")
    attach_card(adapted, AdapterCard("elastic", "name", bare.weights_hash, bare.dtype, 6, "full", (route,)))
    assert ModelIdentity.of(adapted, "name").name == "name + elastic"
    with untouched(adapted):
        assert ModelIdentity.of(adapted, "name").name == "name"


def test_small_helpers():
    assert route_columns(Route((0, 2), 4), "x") == {
        "route": "x",
        "route_layers": "0,2",
        "n_layers": 4,
        "layers_run": 2,
        "cost": 0.5,
    }
    assert cut([1, 2, 3], 2) == (1, 2) and cut([1, 2, 3], None) == (1, 2, 3)
