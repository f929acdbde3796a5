"""Readers: encodings, compression, delimiters, shapes of JSON, and columns that nobody asked for."""

import gzip
import io
import json
import types

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import ipc, parquet

from depthdial.data import readers
from depthdial.data.readers import KINDS, open_file
from depthdial.errors import InputError

ROWS = [{"prompt": "Ä, ö", "response": "1"}, {"prompt": "b\nc", "response": "2"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def rows_of(path):
    file = open_file(path)
    return [row for _, row in file.read(file.columns)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_is_read_whatever_its_mark(tmp_path, encoding):
    (tmp_path / "a.jsonl").write_bytes(LINES.encode(encoding))
    assert rows_of(tmp_path / "a.jsonl") == ROWS


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "b.jsonl"])
@pytest.mark.parametrize(
    "text",
    [
        LINES,
        json.dumps(ROWS),
        json.dumps(ROWS, indent=1),
        json.dumps({"data": ROWS}),
        "\n".join(json.dumps(r, indent=2) for r in ROWS),
    ],
)
def test_json_is_read_in_every_shape_whatever_it_is_called(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert rows_of(tmp_path / name) == ROWS


def test_compressed_text_is_read_and_what_is_cut_off_is_told(tmp_path):
    packed = gzip.compress(LINES.encode())
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    assert rows_of(tmp_path / "a.jsonl.gz") == ROWS
    (tmp_path / "b.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match=r"'.*b\.jsonl\.gz' cannot be read"):
        open_file(tmp_path / "b.jsonl.gz")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'prompt, response\n"a, b", c d\n'),
        ("a.csv", "prompt;response\na, b;c d\n"),
        ("a.csv", "prompt\tresponse\na, b\tc d\n"),
        ("a.tsv", "prompt\tresponse\na, b\tc d\n"),
        ("a.csv", ' prompt ,response\n"a, b",c d\n'),
    ],
)
def test_delimiters_and_blanks_in_a_header(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert rows_of(tmp_path / name) == [{"prompt": "a, b", "response": "c d"}]


def test_numbers_of_any_length_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "n": %s, "m": 12}' % ("9" * 5000))
    assert rows_of(tmp_path / "a.jsonl") == [{"prompt": "a", "n": "9" * 5000, "m": 12}]


def test_columns_that_nobody_asked_for_are_not_read(tmp_path):
    years = pa.array([2**60], pa.timestamp("us"))
    parquet.write_table(pa.table({"prompt": ["a"], "when": years}), tmp_path / "a.parquet")
    file = open_file(tmp_path / "a.parquet")
    assert file.columns == ("prompt", "when") and file.n_rows == 1
    assert file.read(["prompt"]) == [(1, {"prompt": "a"})]
    with pytest.raises(InputError, match=r"Field 'when' of .* cannot be read .*: give text"):
        file.read(["when"])


@pytest.mark.parametrize("new", [ipc.new_stream, ipc.new_file])
def test_arrow_files_are_read(tmp_path, new):
    table = pa.table(
        {"prompt": pa.array(["a", None]).dictionary_encode(), "response": pa.array(["x", "y"], pa.large_string())}
    )
    with new(tmp_path / "a.arrow", table.schema) as sink:
        sink.write_table(table)
    assert rows_of(tmp_path / "a.arrow") == [{"prompt": "a", "response": "x"}, {"prompt": None, "response": "y"}]


def test_standard_input_is_read_once(monkeypatch):
    readers._stream.cache_clear()
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(LINES.encode())))
    for _ in range(2):
        file = open_file(readers.Path("-"))
        assert [row for _, row in file.read(file.columns)] == ROWS
    readers._stream.cache_clear()


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_a_git_lfs_pointer_is_told_as_such(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\n")
    with pytest.raises(InputError, match="Git LFS pointer"):
        open_file(tmp_path / name)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(KINDS), st.sampled_from(["", ".gz"]), st.one_of(st.binary(max_size=40), st.integers(0, 700)))
def test_nothing_but_input_errors_comes_out_of_a_bad_file(tmp_path_factory, kind, packed, content):
    """Random bytes, and a Parquet file cut off anywhere, under every name."""
    if isinstance(content, int):
        sink = io.BytesIO()
        parquet.write_table(pa.table({"prompt": ["a"]}), sink)
        content = sink.getvalue()[:content]
    path = tmp_path_factory.mktemp("bad") / f"a{kind}{packed}"
    path.write_bytes(content)
    try:
        file = open_file(path)
        file.read(file.columns)
    except InputError as error:
        assert str(error)[0] in "'RF" and ": " in str(error)


def test_values_nested_too_deeply_are_refused_by_their_row(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n{"prompt": ' + "[" * 30_000 + "]" * 30_000 + "}")
    with pytest.raises(InputError, match=r"Row 2 of .* nests values too deeply"):
        open_file(tmp_path / "a.jsonl")
