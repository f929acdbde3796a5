from __future__ import annotations

import math
import os
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from depthdial.errors import InputError
from depthdial.rows import store as results
from depthdial.rows.store import (
    PROVENANCE_COLUMNS,
    SWEEP_COLUMNS,
    RunSettings,
    UnitStore,
    count_samples,
    load_rows,
    unit_name,
    without_text,
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
    with pytest.raises(InputError, match=r"holds a run with another seed \(0 then, 1 now\)"):
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


def test_rows_without_text_keep_everything_else():
    rows = pa.table({"sequence_id": ["a"], "answer": ["Hi."], "reference": [None], "kl": [0.5]})
    assert without_text(rows).to_pydict() == {"sequence_id": ["a"], "kl": [0.5]}
    assert without_text(without_text(rows)).equals(without_text(rows))


def test_samples_are_counted_in_tables_of_any_kind():
    old = pa.table({"route": ["full"]})
    greedy, sampled = (pa.table({"sample": pa.array(column, pa.int64())}) for column in ([None, None], [0, 1, 2, 0]))
    for table, n_samples in ((old, 0), (greedy, 0), (sampled, 3)):
        assert count_samples(table) == count_samples(table.to_pandas()) == count_samples(table.to_pydict()) == n_samples


def of(route, sequences, value, samples=(None,)):
    about = {"route": route, "rouge_l": value}
    return [{**about, "sequence_id": f"s{i}", "sample": sample} for i in sequences for sample in samples]


def stored(folder, *columns):
    rows = pq.read_table(folder / "rows.parquet").to_pylist()
    return [tuple(row[name] for name in ("route", "sequence_id", "rouge_l", *columns)) for row in rows]


def test_a_folder_keeps_the_rows_of_every_call(tmp_path):
    first, second = (UnitStore(RUN, SWEEP_COLUMNS, tmp_path) for _ in range(2))
    full, shallow = (unit_name(["s0", "s1"], key) for key in ("full 0-5", "uls:3 1,3,5"))
    first.write(full, of("full", (0, 1), 0.9))
    first.collect([full], keep_others=True)
    second.write(shallow, of("uls:3", (0, 1), 0.5))
    returned = second.collect([shallow], keep_others=True)
    assert set(returned["route"].to_pylist()) == {"uls:3"}  # what was asked for
    assert stored(tmp_path) == [("uls:3", f"s{i}", 0.5) for i in (0, 1)] + [("full", f"s{i}", 0.9) for i in (0, 1)]
    first.collect([full], keep_others=True)
    assert len(stored(tmp_path)) == 4


def test_a_batch_that_has_grown_and_a_name_that_means_other_layers_are_there_once(tmp_path):
    store = UnitStore(RUN, SWEEP_COLUMNS, tmp_path)
    small, grown = (unit_name(ids, "full 0-5") for ids in (["s0"], ["s0", "s1"]))
    old, new, other = (unit_name(["s0"], key) for key in ("best 0,1", "best 0,2", "ee:3 0-2"))
    for age, (unit, rows) in enumerate(
        (
            (small, of("full", (0,), 0.9, (0, 1))),
            (old, of("best", (0,), 0.1)),
            (grown, of("full", (0, 1), 0.8, (0, 1))),
            (new, of("best", (0,), 0.2)),
            (other, of("ee:3", (0,), 0.3)),
        )
    ):
        store.write(unit, rows)
        path = tmp_path / "units" / f"{unit}.parquet"
        os.utime(path, ns=(age * 10**9, age * 10**9))
    store.collect([other], keep_others=True)
    assert sorted(stored(tmp_path)) == [
        ("best", "s0", 0.2),
        ("ee:3", "s0", 0.3),
        *(("full", f"s{i}", 0.8) for i in (0, 0, 1, 1)),
    ]
    store.collect([old], keep_others=True)  # asked for again
    assert ("best", "s0", 0.1) in stored(tmp_path) and ("best", "s0", 0.2) not in stored(tmp_path)


def test_of_two_that_collect_at_once_the_last_to_write_has_seen_all(tmp_path, monkeypatch):
    stores = [UnitStore(RUN, SWEEP_COLUMNS, tmp_path) for _ in range(2)]
    units = [unit_name(["s0"], key) for key in ("a 0", "b 1")]
    listed, go_on = threading.Event(), threading.Event()
    real = results.write_atomically

    def slow(path, write):
        if path.name == "rows.parquet" and not listed.is_set():
            listed.set()  # the first has listed its rows, and will write them late
            go_on.wait(5)
        real(path, write)

    stores[0].write(units[0], of("a", (0,), 0.1))
    monkeypatch.setattr(results, "write_atomically", slow)
    first = threading.Thread(target=lambda: stores[0].collect(units[:1], keep_others=True))
    first.start()
    listed.wait(5)
    stores[1].write(units[1], of("b", (0,), 0.2))
    second = threading.Thread(target=lambda: stores[1].collect(units[1:], keep_others=True))
    second.start()
    second.join(0.3)  # it waits, or has written
    go_on.set()
    for one in (first, second):
        one.join()
    assert sorted(row[0] for row in stored(tmp_path)) == ["a", "b"]
