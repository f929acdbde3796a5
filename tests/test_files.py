"""Files are there whole or not at all, whatever goes wrong while they are written."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from depthdial.errors import InputError
from depthdial.files import (
    Document,
    check_out_file,
    check_out_folder,
    claim,
    read_json,
    write_atomically,
    write_json,
    write_text,
)

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
BROKEN = OSError(errno.EIO, os.strerror(errno.EIO))


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def half_then(error: BaseException) -> Callable[[Path], None]:
    def write(part: Path) -> None:
        part.write_text("half of the n")
        raise error

    return write


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "rows.json"
    path.write_text("old")
    return path


def assert_untouched(old: Path) -> None:
    assert old.read_text() == "old"
    assert names_in(old.parent) == [old.name]  # and no .part file is left


def test_a_file_and_its_folders_are_written(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "notes.txt"
    assert write_text(path, "first\n") == path
    assert write_text(path, "zweite Fassung, größer\n") == path
    assert path.read_bytes() == "zweite Fassung, größer\n".encode()
    assert names_in(path.parent) == ["notes.txt"]


def test_the_writer_gets_a_sibling_and_readers_the_old_file_meanwhile(old: Path) -> None:
    seen: list[Path] = []

    def write(part: Path) -> None:
        part.write_text("new")
        seen.append(part)
        assert old.read_text() == "old"

    write_atomically(old, write)
    assert seen[0].parent == old.parent  # else the last step would copy and not rename
    assert seen[0].name.endswith(".part")
    assert old.read_text() == "new"
    assert names_in(old.parent) == [old.name]


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyboardInterrupt(), SystemExit(1)])
def test_a_writer_that_fails_leaves_the_old_file(old: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        write_atomically(old, half_then(error))
    assert_untouched(old)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FULL, "No space left on device"),
        (BROKEN, "Input/output error"),
        (OSError("odd"), "odd"),
    ],
)
def test_a_full_or_broken_disk_is_one_sentence_and_leaves_the_old_file(old: Path, error: OSError, reason: str) -> None:
    with pytest.raises(InputError) as caught:
        write_atomically(old, half_then(error))
    assert f"Cannot write {old}: {reason}; make room or choose another folder" in str(caught.value)
    assert "what was finished before is kept" in str(caught.value)
    assert_untouched(old)


@pytest.mark.parametrize("step", ["mkdir", "replace"])
def test_the_disk_may_fill_at_any_step(old: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def refuse(*_arguments: object, **_options: object) -> NoReturn:
        raise FULL

    with monkeypatch.context() as patched:
        patched.setattr(Path, step, refuse)
        with pytest.raises(InputError, match="No space left on device"):
            write_text(old, "new")
    assert_untouched(old)


def test_a_read_only_folder_is_one_sentence(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:  # root may write anywhere: let the file system refuse as it does for others
        monkeypatch.setattr("tempfile.mkstemp", _denied)
    else:
        old.parent.chmod(0o500)
    try:
        with pytest.raises(
            InputError, match=r"Cannot write .*rows\.json: Permission denied; make room or choose another folder"
        ):
            write_text(old, "new")
    finally:
        old.parent.chmod(0o700)
    assert_untouched(old)


def _denied(**options: Any) -> NoReturn:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(options["dir"]))


def test_a_file_where_a_folder_should_be(old: Path) -> None:
    with pytest.raises(InputError, match="Cannot write"):
        write_text(old / "rows.json", "new")
    assert_untouched(old)


def test_a_folder_where_a_file_should_be(tmp_path: Path) -> None:
    (tmp_path / "rows.json").mkdir()
    with pytest.raises(InputError, match="Cannot write"):
        write_text(tmp_path / "rows.json", "new")
    assert names_in(tmp_path) == ["rows.json"]


def test_files_have_the_permissions_of_any_other_file(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        path = write_text(tmp_path / "shared.txt", "for the group")
        assert os.umask(0o027) == 0o027  # left as it was
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_json_has_no_nan(old: Path, number: float) -> None:
    with pytest.raises(ValueError):
        write_json(old, {"kl": [1.0, number]})
    assert_untouched(old)


def test_json_of_what_is_no_json(old: Path) -> None:
    with pytest.raises(TypeError):
        write_json(old, {"path": old})
    assert_untouched(old)


def test_json_comes_back(tmp_path: Path) -> None:
    value = {"text": "naïve ☃", "numbers": [1, -2.5, 1e-300, True, None], "empty": {}}
    path = write_json(tmp_path / "value.json", value)
    assert read_json(path, "settings") == value
    assert path.read_text(encoding="utf-8").endswith("}\n")
    assert "☃" in path.read_text(encoding="utf-8")
    assert json.loads(path.read_text(encoding="utf-8")) == value


def test_unreadable_json_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    with pytest.raises(InputError, match=r"There is no settings file .*settings\.json: check the path"):
        read_json(path, "settings")
    for content in (b"", b"{", b"[1,]", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"settings\.json is not a readable settings file"):
            read_json(path, "settings")
    with pytest.raises(InputError, match="is not a readable settings file"):
        read_json(tmp_path, "settings")


def test_a_folder_is_claimed_once(tmp_path):
    path, about = tmp_path / "out" / "run.json", {"seed": 3, "routes": ("a", "b"), "rate": None}
    claim(path, about, "run")
    claim(path, about, "run")  # tuples come back from JSON as lists
    with pytest.raises(InputError, match=r"out holds a run with another seed \(3 then, 4 now\): choose another --out"):
        claim(path, {**about, "seed": 4}, "run")
    with pytest.raises(InputError, match=r"another extra \(None then, 1 now\)"):
        claim(path, {**about, "extra": 1}, "run")
    assert json.loads(path.read_text()) == {"seed": 3, "routes": ["a", "b"], "rate": None}


def test_places_to_write_to_are_checked_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    assert check_out_folder(tmp_path / "new" / "deep") == tmp_path / "new" / "deep"
    assert check_out_file(tmp_path / "new.json") == tmp_path / "new.json"
    assert check_out_file(tmp_path / "file") == tmp_path / "file"
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match=r"Cannot write into .*file, which is a file: choose another --out"):
        check_out_folder(tmp_path / "file")
    with pytest.raises(InputError, match="is a folder, and one file is written: choose another --out, such as"):
        check_out_file(tmp_path)
    for check in (check_out_folder, check_out_file):
        with pytest.raises(InputError, match=r"Cannot write .*b, for .*file is a file: choose another --out"):
            check(tmp_path / "file" / "a" / "b")


def test_a_folder_that_may_not_be_written_to_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    for check in (check_out_folder, check_out_file):
        with pytest.raises(InputError, match="is read-only for you: choose another --out"):
            check(tmp_path / "a")


def test_a_document_says_what_is_wrong_with_a_file_and_how_to_get_a_good_one(tmp_path: Path) -> None:
    notes = Document("depthdial-notes", 2, "note", "write it again")
    path = notes.write(tmp_path / "note.json", {"text": "a", "count": np.int64(3)})
    assert notes.read(path, dict) == {"format": "depthdial-notes", "version": 2, "text": "a", "count": 3}
    assert notes.read(path, lambda fields: fields["text"]) == "a"
    for fields, complaint in (
        ({}, f"{path} is not a note file: write it again."),
        ([], f"{path} is not a note file: write it again."),
        ({"format": "depthdial-notes"}, f"{path} is of version None, not 2: write it again."),
        ({"format": "depthdial-notes", "version": 2}, f"{path} is a damaged note file (KeyError('text')): write it again."),
    ):
        write_json(path, fields)
        with pytest.raises(InputError) as caught:
            notes.read(path, lambda fields: fields["text"])
        assert str(caught.value) == complaint
