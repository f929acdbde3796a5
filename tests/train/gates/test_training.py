"""Gates trained end to end: what they learn, what stays as it is, kill and resume, and what can go wrong."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from depthdial.errors import InputError
from depthdial.hf.load import load
from depthdial.hf.trained import trained_on
from depthdial.measure.plan import ModelIdentity
from depthdial.measure.sweep import sweep
from depthdial.train.depth.finetune import finetune
from depthdial.train.gates import training as gate_training
from depthdial.train.gates.settings import GateSettings
from depthdial.train.gates.trainer import GateTrainer
from depthdial.train.gates.training import train_gates
from depthdial.train.trainer import last_checkpoint
from depthdial.views.tokens.depth import TokenDepth
from depthdial.views.tokens.gate_folder import load_gates
from depthdial.views.tokens.gates import GATE_INPUTS
from depthdial.views.tokens.view import TokenTrace, token_view
from tests.tiny import tiny
from tests.train.conftest import stopped_at


@pytest.fixture
def brief() -> GateSettings:
    """A few steps, with no checkpoint between them: where one is written costs more than a step does."""
    return GateSettings(target=0.6, rank=2, batch_size=4, save_every=1000, learning_rate=1e-2)


@pytest.fixture
def run(base, lessons, tmp_path, weights_of, assert_same):
    """Trains; whatever comes of it, the model that was given is the same afterwards."""

    def go(settings, out="out", **options):
        model = base[0]
        gradients = {name: p.requires_grad for name, p in model.named_parameters()}
        before = weights_of(model)
        try:
            return train_gates(model, base[1], task=lessons, out=tmp_path / out, settings=settings, **options)
        finally:
            assert_same(weights_of(model), before)
            assert {name: p.requires_grad for name, p in model.named_parameters()} == gradients
            assert not hasattr(model, "peft_config")

    return go


def column(result, name):
    return [entry[name] for entry in result.record["history"]]


# ---------------------------------------------------------------- what they learn


@pytest.mark.parametrize(
    ("target", "name", "backbone"),
    [
        (0.5, "hidden", "lora"),
        pytest.param(0.8, "fixed", "lora", marks=pytest.mark.matrix),
        pytest.param(0.4, "fixed", "frozen", marks=pytest.mark.matrix),
        (0.65, "position", "full"),
    ],
)
def test_a_target_is_reached_and_held_within_a_hundredth(run, brief, target, name, backbone):
    settings = replace(brief, target=target, input=name, backbone=backbone, learning_rate=1e-3, epochs=5)
    result = run(settings)
    expected, drawn = column(result, "fraction/expected"), column(result, "fraction")
    assert len(expected) == result.record["steps"] < 40
    assert sum(expected[-8:]) / 8 == pytest.approx(target, abs=0.01)
    assert sum(drawn[-8:]) / 8 == pytest.approx(target, abs=0.05)  # the draws of a few dozen tokens
    assert max(abs(one - target) for one in expected[-8:]) < 0.03
    assert sum(result.record["layer_rates"]) / 6 == pytest.approx(target, abs=0.02)
    assert result.record["layer_rates"][0] == result.record["layer_rates"][5] == 1
    assert len(set(column(result, "price"))) > 5


@pytest.mark.slow
def test_alpha_is_what_a_layer_costs(run, brief):
    settings = replace(brief, target=None, alpha=0.0, epochs=4)
    free, dear = run(settings, "free"), run(replace(settings, alpha=50.0), "dear")
    assert column(free, "fraction/expected")[0] == column(dear, "fraction/expected")[0] == pytest.approx(0.92, abs=0.02)
    assert column(dear, "fraction/expected")[-1] < 0.45 < column(free, "fraction/expected")[-1]
    assert set(column(dear, "price")) == {50.0}
    first = dear.record["history"][0]
    assert first["loss"] == pytest.approx(first["loss/task"] + 50 * first["fraction/expected"], rel=1e-5)


def test_gates_that_all_run_train_as_plain_fine_tuning_does(run, base, lessons, brief, tmp_path):
    settings = replace(brief, target=None, alpha=0.0, run_bias=60.0)
    gated = run(settings)
    options = {"trainer_options": {"logging_steps": 1}}
    plain = finetune(base[0], base[1], task=lessons, routes="full", out=tmp_path / "plain", settings=settings.run, **options)
    assert column(gated, "loss")[0] == pytest.approx(column(plain, "loss")[0], rel=1e-5)
    assert column(gated, "loss") == pytest.approx(column(plain, "loss"), rel=1e-3)
    assert column(gated, "fraction") == [1.0] * gated.record["steps"]
    assert gated.record["train_flops"] == plain.record["train_flops"]


@pytest.mark.slow
def test_a_hidden_state_is_learned_from(run, base, tmp_path):
    """What is worth a layer here depends on the token: gates that see it differ from token to token."""
    model, gates = load_gates(run(GateSettings(target=0.6, batch_size=4, rank=2, epochs=8, save_every=99)).folder, base[0])
    trace = TokenTrace()
    ids = torch.randint(4, 30, (4, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        token_view(model, gates.policy("argmax"), trace=trace)(ids, prompt_columns=2)
    ran = trace.passes[0].ran[:, 2:, 1:5]
    assert (ran.any((0, 1)) & ~ran.all(0).all(0)).any()


def test_distillation_starts_at_nothing_where_everything_runs(run, brief):
    settings = replace(brief, target=None, alpha=0.0, run_bias=60.0, distill=True, answers="model", epochs=0.5)
    assert column(run(settings), "loss")[0] == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
def test_distillation_comes_closer_to_what_everything_says(run, brief):
    skipping = run(replace(brief, target=None, alpha=0.0, run_bias=0.0, distill=True, answers="model", epochs=8))
    task = column(skipping, "loss/task")
    assert sum(task[-5:]) < 0.8 * sum(task[:5])


def test_the_temperature_is_annealed_to_its_end(run, brief, monkeypatch):
    seen = []
    forward = gate_training.GatedModel.forward
    monkeypatch.setattr(
        gate_training.GatedModel, "forward", lambda self, **k: (seen.append(k["temperature"]), forward(self, **k))[1]
    )
    run(replace(brief, temperature=2.0, temperature_end=0.5))
    assert seen[0] == 2.0 and seen[-1] == pytest.approx(0.5) and seen == sorted(seen, reverse=True)


@pytest.mark.parametrize(
    "name", ["opt", "gemma2", *(pytest.param(name, marks=pytest.mark.matrix) for name in ("gpt2", "gpt_neox", "qwen3"))]
)
def test_other_architectures_train_too(name, tokenizer, lessons, brief, tmp_path, weights_of, assert_same):
    model = tiny(name)
    before = weights_of(model)
    seen = "hidden" if name == "opt" else "embedding+position"
    settings = replace(brief, epochs=5, learning_rate=1e-3, input=seen)
    result = train_gates(model, tokenizer, task=lessons, out=tmp_path, settings=settings)
    assert_same(weights_of(model), before)
    expected = column(result, "fraction/expected")
    assert sum(expected[-8:]) / 8 == pytest.approx(0.6, abs=0.01)
    routed, gates = load_gates(result.folder, model)
    token_view(routed, gates.policy("sampled"))(torch.tensor([[1, 5, 9]]))


def test_embeddings_of_another_width_cannot_be_looked_at(tokenizer, lessons, brief, tmp_path):
    with pytest.raises(InputError, match="embeddings are 16 wide and its hidden states 32"):
        train_gates(tiny("opt"), tokenizer, task=lessons, out=tmp_path, settings=replace(brief, input="embedding"))


@pytest.mark.parametrize(
    "changes",
    [{"key_values": "drop"}, pytest.param({"key_values": "copy"}, marks=pytest.mark.matrix), {"prompt_depth": "route"}],
    ids=lambda one: str(one),
)
def test_other_ways_to_skip_train_too(run, brief, changes):
    result = run(replace(brief, **changes))
    assert all(map(math.isfinite, column(result, "loss"))) and column(result, "fraction/expected")[-1] < 0.85


def test_a_model_in_halves_trains(run, base, brief):
    base[0].bfloat16()
    result = run(brief)
    assert all(map(math.isfinite, column(result, "loss")))
    _, gates = load_gates(result.folder, base[0])
    assert gates.base.dtype == "bfloat16" and next(gates.parameters()).dtype == torch.float32


# ---------------------------------------------------------------- what they leave, and leave alone


# Each input once and each backbone once or more; `run` makes the comparison, here as everywhere.
COVERED = set(zip(GATE_INPUTS, itertools.cycle(["lora", "full", "frozen"]), strict=False))


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        pytest.param(*pair, marks=() if pair in COVERED else pytest.mark.matrix)
        for pair in itertools.product(GATE_INPUTS, ["lora", "full", "frozen"])
    ],
)
def test_a_model_that_is_frozen_in_part_is_the_same_afterwards(run, base, brief, backbone, name):
    base[0].requires_grad_(True)
    base[0].model.layers[1].requires_grad_(False)
    run(replace(brief, backbone=backbone, input=name, epochs=0.5))
    assert not base[0].model.layers[1].mlp.up_proj.weight.requires_grad
    assert base[0].model.layers[2].mlp.up_proj.weight.requires_grad


def test_the_comparison_can_fail(run, base, brief, monkeypatch):
    def spoils(model, *_, **__):
        with torch.no_grad():
            model.model.norm.weight[0] += 1

    monkeypatch.setitem(globals(), "train_gates", spoils)
    with pytest.raises(AssertionError):
        run(brief)


def test_the_folder_holds_gates_and_adapter(run, base, lessons, brief, tmp_path):
    result = run(brief, name="the base")
    names = {path.name for path in result.folder.iterdir()}
    assert {"gates.safetensors", "gates.json", "adapter_model.safetensors", "training.json", "train-gates.json"} <= names
    assert not names & {"checkpoints", "price.json", "model.safetensors"}
    assert json.loads((result.folder / "training.json").read_text()) == result.record
    model, gates = load_gates(result.folder, base[0])
    assert model.peft_config["default"].r == 2 and gates.base.name == "the base"
    assert gates.about["backbone"] == "lora" and gates.about["settings"]["target"] == 0.6
    depth = TokenDepth(gates.policy("argmax"), 6)
    with pytest.raises(InputError, match=r"24 of the 24 sequences .* were used to train the gates: take rows"):
        sweep(model, base[1], task=lessons, routes=[depth])
    before = gates.state_dict()["gates.1.weights.0"]
    assert not torch.equal(before, gate_training.TokenGates(gates.config).state_dict()["gates.1.weights.0"])
    with pytest.raises(InputError, match="are for the base"):
        other = load(tmp_path / "base")[0]
        with torch.no_grad():
            other.model.norm.weight.add_(1)
        load_gates(result.folder, other)


def test_a_backbone_that_trained_whole_lies_beside_its_gates(run, base, brief):
    result = run(replace(brief, backbone="full", learning_rate=1e-3))
    with pytest.raises(InputError, match=r"are for .* as trained beside them"):
        load_gates(result.folder, base[0])
    trained, _ = load(result.folder)
    model, gates = load_gates(result.folder, trained)
    assert model is trained and gates.config.n_layers == 6
    assert trained_on(trained) == {"to train the model": gates.policy("sampled").trained_on}
    assert not torch.equal(trained.model.layers[2].mlp.up_proj.weight, base[0].model.layers[2].mlp.up_proj.weight)


def test_frozen_leaves_gates_alone(run, base, brief):
    result = run(replace(brief, backbone="frozen"))
    assert not list(result.folder.glob("*adapter*")) and not list(result.folder.glob("model*"))
    model, gates = load_gates(result.folder, base[0])
    assert model is base[0] and gates.about["backbone"] == "frozen"


def test_a_known_identity_spares_reading_the_weights(run, base, brief, monkeypatch):
    identity = ModelIdentity.of(base[0], "given")
    monkeypatch.setattr(ModelIdentity, "of", None)
    assert run(brief, identity=identity).folder.name == "out"


# ---------------------------------------------------------------- kill and resume


@pytest.mark.parametrize(
    ("backbone", "step", "changes"),
    [
        ("lora", 5, {"epochs": 1.5}),
        pytest.param("lora", 5, {}, marks=pytest.mark.matrix),
        pytest.param("lora", 1, {"input": "fixed"}, marks=pytest.mark.matrix),
        pytest.param("lora", 9, {"accumulation": 2, "temperature_end": 0.5}, marks=pytest.mark.matrix),
        pytest.param("full", 5, {"kind": "mlp", "distill": True, "learning_rate": 1e-3}, marks=pytest.mark.matrix),
        pytest.param(
            *("frozen", 7, {"input": "position", "target": None, "alpha": 2.0, "epochs": 1.5}), marks=pytest.mark.matrix
        ),
    ],
)
def test_a_killed_run_goes_on_exactly(run, brief, tmp_path, monkeypatch, backbone, step, changes):
    settings = replace(brief, **{"backbone": backbone, "epochs": 4, "save_every": 2, **changes})
    straight = run(settings, "straight")
    with stopped_at(GateTrainer, step):
        run(settings, "killed")
    half = tmp_path / "killed" / "checkpoints" / "checkpoint-99"  # a kill in the middle of writing leaves one
    half.mkdir(parents=True, exist_ok=True)
    (half / "gates.safetensors").write_bytes(b"half")
    torch.manual_seed(12345)  # what the process has drawn meanwhile must not matter
    resumed = run(settings, "killed")
    for file in sorted(straight.folder.glob("*.safetensors")):
        ours, theirs = load_file(resumed.folder / file.name), load_file(file)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)

    def history(result):
        return [{k: v for k, v in entry.items() if k != "elapsed_sec"} for entry in result.record["history"]]

    assert history(resumed) == history(straight)
    assert resumed.record["layer_rates"] == straight.record["layer_rates"]
    monkeypatch.setattr(GateTrainer, "train", None)  # finished: nothing is trained
    assert run(settings, "killed").record == json.loads((tmp_path / "killed" / "training.json").read_text())


# ---------------------------------------------------------------- what can go wrong


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(run, brief, tmp_path, monkeypatch):
    compute = GateTrainer.compute_loss

    def spoiled(self, model, inputs, **options):
        if self.state.global_step == 5:
            with torch.no_grad():
                next(self.inner_gates().parameters()).fill_(float("nan"))
        return compute(self, model, inputs, **options)

    monkeypatch.setattr(GateTrainer, "compute_loss", spoiled)
    with pytest.raises(InputError, match="The loss is nan at step 6: lower the learning rate"):
        run(replace(brief, save_every=2))
    checkpoint = last_checkpoint(tmp_path / "out" / "checkpoints")
    assert checkpoint.name == "checkpoint-4"
    assert all(torch.isfinite(tensor).all() for tensor in load_file(checkpoint / "gates.safetensors").values())


def test_gates_that_are_not_finite_are_never_saved(run, brief, tmp_path, monkeypatch):
    class Spoil(TrainerCallback):
        def on_step_end(self, args, state, control, model, **_):
            if state.global_step == 4:
                with torch.no_grad():
                    next(model.gates.parameters()).fill_(float("inf"))

    start = GateTrainer.train
    monkeypatch.setattr(GateTrainer, "train", lambda self, **k: (self.add_callback(Spoil()), start(self, **k)))
    with pytest.raises(InputError, match=r"weight gates\.\S+ is not finite after step 4"):
        run(replace(brief, save_every=2))
    assert last_checkpoint(tmp_path / "out" / "checkpoints").name == "checkpoint-2"


def test_a_folder_of_another_run_is_refused(run, brief):
    run(brief)
    with pytest.raises(InputError, match=r"holds a training run with another target \(0.6 then, 0.7 now\)"):
        run(replace(brief, target=0.7))


def test_bad_input_is_refused_before_anything_trains(run, base, brief, first, tmp_path, monkeypatch, with_lora):
    monkeypatch.setattr(GateTrainer, "train", None)
    with pytest.raises(InputError, match=r"target of 0.3 cannot be reached: 4 of 6 layers are controlled"):
        run(replace(brief, target=0.3))
    with pytest.raises(InputError, match="Invalid controlled layer 6"):
        run(replace(brief, controlled=(6,)))
    with pytest.raises(InputError, match="max_steps follows from the settings"):
        run(brief, "a", trainer_options={"max_steps": 3})
    with pytest.raises(InputError, match="3 rows are too few"):
        train_gates(base[0], base[1], task=first(3), out=tmp_path / "b", settings=brief)
    base[0].config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match=r"flash_attention_2"):
        run(brief, "c")
    base[0].config._attn_implementation = "sdpa"
    for backbone in ("lora", "frozen"):
        with pytest.raises(InputError, match="has an adapter already"):
            train_gates(
                with_lora(load(tmp_path / "base")[0]),
                base[1],
                task=first(12),
                out=tmp_path / f"d-{backbone}",
                settings=replace(brief, backbone=backbone),
            )


@pytest.mark.slow
def test_two_processes_train_the_same_gates(base, lessons, tmp_path):
    """torchrun on the CPU: every process its own batches, one price, the same weights at the end."""
    import subprocess
    import sys

    data, out = tmp_path / "lessons.jsonl", tmp_path / "out"
    rows = [{"prompt": e.instruction, "reference": e.reference} for e in lessons.examples]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m"]
    verb = ["depthdial", "train-gates", str(tmp_path / "base"), "--data", str(data), "--out", str(out)]
    options = ["--target", "0.6", "--rank", "2", "--batch-size", "3", "--epochs", "8", "--save-every", "5"]
    done = subprocess.run([*launcher, *verb, *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "training.json").read_text())
    assert record["processes"] == 2 and record["steps"] == 32
    assert sum(entry["fraction/expected"] for entry in record["history"][-8:]) / 8 == pytest.approx(0.6, abs=0.01)
    load_gates(out, load(tmp_path / "base")[0])
