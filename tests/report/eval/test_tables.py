"""Tables and sentences of an evaluation: pairs of documents, not of means."""

from __future__ import annotations

import numpy as np
import pytest

from depthdial.report.eval.tables import answer_sentences, change, depths_table, metrics_table, score_interval
from depthdial.report.kit.table_files import markdown_table
from depthdial.rows.evals import EvalResults, EvalScore, in_order
from depthdial.stats.intervals import Interval, mean_interval
from tests.report.eval.folders import made


@pytest.fixture
def results():
    return EvalResults({"model": "tiny-model"}, in_order(made(2)))


def test_a_row_for_each_depth_and_a_column_for_each_task(results):
    table = depths_table(results)
    assert [row["depth"] for row in table] == ["full", "greedy-kl:27", "greedy-kl:24", "uls:20", "ee:15"]
    text = markdown_table(table)
    assert "task_0 (acc ↑)" in text and "task_1 (perplexity ↓)" in text
    assert table[0]["task_0"] == mean_interval(results.unit("task_0", "full").score("acc").each)


def test_the_change_is_taken_document_by_document(results):
    table = metrics_table(results, "task_0")
    assert len(table) == 10 and table[0]["change"] is None
    row = next(row for row in table if row["depth"] == "uls:20" and row["metric"] == "acc ↑")
    one, full = (np.array(results.unit("task_0", depth).score("acc").each) for depth in ("uls:20", "full"))
    assert row["change"] == mean_interval(one - full)
    unpaired = np.sqrt(one.var(ddof=1) / 60 + full.var(ddof=1) / 60)
    assert row["change"].high - row["change"].low < 2 * 1.96 * unpaired


def test_a_score_without_parts():
    known, alone = EvalScore("bleu", "none", 0.5, 0.1, True), EvalScore("bleu", "none", 0.5, None, True)
    interval = score_interval(known)
    assert isinstance(interval, Interval) and (interval.low, interval.high) == pytest.approx((0.304, 0.696))
    assert score_interval(alone) == 0.5 and change(known, alone) is None and change(known, None) is None


def test_sentences_tell_the_fewest_layers_that_are_not_worse(results):
    told = answer_sentences(results)
    assert len(told) == 2 and all("with all 30 layers" in one for one in told)
    first = results.unit("task_0", "full").score()
    for depth, unit in {one.depth: one for one in results.units if one.task == "task_0" and not one.is_full}.items():
        moved = change(unit.score(), first)
        assert moved is not None
        if f"; {depth} " in told[0]:
            assert f"has {unit.score().value:.3f}, a difference of {moved} on the same 60 documents." in told[0]


def test_without_the_full_model_nothing_is_said():
    units = [unit for unit in made(1) if not unit.is_full]
    results = EvalResults({}, in_order(units))
    assert answer_sentences(results) == [] and "change" not in metrics_table(results, "task_0")[0]
