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


def lines_of(monkeypatch, capsys, total: float, *advances: tuple[float, float]) -> list[str]:
    """What is said outside a terminal when so many pieces are done at such seconds, and the bar ends a second later."""
    now = 0.0
    monkeypatch.setattr(depthdial.progress.time, "monotonic", lambda: now)
    with progress_bar("sweep", total) as advance:
        for at, pieces in advances:
            now = at
            advance(pieces)
        now += 1
    return capsys.readouterr().err.splitlines()


def test_outside_a_terminal_there_is_a_line_now_and_then(capsys, monkeypatch) -> None:
    said = lines_of(monkeypatch, capsys, 4, (10.0, 1), (31.0, 1), (39.0, 2))
    assert said == ["sweep: 50%, 0:00:31, 0:00:42 left", "sweep: 100%, 0:00:40"]


def test_what_an_earlier_run_has_done_is_not_taken_for_speed(capsys, monkeypatch) -> None:
    said = lines_of(monkeypatch, capsys, 100, (0.0, 50), (40.0, 10))
    assert said[0] == "sweep: 60%, 0:00:40, 0:02:40 left"


def test_the_remaining_time_follows_the_speed_of_the_last_lines(capsys, monkeypatch) -> None:
    slow = [(40.0 * i, 1.0) for i in range(1, 13)]
    fast = [(480.0 + 40.0 * i, 4.0) for i in range(1, 13)]
    said = lines_of(monkeypatch, capsys, 100, *slow, *fast)
    assert said[11] == "sweep: 12%, 0:08:00, 0:58:40 left"  # 88 pieces at 40 s
    assert said[23] == "sweep: 60%, 0:16:00, 0:06:40 left"  # 40 pieces at 10 s


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
