"""The tables of docs/controllers.md are those of the committed evaluations, and these are of rows that belong together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import depthdial as dd
from depthdial.control.judge.headroom import ORACLE
from depthdial.report.controller.scores import read_scores
from depthdial.report.controller.tables import certificate_table, controller_table
from depthdial.report.kit.table_files import markdown_table

ROOT = Path(__file__).parent.parent
EXPERIMENT = ROOT / "experiments" / "controller"
DOCUMENT = (ROOT / "docs" / "controllers.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "metric",
    [
        "agreement",
        "agreement by layers per sequence",
        "agreement weighted by tokens",
        "agreement by ms",
        "rouge_l",
    ],
)
def test_the_tables_are_those_of_the_evaluation(metric: str) -> None:
    scores = read_scores(EXPERIMENT / "alpaca")
    assert scores is not None
    assert markdown_table(controller_table(scores.scores[metric], -1)) in DOCUMENT


def test_the_certificates_are_those_of_the_evaluation() -> None:
    scores = read_scores(EXPERIMENT / "alpaca")
    assert scores is not None
    assert markdown_table(certificate_table(scores.certificates)) in DOCUMENT


def test_the_online_table_is_the_committed_one() -> None:
    assert (EXPERIMENT / "online.md").read_text() in DOCUMENT


def test_the_readme_tells_the_same() -> None:
    scores = read_scores(EXPERIMENT / "alpaca")
    assert scores is not None
    gap = next(gap for gap in scores.scores["agreement"].gaps if gap.name == ORACLE)
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"it closes {gap.text()} of the gap to the oracle in agreement" in readme


def test_the_scores_are_those_of_the_rows() -> None:
    """The fixed routes' agreement, from the rows themselves."""
    scores = read_scores(EXPERIMENT / "alpaca")
    assert scores is not None
    frame = pq.read_table(EXPERIMENT / "alpaca" / "rows" / "test-scores.parquet").to_pandas()
    means = frame.groupby("route").agreement.mean()
    for route in scores.scores["agreement"].fixed:
        assert route.value == pytest.approx(means[route.route])
    assert len(frame) == 6 * scores.scores["agreement"].n_sequences


def test_no_row_was_seen_before_it_was_judged() -> None:
    controller = dd.SequenceController.from_pretrained(EXPERIMENT / "fit")
    fitted = set(pq.read_table(EXPERIMENT / "fit" / "scores.parquet").column("sequence_id").to_pylist())
    rows = EXPERIMENT / "alpaca" / "rows"
    tested, held = (
        set(pq.read_table(rows / f"{name}.parquet").column("sequence_id").to_pylist())
        for name in ("test-scores", "calibration-scores")
    )
    assert len(fitted) == len(controller.card.fitted_on["prompts"]) == len(set(controller.card.fitted_on["prompts"]))
    assert not fitted & tested and not fitted & held and not tested & held
    assert {name.split("-")[1] for name in tested} == {"test"}


def test_the_committed_rows_hold_no_text() -> None:
    for path in sorted(EXPERIMENT.rglob("*.parquet")):
        table = pq.read_table(path)
        if "answer" in table.column_names:
            assert table.column("answer").null_count == table.num_rows, path
    assert "instruction" not in json.dumps(json.loads((EXPERIMENT / "fit" / "controller.json").read_text()))
    assert np.isfinite(pq.read_table(EXPERIMENT / "alpaca" / "predictions.parquet").column("predicted").to_numpy()).all()
