"""The leaderboard's arithmetic, on rows and times that are made up."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import depthdial as dd
from depthdial.engine.session import Session
from depthdial.errors import InputError
from depthdial.oracles.baselines import mixture_curve
from depthdial.routes import Route
from depthdial.routes.families import RouteFamily

HERE = Path(__file__).parents[2] / "experiments" / "leaderboard"


@pytest.fixture
def board(monkeypatch):
    """The modules of the experiment, which lie beside its script."""
    monkeypatch.syspath_prepend(HERE)
    from board import entries, rows, standing

    yield entries, rows, standing
    for name in [name for name in sys.modules if name == "board" or name.startswith("board.")]:
        del sys.modules[name]


def made_rows(**agreement):
    """Two test rows of each configuration; layers are those in its name."""
    lines = []
    for name, values in agreement.items():
        family, _, depth = name.partition("_")
        for i, value in enumerate(values):
            config = "full" if family == "full" else f"{family}@{depth}"
            scores = {"agreement": value, "kl": 1 - value, "rouge_l": value / 2}
            one = {"family": family, "config": config, "key": config, "sequence_id": f"row-{i}", **scores}
            lines.append(one | {"layers_run": float(depth or 30)})
    return pd.DataFrame(lines)


def made_times(per_layer_ms=1.0, mixes=(), overhead_ms=0.0):
    cells = [
        {"weights": "fp32", "batch": batch, "layers": layers, "step_ms": {"median": layers * per_layer_ms * batch}}
        for batch in (1, 32)
        for layers in (30, 24, 15)
    ]
    found = [{"config": name, "step_ms": {"median": ms}} for name, ms in (("full", 960.0), *mixes)]
    return {"cells": cells, "mixes": found, "choosing": {"overhead_ms": overhead_ms, "tokens": 11.0}}


def test_the_frontier_is_the_hull_of_static_mixtures(board):
    standing = board[2]
    rng = np.random.default_rng(0)
    times, values = np.array([1.0, 0.9, 0.7, 0.5]), rng.random((20, 4))
    for budget in (0.5, 0.6, 0.9, 0.95, 1.2):
        found = standing.frontier(times, values, budget)
        assert found == pytest.approx([mixture_curve(times, row, np.array([budget]))[0] for row in values])
    assert np.isnan(standing.frontier(times, values, 0.49)).all()


def test_between_two_depths_quality_is_on_the_line_between_them(board):
    times, values = np.array([1.0, 0.8, 0.5]), np.array([[1.0, 0.2, 0.4], [0.9, 0.6, 0.0]])
    assert board[2].between(times, values, 0.9) == pytest.approx([0.6, 0.75])
    assert board[2].between(times, values, 0.5) == pytest.approx([0.4, 0.0])
    assert board[2].between(times, values, 1.5) == pytest.approx([1.0, 0.9])
    assert np.isnan(board[2].between(times, values, 0.49)).all()


def test_equal_time_is_between_two_depths_and_differences_are_paired(board):
    rows = made_rows(full=[1, 1, 1], greedy_24=[0.8, 0.9, 1], greedy_15=[0.2, 0.3, 0.4], uls_24=[0.7, 0.8, 0.9])
    found = board[2].Standing(rows, made_times()).at_equal_time()
    by = {(one["family"], one["batch"], one["share"]): one for one in found}
    assert by["greedy", 1, 0.8]["agreement"][0] == pytest.approx(0.9)
    assert by["greedy", 32, 0.9]["agreement"][0] == pytest.approx(0.95)
    assert by["greedy", 1, 0.9]["kl"][0] == pytest.approx(0.05)
    assert by["uls", 1, 0.8]["agreement_over_greedy"] == pytest.approx([-0.1, -0.1, -0.1])  # 0.1 less on every row
    assert by["uls", 1, 0.7]["agreement"] is None
    assert by["greedy", 1, 0.6]["agreement"][0] == pytest.approx(0.5)


def test_a_policy_is_charged_for_its_choices_and_for_its_mixed_batch(board):
    rows = made_rows(full=[1, 1], pudding_24=[0.5, 0.6])
    rows.loc[rows["config"] == "pudding@24", "layers_run"] = [30.0, 15.0]
    standing = board[2].Standing(rows, made_times(mixes=(("pudding@24", 480.0),), overhead_ms=5.0))
    assert standing.ms("pudding@24", 1) == pytest.approx((30 + 15) / 2 + 5 / 10)
    assert standing.ms("pudding@24", 32) == pytest.approx(480 + 32 * 5 / 10)


def test_token_gates_take_their_share_of_the_full_time_on_the_same_prompts(board):
    rows = made_rows(full=[1, 1], greedy_24=[0.6, 0.8], gates_24=[0.5, 0.6])
    times = made_times()
    assert [one.name for one in board[2].Standing(rows, times).families()] == ["greedy"]  # not timed yet
    cells = [("full", 1, 20.0), ("gates@24", 1, 18.0), ("full", 32, 100.0), ("gates@24", 32, 110.0)]
    times["tokenwise"] = [{"config": name, "batch": batch, "step_ms": {"median": ms}} for name, batch, ms in cells]
    standing = board[2].Standing(rows, times)
    assert standing.ms("gates@24", 1) == pytest.approx(0.9 * 30) and standing.ms("gates@24", 32) == pytest.approx(1.1 * 960)
    by = {(one["family"], one["batch"], one["share"]): one for one in standing.at_equal_time()}
    assert by["gates", 1, 0.9]["agreement"][0] == pytest.approx(0.55) and by["gates", 32, 0.9]["agreement"] is None


def test_rows_of_a_configuration_are_replaced_and_others_stay(board, tmp_path):
    kept = board[1].Board(tmp_path / "rows")
    kept.keep("fp32", made_rows(full=[1, 1]))
    kept.keep("elastic", made_rows(elastic_24=[0.5, 0.5], elastic_15=[0.3, 0.3]))
    kept.keep("elastic", made_rows(elastic_24=[0.7, 0.7]).assign(key="of another adapter"))
    rows = kept.read()
    assert len(rows) == 6 and set(rows[rows["config"] == "elastic@24"]["agreement"]) == {0.7}
    assert kept.known() == {"full", "elastic@15", "of another adapter"}


def test_families_take_what_was_searched_or_trained_for(board, tmp_path):
    entries = board[0]
    routes = tuple(Route(tuple(range(n)), 30, f"greedy-kl:{n}") for n in (20, 24, 30))
    RouteFamily("greedy-kl", 30, routes, {}).save(tmp_path / "greedy-kl.json")
    greedy, uls = (next(family for family in entries.STATIC if family.name == name) for name in ("greedy", "uls"))
    assert [c.name for c in greedy.configs(tmp_path, ())] == ["greedy@24", "greedy@20"]
    assert [c.route for c in uls.configs(tmp_path, ())] == [f"uls:{depth}" for depth in uls.depths]
    assert [c.name for c in entries.TRAINED.configs(tmp_path, routes)] == ["elastic@24", "elastic@20"]
    assert [c.layers for c in entries.OTHER_MODEL.configs(tmp_path, ())] == [30]


def test_a_batch_of_routes_of_their_own_is_timed_as_it_is(board, model, tokenizer, monkeypatch):
    from board import clock

    session = Session.of(model, tokenizer)
    full, half = session.full, Route((0, 2, 5), 6)
    stepped = []
    whole = clock._stepping
    monkeypatch.setattr(clock, "_stepping", lambda s, routes, ready: stepped.append(list(routes)) or whole(s, routes, ready))
    mixes = {"full": [full] * 3, "rls@3": [half, full, half], "controller@50%": [full, half, full]}
    found = clock._time_mixes(session, mixes, [[5, 6, 7], [8, 9, 5], [6, 6, 6]])
    assert [one["config"] for one in found] == list(mixes) and all(one["step_ms"]["median"] > 0 for one in found)
    # Rows with the adapter and without it are two batches of one step.
    assert stepped[:4] == [[full] * 3, [half, full, half], [full, full], [half]]


def test_a_board_of_unequal_rows_says_which_step_is_missing(board, tmp_path):
    (tmp_path / "times.json").write_text("{}")
    kept = board[1].Board(tmp_path / "rows")
    with pytest.raises(InputError, match="has no rows of the full model: run --only quality first"):
        board[2].Standing.of(tmp_path)
    kept.keep("fp32", made_rows(full=[1, 1], greedy_24=[0.5]))
    with pytest.raises(InputError, match="greedy@24 lacks rows that the full model has: run --only quality"):
        board[2].Standing.of(tmp_path)


def test_a_policy_without_the_rows_that_it_picks_says_so(board, tmp_path):
    from types import SimpleNamespace

    from board import policies

    kept = board[1].Board(tmp_path / "rows")
    kept.keep("fp32", made_rows(full=[1, 1]))
    examples = [SimpleNamespace(id="row-0"), SimpleNamespace(id="row-2")]
    bench = SimpleNamespace(board=kept, examples=examples, key=lambda *_, **__: "key")
    config = board[0].Config("pudding", "pudding@24", "fp32", None, None)
    with pytest.raises(InputError, match="full has no row of 'row-2': run --only quality"):
        policies._keep(bench, config, ["full", "full"], "hash")
    bench.examples[1].id = "row-1"
    policies._keep(bench, config, ["full", "full"], "hash")
    assert set(kept.read()["config"]) == {"full", "pudding@24"}


def test_steps_whose_tokens_have_layers_of_their_own_are_timed_by_what_they_ran(board, model, tokenizer):
    from board import clock

    session = Session.of(model, tokenizer)
    half = dd.TokenDepth(dd.Bernoulli((1, 0.5, 0.5, 0.5, 0.5, 1)), 6)
    ends = dd.TokenDepth(dd.StaticRoutes([Route((0, 5), 6)]), 6)
    depths = {"full": session.full, "half": half, "ends": ends}
    found = clock.time_tokenwise(session, depths, [[[5, 6, 7], [8, 9, 5]], [[6, 6, 6], [7, 8, 9]]], 4)
    assert [(one["config"], one["batch"]) for one in found] == [("full", 2), ("half", 2), ("ends", 2)]
    layers = {one["config"]: one["layers"] for one in found}
    assert layers["full"] == 6 and layers["ends"] == 2 and 2 < layers["half"] < 6
    assert all(0 < one["step_ms"]["low"] <= one["step_ms"]["median"] <= one["step_ms"]["high"] for one in found)


def test_gates_are_kept_in_half_the_bytes_with_what_their_training_says(board, tmp_path):
    from board import gates

    trained = dd.TokenGates(dd.GateConfig(n_layers=6, width=32), about={"settings": {"key_values": "project"}})
    trained.save_pretrained(tmp_path / "trained")
    record = {"steps": 3, "response_tokens": 90, "distinct_response_tokens": 80, "train_sec": 1.0, "layer_rates": [1.0] * 6}
    folder = gates.gates_folder(tmp_path, "80%")
    gates.keep_small(tmp_path / "trained", folder, record)
    kept = dd.TokenGates.from_pretrained(folder)
    for name, tensor in trained.state_dict().items():
        np.testing.assert_allclose(kept.state_dict()[name], tensor, rtol=1e-3, atol=1e-6)
    sizes = [(where / "gates.safetensors").stat().st_size for where in (tmp_path / "trained", folder)]
    assert sizes[1] < 0.7 * sizes[0]
    assert kept.about["training"]["steps"] == 3 and kept.about["settings"] == {"key_values": "project"}
    assert gates.settings_of("80%").target == 0.8
