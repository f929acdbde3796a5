"""Quality as an export runs: kept in its record, told in a sentence; and the numbers that a study has."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import depthdial as dd
from depthdial.errors import InputError
from depthdial.exports.quality import FULL, SHIPPED, STUDIED, Quality, Scores, study_scores
from depthdial.routes import Route
from depthdial.stats.intervals import Interval


def scores(what: str, rouge: float, agreement: float) -> Scores:
    return Scores(what, 24, 9, {"rouge_l": Interval(rouge, 0.1, 0.2, 9), "agreement": Interval(agreement, 0.1, 0.2, 9)})


QUALITY = Quality("builtin", "test", 64, (scores(FULL, 0.171, 1), scores(STUDIED, 0.166, 0.9), scores(SHIPPED, 0.012, 0.1)))


def test_it_comes_back_from_its_record() -> None:
    assert Quality.of_record(json.loads(json.dumps(QUALITY.record()))) == QUALITY
    one = Quality("t", "test", 4, (Scores(SHIPPED, 3, 1, {"kl": Interval(1.0, math.nan, math.nan, 1)}),))
    again = Quality.of_record(json.loads(json.dumps(one.record())))
    assert again.scores[0].values["kl"].mean == 1 and math.isnan(again.scores[0].values["kl"].low)


def test_the_sentence_has_both_numbers() -> None:
    assert QUALITY.sentence == (
        "As exported, prompts run on the route too: ROUGE-L is 0.012, where the route with prompts at full depth has 0.166, "
        "and the full model 0.171 (n = 9)."
    )


def test_a_full_route_has_no_sentence() -> None:
    assert Quality("builtin", "test", 64, (scores(FULL, 0.2, 1), scores(SHIPPED, 0.2, 1))).sentence == ""


def test_a_study_is_read_by_layers_and_not_by_name(model, tokenizer, small_task, tmp_path: Path) -> None:
    rows = dd.sweep(model, tokenizer, task=small_task, routes=["uls:3", "ee:3"], metrics=["agreement"], out=tmp_path / "s")
    found = study_scores(tmp_path / "s", Route((0, 2, 4), 6, "another name"))
    known = [v for v, name in zip(rows["agreement"].to_pylist(), rows["route"].to_pylist(), strict=True) if name == "uls:3"]
    assert found.values["agreement"].mean == pytest.approx(sum(known) / len(known))
    assert found.sequences == 7 and {*found.values} == {"agreement", "kl"}
    with pytest.raises(InputError, match=r"has no rows of route '0-1,5' \(0-1,5\): give the folder of a study"):
        study_scores(tmp_path / "s", Route((0, 1, 5), 6))
