from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace

import pytest
import torch

from depthdial.data.leakage import prompt_hashes
from depthdial.errors import InputError
from depthdial.hf.untouched import untouched
from depthdial.measure.sweep import sweep
from depthdial.routes import Route
from depthdial.routes.families import RouteFamily
from depthdial.search.method import Found
from depthdial.search.run import METHOD, METHODS, harm_measure, make_method, search_routes
from tests.conftest import make_llama


def run(model, tokenizer, task, **options):
    if options.get("method", "greedy") == "greedy":
        options = {"screen": None, **options}
    return search_routes(model, tokenizer, task=task, **{"answer_tokens": 5, "batch_size": 3, **options})


def mean_kl(model, tokenizer, task, route, prompt_depth="full"):
    options = {"metrics": ("kl",), "fidelity_tokens": 5, "allow_searched_rows": True, "prompt_depth": prompt_depth}
    rows = sweep(model, tokenizer, task=task, routes=[route], **options)
    return sum(rows["kl"].to_pylist()) / rows.num_rows


def every_kl(model, tokenizer, task, sizes):
    """KL of every route of some sizes, by layers; by another path through the code than the search's."""
    routes = [Route(layers, 6) for n in sizes for layers in itertools.combinations(range(6), n)]
    rows = sweep(model, tokenizer, task=task, routes=routes, metrics=("kl",), fidelity_tokens=5).to_pandas()
    means = rows.groupby("route_layers").kl.mean()
    return {route.layers: means[str(route)] for route in routes}


@pytest.fixture
def with_references(small_task):
    return replace(small_task, examples=tuple(e for e in small_task.examples if e.reference))


def test_every_round_drops_the_cheapest_layer_and_a_wide_beam_finds_the_best_set_of_each_size(model, tokenizer, small_task):
    """Against brute force over all sets of layers."""
    known = every_kl(model, tokenizer, small_task, (5, 4, 3))
    family = run(model, tokenizer, small_task, min_layers=3)
    kept = tuple(range(6))
    for dropped, kl in zip(family.made_by["drop_order"], family.made_by["kl"], strict=True):
        tried = {i: known[tuple(j for j in kept if j != i)] for i in kept}
        assert dropped == min(tried, key=tried.get)
        assert kl == pytest.approx(tried[dropped], abs=1e-4)
        if len(kept) == 6:
            assert family.made_by["importance"] == pytest.approx([tried[i] for i in range(6)], abs=1e-4)
        kept = tuple(j for j in kept if j != dropped)
    beam = run(model, tokenizer, small_task, method="beam", beam_width=99, nested=False, min_layers=3)
    for n_layers, kl in zip((5, 4, 3), beam.made_by["kl"], strict=True):
        harms = {layers: value for layers, value in known.items() if len(layers) == n_layers}
        (found,) = (route for route in beam.routes if len(route) == n_layers)
        assert found.layers == min(harms, key=harms.get)
        assert kl == pytest.approx(harms[found.layers], abs=1e-4)


@pytest.mark.slow
def test_a_search_for_a_saved_folder_tries_prompts_on_the_route(model, tokenizer, small_task, tmp_path):
    family = run(model, tokenizer, small_task, min_layers=3, prompt_depth="route", out=tmp_path / "routes.json")
    assert (family.name, family.prompt_depth) == ("greedy-kl-route", "route")
    measured = [mean_kl(model, tokenizer, small_task, route, "route") for route in reversed(family.routes[:-1])]
    assert family.made_by["kl"] == pytest.approx(measured, abs=1e-4)
    (alone,) = (route for route in family.routes if len(route) == 5)
    tried = {i: mean_kl(model, tokenizer, small_task, f"drop:{i}", "route") for i in range(6)}
    assert alone.skipped == (min(tried, key=tried.get),)
    assert family.made_by["importance"] == pytest.approx([tried[i] for i in range(6)], abs=1e-4)
    behind_full_prompts = run(model, tokenizer, small_task, min_layers=5)
    assert behind_full_prompts.prompt_depth == "full"
    assert behind_full_prompts.made_by["importance"] != pytest.approx([tried[i] for i in range(6)], abs=1e-2)
    assert RouteFamily.load(tmp_path / "routes.json").prompt_depth == "route"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"prompt_depth": "none"}, "Unknown prompt depth 'none': use full or route"),
        (
            {"method": "angular", "prompt_depth": "route"},
            "behind prompts at full depth, whatever routes are for: leave prompt_depth out",
        ),
        ({"metric": "speculation", "prompt_depth": "route"}, "is for drafts, whose prompts run every layer"),
    ],
)
def test_prompt_depths_that_a_search_cannot_aim_at(model, tokenizer, small_task, options, complaint):
    with pytest.raises(InputError, match=complaint):
        run(model, tokenizer, small_task, **options)


def test_routes_are_nested_named_and_cheapest_first(model, tokenizer, small_task):
    family = run(model, tokenizer, small_task, min_layers=2)
    assert family.name == METHOD
    assert [route.name for route in family.routes] == [f"greedy-kl:{n}" for n in (2, 3, 4, 5)] + ["full"]
    for small, large in zip(family.routes, family.routes[1:], strict=False):
        assert set(small.layers) < set(large.layers)


def test_half_of_the_layers_by_default(model, tokenizer, small_task):
    assert len(run(model, tokenizer, small_task).routes[0]) == 3


def test_nll_is_that_of_the_references(model, tokenizer, with_references):
    family = run(model, tokenizer, with_references, method="single-drop", metric="nll", min_layers=5, answer_tokens=99)
    rows = sweep(
        model, tokenizer, task=with_references, routes=[f"drop:{i}" for i in range(6)], metrics=("nll",), max_new_tokens=5
    ).to_pandas()
    means = rows.groupby("route").nll.mean()
    assert family.made_by["importance"] == pytest.approx([means[f"drop:{i}"] for i in range(6)], abs=1e-4)
    assert family.routes[0].skipped == (int(means.idxmin().removeprefix("drop:")),)


def test_nll_without_a_reference_is_refused(model, tokenizer, small_task):
    with pytest.raises(InputError, match="'small-5' has no reference, which NLL is taken on: search by kl"):
        run(model, tokenizer, small_task, metric="nll")


@pytest.mark.parametrize("method", METHODS)
def test_the_record_says_what_the_search_saw_and_the_model_is_as_before(
    model, tokenizer, small_task, method, weights_of, assert_same
):
    before = weights_of(model)
    family = run(model, tokenizer, small_task, method=method)
    assert_same(before, weights_of(model))
    about = family.made_by
    assert about["calibration"].items() >= {"task": "small", "split": "test", "seed": 0, "n_sequences": 7}.items()
    assert about["prompts"] == list(prompt_hashes(small_task))
    assert len(about["importance"]) == 6 and about["passes"] >= 1 and about["seconds"] > 0
    assert about["nested"] == (method != "angular") == ("drop_order" in about)
    assert about["cost"]["unit"] == "layers" and about["cost"]["routes"]["full"] == 6
    assert [len(route) for route in family.routes] == [3, 4, 5, 6]
    json.dumps(about, allow_nan=False)


@pytest.mark.parametrize(
    "method",
    [pytest.param(method, marks=() if method in ("greedy", "angular") else pytest.mark.matrix) for method in METHODS],
)
def test_layers_that_cost_the_same_change_nothing(model, tokenizer, small_task, method):
    free, counted = (run(model, tokenizer, small_task, method=method, cost=cost) for cost in ("layers", "flops"))
    assert [r.layers for r in free.routes] == [r.layers for r in counted.routes]
    assert counted.name == f"{free.name}-flops"
    costs = counted.made_by["cost"]
    assert len(set(costs["by_layer"])) == 1 and costs["context_tokens"] > 3
    assert costs["routes"]["full"] == pytest.approx(6 * costs["by_layer"][0])


def test_milliseconds_are_measured_and_carried(model, tokenizer, small_task):
    cost = run(model, tokenizer, small_task, cost="ms").made_by["cost"]
    assert cost["unit"] == "ms" and "median of" in cost["measured"]
    assert all(0 < ms < 1000 for ms in cost["by_layer"])
    assert cost["routes"]["greedy-kl-ms:3"] < cost["routes"]["full"] == pytest.approx(sum(cost["by_layer"]))


@pytest.mark.parametrize(
    ("method", "cost"),
    [
        pytest.param(method, cost, marks=() if (i + j) % 2 == 0 else pytest.mark.matrix)
        for i, method in enumerate(METHODS)
        for j, cost in enumerate(("layers", "ms"))
    ],
)
def test_a_stopped_search_goes_on_where_it_was(tmp_path, model, tokenizer, small_task, monkeypatch, method, cost):
    from depthdial.search.method import Memory

    options = {"method": method, "min_layers": 3, **({"beam_width": 2} if method == "beam" else {})}
    whole = run(model, tokenizer, small_task, **options)
    out, real, kept = tmp_path / "routes.json", Memory.keep, []

    def dies_after_the_second(memory, state):
        real(memory, state)
        kept.append(dict(state))
        if len(kept) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Memory, "keep", dies_after_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(model, tokenizer, small_task, **options, cost=cost, out=out)
    assert not out.exists()
    costs = json.loads(out.with_name("routes.json.unfinished").read_text())["layer_costs"]
    n_first = len(kept)
    family = run(model, tokenizer, small_task, **options, cost=cost, out=out)
    monkeypatch.setattr(Memory, "keep", lambda memory, state: (kept.append(1), real(memory, state))[1])
    n_resumed = len(kept) - n_first
    run(model, tokenizer, small_task, **options, cost=cost)
    n_whole = len(kept) - n_first - n_resumed
    assert n_resumed == n_whole - 2  # nothing that was finished is done again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["routes.json"]
    assert RouteFamily.load(out) == family
    if cost == "ms":
        assert family.made_by["cost"]["by_layer"] == costs
    else:
        assert family == whole
        assert all(
            family.made_by[name] == whole.made_by[name] for name in ("kl", "passes", "importance") if name in whole.made_by
        )


def test_a_stopped_search_with_other_settings_starts_anew(tmp_path, model, tokenizer, small_task):
    out = tmp_path / "routes.json"
    one = {"layers": [5], "harm": [9.0], "increments": [0.0] * 6}
    state = {"beam": [one], "best": [one], "passes": 6, "importance": [0.0] * 6}
    stale = {"settings": {"kind": "other"}, "state": state, "search_sec": 1.0, "layer_costs": None}
    out.with_name("routes.json.unfinished").write_text(json.dumps(stale))
    assert run(model, tokenizer, small_task, out=out) == run(model, tokenizer, small_task)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_layers": 6}, "min_layers is 6 but the model has 6"),
        ({"min_layers": 0}, "Invalid min_layers"),
        ({"screen": -1}, "Invalid screen"),
        ({"screen": 0}, "Invalid screen"),
        ({"answer_tokens": 0}, "Invalid answer_tokens"),
        (
            {"method": "gredy"},
            "Unknown search method 'gredy': use greedy, beam, single-drop, block-influence, angular or knapspec",
        ),
        ({"metric": "ppl"}, "Unknown search metric 'ppl': use kl, nll or speculation"),
        ({"cost": "seconds"}, "Unknown cost 'seconds': use layers, flops or ms"),
        ({"beam_width": 4}, "beam_width is an option of beam and not of greedy: leave it out, or search by beam"),
        ({"nested": False}, "nested is an option of beam and not of greedy"),
        ({"method": "single-drop", "screen": None}, "screen is an option of greedy and beam and not of single-drop"),
        ({"method": "angular", "metric": "kl"}, "metric is an option of greedy and beam and single-drop and not of angular"),
        ({"method": "beam", "beam_width": 0}, "Invalid beam_width"),
    ],
)
def test_bad_arguments(model, tokenizer, small_task, options, message):
    with pytest.raises(InputError, match=message):
        run(model, tokenizer, small_task, **options)


def test_options_are_the_defaults_where_they_are_not_given():
    assert vars(make_method("beam")) == {"metric": "kl", "screen": 8, "beam_width": 4, "nested": True}
    assert vars(make_method("greedy", metric=None, screen=None)) == {"metric": "kl", "screen": None}


@pytest.mark.parametrize("method", ["greedy", "block-influence", "angular"])
def test_numbers_that_are_not_finite_are_told(model, tokenizer, small_task, method):
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.fill_(torch.nan)
    with pytest.raises(InputError, match="not finite"):
        run(model, tokenizer, small_task, method=method)


@pytest.mark.slow
def test_with_an_adapter_the_kl_is_from_the_untouched_model(model, tokenizer, small_task, with_lora):
    adapted = with_lora(model)
    family = run(adapted, tokenizer, small_task, min_layers=4)
    own = {route.name: route for route in family.routes}
    for n_layers, kl in zip((5, 4), family.made_by["kl"], strict=True):
        assert kl == pytest.approx(mean_kl(adapted, tokenizer, small_task, own[f"greedy-kl:{n_layers}"]), abs=1e-4)
    with untouched(adapted):
        assert run(adapted, tokenizer, small_task, min_layers=4).made_by["kl"] != family.made_by["kl"]


@pytest.mark.parametrize(
    "options", [{"method": "beam", "beam_width": 2}, {"method": "single-drop"}, {"metric": "nll"}], ids=str
)
def test_harms_from_elsewhere_make_the_same_family(model, tokenizer, small_task, options):
    """As on Ray: another process measures the harm of a round's routes, with a model and prompts of its own."""
    task = replace(small_task, examples=small_task.examples[:3])
    asked = {"task": task, "answer_tokens": 4, "min_layers": 3, **options}
    elsewhere, rounds = harm_measure(make_llama(), tokenizer, **asked), []

    def harms(routes):
        rounds.append(len(routes))
        return iter([elsewhere(route) for route in reversed(routes)][::-1])

    here, there = (search_routes(model, tokenizer, harms=one, **asked) for one in (None, harms))
    assert rounds[0] == 6 and len(rounds) == (1 if options.get("method") == "single-drop" else 3)
    assert here.routes == there.routes
    about_here, about_there = ({**one.made_by, "seconds": 0, "calibration": 0} for one in (here, there))
    assert about_here == about_there


@dataclass(frozen=True)
class FirstLayers:
    """Drops the first layers, whatever they do; a search that somebody else wrote."""

    name = "first-layers"
    source = "a test"
    metric = None

    def pieces(self, problem, memory):
        return 0

    def find(self, problem, memory, advance):
        dropped = tuple(tuple(range(n)) for n in range(1, problem.n_drops + 1))
        return Found(dropped, (0.0,) * problem.n_layers, passes=0)


def test_a_method_of_ones_own_makes_a_family_with_its_record(model, tokenizer, small_task, tmp_path):
    family = run(model, tokenizer, small_task, method=FirstLayers(), min_layers=4, out=tmp_path / "mine.json")
    assert [route.layers for route in family.routes] == [(2, 3, 4, 5), (1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5)]
    assert family.name == "first-layers" and family.made_by["source"] == "a test"
    assert RouteFamily.load(tmp_path / "mine.json").routes == family.routes


def test_what_is_no_method_is_refused_in_a_sentence(model, tokenizer, small_task):
    for given, why in (
        ({"method": 3}, "The search method 3 lacks name: give a name, or a method"),
        ({"method": FirstLayers}, "is no instance of a dataclass"),
        ({"method": FirstLayers(), "beam_width": 3}, "beam_width is given beside a method of your own: make it a field"),
    ):
        with pytest.raises(InputError, match=why):
            search_routes(model, tokenizer, task=small_task, **given)
