"""Tables: their numbers are those of the rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from depthdial.oracles.oracle import oracle
from depthdial.report.study.tables import (
    headline,
    importance_table,
    oracle_table,
    similarity_table,
    timing_table,
)
from depthdial.stats.intervals import Interval, mean_interval


def _of(rows: pa.Table, route: str, column: str) -> np.ndarray:
    return rows.filter(pc.equal(rows["route"], route))[column].to_numpy()


def _row(table: list[dict[str, Any]], route: str) -> dict[str, Any]:
    return next(row for row in table if row["route"] == route)


def test_headline_numbers_are_the_means_of_the_rows(study: Any) -> None:
    table = headline(study.sweep)
    for name in ("full", "uls:6", "greedy-kl:9", "rls:9@0"):
        row = _row(table, name)
        assert row["rouge_l"] == mean_interval(_of(study.sweep, name, "rouge_l"))
        for column in ("agreement", "kl", "nll"):
            assert row[column] == pytest.approx(_of(study.sweep, name, column).mean())
        assert row["layers"] == _of(study.sweep, name, "layers_run").mean()
        assert row["cost_percent"] == pytest.approx(100 * _of(study.sweep, name, "cost").mean())


def test_headline_time_is_relative_to_the_full_model_of_the_same_rows(study: Any) -> None:
    table = headline(study.sweep)

    ratios = _of(study.sweep, "full", "step_sec") / _of(study.sweep, "uls:6", "step_sec")
    assert _row(table, "uls:6")["speed"] == pytest.approx(np.median(ratios))
    full_ms = 1000 * np.median(_of(study.sweep, "full", "step_sec"))
    assert _row(table, "uls:6")["step_ms"] == pytest.approx(full_ms / np.median(ratios))  # one ratio of time
    assert _row(table, "uls:6")["speed_range"] == f"{ratios.min():.2f}–{ratios.max():.2f}×"
    assert (_row(table, "full")["speed"], _row(table, "full")["step_ms"]) == (1.0, full_ms)


def test_headline_ends_with_the_star_and_half_of_the_cost(study: Any) -> None:
    curve = study.curves["rouge_l"]
    star, half, mixture = headline(study.sweep, study.curves)[-3:]
    assert star["cost_percent"].mean == pytest.approx(100 * curve.matches_full_at)
    low, high = curve.matches_full_interval
    assert (star["cost_percent"].low, star["cost_percent"].high) == pytest.approx((100 * low, 100 * high))
    assert half["rouge_l"].mean == pytest.approx(curve.value_at(6.0))
    assert curve.value_at("50%") == curve.value_at(0.5) == curve.value_at("6")
    assert half["cost_percent"] == 50 and half["agreement"] is None
    fixed = {route.route: route.value for route in curve.fixed}
    assert mixture["rouge_l"] == pytest.approx(max(fixed["uls:6"], fixed["ee:6"]))


def test_headline_rows_have_the_same_keys_and_take_the_curve_of_their_metric(study: Any) -> None:
    table = headline(study.sweep, study.curves)
    assert len({tuple(row) for row in table}) == 1
    assert table == headline(study.sweep, {"rouge_l": study.curves["rouge_l"]})
    assert len(headline(study.sweep)) == len(table) - 3


def test_without_references_agreement_is_the_headline(study_maker: Any, tmp_path: Any) -> None:
    made = study_maker(tmp_path / "study", references=False, n_sequences=6)
    table = headline(made.sweep, made.curves)
    assert "rouge_l" not in table[0] and "nll" not in table[0]
    assert isinstance(_row(table, "uls:6")["agreement"], Interval)
    assert table[-3]["route"].startswith("★")


def test_a_route_timed_in_other_batches_has_no_speed(study: Any) -> None:
    sizes = [
        1 if name == "uls:6" else size for name, size in zip(*_columns(study.sweep, "route", "batch_size"), strict=True)
    ]
    rows = study.sweep.set_column(study.sweep.column_names.index("batch_size"), "batch_size", pa.array(sizes))
    row = _row(headline(rows), "uls:6")
    assert row["speed"] is None and row["step_ms"] is not None


def _columns(rows: pa.Table, *names: str) -> list[list[Any]]:
    return [rows[name].to_pylist() for name in names]


def test_a_curve_that_spends_something_else_is_not_the_headlines(study: Any) -> None:
    timed = oracle(study.sweep, cost="decode_sec", n_bootstrap=0, n_permutations=0)
    assert headline(study.sweep, {"rouge_l": timed, "agreement": study.curves["agreement"]}) == headline(study.sweep)


def test_similarity_is_read_at_the_nearest_cost_of_each_family(study: Any) -> None:
    table = similarity_table(study.similarity, (0.5,))
    assert {row["route"] for row in table} == {"uls:6", "unified:6", "rls:6@0", "rls-wo1:6@0", "ee:6"}
    assert _row(table, "ee:6")["cosine_final"] == mean_interval(_of(study.similarity, "ee:6", "cosine_final"))
    assert "full" not in {row["route"] for row in similarity_table(study.similarity)}


def test_few_routes_are_all_listed(study: Any) -> None:
    some = study.similarity.filter(pc.is_in(study.similarity["route"], pa.array(["full", "ee:11"])))
    assert [row["route"] for row in similarity_table(some)] == ["full", "ee:11"]
    assert similarity_table(some, (0.5,)) == []


def test_oracle_table_starts_with_the_star(study: Any) -> None:
    curve = study.curves["rouge_l"]
    table = oracle_table(curve)
    assert table[0]["point"].startswith("★")
    assert table[0]["cost_percent"].mean == pytest.approx(100 * curve.matches_full_at)
    chosen = curve.pick(curve.matches_full_at)
    rows = np.arange(len(chosen))
    assert table[0]["layers"] == pytest.approx(curve.scores.layers[rows, chosen].mean())
    assert table[0]["ms"] == pytest.approx(curve.scores.ms[rows, chosen].mean())
    by_tokens = np.average(curve.scores.values[rows, chosen], weights=curve.scores.tokens)
    assert table[0]["by_tokens"] == pytest.approx(by_tokens)
    layers = oracle_table(oracle(study.sweep, cost="layers", n_bootstrap=0, n_permutations=0))
    assert layers[0]["budget"] == pytest.approx(12 * layers[0]["cost_percent"] / 100) and "layers" not in layers[0]
    assert [row["point"] for row in table[1:]] == ["50% of full", "75% of full"]  # no route is as cheap as 25%


def test_importance_table_tells_the_round_of_each_layer(study: Any) -> None:
    table = importance_table(study.family.made_by)
    order, kl = study.family.made_by["drop_order"], study.family.made_by["kl"]
    assert len(table) == 12
    assert [table[layer]["dropped"] for layer in order] == [1, 2, 3, 4]
    assert [table[layer]["kl_then"] for layer in order] == kl
    assert table[0] == {
        "layer": "0",
        "kl_alone": study.family.made_by["importance"][0],
        "dropped": None,
        "kl_then": None,
    }


def test_times_stand_with_their_range_smallest_batch_first() -> None:
    spread = {"median": 2.0, "low": 1.9, "high": 2.2}
    entry = {"route": "full", "layers": 12, "n_repeats": 5, "ttft_ms": spread, "step_ms": spread}
    table = timing_table({"routes": [{**entry, "batch": 8}, {**entry, "batch": 1}]})
    assert [row["batch"] for row in table] == [1, 8] and table[0]["step_ms"] == Interval(2.0, 1.9, 2.2, 5)
    assert timing_table(None) == []


def test_a_studys_own_timing_wins_over_the_rows(study: Any) -> None:
    def entry(name: str, layers: int, ms: float) -> dict[str, Any]:
        spread = {"median": ms, "low": 0.95 * ms, "high": 1.05 * ms}
        return {"route": name, "layers": layers, "batch": 1, "n_repeats": 5, "ttft_ms": spread, "step_ms": spread}

    timing = {"routes": [entry("full", 12, 30.0), entry("uls:6", 6, 20.0), entry("uls:9", 9, 29.0)]}
    table = headline(study.sweep, timing=timing)
    assert (_row(table, "uls:6")["speed"], _row(table, "uls:6")["step_ms"]) == (1.5, 20.0)
    assert _row(table, "uls:6")["speed_range"] == "1.43–1.58×"
    assert _row(table, "uls:9")["speed_range"].endswith("too noisy to tell")
    assert _row(table, "ee:6")["speed"] is None  # was not in turn, so that its own time says nothing beside theirs
