from __future__ import annotations

from dataclasses import fields, replace

import pytest

from depthdial.errors import InputError
from depthdial.train.depth.settings import FinetuneSettings
from depthdial.train.gates.settings import GateSettings
from depthdial.train.gates.study import GatesStudySettings, Run, runs_of

SMALL = GatesStudySettings(budgets=(0.8, 0.6), seeds=2, other_inputs=("position",), other_budget=0.6)


def test_every_training_of_a_study():
    names = [run.name for run in runs_of(SMALL)]
    assert names == [
        "full",
        *("hidden-0.8-s0", "fixed-0.8-s0", "hidden-0.6-s0", "fixed-0.6-s0", "position-0.6-s0"),
        *("hidden-0.8-s1", "fixed-0.8-s1", "hidden-0.6-s1", "fixed-0.6-s1", "position-0.6-s1"),
        "exits",
    ]
    assert [run.name for run in runs_of(replace(SMALL, controls=False))] == names[:-1]
    assert len(runs_of(GatesStudySettings())) == 2 + 5 * (4 * 2 + 3)


def test_no_run_is_there_twice():
    """An input that is named for every budget and for the one as well, and budgets and inputs named twice."""
    settings = replace(
        SMALL, inputs=("hidden", "fixed", "hidden"), other_inputs=("fixed", "position"), budgets=(0.8, 0.6, 0.8)
    )
    assert runs_of(settings) == runs_of(SMALL)


def test_what_a_run_trains_with():
    settings = replace(SMALL, seed=3, r=4, learning_rate=1e-3, gate_learning_rate=0.3, key_values="drop", tokens=77)
    assert settings.of_gates(Run("position", 0.6, 1)) == GateSettings(
        input="position",
        target=0.6,
        gate_learning_rate=0.3,
        key_values="drop",
        rank=4,
        learning_rate=1e-3,
        batch_size=8,
        max_tokens=77,
        seed=4,
    )
    expected = FinetuneSettings(r=4, learning_rate=5e-4, batch_size=8, max_tokens=20_000, seed=3)
    assert settings.of_base == expected
    assert "of_base" not in {field.name for field in fields(settings)}  # folders say what was set, and no more


def test_pictures_are_made_at_the_budget_of_all_inputs_or_the_nearest():
    assert SMALL.mapped_budget == 0.6
    assert GatesStudySettings(budgets=(0.9, 0.5), other_budget=0.75).mapped_budget == 0.9


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"seeds": 1}, "at least 2 seeds"),
        ({"seeds": 0}, "Invalid seeds"),
        ({"tokens": -1}, "Invalid tokens"),
        ({"fidelity_tokens": 0}, "Invalid fidelity_tokens"),
        ({"base_tokens": -5}, "Invalid base_tokens"),
        ({"map_sequences": -1}, "Invalid map_sequences"),
        ({"budgets": ()}, "at least one budget"),
        ({"inputs": ()}, "at least one budget and one gate input"),
        ({"budgets": (0.5, 0.0)}, "Invalid budget 0.0: use a number above 0 and at most 1"),
        ({"budgets": (float("nan"),)}, "Invalid budget nan"),
        ({"other_budget": 1.5}, "Invalid budget 1.5"),
        ({"inputs": ("hidden", "attention")}, "Unknown gate input 'attention'"),
        ({"other_inputs": ("attention",)}, "Unknown gate input 'attention'"),
        ({"key_values": "forget"}, "Unknown key_values 'forget'"),
        ({"gate_learning_rate": 0.0}, "Invalid gate_learning_rate"),
        ({"learning_rate": -1.0}, "Invalid learning_rate"),
        ({"base_learning_rate": -1.0}, "Invalid learning_rate"),
    ],
)
def test_bad_settings(bad, message):
    with pytest.raises(InputError, match=message):
        GatesStudySettings(**bad)
