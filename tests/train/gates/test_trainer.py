"""The trainer of gates, step by step: its parameter groups, its price over batches, what a checkpoint holds."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from depthdial.engine.session import Session
from depthdial.train.depth.student import student
from depthdial.train.gates.budget import Budget, Price
from depthdial.train.gates.gated import GatedModel
from depthdial.train.gates.settings import GateSettings
from depthdial.train.gates.trainer import GateTrainer
from depthdial.train.running import training_arguments
from depthdial.train.schedule import make_schedule
from depthdial.train.trainer import ScheduledPasses
from depthdial.views.tokens.gates import TokenGates


@pytest.fixture
def trainer_of(model, tokenizer, rows, tmp_path):
    """A trainer that has not started, of some settings."""
    session = Session.of(model, tokenizer)
    entered = []

    def make(price=None, weight_decay: float = 0.0, **changes) -> GateTrainer:
        settings = GateSettings(**{"alpha": 1.0, "rank": 2, "batch_size": 4, **changes})
        trained = student(model, [session.full], settings.run, in_place=False)
        entered.append(trained)
        gated = GatedModel(trained.__enter__(), TokenGates(settings.config(6, 32)))
        schedule = make_schedule(rows, [session.full], settings.run)
        arguments = training_arguments(session, settings.run, schedule, tmp_path, {})
        arguments.weight_decay = weight_decay
        passes = ScheduledPasses(schedule.passes, rows, session.pad_token_id)
        return GateTrainer(gated, None, price or Price(1.0), settings, passes, arguments)

    yield make
    for one in entered:
        one.__exit__(None, None, None)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd"])
def test_gates_have_a_group_and_a_rate_of_their_own(trainer_of, optim):
    trainer = trainer_of(weight_decay=0.1, gate_learning_rate=0.25, learning_rate=1e-3)
    trainer.args.optim = optim
    optimizer = trainer.create_optimizer()
    assert trainer.create_optimizer() is optimizer
    own = set(map(id, trainer.inner_gates().parameters()))
    *others, last = optimizer.param_groups
    assert set(map(id, last["params"])) == own and (last["lr"], last["weight_decay"]) == (0.25, 0)
    rest = [p for group in others for p in group["params"]]
    assert rest and not own & set(map(id, rest)) and {group["lr"] for group in others} == {1e-3}
    assert {id(p) for p in trainer.model.parameters() if p.requires_grad} == own | set(map(id, rest))


def test_the_backbone_follows_its_schedule_and_the_gates_theirs(trainer_of):
    trainer = trainer_of(gate_learning_rate=0.25, learning_rate=1e-3, warmup_fraction=0.0, ramp=0.5)
    trainer.create_optimizer_and_scheduler(10)
    rates = []
    for _ in range(10):
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert [rate[-1] for rate in rates[:6]] == [0.25] * 6 and rates[9][-1] == pytest.approx(0.25 * (1 - 0.8 * 4 / 5))
    assert rates[0][0] == 1e-3 and rates[9][0] < 5e-5


def test_the_gates_take_nothing_of_the_gradients_norm(trainer_of):
    trainer = trainer_of(price=Price(1000.0))
    trainer.compute_loss(trainer.model, trainer.train_dataset[0]).backward()
    norms = {
        name: torch.stack([p.grad.norm() for p in part.parameters() if p.grad is not None]).norm()
        for name, part in (("gates", trainer.model.gates), ("model", trainer.model.model))
    }
    assert 0 < norms["gates"] < 0.1 * norms["model"]


def test_a_step_of_several_batches_counts_every_token_once(trainer_of):
    trainer = trainer_of(price=Budget(0.5, 0.9, 0, gain=1.0))
    for ran, n in ((0.4, 3), (0.8, 1), (0.9, 0)):
        value = torch.tensor(ran)
        rates = torch.full((4,), ran)
        trainer._batches.append({"task": value, "ran": value, "expected": value, "rates": rates, "n": torch.tensor(n)})
    trainer.end_step()
    assert trainer.price.dual == pytest.approx(0.0, abs=1e-6)  # 0.5 on the mean
    means = trainer.means()
    assert means["fraction"] == means["fraction/expected"] == pytest.approx(0.5) and means["price"] == 0
    assert means["loss/task"] == pytest.approx(0.7) and trainer.means() == {}
    assert trainer.layer_rates() == pytest.approx([1, 0.5, 0.5, 0.5, 0.5, 1])


def test_steps_without_routed_tokens_leave_the_price_alone(trainer_of):
    trainer = trainer_of(price=Budget(0.5, 0.9, 4))
    batch = trainer.train_dataset[0]
    batch["response_mask"][:, 1:] = 0
    loss = trainer.compute_loss(trainer.model, batch)
    trainer.end_step()
    assert loss.item() == pytest.approx(trainer.means()["loss/task"]) and trainer.price == Budget(0.5, 0.9, 4)


def test_a_checkpoint_holds_adapter_gates_and_price(trainer_of, tmp_path):
    trainer = trainer_of(price=Budget(0.5, 0.9, 4))
    trainer.price.update(0.8)
    trainer._rates = [torch.rand(4)]
    trainer.write(tmp_path / "one", None)
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert {"adapter_model.safetensors", "gates.safetensors", "price.json"} <= names
    assert json.loads((tmp_path / "one" / "price.json").read_text())["price"] == asdict(trainer.price)
    other = trainer_of(price=Budget(0.5, 0.9, 4))
    with torch.no_grad():
        for parameter in trainer.inner_gates().parameters():
            parameter.add_(1)
    trainer.write(tmp_path / "two", None)
    other.read(tmp_path / "two")
    assert other.price == trainer.price and other.layer_rates() == trainer.layer_rates()
    for ours, theirs in zip(other.inner_gates().parameters(), trainer.inner_gates().parameters(), strict=True):
        assert torch.equal(ours, theirs)
