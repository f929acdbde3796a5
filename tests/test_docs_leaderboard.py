"""docs/leaderboard.md says what the rows of experiments/leaderboard say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "experiments" / "leaderboard"
PAGE = ROOT / "docs" / "leaderboard.md"


@pytest.fixture
def board(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    from board import standing, tables

    yield standing, tables
    for name in [name for name in sys.modules if name == "board" or name.startswith("board.")]:
        del sys.modules[name]


def close(found, expected):
    """Whether two results are alike but for rounding."""
    if isinstance(expected, dict):
        return set(found) == set(expected) and all(close(found[name], one) for name, one in expected.items())
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    return found == (pytest.approx(expected) if isinstance(expected, float) else expected)


def test_the_board_follows_from_rows_and_times(board):
    standing, tables = board
    document = standing.document(FOLDER)
    kept = json.loads((FOLDER / "board.json").read_text(encoding="utf-8"))
    assert close(document, kept)
    assert (FOLDER / "table.md").read_text(encoding="utf-8") == tables.pages(kept)


def test_the_page_is_made_of_the_board(board, tmp_path):
    from board.page import write_page

    assert write_page(FOLDER, tmp_path / "page.md").read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


def test_rows_are_complete_and_hold_no_text(board):
    rows = board[0].Standing.of(FOLDER).rows
    assert set(rows.groupby("config").size()) == {48}
    assert rows["split"].eq("test").all() and rows["key"].notna().all()
    longest = rows.drop(columns=["versions"]).select_dtypes(include=["object", "string"]).map(lambda one: len(str(one)))
    assert longest.max().max() <= 80
