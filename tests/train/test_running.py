from __future__ import annotations

import json
from dataclasses import replace

import pytest

from depthdial.engine.session import Session
from depthdial.errors import InputError
from depthdial.measure.plan import ModelIdentity
from depthdial.routes import Route
from depthdial.train.gates.settings import GateSettings
from depthdial.train.running import claim_run, is_main, training_arguments, world_size
from depthdial.train.schedule import make_schedule


def test_a_run_claims_its_folder(lessons, quick, tmp_path):
    identity = ModelIdentity("m", "0" * 64, "float32", "cpu", "sdpa")
    claim_run(tmp_path, "run.json", quick, identity, lessons, routes=["full"])
    claim_run(tmp_path, "run.json", quick, identity, lessons, routes=["full"])
    known = json.loads((tmp_path / "run.json").read_text())
    assert known["model"] == "m" and known["routes"] == ["full"] and known["r"] == quick.r
    with pytest.raises(InputError, match="holds a training run with another routes"):
        claim_run(tmp_path, "run.json", quick, identity, lessons, routes=["uls:3"])


def test_a_folder_of_before_is_still_its_own(lessons, quick, tmp_path):
    """Older files say rank and alpha, and those of gates have the run's settings beside their own."""
    identity = ModelIdentity("m", "0" * 64, "float32", "cpu", "sdpa")
    gates = GateSettings(target=0.6, controlled=(1, 2), r=2, batch_size=4)
    of_run = {"batch_size": 4, "answers": "reference", "distill": False, "seed": 0, "learning_rate": None, "rank": 2}
    old = {"target": 0.6, "alpha": None, "controlled": [1, 2], "temperature": 1.0, **of_run}
    for file, settings, before in (
        ("finetune.json", quick, {**of_run, "alpha": 4.0, "learning_rate": 1e-2, "save_every": 1000}),
        ("train-gates.json", gates, old),
    ):
        claim_run(tmp_path, file, settings, identity, lessons)
        known = json.loads((tmp_path / file).read_text())
        rest = {name: known[name] for name in ("model", "weights_hash", "task", "split", "data", "processes")}
        (tmp_path / file).write_text(json.dumps({**before, **rest}))
        claim_run(tmp_path, file, settings, identity, lessons)
    with pytest.raises(InputError, match="holds a training run with another target"):
        claim_run(tmp_path, "train-gates.json", replace(gates, target=0.7), identity, lessons)


def test_arguments_follow_the_settings_and_the_user_has_the_last_word(model, tokenizer, rows, quick, tmp_path):
    session = Session.of(model, tokenizer)
    schedule = make_schedule(rows, [Route(tuple(range(6)), 6, "full")], quick)

    def arguments(**options):
        return training_arguments(session, quick, schedule, tmp_path, {"logging_steps": 1, **options})

    assert (arguments().logging_steps, arguments().max_steps) == (1, schedule.n_steps)
    assert arguments(logging_steps=3).logging_steps == 3
    assert arguments().save_steps == schedule.n_steps and arguments().output_dir == str(tmp_path / "checkpoints")
    with pytest.raises(InputError, match="learning_rate follows from the settings of the run"):
        arguments(learning_rate=3)
    with pytest.raises(InputError, match=r"trainer's options cannot be used: .*no_such"):
        arguments(no_such=3)


def test_processes_are_told_by_the_launcher(monkeypatch):
    assert world_size() == 1 and is_main()
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    assert world_size() == 4 and not is_main()
