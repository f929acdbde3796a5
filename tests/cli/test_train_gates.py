"""The verb `train-gates`, end to end on a tiny random model; killed and taken up again; and every kind of bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from depthdial.hf.adapter import merged
from depthdial.hf.load import load
from depthdial.views.tokens.gate_folder import load_gates


@pytest.fixture
def paths(save_lessons):
    return save_lessons()


def command(paths, *arguments, out="out", verb="train-gates"):
    fixed = ["depthdial", verb, paths / "base", "--data", paths / "lessons.jsonl", "--out", paths / out, "--rank", "2"]
    return [*map(str, fixed), "--batch-size", "3", *map(str, arguments)]


@pytest.fixture
def run(paths, command_line):
    def go(*arguments, **options):
        return command_line(*command(paths, *arguments, **options)[1:])

    return go


def test_to_a_target_then_loaded(run, paths):
    arguments = ("--target", "0.7", "--input", "fixed", "--epochs", "6", "--controlled", "1-3", "--seed", "4")
    status, out, err = run(*arguments)
    assert status == 0, err
    assert "Means over the last 10 steps" in out and f"gates: {paths / 'out'}" in out
    names = {path.name for path in (paths / "out").iterdir()}
    assert {"training.png", "gates.json", "gates.safetensors", "adapter_model.safetensors"} <= names
    record = json.loads((paths / "out" / "training.json").read_text())
    assert record["settings"]["run"]["seed"] == 4 and record["settings"]["controlled"] == [1, 2, 3]
    assert record["history"][-1]["fraction/expected"] == pytest.approx(0.7, abs=0.03)
    model, gates = load_gates(paths / "out", load(paths / "base")[0])
    assert gates.config.controlled == (1, 2, 3) and model.peft_config["default"].r == 2
    status, again, _ = run(*arguments)
    assert status == 0 and again == out


def test_at_a_price_with_all_weights(run, paths):
    options = ("--alpha", "2", "--backbone", "full", "--kind", "mlp", "--hidden-width", "8", "--temperature-end", "0.5")
    status, _, err = run(*options, "--trainer", "logging_steps=2", "--distill", "--answers", "model")
    assert status == 0, err
    trained, _ = load(paths / "out")
    _, gates = load_gates(paths / "out", trained)
    assert gates.config.kind == "mlp" and gates.about["settings"]["alpha"] == 2


@pytest.mark.slow
def test_on_an_adapter_that_was_trained_before(run, paths):
    assert run("--route", "full", verb="finetune", out="t")[0] == 0
    status, _, err = run("--alpha", "1", "--adapter", paths / "t", "--backbone", "frozen")
    assert status == 0, err
    tuned = merged(load(paths / "base", adapter=paths / "t")[0])
    assert not hasattr(tuned, "peft_config")
    model, gates = load_gates(paths / "out", tuned)
    assert model is tuned and gates.base.name == f"{paths / 'base'} + {paths / 't'}"


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on(run, paths):
    """By SIGKILL, at whatever moment: the same gates in the end."""
    arguments = ("--target", "0.7", "--epochs", "15", "--save-every", "4")
    assert run(*arguments, out="straight")[0] == 0
    killed = [sys.executable, "-m", *command(paths, *arguments, out="killed")]
    child = subprocess.Popen(killed, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((paths / "killed").glob("checkpoints/checkpoint-*/trainer_state.json")) and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (paths / "killed" / "gates.json").exists(), "it finished before it could be killed"
    assert run(*arguments, out="killed")[0] == 0
    for name in ("gates.safetensors", "adapter_model.safetensors"):
        ours, theirs = load_file(paths / "killed" / name), load_file(paths / "straight" / name)
        assert all((ours[key] == theirs[key]).all() for key in theirs)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "either target, a budget such as 0.6, or alpha, a weight"),
        (("--target", "0.6", "--alpha", "1"), "either target, a budget such as 0.6, or alpha, a weight"),
        (("--alpha", "-1"), "Invalid alpha -1.0: use a number of at least 0"),
        (("--alpha", "nan"), "Invalid alpha"),
        (("--target", "1.5"), "Invalid target"),
        (("--target", "0.1"), "cannot be reached: 4 of 6 layers are controlled"),
        (("--target", "0.6", "--controlled", "1-2"), "cannot be reached: 2 of 6 layers are controlled"),
        (("--target", "0.6", "--controlled", "3-9"), "Invalid controlled layer 6"),
        (("--target", "0.6", "--controlled", "rls:3@0"), "takes whole numbers such as 1,8 or 1-28"),
        (("--target", "0.6", "--temperature", "0"), "Invalid temperature"),
        (("--target", "0.6", "--temperature", "1e9"), "Invalid temperature"),
        (("--target", "0.6", "--input", "attention"), "Unknown input of gates 'attention'"),
        (("--target", "0.6", "--kind", "cnn"), "Unknown kind of gates 'cnn'"),
        (("--target", "0.6", "--backbone", "half"), "Unknown backbone 'half'"),
        (("--target", "0.6", "--key-values", "forget"), "Unknown key_values 'forget'"),
        (("--target", "0.6", "--gate-learning-rate", "0"), "Invalid gate_learning_rate"),
        (("--target", "0.6", "--trainer", "nonsense=1"), "trainer's options cannot be used"),
        (("--target", "0.6", "--limit", "2"), "2 rows are too few"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(run, arguments, complaint):
    status, _, err = run(*arguments)
    assert status == 2
    assert complaint in err and "Traceback" not in err
