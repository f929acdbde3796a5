"""Training runs end to end: what they change and what they must not, kill and resume, and what can go wrong."""

from __future__ import annotations

import errno
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from depthdial.data.leakage import prompt_hashes
from depthdial.engine.session import Session
from depthdial.errors import InputError
from depthdial.hf.load import load
from depthdial.hf.trained import note_training
from depthdial.measure.similarity import similarity
from depthdial.measure.sweep import sweep
from depthdial.routes import Route
from depthdial.routes.families import RouteFamily
from depthdial.search.run import search_routes
from depthdial.train.depth.finetune import finetune
from depthdial.train.rows import training_rows
from depthdial.train.running import world_size
from depthdial.train.schedule import make_schedule
from depthdial.train.trainer import DepthTrainer, last_checkpoint
from tests.train.conftest import stopped_at

FULL = Route(tuple(range(6)), 6, "full")
FAMILY = RouteFamily("hand", 6, (Route((0, 2, 5), 6, "hand:3"), Route((0, 1, 2, 5), 6, "hand:4"), FULL))


@pytest.fixture
def run(base, lessons, tmp_path, weights_of, assert_same):
    """Trains; whatever comes of it, the model that was given is the same afterwards, unless it is trained in place."""

    def go(routes, settings, out="out", *, in_place=False, **options):
        before = weights_of(base[0])
        given = {"task": lessons, "routes": routes, "out": tmp_path / out, "settings": settings, **options}
        try:
            return finetune(base[0], base[1], **given, in_place=in_place)
        finally:
            if not in_place:
                assert_same(weights_of(base[0]), before)

    return go


def weights(folder):
    return load_file(next(folder.glob("*model.safetensors")))


def test_a_specialist_leaves_the_layers_it_skips_alone(run, base, lessons, quick):
    note_training(base[0], ["an earlier one"])
    result = run("uls:3", replace(quick, method="full"))
    assert result.record["data"]["prompts"] == sorted(["an earlier one", *prompt_hashes(lessons)])
    trained, untouched = weights(result.folder), base[0].state_dict()
    for name, tensor in trained.items():
        skipped = ".layers." in name and int(name.split(".")[2]) not in (0, 2, 4)
        assert torch.equal(tensor, untouched[name]) == skipped, name
    whole, words = load(result.folder)
    assert whole.config.num_hidden_layers == 6
    with pytest.raises(InputError, match=r"24 of the 24 sequences .* were used to train the model"):
        sweep(whole, words, task=lessons, routes="full")
    assert not (result.folder / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("epochs", "at_most"), [(8, 0.8), pytest.param(25, 0.75, marks=pytest.mark.slow)])
def test_training_lowers_what_it_trains_on(run, base, lessons, quick, tmp_path, epochs, at_most):
    result = run("uls:3", replace(quick, epochs=epochs))
    base_name = str(tmp_path / "base")
    adapted = load(base_name, adapter=result.folder)

    def nll(model):
        rows = sweep(model, base[1], task=lessons, routes=["uls:3"], metrics=("nll",), allow_searched_rows=True)
        return sum(rows.column("nll").to_pylist()) / rows.num_rows

    assert nll(adapted[0]) < at_most * nll(base[0])
    renamed = replace(lessons, examples=(replace(lessons.examples[3], id="other", reference="mat"),))
    for verb, options in ((sweep, {"routes": ["uls:3"]}), (similarity, {"routes": ["uls:3"]}), (search_routes, {})):
        with pytest.raises(InputError, match=r"^1 of the 1 .* \(such as 'other'\) were used to train the adapter: take"):
            verb(adapted[0], base[1], task=renamed, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("epochs", "at_most"), [(4, 0.9), pytest.param(12, 0.7, marks=pytest.mark.slow)])
def test_elastic_weights_come_closer_to_the_full_model_at_every_depth(run, base, lessons, quick, tmp_path, epochs, at_most):
    settings = replace(quick, distill=True, answers="model", epochs=epochs, weights_dtype="float16")
    result = run(FAMILY, settings)
    adapted = load(str(tmp_path / "base"), adapter=result.folder)
    routes = [*FAMILY.routes]
    kl = {}
    for name, model in (("untouched", base[0]), ("elastic", adapted[0])):
        options = {"metrics": ("kl",), "fidelity_tokens": 8, "allow_searched_rows": True}
        rows = sweep(model, base[1], task=lessons, routes=routes, **options).to_pandas()
        kl[name] = rows.groupby("route").kl.mean()
    assert kl["elastic"]["hand:3"] < at_most * kl["untouched"]["hand:3"]
    assert kl["elastic"]["hand:4"] < at_most * kl["untouched"]["hand:4"]
    assert kl["untouched"]["full"] == 0 < kl["elastic"]["full"] < 0.5 * kl["elastic"]["hand:4"]
    assert {t.dtype for t in weights(result.folder).values()} == {torch.float16}
    tokens = result.record["response_tokens_by_route"]
    assert len(set(tokens.values())) == 1 and sum(tokens.values()) == result.record["response_tokens"]


def test_the_full_route_is_plain_fine_tuning(run, base, lessons, quick, tmp_path):
    """The same weights as transformers' own Trainer gives on the same batches."""
    settings = replace(quick, method="full", learning_rate=1e-3)
    ours = weights(run("full", settings).folder)

    model, tokenizer = load(tmp_path / "base")
    rows = training_rows(lessons, tokenizer, Session.of(model, tokenizer))
    passes = make_schedule(rows, [FULL], settings).passes

    def batch(one):
        width = max(rows[i].n_tokens for i in one.rows)
        ids, labels, mask = [], [], []
        for i in one.rows:
            row, pad = rows[i], width - rows[i].n_tokens
            ids.append([*row.prompt_ids, *row.response_ids, *[0] * pad])
            labels.append([*[-100] * len(row.prompt_ids), *row.response_ids, *[-100] * pad])
            mask.append([1] * row.n_tokens + [0] * pad)
        names = ("input_ids", "labels", "attention_mask")
        return {name: torch.tensor(value) for name, value in zip(names, (ids, labels, mask), strict=True)}

    arguments = TrainingArguments(
        output_dir=str(tmp_path / "plain"),
        max_steps=len(passes),
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=round(settings.warmup_fraction * len(passes)),
        seed=0,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
        remove_unused_columns=False,
    )
    Trainer(model, arguments, train_dataset=[batch(one) for one in passes], data_collator=lambda items: items[0]).train()
    theirs = model.state_dict()
    assert ours.keys() == {name for name in theirs if name in ours}
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.matrix), 5])
def test_a_killed_run_goes_on_exactly(run, quick, tmp_path, step):
    settings = replace(quick, distill=True, epochs=2, save_every=2)
    options = {"trainer_options": {"logging_steps": 1}}
    straight = run(FAMILY, settings, "straight", **options)
    with stopped_at(DepthTrainer, step):
        run(FAMILY, settings, "killed", **options)
    half = tmp_path / "killed" / "checkpoints" / "checkpoint-99"  # a kill in the middle of writing leaves one
    half.mkdir(parents=True, exist_ok=True)
    (half / "adapter_model.safetensors").write_bytes(b"half")
    resumed = run(FAMILY, settings, "killed", **options)
    ours, theirs = weights(resumed.folder), weights(straight.folder)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    def losses(result):
        keys = ("step", "loss", "loss/hand:3", "loss/full", "learning_rate", "grad_norm")
        return [[entry[key] for key in keys] for entry in result.record["history"]]

    assert losses(resumed) == losses(straight)
    again = run(FAMILY, settings, "killed", **options)  # finished: nothing is trained
    assert again.record == json.loads((tmp_path / "killed" / "training.json").read_text())


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(run, quick, tmp_path, monkeypatch):
    settings = replace(quick, epochs=2, save_every=2)
    compute = DepthTrainer.compute_loss

    def spoiled(self, model, inputs, **options):
        if self.state.global_step == 5:
            with torch.no_grad():
                next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))
        return compute(self, model, inputs, **options)

    monkeypatch.setattr(DepthTrainer, "compute_loss", spoiled)
    with pytest.raises(InputError, match=r"loss on route 'uls:3' is nan at step 6: lower the learning rate"):
        run("uls:3", settings)
    checkpoint = last_checkpoint(tmp_path / "out" / "checkpoints")
    assert checkpoint.name == "checkpoint-4"
    assert all(torch.isfinite(tensor).all() for tensor in weights(checkpoint).values())


def test_weights_that_are_not_finite_are_never_saved(run, quick, tmp_path, monkeypatch):
    class Spoil(TrainerCallback):
        def on_step_end(self, args, state, control, model, **_):
            if state.global_step == 4:
                with torch.no_grad():
                    next(p for p in model.parameters() if p.requires_grad).fill_(float("inf"))

    start = DepthTrainer.train
    monkeypatch.setattr(DepthTrainer, "train", lambda self, **k: (self.add_callback(Spoil()), start(self, **k)))
    with pytest.raises(InputError, match="is not finite after step 4: lower the learning rate"):
        run("uls:3", replace(quick, epochs=2, save_every=2))
    assert last_checkpoint(tmp_path / "out" / "checkpoints").name == "checkpoint-2"


def test_a_full_disk_says_so_and_the_checkpoint_before_it_serves(run, quick, tmp_path, monkeypatch):
    save, n_saved = torch.save, []

    def limited(value, path, *args, **options):
        n_saved.append(path)
        if "checkpoint-4" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(value, path, *args, **options)

    monkeypatch.setattr(torch, "save", limited)
    with pytest.raises(InputError, match=r"checkpoint of step 4 cannot be written .*No space left .*make room and run"):
        run("uls:3", replace(quick, epochs=2, save_every=2))
    assert n_saved and last_checkpoint(tmp_path / "out" / "checkpoints").name == "checkpoint-2"
    monkeypatch.setattr(torch, "save", save)
    assert run("uls:3", replace(quick, epochs=2, save_every=2)).record["steps"] == 12


def test_a_folder_of_another_run_is_refused(run, quick):
    run("uls:3", quick)
    with pytest.raises(InputError, match=r"holds a training run with another r \(2 then, 3 now\)"):
        run("uls:3", replace(quick, r=3))


def test_bad_input_is_refused_before_anything_trains(run, base, quick, first, tmp_path, monkeypatch):
    monkeypatch.setattr(DepthTrainer, "train", None)
    for routes, complaint in (("rls:3@0", "is a rule, not one route"), ([], "No route was given"), ("uls:7", "uls:7")):
        with pytest.raises(InputError, match=complaint):
            run(routes, quick)
    with pytest.raises(InputError, match="in_place=True is for method='full' without distillation"):
        run("uls:3", quick, in_place=True)
    with pytest.raises(InputError, match="max_steps follows from the settings"):
        run("uls:3", quick, "a", trainer_options={"max_steps": 3})
    with pytest.raises(InputError, match=r"trainer's options cannot be used: .*no_such"):
        run("uls:3", quick, "b", trainer_options={"no_such": 3})
    with pytest.raises(InputError, match="3 rows are too few"):
        finetune(base[0], base[1], task=first(3), routes="uls:3", out=tmp_path / "c", settings=quick)


def test_in_place_trains_the_model_itself(run, base, quick):
    before = base[0].model.layers[0].mlp.up_proj.weight.clone()
    run("uls:3", replace(quick, method="full"), in_place=True)
    assert not torch.equal(base[0].model.layers[0].mlp.up_proj.weight, before)


@pytest.mark.slow
def test_two_processes_train_one_adapter(base, lessons, tmp_path):
    """torchrun on the CPU: every process its own batches, the same weights at the end."""
    import subprocess
    import sys

    data = tmp_path / "lessons.jsonl"
    data.write_text(
        "".join(json.dumps({"prompt": e.instruction, "reference": e.reference}) + "\n" for e in lessons.examples)
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "depthdial"]
    options = ["--rank", "2", "--batch-size", "3", "--save-every", "2", "--epochs", "2", "--out", str(tmp_path / "out")]
    out = tmp_path / "out"
    done = subprocess.run(
        [*command, "finetune", str(tmp_path / "base"), "--elastic", "full,uls:3,uls:4", "--data", str(data), *options],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "training.json").read_text())
    assert record["processes"] == 2 and record["steps"] == 8
    adapted, _ = load(tmp_path / "base", adapter=out)
    assert isinstance(adapted.get_base_model(), type(AutoModelForCausalLM.from_pretrained(tmp_path / "base")))
    assert world_size() == 1


def test_training_leaves_modes_and_chance_as_they_were_and_its_teacher_evaluates(run, base, quick, monkeypatch):
    seen, real = [], DepthTrainer.teach

    def teach(self, tensors, group):
        seen.append((self.model.training, any(module.training for module in self.teacher.modules())))
        return real(self, tensors, group)

    monkeypatch.setattr(DepthTrainer, "teach", teach)
    base[0].train()
    base[0].model.layers[2].eval()
    modes = {name: module.training for name, module in base[0].named_modules()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    run(["full", "ee:3"], replace(quick, distill=True, save_every=50))
    assert set(seen) == {(True, False)}
    assert {name: module.training for name, module in base[0].named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
