from __future__ import annotations

from dataclasses import replace

import pytest

from depthdial.errors import InputError
from depthdial.train.depth.settings import FinetuneSettings
from depthdial.train.gates.settings import GateSettings

PLAIN = GateSettings(alpha=1.0)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"alpha": -0.1}, "Invalid alpha -0.1: use a number of at least 0"),
        ({"alpha": float("inf")}, "Invalid alpha"),
        ({"alpha": float("nan")}, "Invalid alpha"),
        ({"alpha": "1"}, "Invalid alpha"),
        ({"alpha": None}, "either target, a budget such as 0.6, or alpha, a weight"),
        ({"target": 0.5}, "either target, a budget such as 0.6, or alpha, a weight"),
        ({"alpha": None, "target": 0}, "Invalid target 0: use a number above 0 and at most 1"),
        ({"alpha": None, "target": 1.01}, "Invalid target"),
        ({"alpha": None, "target": float("nan")}, "Invalid target"),
        ({"temperature": 0}, "Invalid temperature"),
        ({"temperature": -1.0}, "Invalid temperature"),
        ({"temperature": 1e6}, "Invalid temperature"),
        ({"temperature": float("nan")}, "Invalid temperature"),
        ({"temperature": None}, "Invalid temperature"),
        ({"temperature_end": 0.01}, "Invalid temperature_end"),
        ({"annealing": "cosine"}, "Unknown annealing 'cosine': use exponential or linear"),
        ({"backbone": "half"}, "Unknown backbone 'half': use lora, full or frozen"),
        ({"key_values": "forget"}, "Unknown key_values 'forget'"),
        ({"gate_learning_rate": 0}, "Invalid gate_learning_rate"),
        ({"ramp": 1.5}, "Invalid ramp"),
        ({"rank": 0}, "Invalid r "),
        ({"learning_rate": -1}, "Invalid learning_rate"),
        ({"answers": "mine"}, "Unknown answers"),
        ({"prompt_depth": "half"}, "Unknown prompt depth"),
        ({"batch_size": 0}, "Invalid batch_size"),
        ({"save_every": 0}, "Invalid save_every"),
        ({"cross_entropy": 2}, "Invalid cross_entropy"),
    ],
)
def test_what_cannot_be_is_refused(changes, complaint):
    with pytest.raises(InputError, match=complaint):
        replace(PLAIN, **changes)


def test_the_run_is_a_fine_tuning_of_the_same_settings():
    settings = replace(PLAIN, rank=4, batch_size=3, max_tokens=70, seed=9, distill=True, cross_entropy=0.5)
    run = settings.run
    assert (run.r, run.resolved.lora_alpha, run.batch_size, run.max_tokens, run.seed) == (4, 8.0, 3, 70, 9)
    assert run.distill and run.cross_entropy == 0.5 and run.method == "lora"
    assert replace(PLAIN, backbone="full").run.rate == FinetuneSettings(method="full").rate
    assert PLAIN.run == FinetuneSettings()
    assert settings == GateSettings(
        alpha=1.0, run=FinetuneSettings(r=4, batch_size=3, max_tokens=70, seed=9, distill=True, cross_entropy=0.5)
    )
    assert GateSettings(target=0.6, temperature=2.0).run.temperature == 1.0  # of gates, not of a distillation
    with pytest.raises(TypeError, match="no_such"):
        GateSettings(alpha=1.0, no_such=1)


def test_a_target_must_be_within_reach_of_the_controlled_layers():
    settings = GateSettings(target=1 / 3, controlled=(1, 2, 3, 4))
    assert settings.config(6, 32).lowest_fraction == pytest.approx(1 / 3)
    with pytest.raises(
        InputError, match=r"target of 0.3 cannot be reached: 4 of 6 layers are controlled, so that 0.333 runs"
    ):
        replace(settings, target=0.3).config(6, 32)
    assert replace(settings, target=1.0).config(6, 32)
    with pytest.raises(InputError, match="Invalid controlled layer 9"):
        replace(settings, controlled=(9,)).config(6, 32)


def test_temperatures_anneal():
    fixed = replace(PLAIN, temperature=2.0)
    assert [fixed.temperature_at(done) for done in (0, 0.5, 1)] == [2, 2, 2]
    falling = replace(fixed, temperature_end=0.5)
    assert [falling.temperature_at(done) for done in (0, 0.5, 1)] == pytest.approx([2, 1, 0.5])
    linear = replace(falling, annealing="linear")
    assert [linear.temperature_at(done) for done in (0, 0.5, 1)] == pytest.approx([2, 1.25, 0.5])


@pytest.mark.parametrize("given", [{"max_minutes": 2}, {"save_minutes": 1.0}])
def test_a_time_budget_is_not_for_gates(given):
    with pytest.raises(InputError, match="max_minutes and save_minutes are for finetune"):
        GateSettings(target=0.6, **given)
