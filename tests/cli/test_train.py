"""The verb `finetune`, end to end on a tiny random model; and every kind of bad input."""

from __future__ import annotations

import json
from unittest import mock

import pytest

import depthdial as dd
from depthdial.errors import InputError
from depthdial.hf.load import load
from depthdial.train.depth.settings import FinetuneSettings


@pytest.fixture
def paths(save_lessons):
    return save_lessons()


@pytest.fixture
def finetune(paths, command_line):
    def run(*arguments, out="out"):
        fixed = ("finetune", paths / "base", "--data", paths / "lessons.jsonl", "--out", paths / out, "--rank", "2")
        return command_line(*fixed, *arguments)

    return run


def test_a_family_from_a_file_then_loaded(finetune, paths):
    routes = [{"name": f"hand:{n}", "layers": layers} for n, layers in ((3, "0,2,5"), (4, "0,1,2,5"), (6, "0-5"))]
    family = {"format": "depthdial-routes", "version": 1, "name": "hand", "n_layers": 6, "routes": routes}
    (paths / "family.json").write_text(json.dumps(family))
    status, out, err = finetune("--elastic", paths / "family.json", "--layers", "6,3", "--emphasis", "hand:3=2")
    assert status == 0, err
    assert "hand:3" in out and "hand:4" not in out and f"adapter: {paths / 'out'}" in out
    assert "--depth 0,2,5" in out  # no verb knows the name hand:3
    assert {"training.png", "adapter_model.safetensors", "depthdial.json"} <= {p.name for p in (paths / "out").iterdir()}
    record = json.loads((paths / "out" / "training.json").read_text())
    assert record["settings"]["distill"] and record["settings"]["emphasis"] == {"hand:3": 2.0}
    model, _ = load(paths / "base", adapter=paths / "out")
    assert model.peft_config["default"].r == 2
    status, again, _ = finetune("--elastic", paths / "family.json", "--layers", "6,3", "--emphasis", "hand:3=2")
    assert status == 0 and again == out


def test_a_specialist_with_trainer_options(finetune, paths):
    status, out, err = finetune("--route", "uls:3", "--method", "full", "--trainer", "logging_steps=1,report_to=none")
    assert status == 0, err
    assert f"model: {paths / 'out'}" in out
    record = json.loads((paths / "out" / "training.json").read_text())
    assert not record["settings"]["distill"] and len(record["history"]) == record["steps"]
    assert load(paths / "out")[0].config.num_hidden_layers == 6


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "either --route uls:50% or --elastic"),
        (("--route", "uls:3", "--elastic", "uls"), "either --route uls:50% or --elastic"),
        (("--route", "uls:9"), "uls:9"),
        (("--elastic", "nowhere.json"), "nowhere.json"),
        (("--elastic", "uls", "--layers", "3,x"), "whole numbers such as 30,24,15, not 'x'"),
        (("--elastic", "uls", "--layers", "9"), "--layers names 9"),
        (("--elastic", "uls", "--emphasis", "uls:3"), "--emphasis takes pairs"),
        (("--elastic", "uls", "--emphasis", "uls:3=a"), "write a number"),
        (("--elastic", "uls", "--emphasis", "ee:3=2"), "which is not trained"),
        (("--route", "uls:3", "--temperature", "0"), "Invalid temperature"),
        (("--route", "uls:3", "--start-from", "nowhere"), "nowhere"),
        (("--route", "uls:3", "--trainer", "nonsense=1"), "trainer's options cannot be used"),
        (("--route", "uls:3", "--limit", "2"), "2 rows are too few"),
        (("--route", "uls:3", "--max-minutes", "0"), "Invalid max_minutes 0.0: use a number above 0."),
        (("--route", "uls:3", "--max-minutes", "-1"), "Invalid max_minutes -1.0"),
        (("--route", "uls:3", "--max-minutes", "nan"), "Invalid max_minutes nan"),
        (("--route", "uls:3", "--max-minutes", "soon"), "Invalid value for '--max-minutes': Input should be a valid number"),
        (("--route", "uls:3", "--save-minutes", "0"), "Invalid save_minutes 0.0"),
        (("--route", "uls:3", "--max-minutes", "0.0001"), "max_minutes=0.0001 is too short to learn from one step"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(finetune, arguments, complaint):
    status, _, err = finetune(*arguments)
    assert status == 2
    assert complaint in err and "Traceback" not in err


def test_distillation_follows_the_family_unless_it_is_asked_for(paths, command_line):
    """With a stub in the training's place."""
    fixed = ("finetune", paths / "base", "--data", paths / "lessons.jsonl", "--out", paths / "out", "--lora-alpha", "3")
    for arguments, distill in (
        (("--route", "uls:3"), False),
        (("--elastic", "uls"), True),
        (("--elastic", "uls", "--no-distill"), False),
    ):
        with (
            mock.patch("depthdial.train.depth.finetune.finetune", side_effect=InputError("Asked.")) as asked,
        ):
            assert command_line(*fixed, *arguments)[0] == 2
        assert asked.call_args.kwargs["settings"] == FinetuneSettings(distill=distill, lora_alpha=3.0)


@pytest.mark.filterwarnings("default::depthdial.RouteWarning")  # which the command line prints
def test_weights_for_what_ships_say_so_and_are_warned_of_behind_other_prompts(finetune, paths, command_line):
    status, out, err = finetune("--route", "uls:3", "--prompt-depth", "route", "--max-tokens", "30")
    assert status == 0, err
    assert "--depth uls:3 --prompt-depth route" in out
    assert dd.AdapterCard.load(paths / "out").prompt_depth == "route"
    assert "Trained with prompts that run the route, as a saved folder" in (paths / "out" / "README.md").read_text()
    answer = ("generate", paths / "base", "one cat", "--adapter", paths / "out", "--depth", "uls:3", "--max-new-tokens", "2")
    status, _, err = command_line(*answer, "--prompt-depth", "route")
    assert status == 0 and "prompts that run" not in err
    status, _, err = command_line(*answer)
    assert status == 0 and "was trained for prompts that run the route, and here prompts run every layer" in err
