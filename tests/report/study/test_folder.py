"""Reading a result folder: whole, in part, and damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from depthdial.errors import InputError
from depthdial.report.study.folder import read_folder


def test_a_study_is_read_whole(study: Any) -> None:
    found = read_folder(study.folder)
    assert found.sweep.equals(study.sweep) and found.similarity.equals(study.similarity)
    assert found.family == study.family
    assert list(found.curves) == ["rouge_l", "agreement"]
    assert found.curves["rouge_l"].matches_full_at == study.curves["rouge_l"].matches_full_at
    assert list(found.settings) == ["study", "sweep", "similarity"]


@pytest.mark.parametrize("kind", ["sweep", "similarity"])
def test_rows_of_either_kind_may_lie_in_the_folder_itself(study: Any, kind: str) -> None:
    found = read_folder(study.folder / kind)
    assert getattr(found, kind).num_rows == getattr(study, kind).num_rows
    assert getattr(found, {"sweep": "similarity", "similarity": "sweep"}[kind]) is None
    assert found.family is None and not found.curves and not found.predictable


def test_sampled_rows_come_with_their_predictable_oracle(sampled: Any) -> None:
    found = read_folder(sampled.folder)
    assert found.sweep.equals(sampled.rows)
    assert found.predictable["rouge_l"].to_dict() == sampled.curve.to_dict()


def test_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no result rows .*: run `depthdial sweep`"):
        read_folder(tmp_path)
    with pytest.raises(InputError, match="no result rows"):
        read_folder(tmp_path / "missing")


def test_a_file_is_not_a_folder(study: Any) -> None:
    with pytest.raises(InputError, match="is a file"):
        read_folder(study.folder / "sweep" / "rows.parquet")


def test_tables_that_are_no_results_are_refused(study: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="holds no result rows"):
        read_folder(tmp_path)
    pq.write_table(study.sweep[:0], tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="holds no row"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("oracle.json", '{"rouge_l": {"metric": 1}}', "damaged at 'rouge_l'"),
        ("predictable.json", '{"rouge_l": {"metric": 1}}', "damaged at 'rouge_l'"),
        ("oracle.json", "[1]", "holds no oracle"),
        ("routes.json", "{}", "not a route family file"),
        ("study.json", "{", "not a readable study file"),
    ],
)
def test_damaged_files_are_named(study: Any, tmp_path: Path, name: str, text: str, complaint: str) -> None:
    pq.write_table(study.sweep, tmp_path / "rows.parquet")
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=complaint):
        read_folder(tmp_path)
