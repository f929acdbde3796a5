"""Rows and maps of a gates study: read back as written, and refused when they are something else."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from depthdial.errors import InputError
from depthdial.rows.gates import (
    CONTROLLERS,
    GATE_COLUMNS,
    GateMap,
    load_gate_maps,
    load_gate_rows,
    require_gate_rows,
)
from depthdial.rows.store import RunSettings, UnitStore, schema_of

ROW: dict[str, Any] = {
    "sequence_id": "s0",
    "controller": "hidden",
    "mode": "sampled",
    "target": 0.5,
    "train_seed": 0,
    "n_layers": 4,
    "layers_run": 2.25,
    "rouge_l": 0.3,
}
MAP = GateMap("fixed", "argmax", 0.5, 1, 3, "s0", ("Hi", " there"), (True, False), ((1, 1, 1), (1, 0, 1)))


def _table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=schema_of(GATE_COLUMNS))


def test_rows_come_back_as_a_store_writes_them(tmp_path: Path) -> None:
    store = UnitStore(RunSettings({"model": "m"}), GATE_COLUMNS, tmp_path)
    assert store.schema == schema_of(GATE_COLUMNS)
    store.write("one", [ROW, {**ROW, "controller": "full", "mode": "none", "target": None, "train_seed": None}])
    assert store.collect(["one"]).equals(load_gate_rows(tmp_path))
    assert load_gate_rows(tmp_path / "rows.parquet")["target"].to_pylist() == [0.5, None]


def test_every_controller_is_a_known_one() -> None:
    require_gate_rows(_table(*({**ROW, "controller": name} for name in CONTROLLERS)))


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "holds no row"),
        ([{**ROW, "controller": "oracle"}], "the controller 'oracle'"),
        ([{**ROW, "mode": "greedy"}], "the mode 'greedy'"),
        ([ROW, {**ROW, "sequence_id": "s1", "n_layers": 6}], "4 and 6 layers"),
        ([ROW, ROW], "two rows of one controller"),
        ([{**ROW, "target": None, "train_seed": None}] * 2, "two rows of one"),
    ],
)
def test_other_rows_are_refused(rows: list[dict[str, Any]], told: str) -> None:
    with pytest.raises(InputError, match=told):
        require_gate_rows(_table(*rows))


def test_a_sweeps_rows_are_no_gates_studys(tmp_path: Path) -> None:
    pq.write_table(pa.table({"sequence_id": ["a"], "route": ["full"]}), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="no column 'controller'"):
        load_gate_rows(tmp_path)
    with pytest.raises(InputError, match="no result rows"):
        load_gate_rows(tmp_path / "missing")


def test_maps_come_back_in_order(tmp_path: Path) -> None:
    for name in ("b", "a"):
        GateMap.from_dict({**asdict(MAP), "sequence_id": name}).save(tmp_path / "maps" / f"{name}.json")
    assert [found.sequence_id for found in load_gate_maps(tmp_path)] == ["a", "b"]
    assert GateMap.from_dict(asdict(MAP)) == MAP
    assert json.loads((tmp_path / "maps" / "a.json").read_text())["ran"] == [[1, 1, 1], [1, 0, 1]]
    assert load_gate_maps(tmp_path / "missing") == []


def test_layers_are_counted_on_the_response() -> None:
    assert MAP.mean_layers == 2.0
    assert GateMap.from_dict({**asdict(MAP), "is_prompt": [True, True]}).mean_layers is None


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": ["a"]},
        {"ran": [[1, 1, 1], [1, 1]]},
        {"is_prompt": []},
        {"tokens": [], "is_prompt": [], "ran": []},
        {"n_layers": "three"},
        {"tokens": None},
    ],
)
def test_damaged_maps_are_named(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "maps").mkdir()
    stored = {**asdict(MAP), **change}
    with pytest.raises(InputError, match="gate map"):
        GateMap.from_dict(stored)
    (tmp_path / "maps" / "bad.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match=r"bad\.json"):
        load_gate_maps(tmp_path)


def test_a_map_without_a_field_is_refused() -> None:
    stored = asdict(MAP)
    del stored["ran"]
    with pytest.raises(InputError, match=r"lacks a field or is damaged \('ran'\)"):
        GateMap.from_dict(stored)
