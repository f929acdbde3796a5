"""Training on from an adapter: where a run begins, what it says of that, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

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
def base(model, tokenizer, tmp_path):
    folder = tmp_path / "base"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load(folder)


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


def test_a_run_begins_with_the_adapter_that_it_starts_from(base, first, quick):
    card = AdapterCard.load(first)
    start = Start.of(first, base[0], "base", quick)
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


def test_a_start_that_does_not_fit_is_refused_before_anything_trains(run, first, quick, base, tmp_path):
    def refused(match, settings=quick, start_from=first, **options):
        with pytest.raises(InputError, match=match):
            run(settings, "refused", start_from=start_from, **options)
        assert not (tmp_path / "refused" / "adapter_model.safetensors").exists()

    refused("--rank", settings=replace(quick, r=quick.r * 2))
    refused("--lora-alpha", settings=replace(quick, lora_alpha=1.0))
    refused("method='lora'", settings=replace(quick, method="full", distill=False))
    refused("other modules", routes=["ee:3", "uls:3"])
    refused("No elastic adapter ships", start_from="elastic")
    refused("nowhere", start_from=tmp_path / "nowhere")
    (first / "depthdial.json").unlink()
    refused("has no card", start_from=first)


def test_an_adapter_of_another_base_is_refused(base, first, quick):
    with torch.no_grad():
        base[0].model.norm.weight.mul_(2)
    with pytest.raises(InputError, match="load that model"):
        Start.of(first, base[0], "base", quick)
