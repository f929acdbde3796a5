"""One warning where prompts run another way than a family of routes, or an adapter, was made for."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest

import depthdial as dd
from depthdial.hf.adapter import AdapterCard, attach_card
from depthdial.hf.prompts import warn_if_prompts_differ
from depthdial.routes.families import RouteFamily
from tests.conftest import make_llama

FULL = dd.Route(tuple(range(6)), 6, "full")
ROUTES = (dd.Route((0, 1, 5), 6, "greedy-kl:3"), dd.Route((0, 1, 2, 5), 6, "greedy-kl:4"))


def family(prompt_depth):
    return RouteFamily("greedy-kl", 6, (*ROUTES, FULL), prompt_depth=prompt_depth)


def said(run):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(one.message) for one in caught if issubclass(one.category, dd.RouteWarning)]


@pytest.mark.parametrize(("made_for", "other"), [("full", "route"), ("route", "full")])
def test_generate_sweep_and_the_engine_warn_once_for_a_family(model, tokenizer, small_task, made_for, other):
    shallow = family(made_for).routes
    answer = {"max_new_tokens": 2, "prompt_depth": other}
    assert (
        said(lambda: dd.generate(model, tokenizer, "the cat", depth=shallow[0], **{**answer, "prompt_depth": made_for}))
        == []
    )
    (told,) = said(lambda: dd.generate(model, tokenizer, "the cat", depth=shallow[0], **answer))
    run = {"full": "run every layer", "route": "run the route"}
    assert told == (
        f"Route 'greedy-kl:3' was searched for prompts that {run[made_for]}, and here prompts {run[other]}: search with "
        f"prompt_depth='{other}' (--prompt-depth {other}), or run with prompt_depth='{made_for}'."
    )
    task, options = replace(small_task, examples=small_task.examples[:1]), {"metrics": ("agreement",), "fidelity_tokens": 2}
    assert said(lambda: dd.generate(model, tokenizer, "the cat", depth=shallow[1], **answer)) == []
    again = make_llama()
    swept = {"task": task, "routes": family(made_for), "prompt_depth": other, **options}
    assert len(said(lambda: dd.sweep(again, tokenizer, **swept))) == 1
    third = make_llama()
    with dd.Engine(third, tokenizer) as engine:
        assert len(said(lambda: engine.run(["the cat", "a dog"], depth=shallow[0], **answer))) == 1


def test_a_draft_runs_behind_full_prompts(model, tokenizer):
    (told,) = said(lambda: dd.generate(model, tokenizer, "the cat", depth=dd.Lossless(family("route").routes[0])))
    assert "searched for prompts that run the route, and here prompts run every layer" in told


def test_an_adapter_is_warned_of_in_its_routes_place(model):
    card = AdapterCard("elastic", "base", "0" * 64, "float32", 6, "full", (*ROUTES, FULL))
    attach_card(model, card)
    assert said(lambda: warn_if_prompts_differ(model, ROUTES[0], "full")) == []
    (told,) = said(lambda: [warn_if_prompts_differ(model, route, "route") for route in (*ROUTES, FULL)])
    assert told.startswith(
        "The elastic adapter of base was trained for prompts that run every layer, and here prompts run the"
    )
    other = dd.Route((0, 5), 6, "own:2", searched_for="route")
    assert said(lambda: warn_if_prompts_differ(model, other, "route")) == []


def test_routes_that_no_search_found_are_for_any_prompts(model, tokenizer):
    for route in ("uls:3", "rls:3@0", "0,2,5"):
        assert said(lambda route=route: dd.generate(model, tokenizer, "a", depth=route, prompt_depth="route")) == []


@pytest.mark.parametrize(("to", "made_for"), [("hf", "full"), pytest.param("vllm", "route", marks=pytest.mark.slow)])
def test_an_export_warns_where_its_prompts_run_another_way(model, tokenizer, small_task, tmp_path, to, made_for):
    """And only of that: the measurement runs prompts both ways on purpose."""
    task = replace(small_task, examples=small_task.examples[:2])
    given = {"to": to, "task": task, "max_new_tokens": 2, "out": tmp_path / "warned"}
    (told,) = said(lambda: dd.export(model, tokenizer, depth=family(made_for).routes[0], **given))
    assert "'greedy-kl:3' was searched for prompts that run" in told
    other, given["out"] = make_llama(), tmp_path / "quiet"
    aimed = family("route" if made_for == "full" else "full").routes[0]
    assert said(lambda: dd.export(other, tokenizer, depth=aimed, **given)) == []
