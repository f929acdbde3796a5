"""The dual variable, held against a plant that answers its price with a delay."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depthdial.train.gates.budget import Budget, Price
from depthdial.train.gates.trainer import rate_factor


def test_a_price_is_alpha() -> None:
    fraction = torch.tensor(0.25, requires_grad=True)
    price = Price(2.0)
    price.penalty(fraction).backward()
    assert price.penalty(fraction).item() == 0.5 and fraction.grad == 2.0
    price.update(0.5)
    assert price == Price(2.0)


def test_the_goal_comes_down_and_stays() -> None:
    budget = Budget(0.4, start=0.9, ramp_steps=5)
    goals = []
    for _ in range(7):
        goals.append(budget.goal)
        budget.update(budget.goal)
    assert goals == pytest.approx([0.8, 0.7, 0.6, 0.5, 0.4, 0.4, 0.4]) and budget.value == 0
    assert Budget(0.4, 0.9, 0).goal == 0.4


def test_the_penalty_pushes_towards_the_goal() -> None:
    budget = Budget(0.5, 0.5, 0, stiffness=10.0, dual=-2.0)
    fraction = torch.tensor(0.6, requires_grad=True)
    budget.penalty(fraction).backward()
    assert budget.penalty(fraction).item() == pytest.approx(-0.2 + 0.05)
    assert fraction.grad == pytest.approx(-2.0 + 10 * 0.1)


@given(st.lists(st.floats(0, 1), max_size=30), st.floats(0.01, 1), st.integers(0, 10))
def test_it_goes_on_exactly_from_what_it_has_written(fractions: list[float], target: float, ramp: int) -> None:
    def fresh() -> Budget:
        return Budget(target, 0.9, ramp)

    straight, stopped = fresh(), fresh()
    for fraction in fractions:
        straight.update(fraction)
        stopped.update(fraction)
        state = json.loads(json.dumps(asdict(stopped)))
        stopped = replace(fresh(), **state)
    assert stopped == straight and math.isfinite(straight.dual)
    assert abs(straight.dual) <= len(fractions)  # a nat a step at most


@pytest.mark.parametrize("worth", [0.0, 3.0, 20.0])
@pytest.mark.parametrize("target", [0.9, 0.6, 0.4])
@pytest.mark.parametrize("n_steps", [25, 100])
def test_a_target_is_reached_and_held_whatever_layers_are_worth(worth: float, target: float, n_steps: int) -> None:
    """Log-odds that move as the gates' do; the loss wants layers, at `worth` nats for all of them."""
    odds = torch.full((4,), 2.0, requires_grad=True)
    optimizer = torch.optim.Adam([odds], betas=(0.5, 0.99))
    budget, seen = Budget(target, odds.sigmoid().mean().item(), round(0.4 * n_steps)), []
    for step in range(n_steps):
        optimizer.param_groups[0]["lr"] = 0.5 * rate_factor(step, n_steps, 1, 0.4 * n_steps)
        fraction = odds.sigmoid().mean()
        optimizer.zero_grad()
        (-worth * fraction + budget.penalty(fraction)).backward()
        optimizer.step()
        budget.update(fraction.item())
        seen.append(fraction.item())
    last = seen[-n_steps // 5 :]
    assert sum(last) / len(last) == pytest.approx(target, abs=0.01)
    assert max(abs(one - target) for one in last) < 0.02


def test_the_rate_is_held_and_then_falls_to_a_fifth() -> None:
    rates = [rate_factor(step, 10, 1, 4) for step in range(11)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1 - 0.8 / 6, 1 - 1.6 / 6, 1 - 2.4 / 6, 1 - 3.2 / 6, 1 - 4 / 6, 0.2])
    assert [rate_factor(step, 1, 0, 1) for step in (0, 1)] == pytest.approx([0.2, 0.2])
