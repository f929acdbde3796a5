"""Task files on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evals.documents import write_tasks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tasks(tmp_path / "tasks")
