"""Trainings under a time budget, on a clock that moves by three seconds with each pass; and one that is really killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from depthdial.engine.session import Session
from depthdial.errors import InputError
from depthdial.hf.adapter import AdapterCard
from depthdial.hf.load import load
from depthdial.measure.sweep import sweep
from depthdial.routes import Route
from depthdial.train import rows as answers
from depthdial.train.depth.finetune import finetune
from depthdial.train.trainer import DepthTrainer, count_future_as_old, last_checkpoint, refusing_full_disk
from tests.train.conftest import stopped_at

ROUTES = (Route((0, 2, 5), 6, "hand:3"), Route(tuple(range(6)), 6, "full"))
FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors", "depthdial.json", "training.json"}


@pytest.fixture
def base(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return load(tmp_path / "base")


@pytest.fixture
def seconds(monkeypatch):
    """The clock: a list of one number, which each pass raises by 3."""
    now, compute = [0.0], DepthTrainer.compute_loss

    def timed(self, *args, **options):
        now[0] += 3.0
        return compute(self, *args, **options)

    monkeypatch.setattr(DepthTrainer, "compute_loss", timed)
    return now


@pytest.fixture
def timed(base, lessons, tmp_path, seconds, weights_of, assert_same):
    """Trains two routes, two passes a step, on the clock; the model that was given is the same afterwards."""

    def go(settings, out="out", *, routes=ROUTES, loading_sec=2.0, **options):
        seconds[0] = loading_sec
        before = weights_of(base[0])
        given = {"task": lessons, "routes": routes, "out": tmp_path / out, "settings": settings}
        try:
            return finetune(base[0], base[1], **given, clock=lambda: seconds[0], **options)
        finally:
            assert_same(weights_of(base[0]), before)

    return go


@pytest.fixture
def brief(quick):
    """Far more steps than fit into a minute: 9, at six seconds each; checkpoints after steps 1, 4 and 7."""
    return replace(quick, distill=True, epochs=20, max_minutes=1, save_minutes=0.3)


@pytest.fixture
def killed(timed):
    """A run that is stopped at a step, before that step's checkpoint is written."""

    def go(settings, step, **options):
        with stopped_at(DepthTrainer, step):
            timed(settings, **options)

    return go


def weights(folder):
    return load_file(next(folder.glob("*model.safetensors")))


def test_a_huge_budget_changes_no_bit(timed, quick):
    plain = timed(quick, "plain", trainer_options={"logging_steps": 1})
    long = timed(replace(quick, max_minutes=1e6), "long", trainer_options={"logging_steps": 1})
    ours, theirs = weights(long.folder), weights(plain.folder)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    for name in ("loss", "loss/full", "learning_rate", "grad_norm"):
        assert [entry[name] for entry in long.record["history"]] == [entry[name] for entry in plain.record["history"]]
    for name in ("steps", "train_flops", "response_tokens_by_route", "ended_by"):
        assert long.record[name] == plain.record[name]
    assert long.record["ended_by"] == "steps" and "used_minutes" not in plain.record


def test_time_ends_a_run_with_a_finished_adapter(timed, brief, seconds, tmp_path, lessons):
    result = timed(brief, trainer_options={"logging_steps": 1})
    record = json.loads((result.folder / "training.json").read_text())
    assert seconds[0] == 56  # steps of 6 s from 2 s on; the next would end at 62 s, and the end of the run is given 3 s
    assert (record["ended_by"], record["steps"], record["scheduled_steps"]) == ("time", 9, 120)
    assert record["used_minutes"] == pytest.approx(56 / 60)
    tokens = record["response_tokens_by_route"]
    assert tokens["full"] == tokens["hand:3"] > 0 and sum(tokens.values()) == record["response_tokens"]
    assert record["passes"] == 18 and record["history"][-1]["step"] == 9
    rates = [entry["learning_rate"] for entry in record["history"]]
    assert max(rates) > 0.9e-2 and rates[-1] < 0.1e-2 and rates[2:] == sorted(rates[2:], reverse=True)
    assert {path.name for path in result.folder.iterdir()} == FILES | {"finetune.json"}
    assert "Its time budget ended the run, of 120 scheduled steps." in (result.folder / "README.md").read_text()
    adapted, words = load(tmp_path / "base", adapter=result.folder)
    with pytest.raises(InputError, match="were used to train the adapter"):
        sweep(adapted, words, task=lessons, routes="full")
    assert timed(brief).record == record  # finished: nothing is trained


def test_a_killed_run_leaves_the_adapter_of_its_last_checkpoint_and_goes_on(timed, killed, brief, tmp_path):
    killed(brief, 6)
    out, latest = tmp_path / "out", tmp_path / "out" / "latest"
    assert {path.name for path in latest.iterdir()} == FILES
    kept = last_checkpoint(out / "checkpoints")
    assert kept.name == "checkpoint-4"
    assert all(torch.equal(tensor, weights(kept)[name]) for name, tensor in weights(latest).items())
    load(tmp_path / "base", adapter=latest)
    assert [route.name for route in AdapterCard.load(latest).routes] == ["hand:3", "full"]
    record = json.loads((latest / "training.json").read_text())
    assert (record["ended_by"], record["steps"]) == ("checkpoint", 4)
    assert "A checkpoint of a run that had not ended" in (latest / "README.md").read_text()
    with pytest.raises(InputError, match=r"has not ended: run its command again, or give its last checkpoint, .*latest"):
        load(tmp_path / "base", adapter=out)

    result = timed(brief)
    # 38 s were used, of which 12 s were lost; loading again took 2 s, and steps may go on to 57 s: two of them.
    assert result.record["steps"] == 4 + 2 and result.record["ended_by"] == "time"
    assert result.record["used_minutes"] == pytest.approx((38 + 2 + 12) / 60)
    assert {path.name for path in out.iterdir()} == FILES | {"finetune.json"}


@pytest.mark.slow
def test_a_run_that_was_killed_in_its_last_seconds_ends_with_what_it_has(timed, killed, brief, tmp_path):
    killed(brief, 8)
    kept = weights(last_checkpoint(tmp_path / "out" / "checkpoints"))
    result = timed(brief)
    assert (result.record["ended_by"], result.record["steps"]) == ("time", 7)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in weights(result.folder).items())
    assert result.record["train_sec"] < 60


@pytest.mark.matrix
@pytest.mark.parametrize("max_minutes", [None, 1e6])
def test_with_checkpoints_by_the_minute_a_killed_run_goes_on_exactly(timed, killed, quick, tmp_path, max_minutes):
    settings = replace(quick, max_minutes=max_minutes, save_minutes=0.2)
    straight = timed(settings, "straight")
    killed(settings, 5)
    assert last_checkpoint(tmp_path / "out" / "checkpoints").name == "checkpoint-3"
    resumed = timed(settings)
    ours, theirs = weights(resumed.folder), weights(straight.folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert resumed.record["ended_by"] == "steps" and resumed.record["train_flops"] == straight.record["train_flops"]


def test_every_run_leaves_its_last_checkpoint_and_a_whole_model_shares_its_file(timed, killed, quick, tmp_path):
    settings = replace(quick, method="full", save_every=2)
    killed(settings, 5, routes=ROUTES[1:])
    latest = tmp_path / "out" / "latest"
    assert not {path.name for path in latest.iterdir()} & {"optimizer.pt", "scheduler.pt", "trainer_state.json"}
    whole, words = load(latest)
    assert whole.config.num_hidden_layers == 6 and words.encode("one cat")
    held = last_checkpoint(tmp_path / "out" / "checkpoints") / "model.safetensors"
    assert held.stat().st_ino == (latest / "model.safetensors").stat().st_ino
    assert json.loads((latest / "training.json").read_text())["steps"] == 4


def test_a_budget_too_short_is_one_sentence_and_another_may_follow(timed, brief, tmp_path):
    for minutes, loading_sec, complaint in (
        (0.1, 4.0, r"max_minutes=0\.1 is too short to learn from one step: 0\.067 minutes are used"),
        (0.15, 2.0, r"max_minutes=0\.15 is too short .*: 0\.13 minutes are used, and the end of the run takes 0\.05: give"),
    ):
        with pytest.raises(InputError, match=complaint):
            timed(replace(brief, max_minutes=minutes), loading_sec=loading_sec)
        assert not (tmp_path / "out" / "checkpoints").exists() and not (tmp_path / "out" / "latest").exists()
    longer = replace(brief, max_minutes=0.5)
    assert timed(longer).record["steps"] == 4
    with pytest.raises(InputError, match=r"another max_minutes \(0\.5 then, 2 now\)"):
        timed(replace(brief, max_minutes=2))


@pytest.mark.slow
def test_answers_of_the_model_are_within_the_budget_and_are_kept(timed, brief, seconds, monkeypatch, tmp_path):
    monkeypatch.setattr(answers, "_ANSWER_BATCH", 8)
    decode = Session.decode

    def slow(self, *args, **options):
        seconds[0] += 20.0
        return decode(self, *args, **options)

    monkeypatch.setattr(Session, "decode", slow)
    settings = replace(brief, answers="model")
    with pytest.raises(InputError, match=r"max_minutes=1 went into the model's own answers .*: run the same command again"):
        timed(settings)
    assert len(list((tmp_path / "out" / "answers").iterdir())) == 2 and seconds[0] == 42
    assert timed(settings).record["steps"] == 5  # behind 20 s for what was left of the answers


@pytest.mark.slow
def test_progress_says_loss_minutes_and_tokens(timed, brief, capsys, monkeypatch):
    monkeypatch.setattr("depthdial.progress.LINE_EVERY_SEC", 0.0)
    timed(brief, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("training: ") for line in lines) and len(lines) == 1 + 9 + 1
    assert lines[0].endswith("; 0.0 of 1 minutes used, 1.0 left; tokens hand:3 0, full 0")
    assert "; loss " in lines[3] and "; 0.3 of 1 minutes used, 0.7 left; tokens hand:3 " in lines[3]
    shares = [int(line.split()[1].rstrip("%,")) for line in lines]
    assert shares == sorted(shares) and shares[-1] >= 95  # by time: 9 of 120 steps


def test_a_full_disk_while_the_latest_is_written_says_so():
    complaint = r"checkpoint of step 4 cannot be written to here .*make room"
    with pytest.raises(InputError, match=complaint), refusing_full_disk(4, "here"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(SafetensorError, match="other"), refusing_full_disk(4, "here"):
        raise SafetensorError("other")


@pytest.mark.slow
def test_a_full_disk_at_the_end_says_so_and_the_same_command_ends_the_run(timed, quick, monkeypatch):
    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("depthdial.train.running.bring_weights", full)
        with pytest.raises(InputError, match=r"cannot be written to .*make room and run the same command"):
            timed(quick)
    assert timed(quick).record["ended_by"] == "steps"


def test_a_clock_that_was_set_back_makes_old_checkpoints_no_newer(tmp_path):
    for step, ahead_sec in ((4, 1000.0), (8, -1000.0)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        os.utime(tmp_path / f"checkpoint-{step}", (time.time() + ahead_sec,) * 2)
    count_future_as_old(tmp_path)
    dates = [(tmp_path / f"checkpoint-{step}").stat().st_mtime for step in (4, 8)]
    assert dates[0] < dates[1] < time.time() - 900


@pytest.mark.slow
def test_a_run_that_is_killed_for_real_leaves_an_adapter_and_goes_on(base, lessons, tmp_path):
    data, out = tmp_path / "lessons.jsonl", tmp_path / "out"
    rows = [{"prompt": one.instruction, "reference": one.reference} for one in lessons.examples]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["finetune", str(tmp_path / "base"), "--elastic", "full,uls:3", "--data", str(data), "--out", str(out)]
    budget = ["--epochs", "100000", "--max-minutes", "1", "--save-minutes", "0.001", "--r", "2"]
    command = [sys.executable, "-m", "depthdial", *words, *budget]
    begun = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        while not (out / "latest" / "depthdial.json").exists() and time.monotonic() - begun < 60:
            time.sleep(0.05)
        time.sleep(1.0)  # into the middle of a checkpoint, as likely as not
        os.kill(child.pid, signal.SIGKILL)
    killed_sec = time.monotonic() - begun
    assert {path.name for path in (out / "latest").iterdir()} == FILES
    load(tmp_path / "base", adapter=out / "latest")
    n_before = json.loads((out / "latest" / "training.json").read_text())["steps"]
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begun < 60 - killed_sec + 5  # what was used before counts
    record = json.loads((out / "training.json").read_text())
    assert record["ended_by"] == "time" and record["steps"] > n_before and "ended by time" in done.stdout
    load(tmp_path / "base", adapter=out)
    assert not (out / "latest").exists()


@pytest.mark.slow
def test_two_processes_end_at_the_same_step(base, lessons, tmp_path):
    data, out = tmp_path / "lessons.jsonl", tmp_path / "out"
    rows = [{"prompt": one.instruction, "reference": one.reference} for one in lessons.examples]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "depthdial"]
    words = ["finetune", str(tmp_path / "base"), "--elastic", "full,uls:3", "--data", str(data), "--out", str(out)]
    budget = ["--epochs", "100000", "--max-minutes", "0.6", "--save-minutes", "0.02", "--rank", "2", "--batch-size", "3"]
    done = subprocess.run([*launch, *words, *budget], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "training.json").read_text())
    assert (record["processes"], record["ended_by"]) == (2, "time") and record["steps"] > 1
    load(tmp_path / "base", adapter=out)
