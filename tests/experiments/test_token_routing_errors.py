"""The committed table of dense-reference errors is the committed rows', and all of it is below 1e-5."""

from __future__ import annotations

import json
from pathlib import Path

from tests.scripts import loaded
from tests.tiny import ARCHITECTURES
from tests.views.tokens.dense import KEY_VALUES, MAIN, NO_COPY, REFUSED

FOLDER = Path(__file__).parents[2] / "experiments" / "token_routing"


def script():
    with loaded(FOLDER / "errors.py", "token_routing_errors") as module:
        return module


def test_the_committed_table_is_of_the_committed_rows() -> None:
    rows = json.loads((FOLDER / "errors.json").read_text(encoding="utf-8"))["rows"]
    assert script().markdown(rows) == (FOLDER / "errors.md").read_text(encoding="utf-8")
    assert {row["architecture"] for row in rows} == set(ARCHITECTURES)
    assert all(value < 1e-5 for row in rows for value in row["errors"].values())
    refused = {(row["architecture"], row["key_values"]) for row in rows if row["refused"]}
    assert refused == {(name, "copy") for name in NO_COPY} | {(name, kind) for name in REFUSED for kind in KEY_VALUES}


def test_rows_are_made_anew() -> None:
    rows = script().errors_of(MAIN[0], "eager")
    assert [row["key_values"] for row in rows] == list(KEY_VALUES)
    assert all(0 < value < 1e-5 for row in rows for value in row["errors"].values())
