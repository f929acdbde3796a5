"""Writing files so that a reader finds the old one, the new one, or none: never a half. Standard library only."""

from __future__ import annotations

import json
import operator
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from depthdial.errors import InputError

T = TypeVar("T")


def write_atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Call `write` with a temporary sibling of `path`, then rename that to `path`.

    Raises:
        InputError: if the folder cannot be written to (read-only, disk full); `path` is then as it was before.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files that only their owner can read
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"Cannot write {path}: {error.strerror or error}; make room or choose another folder, "
            "what was finished before is kept."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return path


def check_out_folder(path: Path) -> Path:
    """`path` itself, InputError unless it is a folder that can be written into or made; long work asks before it begins."""
    if path.exists() and not path.is_dir():
        raise InputError(f"Cannot write into {path}, which is a file: choose another --out.")
    _check_writable(path, path)
    return path


def check_out_file(path: Path) -> Path:
    """`path` itself, InputError unless it is a file that can be written or made; long work asks before it begins."""
    if path.is_dir():
        raise InputError(f"{path} is a folder, and one file is written: choose another --out, such as {path / 'out.json'}.")
    _check_writable(path.parent, path)
    return path


def _check_writable(folder: Path, path: Path) -> None:
    there = next((parent for parent in (folder, *folder.absolute().parents) if parent.exists()), folder)
    if not there.is_dir():
        raise InputError(f"Cannot write {path}, for {there} is a file: choose another --out.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"Cannot write {path}, for {there} is read-only for you: choose another --out.")


def write_text(path: Path, text: str) -> Path:
    return write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> Path:
    """Write JSON that strict readers take: a NaN raises ValueError."""
    # Whole numbers of numpy are whole numbers.
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=operator.index) + "\n")


def read_json(path: Path, what: str) -> Any:
    """The parsed JSON of `path`.

    Raises:
        InputError: if there is no such file or it is not JSON; `what` names it in the sentence ("route family").
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"There is no {what} file {path}: check the path.") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not a readable {what} file: {error}.") from error


@dataclass(frozen=True)
class Document:
    """A kind of JSON file that says what it is and of which version.

    Attributes:
        format: in the file, such as `depthdial-routes`.
        what: in sentences, such as "route family".
        remake: how to get a good one, such as "search again".
    """

    format: str
    version: int | None
    what: str
    remake: str

    def write(self, path: Path, fields: Mapping[str, Any]) -> Path:
        """Write one, by atomic rename."""
        version = {} if self.version is None else {"version": self.version}
        return write_json(path, {"format": self.format, **version, **fields})

    def read(self, path: Path, build: Callable[[dict[str, Any]], T]) -> T:
        """What `build` makes of a file's fields.

        Raises:
            InputError: if there is no such file, it is of another kind or version, or `build` cannot use its fields.
        """
        document = read_json(path, self.what)
        if not isinstance(document, dict) or document.get("format") != self.format:
            raise InputError(f"{path} is not a{'n' * (self.what[0] in 'aeiou')} {self.what} file: {self.remake}.")
        if document.get("version") != self.version:
            raise InputError(f"{path} is of version {document.get('version')!r}, not {self.version}: {self.remake}.")
        try:
            return build(document)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = str(error).rstrip(".") if isinstance(error, InputError) else repr(error)
            raise InputError(f"{path} is a damaged {self.what} file ({reason}): {self.remake}.") from error


def claim(
    path: Path, about: Mapping[str, Any], what: str, today: Callable[[dict[str, Any]], Mapping[str, Any]] = dict
) -> None:
    """Write down in `path` what its folder holds, or refuse a folder that holds something else.

    Args:
        today: what a file of before says, in the words of `about`.

    Raises:
        InputError: if `path` says otherwise; `what` names it in the sentence ("study").
    """
    if not path.exists():
        write_json(path, about)
        return
    new = json.loads(json.dumps(about, default=operator.index))
    old = json.loads(json.dumps(dict(today(read_json(path, what))), default=operator.index))
    changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    if changed:
        raise InputError(
            f"{path.parent} holds a {what} with another {changed[0]} ({old.get(changed[0])!r} then, {new.get(changed[0])!r} "
            "now): choose another --out, or delete the folder."
        )
