from __future__ import annotations

import pytest

from depthdial.measure.quality import METRICS, rouge


def test_rouge_by_hand():
    scores = rouge("the cat sat down", "the cat ran")
    assert scores["rouge_1"] == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))
    assert scores["rouge_2"] == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    assert scores["rouge_l"] == scores["rouge_1"]
    assert scores.keys() < set(METRICS)


def test_stems_count_only_when_asked():
    assert rouge("running cats", "run cat")["rouge_1"] == 0.0
    assert rouge("running cats", "run cat", use_stemmer=True)["rouge_1"] == 1.0


def test_of_several_references_the_best_counts_for_each_score():
    several = rouge("a b c", ["a b x y", "c b a"])
    assert several["rouge_1"] == 1.0  # of the second
    assert several["rouge_2"] == rouge("a b c", "a b x y")["rouge_2"] > rouge("a b c", "c b a")["rouge_2"]
    assert rouge("a b", ["a b"]) == rouge("a b", "a b")


def test_an_empty_answer_scores_nothing():
    assert set(rouge("", "the cat").values()) == {0.0}
