from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from depthdial.cli.options import DataOptions, ModelOptions, with_bundles
from depthdial.errors import InputError


def test_a_bundle_becomes_options_and_comes_back_as_a_bundle() -> None:
    seen = []

    def verb(name: str, loading: ModelOptions, size: int = 3) -> None:
        seen.append((name, loading, size))

    flat = with_bundles(verb)
    options = {field.name for field in fields(ModelOptions)}
    assert set(inspect.signature(flat).parameters) == {"name", "size", *options}
    app = typer.Typer()
    app.command()(flat)
    result = CliRunner().invoke(app, ["x", "m", "--dtype", "float32", "--allow-bin", "--size", "5"])
    assert result.exit_code == 0, result.output
    assert seen == [("x", ModelOptions("m", dtype="float32", allow_bin=True), 5)]
    assert CliRunner().invoke(app, ["x", "--dtpye", "float32"]).exit_code == 2


def test_a_file_and_a_task_at_once_are_refused() -> None:
    with pytest.raises(InputError, match="give one of them"):
        DataOptions(data=Path("x.jsonl"), task="alpaca").read(None)


def test_the_split_to_search_on_is_never_the_one_to_evaluate_on(tmp_path: Path) -> None:
    assert DataOptions().held_out_split == "calibration"
    assert DataOptions(task="alpaca").held_out_split == "train"
    assert DataOptions(data=tmp_path / "one.jsonl").held_out_split is None
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).touch()
    assert DataOptions(data=tmp_path).held_out_split == "train"
    assert DataOptions(split="test").read(3).split == "test"
    assert DataOptions().read(3, split="calibration").split == "calibration"
