"""The folder of an export: written beside its place and renamed there whole, never into something of somebody else's."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from depthdial.errors import InputError
from depthdial.files import Document, check_out_folder

EXPORT_FILE = "depthdial_export.json"
RECORD = Document("depthdial-export", 1, "export", "export again into another folder")


def read_record(folder: Path) -> dict[str, Any] | None:
    """What an export of before says of itself; None for a folder that holds none."""
    path = folder / EXPORT_FILE
    return RECORD.read(path, dict) if path.is_file() else None


def found_there(folder: Path, about: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of the same export, if the folder holds it already; None for a folder that is to be written.

    Raises:
        InputError: if the folder holds something else, or cannot be written.
    """
    check_out_folder(folder)
    record = read_record(folder) if folder.is_dir() else None
    if record is None:
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty, and holds no export of Depthdial: choose another folder.")
        return None
    changed = sorted(name for name in about if record.get(name) != about[name])
    if changed:
        raise InputError(
            f"{folder} holds an export with another {changed[0]} ({record.get(changed[0])!r} then, {about[changed[0]]!r} "
            "now): choose another folder, or delete it."
        )
    return record


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a temporary sibling, which becomes `folder`; what a killed process has left of one is removed.

    Raises:
        InputError: if the disk is full or cannot be written; nothing is left then.
    """
    folder = folder.absolute()
    part = folder.with_name(f".{folder.name}.{_host()}-{os.getpid()}.part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(folder)
        part.mkdir()
        write(part)
        if folder.is_dir():
            folder.rmdir()  # empty, or `found_there` had refused it
        part.rename(folder)
    except OSError as error:
        raise _unwritten(folder, error.strerror or str(error)) from error
    except Exception as error:
        if "No space left" in str(error):  # safetensors has an error of its own
            raise _unwritten(folder, "No space left on device") from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _unwritten(folder: Path, reason: str) -> InputError:
    return InputError(f"Cannot write {folder}: {reason}; make room or choose another folder.")


def _host() -> str:
    return re.sub(r"[^\w-]", "_", socket.gethostname())


def _remove_left(folder: Path) -> None:
    """Remove what processes of this machine that are no more have left of this folder."""
    pattern = re.compile(re.escape(f".{folder.name}.{_host()}-") + r"(\d+)\.part")
    for path in folder.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match and not _is_alive(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    if process == os.getpid():
        return False  # this one is not writing there now
    if os.name == "nt":  # where signal 0 is a signal
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True
