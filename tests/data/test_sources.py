"""Sources: every kind of file, folders, the Hub (a stand-in), seeded splits, and one sentence for what cannot be read."""

import csv
import itertools
import json
import os
import sys
import types

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from depthdial.data.sources import HUB_SETS, SEEDED_SPLITS, open_source, split_rows
from depthdial.errors import InputError

ROWS = [{"instruction": f'Do {i}, "please".\nNow \u2028.', "input": "", "output": f"Done {i}"} for i in range(20)]


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as lines:
            writer = csv.DictWriter(lines, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def rows_of(source):
    return [row for _, row in source.read(source.columns)]


def numbers_of(source):
    return [number for number, _ in source.read(source.columns)]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_every_kind_of_file_gives_the_rows_that_were_written(tmp_path, kind):
    source = open_source(write(tmp_path / f"mine.{kind}", ROWS), None, 0)
    assert (source.name, source.split, source.origin) == ("mine", "all", f"mine.{kind}")
    assert source.columns == ("instruction", "input", "output")
    pairs = list(source.read(source.columns))
    assert [number for number, _ in pairs] == list(range(1, 21))
    assert [row for _, row in pairs] == ROWS


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_a_byte_order_mark_is_no_part_of_the_first_field(tmp_path, kind):
    path = write(tmp_path / f"mine.{kind}", ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert open_source(path, None, 0).columns[0] == "instruction"


def test_blank_lines_are_skipped_and_rows_keep_the_number_of_their_line(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('\n{"text": "a"}\n\n{"text": "b"}\n\n')
    assert numbers_of(open_source(path, None, 0)) == [2, 4]


def test_columns_are_those_that_any_row_has(tmp_path):
    assert open_source(write(tmp_path / "a.jsonl", [{"x": "1"}, {"y": "2"}]), None, 0).columns == ("x", "y")


def test_a_csv_field_may_be_long_and_the_limit_of_others_stays(tmp_path):
    before = csv.field_size_limit(1000)
    try:
        source = open_source(write(tmp_path / "a.csv", [{"text": "x" * 200_000}]), None, 0)
        assert len(rows_of(source)[0]["text"]) == 200_000
        assert csv.field_size_limit() == 1000
    finally:
        csv.field_size_limit(before)


def test_a_csv_row_with_too_few_values_lacks_the_last_fields(tmp_path):
    (tmp_path / "a.csv").write_text("text,x\na,\nb\n")
    assert rows_of(open_source(tmp_path / "a.csv", None, 0)) == [{"text": "a", "x": ""}, {"text": "b"}]


@given(st.integers(7, 300), st.integers(-5, 1000))
def test_splits_are_disjoint_cover_everything_and_keep_the_order(n_rows, seed):
    parts = [split_rows(n_rows, split, seed) for split in SEEDED_SPLITS]
    assert sorted(itertools.chain(*parts)) == list(range(n_rows)) == split_rows(n_rows, "all", seed)
    assert all(part == sorted(part) for part in parts)
    assert len(parts[1]) == len(parts[2]) == n_rows * 15 // 100


def test_the_draw_is_that_of_the_seed_in_every_process_and_version():
    assert split_rows(20, "test", 42) == [4, 6, 18]
    assert split_rows(20, "validation", 42) == [0, 5, 14]
    assert split_rows(20, "test", 43) != split_rows(20, "test", 42)


def test_a_file_is_divided_when_a_split_is_asked_for(tmp_path):
    path = write(tmp_path / "mine.jsonl", ROWS)
    source = open_source(str(path), "test", 42)
    assert (source.split, source.seed) == ("test", 42)
    assert numbers_of(source) == [i + 1 for i in split_rows(20, "test", 42)]


def test_a_folder_holds_a_file_for_each_split_and_test_is_the_default(tmp_path):
    write(tmp_path / "train.jsonl", ROWS[:10])
    write(tmp_path / "validation.csv", ROWS[10:15])
    write(tmp_path / "test.parquet", ROWS[15:])
    (tmp_path / "README.md").write_text("not data")
    source = open_source(tmp_path, None, 0)
    assert (source.name, source.split, source.origin) == (tmp_path.name, "test", f"{tmp_path.name}/test.parquet")
    assert rows_of(source) == ROWS[15:]
    assert rows_of(open_source(tmp_path, "train", 0)) == ROWS[:10]
    assert rows_of(open_source(tmp_path, "validation", 0)) == ROWS[10:15]
    with pytest.raises(InputError, match=r"Unknown split 'dev' of folder .*: use one of test, train, validation"):
        open_source(tmp_path, "dev", 0)


def test_the_only_file_of_a_folder_is_its_default_split(tmp_path):
    write(tmp_path / "questions.jsonl", ROWS)
    assert open_source(tmp_path, None, 0).split == "questions"


def test_two_files_for_one_split_are_an_input_error(tmp_path):
    write(tmp_path / "test.jsonl", ROWS)
    write(tmp_path / "test.csv", ROWS)
    with pytest.raises(InputError, match="two files for split 'test'"):
        open_source(tmp_path, None, 0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "'.*a.jsonl' holds no rows"),
        ("a.jsonl", b"\n\n", "holds no rows"),
        ("a.json", b"[]", "holds no rows"),
        ("a.csv", b"", "holds no rows"),
        ("a.csv", b"instruction,output\n", "holds no rows"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "Row 2 of '.*a.jsonl' is not valid JSON"),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', "Row 2 of '.*a.jsonl' is not a JSON object"),
        ("a.jsonl", b'{"text": "\xff"}\n', "not UTF-8 text"),
        ("a.json", b'[{"text": "a"},', "is not valid JSON"),
        ("a.json", b'["a"]', "Row 1 of '.*a.json' is not a JSON object"),
        ("a.csv", b"text,x\na,1\nb,2,3\n", "Row 2 of '.*a.csv' has more values than the header"),
        ("a.csv", b'text,x\na,1\n"b,2\n', "Row 2 of '.*a.csv' is not valid CSV"),
        ("a.parquet", b"no parquet at all", "cannot be read as Parquet"),
        ("a.parquet", b"", "cannot be read as Parquet"),
        ("a.xlsx", b"x", "unknown kind: give a .jsonl, .json, .csv, .tsv, .parquet or .arrow file"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_so(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_source(tmp_path / name, None, 0)


def test_a_parquet_file_without_rows_is_an_input_error(tmp_path):
    parquet.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="holds no rows"):
        open_source(tmp_path / "a.parquet", None, 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("alpacca", "Unknown task 'alpacca': name one of builtin, alpaca, cnn_dailymail, samsum, dolly"),
        ("", "Unknown task ''"),
        ("missing.jsonl", "no file or folder 'missing.jsonl'"),
        ("no/such", "no file or folder"),
        (7, "a name or a path, not 7"),
    ],
)
def test_a_name_that_stands_for_nothing_is_an_input_error(name, message):
    with pytest.raises(InputError, match=message):
        open_source(name, None, 0)


def test_a_folder_without_data_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"holds no \.jsonl, \.json, \.csv, \.tsv, \.parquet or \.arrow file"):
        open_source(tmp_path, None, 0)


def test_a_split_of_too_few_rows_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="The test split of 3 rows is empty: use split='all'"):
        open_source(write(tmp_path / "a.jsonl", ROWS[:3]), "test", 0)


@pytest.mark.parametrize("name", ["builtin", "alpaca", "cnn_dailymail"])
def test_an_unknown_split_lists_the_known_before_anything_is_downloaded(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=f"Unknown split 'dev' of {name}: use one of .*test"):
        open_source(name, "dev", 0)


def test_an_unknown_split_of_a_file_lists_the_known(tmp_path):
    with pytest.raises(InputError, match="Unknown split 'dev': use one of train, validation, test, all"):
        open_source(write(tmp_path / "a.jsonl", ROWS), "dev", 0)


class FakeDataset:
    """As much of `datasets.Dataset` as is used."""

    def __init__(self, rows):
        self.rows = rows
        self.column_names = list(rows[0])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]

    def select_columns(self, names):
        return FakeDataset([{name: row[name] for name in names} for row in self.rows])


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the package `datasets`; what it was asked for is in `.asked`."""
    module = types.ModuleType("datasets")
    asked = []

    def load_dataset(repo, config=None, *, split):
        asked.append((repo, config, split))
        return FakeDataset(ROWS)

    vars(module).update(load_dataset=load_dataset, asked=asked)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


@pytest.mark.parametrize(
    ("name", "split", "asked"),
    [
        ("cnn_dailymail", None, ("abisee/cnn_dailymail", "3.0.0", "test")),
        ("samsum", "validation", ("knkarthick/samsum", None, "validation")),
    ],
)
def test_a_hub_set_with_splits_of_its_own_is_taken_as_it_is(hub, name, split, asked):
    source = open_source(name, split, 0)
    assert hub.asked == [asked]
    assert rows_of(source) == ROWS
    assert source.origin == asked[0] and source.split == asked[2]


@pytest.mark.parametrize("name", ["alpaca", "dolly"])
def test_a_hub_set_with_one_split_is_divided_with_the_papers_seed(hub, name):
    source = open_source(name, None, 7)
    assert hub.asked == [(HUB_SETS[name].repo, None, "train")]
    assert source.seed == 42
    assert numbers_of(source) == [i + 1 for i in split_rows(20, "test", 42)]
    assert len(rows_of(open_source(name, "all", 7))) == 20


def test_the_papers_budgets():
    budgets = {name: (s.max_prompt_tokens, s.max_response_tokens) for name, s in HUB_SETS.items()}
    assert budgets["alpaca"] == (128, 384)  # 512, a quarter for the prompt
    assert budgets["cnn_dailymail"] == (1433, 615)  # 2,048, 70% for the article


def test_a_missing_datasets_package_names_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"'datasets', which is not installed: pip install .*--data FILE"):
        open_source("samsum", None, 0)


def test_a_hub_out_of_reach_names_the_way_out(hub, monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(hub, "load_dataset", refuse)
    with pytest.raises(InputError, match=r"'samsum' could not be had .*no route to host.*--data FILE"):
        open_source("samsum", None, 0)


def test_a_name_wins_over_a_folder_that_a_path_reaches(tmp_path, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alpaca").mkdir()
    write(tmp_path / "alpaca" / "test.jsonl", ROWS[:2])
    assert open_source("alpaca", None, 0).origin == "tatsu-lab/alpaca"
    assert open_source(f".{os.sep}alpaca", None, 0).origin == "alpaca/test.jsonl"
