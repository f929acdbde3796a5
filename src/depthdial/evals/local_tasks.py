"""The tasks that ship: small, of this project's own text, so that an evaluation runs without a network.

`builtin_choice` (choices of several tokens), `builtin_answer` (a generated word or number, exact match) and `builtin_text`
(rolling perplexity); `builtin` is all three. They say whether an evaluation works, and tell depths of one model apart; they
are no benchmark of models.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "tasks"
GROUP = "builtin"


def dataset(*, name: str, **_: Any) -> dict[str, Any]:
    """The documents of a task, as the harness asks for them.

    Args:
        name: `choice`, `answer` or `text`.

    Returns:
        A `datasets.Dataset` under `test`.
    """
    from datasets import Dataset

    rows = _texts() if name == "text" else _rows(FOLDER / f"{name}.jsonl")
    return {"test": Dataset.from_list(rows)}


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _texts() -> list[dict[str, str]]:
    """The built-in test rows, each with its answer."""
    from depthdial.data.tasks import task

    parts = [(one.instruction, one.document, one.reference) for one in task("builtin", split="test").examples]
    return [{"text": "\n".join(part for part in row if part)} for row in parts]
