"""The progress bar: on standard error alone, and out of the way when it is not wanted."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import depthdial.progress
from depthdial.progress import progress_bar


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_says_what_is_done_and_what_is_left(capsys, monkeypatch, is_terminal: bool) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    with progress_bar("sweep", 4) as advance:
        advance()
        advance(2)
    out, err = capsys.readouterr()
    assert out == ""
    assert "sweep" in err
    assert "75%" in err
    assert "left" in err


def test_pieces_may_be_fractions_and_add_up_to_all(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("search", 1.5) as advance:
        advance(0.5)
        advance(pieces=1.0)
    assert "100%" in capsys.readouterr().err


def test_a_bar_that_is_not_shown_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("sweep", 4, show=False) as advance:
        advance()
        advance(0.5)
        advance(pieces=2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("show", [True, False])
def test_errors_pass_through_and_close_the_bar(show: bool) -> None:
    with pytest.raises(RuntimeError, match="inside"), progress_bar("sweep", 2, show=show):
        raise RuntimeError("inside")
    with progress_bar("sweep", 2, show=show) as advance:  # rich refuses a second bar while one is open
        advance()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_note_says_more_where_a_line_is_written(capsys, monkeypatch, is_terminal: bool) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    monkeypatch.setattr(depthdial.progress, "LINE_EVERY_SEC", 0.0)
    with progress_bar("training", 2) as advance:
        advance(1, lambda: "loss 1.5 [nats]")
    assert "loss 1.5 [nats]" in capsys.readouterr().err
    monkeypatch.setattr(depthdial.progress, "LINE_EVERY_SEC", 1e9)
    asked: list[int] = []
    with progress_bar("training", 2) as advance:
        advance(1, lambda: f"asked {len(asked)}" if asked.append(1) is None else "")
        assert not asked


def test_outside_a_terminal_there_is_a_line_now_and_then(capsys, monkeypatch) -> None:
    now = iter([0.0, 10.0, 31.0, 31.0, 31.0, 40.0, 40.0])
    monkeypatch.setattr(depthdial.progress.time, "monotonic", lambda: next(now))
    with progress_bar("sweep", 4) as advance:
        advance()  # after 10 s: nothing yet
        advance()
        advance(2)
    assert capsys.readouterr().err == "sweep: 50%, 0:00:31, 0:00:31 left\nsweep: 100%, 0:00:40\n"


def test_nothing_to_do_is_no_error() -> None:
    with progress_bar("sweep", 0) as advance:
        advance(0)


def test_rich_is_loaded_for_a_bar_only() -> None:
    code = (
        "import sys\n"
        "from depthdial.progress import progress_bar\n"
        "with progress_bar('x', 1, show=False) as advance: advance()\n"
        "print('rich' in sys.modules)"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "False"


def test_progress_knows_no_other_room() -> None:
    tree = ast.parse(Path(depthdial.progress.__file__).read_text(encoding="utf-8"))
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert "rich.progress" in modules
    assert not [name for name in modules if name.startswith("depthdial")]
