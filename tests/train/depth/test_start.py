"""Training on from an adapter: where a run begins, what it says of that, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from depthdial.data.leakage import prompt_hashes
from depthdial.errors import InputError
from depthdial.hf.adapter import AdapterCard
from depthdial.hf.load import load
from depthdial.train.depth.finetune import finetune
from depthdial.train.depth.start import Start
from depthdial.train.depth.student import student
from depthdial.train.trainer import DepthTrainer
from tests.train.conftest import stopped_at

ROUTES = ["uls:3", "full"]


@pytest.fixture
def run(base, lessons, tmp_path):
    def go(settings, out, routes=ROUTES, **options):
        return finetune(*base, task=lessons, routes=routes, out=tmp_path / out, settings=settings, **options)

    return go


@pytest.fixture
def first(run, quick):
    return run(quick, "first").folder


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def test_a_run_begins_with_the_adapter_that_it_starts_from(base, first, quick, tmp_path):
    card = AdapterCard.load(first)
    start = Start.of(first, base[0], "base", quick, tmp_path / "out")
    ids = torch.tensor([[1, 5, 9, 4]])
    expected = load(base[0].name_or_path, adapter=first)[0](ids).logits
    with student(base[0], card.routes, quick, in_place=False, start=start) as trained:
        assert torch.equal(trained.eval()(input_ids=ids).logits, expected)
        assert not torch.equal(base[0](ids).logits, expected)


def test_the_record_tells_the_start_and_what_it_had_seen(run, first, quick, lessons, tmp_path):
    told = json.loads((first / "depthdial.json").read_text())
    told["training"]["data"]["prompts"] = ["an earlier one"]
    (first / "depthdial.json").write_text(json.dumps(told))
    second = run(quick, "second", start_from=first).record
    tokens = told["training"]["response_tokens"]
    assert f"Before, the weights had {tokens:,} response tokens" in (tmp_path / "second" / "README.md").read_text()
    assert second["started_from"]["response_tokens"] == tokens
    assert second["data"]["prompts"] == sorted(["an earlier one", *prompt_hashes(lessons)])
    third = run(quick, "third", start_from=tmp_path / "second").record
    assert third["started_from"]["response_tokens"] == tokens + second["response_tokens"]
    assert third["started_from"]["sha256"] != second["started_from"]["sha256"]


def test_a_run_that_was_stopped_goes_on_from_its_checkpoint_and_not_from_the_start(run, first, quick, tmp_path):
    settings = replace(quick, save_every=1)
    whole = run(settings, "whole", start_from=first)
    with stopped_at(DepthTrainer, 2):
        run(settings, "stopped", start_from=first)
    resumed = run(settings, "stopped", start_from=first)
    assert all(torch.equal(value, weights(resumed.folder)[name]) for name, value in weights(whole.folder).items())
    with pytest.raises(InputError):
        run(settings, "stopped")


def test_a_start_that_does_not_fit_is_refused_before_anything_is_done(run, first, quick, base, tmp_path):
    def refused(match, settings=quick, start_from=first, out="refused", **options):
        with pytest.raises(InputError, match=match):
            run(settings, out, start_from=start_from, **options)
        assert not (tmp_path / "refused").exists()

    refused("set --rank", settings=replace(quick, r=quick.r * 2))
    refused("set --lora-alpha", settings=replace(quick, lora_alpha=1.0))
    refused("method='lora'", settings=replace(quick, method="full", distill=False))
    refused("trained with --prompt-depth full", settings=replace(quick, prompt_depth="route"))
    refused("other modules", routes=["ee:3", "uls:3"])
    refused("No elastic adapter ships", start_from="elastic")
    refused("no adapter folder elastic", start_from=Path("elastic"))
    refused("nowhere", start_from=tmp_path / "nowhere")
    refused("is the adapter that the run starts from", out="first")
    assert run(quick, "refused", start_from=first).record["started_from"]  # the same folder, once it fits


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("adapter_model.safetensors", "version https://git-lfs", "adapter_model.safetensors is damaged"),
        ("adapter_config.json", "[]", "adapter_config.json is damaged"),
        ("adapter_config.json", '{"peft_type": "LORA", "r": 2}', "has lora_alpha None and this run 4"),
        ("adapter_config.json", '{"peft_type": "LOHA"}', r"no plain LoRA \(peft_type LOHA\)"),
        ("adapter_config.json", '{"peft_type": "LORA", "use_rslora": true}', r"no plain LoRA \(use_rslora\)"),
        ("depthdial.json", "{}", "depthdial.json"),
        ("depthdial.json", None, "has no card"),
    ],
)
def test_a_damaged_start_is_one_sentence(base, first, quick, tmp_path, file, text, told):
    (first / file).unlink()
    if text is not None:
        (first / file).write_text(text)
    with pytest.raises(InputError, match=told):
        Start.of(first, base[0], "base", quick, tmp_path / "out")


@pytest.mark.parametrize(
    "training", [{}, {"response_tokens": "12", "data": None}, {"response_tokens": 5, "started_from": []}]
)
def test_a_card_that_tells_little_is_enough(base, first, quick, tmp_path, training):
    told = json.loads((first / "depthdial.json").read_text())
    (first / "depthdial.json").write_text(json.dumps({**told, "training": training}))
    start = Start.of(first, base[0], "base", quick, tmp_path / "out")
    assert start.prompts == frozenset()
    assert start.told["response_tokens"] == (5 if training.get("response_tokens") == 5 else None)


def test_a_start_for_another_base_or_on_an_adapted_model_is_refused(base, first, quick, lessons, tmp_path):
    adapted, tokenizer = load(base[0].name_or_path, adapter=first)
    with pytest.raises(InputError, match="has an adapter already"):
        given = {"routes": ROUTES, "out": tmp_path / "out", "settings": quick, "start_from": first}
        finetune(adapted, tokenizer, task=lessons, **given)
    with torch.no_grad():
        base[0].model.norm.weight.mul_(2)
    with pytest.raises(InputError, match="load that model"):
        Start.of(first, base[0], "base", quick, tmp_path / "out")
