"""A search for routes that draft well: the harm is the forecast's speed-up, and late skips win over early ones."""

from __future__ import annotations

import json
import math

import pytest
import torch

import depthdial as dd
from depthdial.data.tasks import encode
from depthdial.engine.session import Session
from depthdial.errors import InputError
from depthdial.oracles.drafts import rounds_of
from depthdial.routes import Route
from depthdial.search.calibration import SPECULATION, Calibration
from depthdial.search.run import search_routes
from depthdial.search.speculation import DraftHarm
from tests.latencies import make_latency

LATENCY = make_latency()


@pytest.fixture
def calibration(model, tokenizer, small_task):
    session = Session.of(model.eval(), tokenizer)
    return Calibration.of(session, encode(small_task, tokenizer), SPECULATION, 6, 2)


def test_tokens_that_a_route_would_have_chosen_too(calibration, model, tokenizer, small_task):
    full = calibration.agreed(calibration.session.full)
    assert len(full) == len(small_task.examples) and all(set(text) == {"1"} for text in full)
    route = Route((0, 1, 3, 4, 5), 6)
    agreed = calibration.agreed(route)
    assert [len(text) for text in agreed] == [len(text) for text in full] and all(text[0] == "1" for text in agreed)
    rows = dd.sweep(
        model, tokenizer, task=small_task, routes=[route], metrics=["agreement"], fidelity_tokens=6, batch_size=2
    )
    shares = [text.count("1") / len(text) for text in agreed]
    assert shares == pytest.approx(rows["agreement"].to_pylist())


def test_harm_is_the_forecasts(calibration):
    harm = DraftHarm(calibration, LATENCY, reuse_prefix=True)
    route = Route((0, 1, 3, 4, 5), 6)
    agreed = calibration.agreed(route)
    tokens, context = sum(len(text) - 1 for text in agreed), calibration.context_tokens
    step, draft = (LATENCY.route_sec(one, 1, context) for one in (None, route))
    found = [
        tokens * step / (sum(rounds_of(text, k) for text in agreed) * (k * draft + check))
        for k in (1, 2, 4, 8)
        for check in [LATENCY.verify_sec(1, k + 1, None, context, reused_layers=2)]
    ]
    assert harm(route) == pytest.approx(-math.log(max(found)))
    assert harm.best(agreed, route)[1] == (1, 2, 4, 8)[found.index(max(found))]
    assert DraftHarm(calibration, LATENCY, reuse_prefix=False)(route) > harm(route)


def test_late_skips_win_where_all_layers_matter_alike(calibration):
    harm = DraftHarm(calibration, LATENCY, reuse_prefix=True)
    texts = ["1" + "1101" * 4] * 3
    speeds = [harm.best(texts, Route(tuple(i for i in range(6) if i != gone), 6))[0] for gone in range(6)]
    assert speeds == sorted(speeds) and speeds[0] < speeds[-1]
    assert harm.best(["1", "1"], Route((0, 2), 6)) == (1.0, 0)  # nothing is decoded


def test_a_search_and_its_record(model, tokenizer, small_task, tmp_path):
    with torch.no_grad():  # a layer that does nothing: the best draft is without it
        layer = model.model.layers[4]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    LATENCY.save(tmp_path / "bench.json")
    options = {"task": small_task, "metric": "speculation", "min_layers": 3, "answer_tokens": 6, "screen": None}
    family = search_routes(model, tokenizer, latency=tmp_path, out=tmp_path / "routes.json", **options)
    assert family.name == "greedy-speculation" and [len(route) for route in family.routes] == [3, 4, 5, 6]
    made = family.made_by
    assert made["drop_order"][0] == 4 and made["reused_layers"][0] == 4
    assert made["speedup"] == pytest.approx([math.exp(-harm) for harm in made["speculation"]])
    assert made["latency"]["model"] == "tiny" and "expected speed-up" in made["metric"]
    assert json.loads((tmp_path / "routes.json").read_text())
    again = search_routes(model, tokenizer, latency=LATENCY, method="beam", beam_width=2, **options)
    assert again.name == "beam-speculation" and min(again.made_by["speculation"]) <= min(made["speculation"]) + 1e-9


def test_measured_milliseconds_come_from_the_model(model, tokenizer, small_task):
    options = {"task": small_task, "min_layers": 5, "answer_tokens": 3, "method": "single-drop"}
    family = search_routes(model, tokenizer, cost="ms", latency=LATENCY, **options)
    cost = family.made_by["cost"]
    assert cost["unit"] == "ms" and cost["measured"] == "depthdial bench, 2026-11-27"
    assert cost["by_layer"] == pytest.approx([LATENCY.layer_costs().by_layer[0]] * 6, rel=0.05)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"metric": "speculation"}, "needs measured times: give latency='bench.json'"),
        ({"metric": "speculation", "cost": "flops", "latency": LATENCY}, "counts time by itself, and the cost is 'flops'"),
        ({"latency": LATENCY}, "is for cost='ms' or metric='speculation', not for cost='layers'"),
        ({"metric": "speculation", "latency": "none.json"}, "There is no latency model file none.json"),
        ({"metric": "speculation", "latency": make_latency(8)}, "rows or routes are of a model with 6"),
        ({"metric": "speed"}, "Unknown search metric 'speed'"),
        ({"metric": "speculation", "method": "angular"}, "metric is an option of"),
    ],
)
def test_bad_input_is_answered_in_a_sentence(model, tokenizer, small_task, options, told):
    with pytest.raises(InputError, match=told) as caught:
        search_routes(model, tokenizer, task=small_task, answer_tokens=3, **options)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
