"""What a search study's folder says, put side by side."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from depthdial.errors import InputError
from depthdial.report.pages import kind_of
from depthdial.report.search.comparison import first_drops, read_comparison, search_effort
from tests.report.search.folders import DROPS, KL, family, make_search_study


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_search_study(tmp_path / "study")


def test_every_method_is_there_at_every_size_even_where_two_found_one_route(folder: Path) -> None:
    comparison = read_comparison(folder)
    assert comparison.sizes == (10, 8)
    assert comparison.methods == (*DROPS, "uls", "unified", "ee")
    at = comparison.at[10]
    assert at["greedy-kl"] is at["beam-kl"]
    assert np.flatnonzero(at["angular"].share_run == 0).tolist() == [3, 4]


def test_the_table_holds_the_rows_means_shares_and_paired_differences(folder: Path) -> None:
    rows = {(row["method"], row["layers"]): row for row in read_comparison(folder).rows()}
    assert len(rows) == 12 and "rouge_l" not in rows["uls", 8]
    assert rows["angular", 8]["kl"].mean == pytest.approx(0.9 * 4, rel=0.1)
    assert rows["angular", 8]["kl_share"] == pytest.approx(100 * KL["angular"] / KL["uls"])
    assert rows["uls", 8]["kl_share"] == 100
    # On the same sequences: their common ease and hardship leaves the difference nearly alone.
    more = rows["ee", 10]["kl_more"]
    assert more.mean == pytest.approx(rows["ee", 10]["kl"].mean - rows["greedy-kl", 10]["kl"].mean)
    assert rows["greedy-kl", 10]["kl_more"] is None and rows["beam-kl", 10]["kl_more"].mean == 0
    assert (rows["angular", 8]["search_sec"], rows["angular", 8]["passes"]) == (34.0, 42)
    assert rows["uls", 8]["search_sec"] is None
    assert rows["angular", 8]["skipped"] == "6, 7, 8, 9"


def test_the_dictionary_is_strict_json_of_the_same(folder: Path) -> None:
    comparison = read_comparison(folder)
    stored = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert stored[0]["kl"]["mean"] == comparison.rows()[0]["kl"].mean and stored[0]["kl"]["n"] == 6


def test_a_layers_place_is_the_first_route_without_it() -> None:
    assert first_drops(family("greedy-kl")) == [None] * 4 + [3, 1, 2, 4] + [None] * 4
    # not nested: layer 2 is dropped first and comes back
    assert first_drops(family("angular")) == [None, None, 1, 2, 2, None, 3, 3, 3, 4, None, None]


def test_a_family_without_times_has_none() -> None:
    assert search_effort(family("angular", timed=False)) == {"search_sec": None, "passes": None}
    assert search_effort(None) == {"search_sec": None, "passes": None}


def test_what_is_no_search_study_is_told(folder: Path, tmp_path: Path) -> None:
    assert kind_of(folder) == "search" and kind_of(tmp_path) != "search"
    (tmp_path / "study.json").write_text('{"kind": "gates"}')
    assert kind_of(tmp_path) == "gates"
    with pytest.raises(InputError, match="holds no search study: give the --out folder of `depthdial search-study`"):
        read_comparison(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("study.json", {"kind": "search", "sizes": [10]}, "lacks a field"),
        ("study.json", {"kind": "search", "sizes": [10], "methods": []}, "names no method"),
        (
            "study.json",
            {"kind": "search", "sizes": [9], "methods": ["greedy-kl"]},
            "no rows of greedy-kl's route of 9 layers",
        ),
        ("families/angular.json", {}, "is not a route family file"),
    ],
)
def test_damage_is_told(folder: Path, name: str, change: dict[str, object], message: str) -> None:
    (folder / name).write_text(json.dumps(change))
    with pytest.raises(InputError, match=message):
        read_comparison(folder)
