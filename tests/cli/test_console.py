"""The console: every verb's characters can be printed wherever, and nothing but ASCII where that is all there is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from depthdial.cli.console import spelled

SHOW = (
    "from depthdial.cli.console import prepare_console; import typer, sys; prepare_console();"
    "from depthdial.cli.console import print_table;"
    "typer.echo('█··█ ★ café – 10 × 2 \\udcff 你'); typer.echo('│ … →', err=True); print('★');"
    "print_table('T', ['a'], [['–']])"
)


def run(code: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", f"exec({code!a})"], capture_output=True, env={**os.environ, **environment}, check=False
    )


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}],
)
def test_a_console_of_ascii_gets_ascii(environment):
    done = run(SHOW, **environment)
    assert done.returncode == 0, done.stderr.decode()
    said = done.stdout.decode("ascii")
    assert said.startswith("#..# * cafe - 10 x 2 ? ?\n*\n") and done.stderr.decode("ascii") == "| ... ->\n"
    assert "+" in said or "-" in said  # the table's frame


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "latin-1", "utf-8"])
def test_a_code_page_gets_what_it_knows(encoding):
    done = run(SHOW, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr.decode(encoding)
    assert "café" in done.stdout.decode(encoding)


def test_a_verb_draws_on_a_windows_console():
    verb = ["depthdial", "routes", "--layers", "3", "--family", "ee"]
    code = f"import sys; from depthdial.cli.app import main; sys.argv = {verb}; main()"
    for encoding in ("cp1252", "ascii"):
        done = run(code, PYTHONIOENCODING=encoding)
        assert done.returncode == 0 and b"ee:2" in done.stdout and b"##" in done.stdout


def test_letters_are_spelled_out():
    assert spelled("plain") == "plain"
    assert spelled("│ é – ★ 你") == "| e - * ?"
