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
        ({"alpha": -0.1}, "alpha must be a number of at least 0, not -0.1"),
        ({"alpha": float("inf")}, "alpha must be"),
        ({"alpha": float("nan")}, "alpha must be"),
        ({"alpha": "1"}, "alpha must be"),
        ({"alpha": None}, "either alpha, a weight in the loss, or target, a budget"),
        ({"target": 0.5}, "either alpha, a weight in the loss, or target, a budget"),
        ({"alpha": None, "target": 0}, "target must be a fraction of the layers above 0 and at most 1, not 0"),
        ({"alpha": None, "target": 1.01}, "target must be a fraction"),
        ({"alpha": None, "target": float("nan")}, "target must be a fraction"),
        ({"temperature": 0}, "temperature must lie between 0.05 and 100, not 0"),
        ({"temperature": -1.0}, "temperature must lie between"),
        ({"temperature": 1e6}, "temperature must lie between"),
        ({"temperature": float("nan")}, "temperature must lie between"),
        ({"temperature": None}, "temperature must lie between"),
        ({"temperature_end": 0.01}, "temperature_end must lie between"),
        ({"annealing": "cosine"}, "Unknown annealing 'cosine': use exponential or linear"),
        ({"backbone": "half"}, "Unknown backbone 'half': use lora, full or frozen"),
        ({"key_values": "forget"}, "Unknown key_values 'forget'"),
        ({"gate_learning_rate": 0}, "gate_learning_rate must be a number above 0"),
        ({"ramp": 1.5}, "ramp must lie between 0 and 1"),
        ({"rank": 0}, "rank must be a whole number"),
        ({"learning_rate": -1}, "learning_rate must be a number above 0"),
        ({"answers": "mine"}, "Unknown answers"),
        ({"prompt_depth": "half"}, "Unknown prompt depth"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"save_every": 0}, "save_every must be"),
        ({"cross_entropy": 2}, "cross_entropy must lie between 0 and 1"),
    ],
)
def test_what_cannot_be_is_refused(changes, complaint):
    with pytest.raises(InputError, match=complaint):
        replace(PLAIN, **changes)


def test_the_run_is_a_fine_tuning_of_the_same_settings():
    settings = replace(PLAIN, rank=4, batch_size=3, max_tokens=70, seed=9, distill=True, cross_entropy=0.5)
    run = settings.run
    assert (run.rank, run.alpha, run.batch_size, run.max_tokens, run.seed) == (4, 8.0, 3, 70, 9)
    assert run.distill and run.cross_entropy == 0.5 and run.method == "lora"
    assert replace(PLAIN, backbone="full").run.rate == FinetuneSettings(method="full").rate
    assert PLAIN.run == FinetuneSettings()


def test_a_target_must_be_within_reach_of_the_controlled_layers():
    settings = GateSettings(target=1 / 3, controlled=(1, 2, 3, 4))
    assert settings.config(6, 32).lowest_fraction == pytest.approx(1 / 3)
    with pytest.raises(
        InputError, match=r"target of 0.3 cannot be reached: 4 of 6 layers are controlled, so that 0.333 runs"
    ):
        replace(settings, target=0.3).config(6, 32)
    assert replace(settings, target=1.0).config(6, 32)
    with pytest.raises(InputError, match="Controlled layer 9 lies outside a model of 6 layers"):
        replace(settings, controlled=(9,)).config(6, 32)


def test_temperatures_anneal():
    fixed = replace(PLAIN, temperature=2.0)
    assert [fixed.temperature_at(done) for done in (0, 0.5, 1)] == [2, 2, 2]
    falling = replace(fixed, temperature_end=0.5)
    assert [falling.temperature_at(done) for done in (0, 0.5, 1)] == pytest.approx([2, 1, 0.5])
    linear = replace(falling, annealing="linear")
    assert [linear.temperature_at(done) for done in (0, 0.5, 1)] == pytest.approx([2, 1.25, 0.5])
