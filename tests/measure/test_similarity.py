from __future__ import annotations

import copy

import pytest
import torch

from depthdial.engine.teacher_forcing import HiddenStates
from depthdial.measure.similarity import all_families, cosines, similarity
from depthdial.measure.sweep import sweep
from depthdial.routes import Route

ROUTES = ["full", "ee:3", "uls:3", "rls:3@0", "rls-wo1:2@0", "drop:0"]


def compare(a, b):
    return torch.nn.functional.cosine_similarity(a, b, dim=-1)


def test_cosines_equal_the_dense_reference(model, tokenizer, small_task, dense_reference):
    """Every state of the route, repeated over the layers it skips, against the full model's; token by token, by hand."""
    rows = similarity(model, tokenizer, task=small_task, routes=ROUTES, batch_size=3, fidelity_tokens=5).to_pylist()
    assert len(rows) == 7 * len(ROUTES)
    full, checked = Route(tuple(range(6)), 6), 0
    for row in rows:
        example = next(e for e in small_task.examples if e.id == row["sequence_id"])
        if example.reference is None:
            continue  # compared on the model's own answer, see below
        prompt, response = (tokenizer(text)["input_ids"] for text in (example.instruction, example.reference))
        route = Route.parse(row["route_layers"], 6)
        base, shallow = (dense_reference(model, prompt, response, r) for r in (full, route))
        start = len(prompt)
        inner = torch.stack([compare(base[0][i][start:], shallow[0][i][start:]) for i in range(1, 6)])
        assert row["cosine_final"] == pytest.approx(compare(base[1][start:], shallow[1][start:]).mean().item(), abs=1e-4)
        expected = compare(base[0][6][start:], shallow[0][6][start:]).mean().item()
        assert row["cosine_pre_norm"] == pytest.approx(expected, abs=1e-4)
        assert row["cosine_intermediate"] == pytest.approx(inner.mean().item(), abs=1e-4)
        assert row["response_tokens"] == len(response)
        checked += 1
    assert checked == 6 * len(ROUTES)


def test_the_full_route_is_at_no_distance(model, tokenizer, small_task):
    rows = similarity(model, tokenizer, task=small_task, routes=["full"], fidelity_tokens=5).to_pylist()
    for row in rows:
        assert (row["kl"], row["agreement"]) == (0.0, 1.0)
        for name in ("cosine_final", "cosine_pre_norm", "cosine_intermediate"):
            assert row[name] == pytest.approx(1, abs=1e-5)


def test_without_a_reference_the_models_own_answer_is_the_response(model, tokenizer, small_task):
    rows = similarity(model, tokenizer, task=small_task, routes=["ee:3"], fidelity_tokens=5).to_pylist()
    assert 1 <= rows[5]["response_tokens"] <= 5


def test_a_hidden_state_that_a_skipped_layer_leaves_is_repeated():
    """Two routes of one token: the states 1, 2, 3 after the layers, of which the second does not run."""
    full = HiddenStates(tuple(torch.tensor([[[1.0, float(i)]]]) for i in range(4)), torch.tensor([[[1.0, 3.0]]]))
    shallow = HiddenStates(tuple(full.states[i] for i in (0, 1, 3)), full.final)
    final, pre_norm, inner = cosines(full, shallow, Route((0, 2), 3))
    assert final.item() == pytest.approx(1) and pre_norm.item() == pytest.approx(1)
    repeated = compare(full.states[2], full.states[1]).item()
    assert inner.item() == pytest.approx((1 + repeated) / 2)


def test_every_cost_of_every_family_by_default():
    routes = all_families(6)
    assert len(routes) == len(set(routes))
    assert {route.name.split(":")[0] for route in routes} == {"ee", "uls", "rls", "rls-wo1", "unified"}
    assert {len(route) for route in routes} == set(range(1, 7))


def test_a_stopped_comparison_goes_on(tmp_path, model, tokenizer, small_task):
    options = {"task": small_task, "batch_size": 4, "fidelity_tokens": 5}
    whole = similarity(model, tokenizer, routes=ROUTES, **options)
    similarity(model, tokenizer, routes=ROUTES[:2], out=tmp_path, **options)
    units = {path: path.stat().st_mtime_ns for path in tmp_path.glob("units/*.parquet")}
    assert similarity(model, tokenizer, routes=ROUTES, out=tmp_path, **options).equals(whole)
    assert len(units) == 4 and all(path.stat().st_mtime_ns == stamp for path, stamp in units.items())


@pytest.mark.slow
def test_with_an_adapter_distances_are_from_the_untouched_model(model, tokenizer, small_task, dense_reference, with_lora):
    bare = copy.deepcopy(model).requires_grad_(False)
    adapted = with_lora(model)
    rows = similarity(adapted, tokenizer, task=small_task, routes=["full", "uls:3"], batch_size=3, fidelity_tokens=5)
    for row in rows.to_pylist():
        example = next(e for e in small_task.examples if e.id == row["sequence_id"])
        if example.reference is None:
            continue
        prompt, response = (tokenizer(text)["input_ids"] for text in (example.instruction, example.reference))
        base = dense_reference(bare, prompt, response, Route(tuple(range(6)), 6))
        shallow = dense_reference(adapted.get_base_model(), prompt, response, Route.parse(row["route_layers"], 6))
        start = len(prompt)
        assert row["cosine_final"] == pytest.approx(compare(base[1][start:], shallow[1][start:]).mean().item(), abs=1e-4)
        inner = torch.stack([compare(base[0][i][start:], shallow[0][i][start:]) for i in range(1, 6)])
        assert row["cosine_intermediate"] == pytest.approx(inner.mean().item(), abs=1e-4)
        assert row["kl"] > 0.01 and row["cosine_final"] < 0.999
    swept = sweep(adapted, tokenizer, task=small_task, routes=["full", "uls:3"], metrics=("kl",), fidelity_tokens=5)
    assert rows["kl"].to_pylist() == pytest.approx(swept["kl"].to_pylist(), abs=1e-4)
