"""Small wheels that carry parts of a file."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from depthdial.hf.wheels import Wheel


def make_wheel(folder: Path, part: int, content: bytes) -> tuple[Wheel, Path]:
    """A wheel with that content, and where it lies."""
    name = f"tiny_model{part}"
    file = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo(f"{name}/__init__.py"), "raise RuntimeError('never imported')")
        archive.writestr(zipfile.ZipInfo(f"{name}/part.bin"), content)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    return Wheel(f"tiny-model{part}==1.0", sha256, f"{name}/part.bin"), file


def wheel_file(folder: Path, wheel: Wheel) -> Path:
    """The file of a wheel that `make_wheel` made in a folder."""
    return folder / f"{wheel.member.split('/')[0]}-1.0-py3-none-any.whl"
