from __future__ import annotations

import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from depthdial.errors import InputError
from depthdial.measure.results import (
    PROVENANCE_COLUMNS,
    SWEEP_COLUMNS,
    RunSettings,
    UnitStore,
    count_samples,
    load_rows,
    unit_name,
)

RUN = RunSettings(
    {"model": "m", "weights_hash": "w", "task": "t", "split": "test", "template": "chat", "seed": 0, "k": [1, 2]}
)
ROW = {"sequence_id": "a", "route": "full", "cost": 1.0, "kl": 0.5}


@pytest.mark.parametrize("in_memory", [True, False])
def test_units_come_back_in_order_with_their_provenance(tmp_path, in_memory):
    store = UnitStore(RUN, SWEEP_COLUMNS, None if in_memory else tmp_path)
    store.write("one", [ROW])
    store.write("two", [{**ROW, "sequence_id": "b"}])
    assert store.has("one") and not store.has("three")
    table = store.collect(["two", "one"])
    assert table.column_names == [*SWEEP_COLUMNS, *PROVENANCE_COLUMNS]
    assert table["sequence_id"].to_pylist() == ["b", "a"]
    assert table["rouge_l"].null_count == 2
    provenance = table.to_pylist()[0]
    assert (provenance["model"], provenance["seed"], provenance["settings_hash"]) == ("m", "0", RUN.hash)
    assert "torch=" in provenance["versions"] and "cores" in provenance["hardware"] and provenance["commit"]


def test_a_folder_is_reopened_with_the_same_settings_only(tmp_path):
    UnitStore(RUN, SWEEP_COLUMNS, tmp_path).write("one", [ROW])
    again = UnitStore(RunSettings(dict(reversed(RUN.settings.items()))), SWEEP_COLUMNS, tmp_path)
    assert again.has("one")
    with pytest.raises(InputError, match="seed: 0 then, 1 now"):
        UnitStore(RunSettings({**RUN.settings, "seed": 1}), SWEEP_COLUMNS, tmp_path)
    assert pq.read_table(tmp_path / "units" / "one.parquet").num_rows == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused_and_nothing_is_lost(tmp_path, bad):
    store = UnitStore(RUN, SWEEP_COLUMNS, tmp_path)
    store.write("one", [ROW])
    with pytest.raises(InputError, match=r"kl is .* for sequence 'a' on route 'full'"):
        store.write("two", [{**ROW, "kl": bad}])
    assert store.has("one") and not store.has("two")


def test_half_a_unit_is_never_seen(tmp_path, monkeypatch):
    store = UnitStore(RUN, SWEEP_COLUMNS, tmp_path)

    def full_disk(table, path):
        path.write_bytes(b"PAR1 half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full_disk)
    with pytest.raises(InputError, match="No space left on device"):
        store.write("one", [ROW])
    assert not store.has("one")
    assert list((tmp_path / "units").iterdir()) == []


def test_an_unknown_column_is_dropped_by_no_accident(tmp_path):
    store = UnitStore(RUN, SWEEP_COLUMNS, tmp_path)
    with pytest.raises(ValueError, match="rogue"):
        store.write("one", [{**ROW, "rogue": 0.5}])


def test_unit_names_differ_where_they_must():
    names = {unit_name(ids, key) for ids in (["a", "b"], ["ab"], ["a"]) for key in ("uls:12", "uls:1 2", "full")}
    assert len(names) == 9
    assert unit_name(["a"], "uls:12") == unit_name(["a"], "uls:12")
    assert all("/" not in name and ":" not in name for name in names)


def test_rows_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match="no result rows"):
        load_rows(tmp_path)
    (tmp_path / "rows.parquet").write_text("not parquet")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        load_rows(tmp_path)


def test_samples_are_counted_in_tables_of_any_kind():
    old = pa.table({"route": ["full"]})
    greedy, sampled = (pa.table({"sample": pa.array(column, pa.int64())}) for column in ([None, None], [0, 1, 2, 0]))
    for table, n_samples in ((old, 0), (greedy, 0), (sampled, 3)):
        assert count_samples(table) == count_samples(table.to_pandas()) == count_samples(table.to_pydict()) == n_samples
