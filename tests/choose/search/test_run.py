from __future__ import annotations

import json

import pytest
import torch

from depthdial.choose import search
from depthdial.choose.search import GreedyState, greedy_round, search_routes
from depthdial.errors import InputError
from depthdial.families import RouteFamily
from depthdial.measure.sweep import sweep
from depthdial.models.untouched import untouched
from depthdial.routes import Route


def run(model, tokenizer, task, **options):
    return search_routes(model, tokenizer, task=task, **{"answer_tokens": 5, "batch_size": 3, "screen": None, **options})


def mean_kl(model, tokenizer, task, route):
    rows = sweep(model, tokenizer, task=task, routes=[route], metrics=("kl",), max_new_tokens=5)
    return sum(rows["kl"].to_pylist()) / rows.num_rows


def test_every_round_drops_the_cheapest_layer(model, tokenizer, small_task):
    """Against brute force, by another path through the code: the sweep's KL of every candidate of every round."""
    family = run(model, tokenizer, small_task, min_layers=3)
    kept = list(range(6))
    for dropped, kl in zip(family.made_by["drop_order"], family.made_by["kl"], strict=True):
        tried = {i: mean_kl(model, tokenizer, small_task, Route(tuple(j for j in kept if j != i), 6)) for i in kept}
        assert dropped == min(tried, key=tried.get)
        assert kl == pytest.approx(tried[dropped], abs=1e-4)
        if len(kept) == 6:
            assert family.made_by["importance"] == pytest.approx([tried[i] for i in range(6)], abs=1e-4)
        kept.remove(dropped)


def test_routes_are_nested_named_and_cheapest_first(model, tokenizer, small_task):
    family = run(model, tokenizer, small_task, min_layers=2)
    assert [route.name for route in family.routes] == [f"greedy-kl:{n}" for n in (2, 3, 4, 5)] + ["full"]
    for small, large in zip(family.routes, family.routes[1:], strict=False):
        assert set(small.layers) < set(large.layers)
    assert family.made_by["calibration"]["n_sequences"] == 7


def test_half_of_the_layers_by_default(model, tokenizer, small_task):
    assert len(run(model, tokenizer, small_task).routes[0]) == 3


def test_screening_tries_fewer_routes():
    def count(screen):
        calls = []

        def kl_of(route):
            calls.append(route)
            return sum((layer + 1) ** 2 for layer in route.skipped)

        state = GreedyState()
        for _ in range(4):
            greedy_round(state, 8, screen, kl_of, lambda pieces: None)
        return state.dropped, len(calls)

    # With additive costs stale increments stay true, so that screening finds the same order.
    assert count(None) == ([0, 1, 2, 3], 8 + 7 + 6 + 5)
    assert count(2) == ([0, 1, 2, 3], 8 + 2 + 2 + 2)


def test_a_stopped_search_goes_on_where_it_was(tmp_path, model, tokenizer, small_task, monkeypatch):
    whole = run(model, tokenizer, small_task, min_layers=2)
    out, real, rounds = tmp_path / "routes.json", search.greedy_round, []

    def dies_in_the_third(*args):
        if len(rounds) == 2:
            raise KeyboardInterrupt
        rounds.append(args)
        real(*args)

    monkeypatch.setattr(search, "greedy_round", dies_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(model, tokenizer, small_task, min_layers=2, out=out)
    assert not out.exists()
    again = []
    monkeypatch.setattr(search, "greedy_round", lambda *args: (again.append(1), real(*args)))
    family = run(model, tokenizer, small_task, min_layers=2, out=out)
    assert len(again) == 2
    assert family == whole and family.made_by["kl"] == whole.made_by["kl"]
    assert RouteFamily.load(out) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["routes.json"]


def test_a_stopped_search_with_other_settings_starts_anew(tmp_path, model, tokenizer, small_task):
    out = tmp_path / "routes.json"
    stale = {"settings": {"kind": "other"}, "state": {**vars(GreedyState()), "dropped": [5], "kl": [9.0]}}
    out.with_name("routes.json.unfinished").write_text(json.dumps(stale))
    assert run(model, tokenizer, small_task, out=out) == run(model, tokenizer, small_task)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_layers": 6}, "min_layers is 6 but the model has 6"),
        ({"min_layers": 0}, "min_layers must be"),
        ({"screen": -1}, "screen must be"),
        ({"answer_tokens": 0}, "answer_tokens must be"),
    ],
)
def test_bad_arguments(model, tokenizer, small_task, options, message):
    with pytest.raises(InputError, match=message):
        run(model, tokenizer, small_task, **options)


def test_logits_that_are_not_finite_are_told(model, tokenizer, small_task):
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.fill_(torch.nan)
    with pytest.raises(InputError, match="not finite"):
        run(model, tokenizer, small_task)


def test_with_an_adapter_the_kl_is_from_the_untouched_model(model, tokenizer, small_task, with_lora):
    adapted = with_lora(model)
    family = run(adapted, tokenizer, small_task, min_layers=4)
    own = {route.name: route for route in family.routes}
    for n_layers, kl in zip((5, 4), family.made_by["kl"], strict=True):
        assert kl == pytest.approx(mean_kl(adapted, tokenizer, small_task, own[f"greedy-kl:{n_layers}"]), abs=1e-4)
    with untouched(adapted):
        assert run(adapted, tokenizer, small_task, min_layers=4).made_by["kl"] != family.made_by["kl"]


def test_the_first_drop_adds_to_what_the_adapter_costs_at_full_depth():
    state = GreedyState(start_kl=1.0)
    greedy_round(state, 3, None, lambda route: 1.0 + sum(route.skipped), lambda pieces: None)
    assert state.increments == {0: 0.0, 1: 1.0, 2: 2.0}
