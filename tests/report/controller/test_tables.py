"""Tables and sentences say what the score holds, and no percentage where there is no gap."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from depthdial.control.judge.headroom import NO_GAP
from depthdial.report.controller.tables import certificate_table, controller_table, fixed_table, headline, unit_of
from depthdial.report.kit.table_files import csv_table, markdown_table
from depthdial.report.kit.tables import Column
from depthdial.stats.intervals import Interval
from tests.report.controller.demo import demo_score, demo_scores, equal_score


def test_a_row_for_each_method_and_oracle_at_each_budget() -> None:
    score = demo_score()
    table = controller_table(score)
    names = [
        "controller",
        "prompt length only",
        "random, the controller's shares",
        "predictable oracle",
        "oracle",
    ]
    assert [row["method"] for row in table] == names * 3
    assert [row["set_budget"] for row in table[::5]] == ["7", "9", "11"]
    for at in range(3):
        own, predictable = table[5 * at], table[5 * at + 3]
        low, high = score.controller.gain_intervals[at]
        assert own["over_mixture"] == Interval(score.controller.gains[at], low, high, 150)
        assert own["closed_predictable"].mean == pytest.approx(score.gaps[0].closed[at])
        assert predictable["over_mixture"].mean == score.gaps[0].gaps[at]
        assert predictable["spent"] == own["spent"] == score.controller.costs[at]
        assert own["behind"] is None
        assert score.methods[1].behind is not None and table[5 * at + 1]["behind"].mean == score.methods[1].behind[at]


def test_the_mean_over_the_budgets_has_no_budget() -> None:
    table = controller_table(demo_score(), -1)
    assert len(table) == 5 and "set_budget" not in table[0]
    assert table[0]["quality"].mean == demo_score().controller.values[-1]


def test_tables_print_under_names_of_their_own_and_fill_csv() -> None:
    for table in (controller_table(demo_score()), fixed_table(demo_score()), certificate_table(demo_scores().certificates)):
        assert all(isinstance(name, Column) for name in table[0])
        assert len(markdown_table(table).splitlines()) == len(csv_table(table).splitlines()) + 1 == len(table) + 2
    assert "over the mixture at equal cost" in markdown_table(controller_table(demo_score()))


def test_without_a_gap_the_words_stand_where_the_percentage_would() -> None:
    (own, *_) = table = controller_table(equal_score())
    assert own["closed_oracle"] == NO_GAP and "closed_predictable" not in own
    assert [row["method"] for row in table] == ["controller", "random, the controller's shares", "oracle"]
    told = " ".join(headline(equal_score()))
    assert "Between the mixture and the oracle there is no gap to close." in told and "%" not in told
    assert "not told apart from that of (difference 0.000" in told.replace("+0.000", "0.000")
    assert "at a budget of 8 layers per sequence, on 30 test sequences" in told and "seeds" not in told


def test_the_headline_is_the_gain_its_share_the_rivals_and_the_overhead() -> None:
    score = demo_score()
    own, text = score.controller, " ".join(headline(score))
    low, high = own.gain_intervals[-1]
    assert f"greedy agreement is {own.gains[-1]:.3f} [{low:.3f}, {high:.3f}] above the best static mixture" in text
    assert "on average over 3 budgets and 3 seeds, on 150 test sequences" in text
    assert f"It closes {score.gaps[0].text()} of the gap to the predictable oracle (seeds: " in text
    assert f"prompt length only {score.methods[1].gains[-1]:+.3f}" in text
    assert "The controller's own cost counts as spent: 0.05 layers per sequence." in text


def test_a_controller_that_is_worse_is_said_to_be_below() -> None:
    score = demo_score()
    own = score.controller
    worse = replace(own, gains=-own.gains, gain_intervals=-own.gain_intervals[:, ::-1])
    text = headline(replace(score, methods=(worse, *score.methods[1:])))[0]
    low, high = own.gain_intervals[-1]
    assert f"is {own.gains[-1]:.3f} [{low:.3f}, {high:.3f}] below the best static mixture" in text


def test_fixed_routes_come_with_how_often_they_are_chosen() -> None:
    score = demo_score()
    table = fixed_table(score)
    assert [row["route"] for row in table] == list(score.routes)
    assert table[0]["share_percent"] == " · ".join(f"{100 * share:.0f}" for share in score.shares[:, 0])
    assert isinstance(table[0]["quality"], Interval)
    assert np.isclose(table[-1]["spent"], 12)


def test_certificates_say_what_is_saved_or_that_nothing_is_certified() -> None:
    given, refused = certificate_table(demo_scores().certificates)
    certificate = demo_scores().certificates[0]
    assert given["setting"] == certificate.setting and given["saved"].mean == certificate.saving
    assert given["certainty"] == "0.95" and given["epsilon"] == "0.3"
    assert refused["setting"] == "none but the full model"
    assert refused["saved"] is None and refused["loss_measured"] is None


def test_units() -> None:
    assert unit_of(demo_score()) == "layers per sequence" and unit_of(demo_score("rouge_l", "ms")) == "ms per decoding step"
    assert unit_of(replace(demo_score(), cost="layers_run")) == "layers per sequence"
