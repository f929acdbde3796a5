"""Two processes of torchrun, which talk by gloo, against one process that takes the same batches one after the other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
TORCHRUN = (
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "-m",
    "--",
)  # without -- it takes --r for its own
# A step of two processes is two batches; so is one of one process that accumulates two.
ONE = ("--accumulation", "2")


def finetune(home: Path, out: str, launcher: tuple[str, ...], *given: str) -> dict:
    words = [sys.executable, *launcher, "depthdial", "finetune", "base", "--data", "lessons.jsonl", "--out", out]
    settings = ["--batch-size", "3", "--r", "2", "--learning-rate", "0.01", "--trainer", "logging_steps=1"]
    ran = subprocess.run([*words, *settings, *given], cwd=home, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads((home / out / "training.json").read_text())


@pytest.mark.parametrize(
    "given",
    [
        ("--route", "uls:3"),
        ("--elastic", "full,uls:4,uls:3", "--distill"),
        ("--route", "uls:3", "--method", "full", "--prompt-depth", "route"),
    ],
    ids=["route", "elastic", "whole weights"],
)
def test_two_processes_have_the_loss_of_one(save_lessons, given):
    home = save_lessons()
    two = finetune(home, "two", TORCHRUN, *given)
    one = finetune(home, "one", ("-m",), *ONE, *given)
    assert (two["processes"], one["processes"]) == (2, 1)
    assert two["steps"] == one["steps"] >= 2 and two["response_tokens"] == one["response_tokens"]
    for ours, theirs in zip(two["history"], one["history"], strict=True):
        names = [name for name in theirs if name == "loss" or name.startswith("loss/")]
        assert len(names) > 1
        assert [ours[name] for name in names] == pytest.approx([theirs[name] for name in names], abs=2e-4), theirs["step"]
    weights = [load_file(path) for name in ("two", "one") for path in (home / name).glob("*model.safetensors")]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], atol=2e-4, rtol=1e-3)
