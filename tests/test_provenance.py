"""Where numbers come from: the fingerprint of settings, the versions, and the revision of the code."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import depthdial
from depthdial import provenance

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
SETTINGS = st.dictionaries(st.text(max_size=5), SCALARS | st.lists(SCALARS, max_size=3), max_size=6)


@given(SETTINGS, st.randoms())
def test_the_order_of_settings_does_not_matter(settings: dict[str, object], random) -> None:
    shuffled = list(settings.items())
    random.shuffle(shuffled)
    assert provenance.digest(dict(shuffled)) == provenance.digest(settings)


@given(SETTINGS, SETTINGS)
def test_other_settings_have_another_digest(one: dict[str, object], other: dict[str, object]) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (provenance.digest(one) == provenance.digest(other)) == same


def test_digests_are_pinned() -> None:
    # Rows of results carry this value.
    assert provenance.digest({"b": [1, "x"], "a": None}) == "7c2e4f07798c1777"
    assert provenance.digest({"a": None, "b": (1, "x")}) == "7c2e4f07798c1777"
    assert provenance.digest({"a": None, "b": [1.0, "x"]}) != "7c2e4f07798c1777"


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_equal_nothing_have_no_digest(number: float) -> None:
    with pytest.raises(ValueError):
        provenance.digest({"alpha": number})


def test_digests_are_the_same_in_every_process() -> None:
    code = "from depthdial.provenance import digest; print(digest({'z': 1, 'a': ['é', None, 0.1]}))"
    expected = provenance.digest({"a": ["é", None, 0.1], "z": 1})
    child = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": "99"}, capture_output=True, text=True, check=True
    )
    assert child.stdout.strip() == expected


def test_versions_name_what_decides_about_results() -> None:
    pairs = dict(pair.split("=", 1) for pair in provenance.versions().split())
    assert pairs["python"] == platform.python_version()
    assert pairs["torch"] == importlib.metadata.version("torch")
    assert pairs["depthdial"] == importlib.metadata.version("depthdial") == depthdial.__version__
    assert {"transformers", "tokenizers", "numpy", "rouge-score"} < pairs.keys()
    assert "absent" not in pairs.values()


def test_a_package_that_is_not_there_is_said_to_be_absent() -> None:
    assert provenance._version("no-such-package-here") == "absent"


def test_hardware_names_processor_cores_and_threads() -> None:
    text = provenance.hardware()
    assert f"{torch.get_num_threads()} threads" in text
    assert " cores, " in text
    assert text.split(",")[0].strip()


def test_the_environment_is_text_for_a_row() -> None:
    assert provenance.environment() == {
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
        "commit": provenance.commit(),
    }


# The revision, in checkouts made for the test


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=T", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
    run = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return run.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of a package like this one; provenance believes to be in it."""
    if shutil.which("git") is None:
        pytest.skip("no git here")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    package = tmp_path / "src" / "depthdial"
    for name in ("__init__.py", "views/view.py", "provenance.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("# first\n")
    (tmp_path / "README.md").write_text("first\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    return tmp_path


def commit() -> str:
    return provenance.commit.__wrapped__()


def test_a_clean_checkout_is_its_revision(checkout: Path) -> None:
    revision = commit()
    assert len(revision) >= 12
    assert git(checkout, "rev-parse", "HEAD").startswith(revision)


@pytest.mark.parametrize("name", ["__init__.py", "views/view.py", "provenance.py"])
def test_a_changed_file_of_any_room_shows(checkout: Path, name: str) -> None:
    clean = commit()
    (checkout / "src" / "depthdial" / name).write_text("# changed\n")
    assert commit() == clean + "+"
    git(checkout, "commit", "-q", "-a", "-m", "second")
    assert commit() != clean
    assert not commit().endswith("+")


def test_changes_outside_the_package_do_not_count(checkout: Path) -> None:
    clean = commit()
    (checkout / "README.md").write_text("changed\n")
    (checkout / "src" / "depthdial" / "notes.txt").write_text("untracked\n")
    assert commit() == clean


def test_a_virtual_environment_inside_somebody_elses_checkout_is_a_release(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = checkout / ".venv" / "depthdial" / "provenance.py"
    installed.parent.mkdir(parents=True)
    (installed.parent / "__init__.py").write_text("")
    installed.write_text("")
    monkeypatch.setattr(provenance, "__file__", str(installed))
    assert commit() == f"release {importlib.metadata.version('depthdial')}"


def test_no_checkout_at_all_is_a_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "depthdial"
    package.mkdir(parents=True)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    assert commit() == f"release {importlib.metadata.version('depthdial')}"


def test_no_git_at_all_is_a_release(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(checkout / "nothing-here"))
    assert commit().startswith("release ")
