"""The folder of an export: whole or not there, and never somebody else's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from depthdial.errors import InputError
from depthdial.exports.folder import EXPORT_FILE, RECORD, found_there, read_record, write_folder

ABOUT = {"to": "hf", "layers": "0,2", "n_layers": 6}


def fill(folder: Path) -> None:
    (folder / "weights").write_text("w")
    RECORD.write(folder / EXPORT_FILE, ABOUT)


@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_appears_whole(tmp_path: Path, is_there: bool) -> None:
    out = tmp_path / "deep" / "out"
    if is_there:
        out.mkdir(parents=True)
    assert found_there(out, ABOUT) is None
    write_folder(out, fill)
    assert sorted(path.name for path in out.iterdir()) == sorted([EXPORT_FILE, "weights"])
    assert list(out.parent.iterdir()) == [out]
    assert read_record(out)["layers"] == found_there(out, ABOUT)["layers"] == "0,2"


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("w")
        raise InputError("It does not fit.")

    with pytest.raises(InputError, match="It does not fit"):
        write_folder(tmp_path / "out", fail)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("I/O error: No space left on device")]
)
def test_a_full_disk_is_one_sentence(tmp_path: Path, error: Exception) -> None:
    def fail(folder: Path) -> None:
        raise error

    with pytest.raises(InputError, match=r"Cannot write .*out: No space left on device; make room"):
        write_folder(tmp_path / "out", fail)
    assert not list(tmp_path.iterdir())


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty, and holds no export of Depthdial: choose another folder"):
        found_there(tmp_path, ABOUT)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="which is a file"):
        found_there(tmp_path / "file", ABOUT)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_another_export_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "out", fill)
    with pytest.raises(InputError, match=r"holds an export with another layers \('0,2' then, '0,3' now\)"):
        found_there(tmp_path / "out", {**ABOUT, "layers": "0,3"})
    (tmp_path / "out" / EXPORT_FILE).write_text("{}")
    with pytest.raises(InputError, match="is not an export file: export again"):
        found_there(tmp_path / "out", ABOUT)


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_writes_is_kept(tmp_path: Path) -> None:
    seen = []
    write_folder(tmp_path / "out", lambda folder: seen.append(folder))
    mine = seen[0].name
    dead, alive, other = (
        tmp_path / mine.replace(f"-{os.getpid()}.", f"-{number}.") for number in (2**22 + 1, os.getppid(), "x")
    )
    (tmp_path / "out").rmdir()
    for left in (dead, alive, other):
        left.mkdir()
    write_folder(tmp_path / "out", fill)
    assert not dead.exists() and alive.exists() and other.exists()
