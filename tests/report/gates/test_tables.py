"""Tables of a gates study: their numbers are those of the rows, and the planted differences are found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from depthdial.errors import InputError
from depthdial.report.gates.summary import GateCell, gather_gates, pairs_of
from depthdial.report.gates.tables import (
    answer_sentences,
    controllers_table,
    controls_table,
    differences_table,
    verdict_sentence,
)
from depthdial.stats.equivalence import paired_over_seeds
from depthdial.stats.intervals import Interval, mean_interval
from tests.report.gates.studies import TARGETS, gate_rows


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    return gate_rows()


@pytest.fixture(scope="module")
def cells(rows: pa.Table) -> list[GateCell]:
    return gather_gates(rows)


def _of(rows: pa.Table, **wanted: Any) -> pa.Table:
    for name, value in wanted.items():
        rows = rows.filter(pc.equal(rows[name], value))
    return rows


def _row(table: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    return next(row for row in table if all(row[name] == value for name, value in wanted.items()))


def _changed(rows: pa.Table, **columns: Any) -> pa.Table:
    """Rows with columns replaced by `function(row)`."""
    listed = rows.to_pylist()
    return pa.Table.from_pylist([{**row, **{k: f(row) for k, f in columns.items()}} for row in listed], schema=rows.schema)


def test_a_controllers_interval_is_over_its_seeds_means_in_points(rows: pa.Table, cells: list[GateCell]) -> None:
    row = _row(controllers_table(cells), controller="hidden", target="50%", mode="sampled")
    mine = _of(rows, controller="hidden", target=0.5, mode="sampled")
    means = [100 * pc.mean(_of(mine, train_seed=seed)["rouge_l"]).as_py() for seed in range(5)]
    expected = mean_interval(means)
    assert row["rouge_l_points"].n == 5 == row["seeds"]
    assert row["rouge_l_points"].mean == pytest.approx(expected.mean)
    assert row["rouge_l_points"].high == pytest.approx(expected.high)
    assert row["layers"] == pytest.approx(pc.mean(mine["layers_run"]).as_py())
    assert row["cost_percent"] == pytest.approx(100 * row["layers"] / 12)


def test_an_untrained_controllers_interval_is_over_sequences(rows: pa.Table, cells: list[GateCell]) -> None:
    row = _row(controllers_table(cells), controller="static", target="50%")
    scores = 100 * _of(rows, controller="static", target=0.5)["rouge_l"].to_numpy()
    assert row["rouge_l_points"].n == 24 and row["seeds"] is None and row["mode"] is None
    assert row["rouge_l_points"].low == pytest.approx(mean_interval(scores).low)


def test_flops_hold_skipped_keys_deciding_and_if_asked_the_head(rows: pa.Table, cells: list[GateCell]) -> None:
    table = controllers_table(cells)
    row, mine = (
        _row(table, controller="fixed", target="50%", mode="argmax"),
        _of(rows, controller="fixed", target=0.5, mode="argmax"),
    )
    full = _of(rows, controller="full")

    def per_token(of: pa.Table, *names: str) -> float:
        return sum(pc.sum(of[name]).as_py() for name in names) / sum(n - 1 for n in of["new_tokens"].to_pylist())

    for key, names in (("flops_percent", ()), ("flops_head_percent", ("head_flops",))):
        names = ("decode_flops", "decide_flops", *names)
        assert row[key] == pytest.approx(100 * per_token(mine, *names) / per_token(full, *names))
    assert row["flops_percent"] > row["cost_percent"]  # what skipping cannot save
    assert _row(table, controller="full")["flops_percent"] == 100 == _row(table, controller="full")["step_percent"]


def test_time_is_relative_to_the_full_model_in_batches_of_the_same_size(rows: pa.Table, cells: list[GateCell]) -> None:
    row = _row(controllers_table(cells), controller="margin", target="50%")
    assert 50 < row["step_percent"] < 65
    other = _changed(rows, batch_size=lambda r: 1 if r["controller"] == "margin" else r["batch_size"])
    assert _row(controllers_table(gather_gates(other)), controller="margin", target="50%")["step_percent"] is None


def test_every_controller_target_and_mode_is_a_row_and_full_comes_first(cells: list[GateCell]) -> None:
    table = controllers_table(cells)
    assert len(table) == 1 + 2 * 2 * 4 + 4 + 3 * 4 + 3 * 2
    assert table[0]["controller"] == "full" and table[0]["target"] is None
    assert [row["target"] for row in table if row["controller"] == "hidden"] == ["80%", "65%", "50%", "40%"] * 2


def test_no_reference_no_rouge_column() -> None:
    table = controllers_table(gather_gates(gate_rows(n_sequences=3, seeds=(0, 1), references=False)))
    assert "rouge_l_points" not in table[0] and "nll" not in table[0] and "agreement" in table[0]


# Differences


def test_the_planted_difference_is_found_by_every_interval() -> None:
    table = differences_table(gather_gates(gate_rows(n_sequences=60, help_points=3.0)))
    assert len(table) == 2 * (len(TARGETS) + 1)
    for row in table:
        assert row["verdict"] == row["verdict_sequences"] == row["verdict_two_way"] == "helps"
        for name in ("difference", "over_sequences", "two_way"):
            assert row[name].low < 3.0 < row[name].high or abs(row[name].mean - 3) < 0.6
        assert row["p_above"] < 0.001 and row["p_below"] > 0.9 and row["effect_size"] > 2
        assert (row["seeds"], row["sequences"]) == (5, 60)


def test_differences_are_paired_by_seed_and_sequence(rows: pa.Table, cells: list[GateCell]) -> None:
    table = differences_table(cells)
    a, b = (_of(rows, controller=name, target=0.5, mode="sampled") for name in ("hidden", "fixed"))
    by_seed = [
        100 * (pc.mean(_of(a, train_seed=s)["rouge_l"]).as_py() - pc.mean(_of(b, train_seed=s)["rouge_l"]).as_py())
        for s in range(5)
    ]
    row = _row(table, target="50%", mode="sampled")
    assert row["difference"].mean == pytest.approx(np.mean(by_seed)) == row["over_sequences"].mean
    assert row["difference"].low == pytest.approx(mean_interval(by_seed).low)


def test_a_small_difference_is_equivalent_and_a_small_study_is_undecided() -> None:
    many = differences_table(gather_gates(gate_rows(n_sequences=200, help_points=0.0, targets=(0.5, 0.8))))
    assert {row["verdict"] for row in many if row["target"] == "all"} == {"equivalent within the margin"}
    few = differences_table(gather_gates(gate_rows(n_sequences=3, help_points=0.5, seeds=(0, 1))))
    assert {row["verdict"] for row in few} == {"not decided by these data"}


def test_without_a_stated_margin_nothing_is_called_equivalent(cells: list[GateCell]) -> None:
    table = differences_table(cells, "nll")
    assert all(row["verdict"] != "equivalent within the margin" for row in table)
    assert "p_above" not in table[0]


def test_a_lower_loss_helps() -> None:
    table = differences_table(gather_gates(gate_rows(n_sequences=40, help_points=5.0)), "nll")
    assert all(row["difference"].mean < 0 and row["verdict"] == "helps" for row in table)


def test_differences_at_equal_cost_name_a_cost_within_all_curves(cells: list[GateCell]) -> None:
    table = differences_table(cells)
    pairs = [pair for pair in pairs_of(cells, "hidden", "fixed", "rouge_l") if pair.mode == "sampled"]
    lowest, highest = min(pairs, key=lambda p: p.target), max(pairs, key=lambda p: p.target)
    equal = [row["equal_cost"] for row in table if row["mode"] == "sampled" and row["target"] != "all"]
    assert min(equal) == pytest.approx(100 * max(*lowest.cost_a, *lowest.cost_b))
    assert max(equal) == pytest.approx(100 * min(*highest.cost_a, *highest.cost_b))
    assert _row(table, target="all", mode="sampled")["at_equal_cost"] is None
    single = differences_table(gather_gates(gate_rows(n_sequences=4, targets=(0.5,))))
    assert "at_equal_cost" not in single[0] and [row["target"] for row in single] == ["50%", "50%"]


def test_a_sequence_that_lacks_a_score_is_left_out_of_the_pairs(rows: pa.Table) -> None:
    holed = _changed(rows, rouge_l=lambda r: None if (r["sequence_id"], r["train_seed"]) == ("s3", 2) else r["rouge_l"])
    row = _row(differences_table(gather_gates(holed)), target="50%", mode="sampled")
    assert row["sequences"] == 23
    assert (
        _row(controllers_table(gather_gates(holed)), controller="hidden", target="50%", mode="sampled")["rouge_l_points"].n
        == 5
    )


def test_a_seed_that_only_one_has_is_left_out(rows: pa.Table) -> None:
    missing = pc.and_(pc.equal(rows["controller"], "fixed"), pc.equal(rows["train_seed"], 4))
    row = differences_table(gather_gates(rows.filter(pc.invert(pc.fill_null(missing, False)))))[0]
    assert row["seeds"] == 4


def test_one_seed_has_no_interval_over_seeds() -> None:
    table = differences_table(gather_gates(gate_rows(seeds=(3,))))
    assert all(row["verdict"] == "not decided by these data" for row in table)
    assert "two_way" not in table[0] and "effect_size" not in table[0]


def test_controls_stand_against_every_seed(cells: list[GateCell]) -> None:
    table = controls_table(cells)
    assert {(row["controller"], row["mode"]) for row in table} == {
        *((name, mode) for name in ("fixed", "static", "margin", "saturation") for mode in ("sampled", "argmax")),
        *((name, mode) for name in ("position", "embedding", "embedding+position") for mode in ("sampled", "argmax")),
        ("bernoulli", "sampled"),
    }
    row = _row(table, controller="saturation", mode="sampled")
    assert (
        row["target"] == "all"
        and row["seeds"] == 5
        and row["verdict"] == "helps"
        and isinstance(row["difference"], Interval)
    )
    assert (
        _row(table, controller="fixed", mode="argmax")["difference"]
        == _row(differences_table(cells), target="all", mode="argmax")["difference"]
    )


def test_the_answer_is_a_sentence_for_each_mode(cells: list[GateCell]) -> None:
    sampled, argmax = answer_sentences(cells)
    assert sampled.startswith("Sampled (mean of 4 targets, 5 seeds, 24 sequences): ") and argmax.startswith("Argmax (")
    assert "hidden minus fixed is +" in sampled and "Seeds and sequences together: " in sampled
    single = gather_gates(gate_rows(n_sequences=4, targets=(0.5,)))
    assert answer_sentences(single)[0].startswith("Sampled (target 50%, 5 seeds")
    assert answer_sentences([cell for cell in single if cell.controller != "fixed"]) == []


def test_a_table_of_something_else_is_refused() -> None:
    with pytest.raises(InputError, match="no rows of a gates study"):
        gather_gates(pa.table({"sequence_id": ["a"]}))


def test_sentences_carry_the_numbers() -> None:
    wide = paired_over_seeds([1.0, -1.0, 3.0], [0.0, 0.0, 0.0], margin=1.0)
    assert verdict_sentence(wide, "points") == (
        "not decided by these data: hidden minus fixed is +1.00 points (95% interval −3.97 to +5.97), neither shown to "
        "differ from 0, nor shown to lie within ±1 points"
    )
    narrow = paired_over_seeds([0.4, 0.5, 0.6], [0.0, 0.0, 0.0], margin=1.0)
    assert verdict_sentence(narrow).endswith("its 90% interval lies within ±1; hidden is better, by less than that")
    one = paired_over_seeds([0.4], [0.0], margin=1.0)
    assert "no interval, of one value" in verdict_sentence(one) and "nan" not in verdict_sentence(one)


@pytest.mark.parametrize("shift", [0.0, 0.4, 2.0, -2.0])
def test_a_sentence_says_its_verdict(shift: float) -> None:
    found = paired_over_seeds(shift + 0.3 * np.array([-1.2, -0.5, 0.0, 0.5, 1.2]), np.zeros(5), margin=1.0)
    assert found.verdict in verdict_sentence(found, "points")
