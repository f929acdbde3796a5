from __future__ import annotations

from dataclasses import replace

import pytest

from depthdial.measure.cost import model_cost
from depthdial.routes import Route
from depthdial.train.compute import training_flops
from depthdial.train.rows import TrainingRow
from depthdial.train.schedule import MicroBatch, Schedule

FULL, SHALLOW = Route(tuple(range(6)), 6, "full"), Route((0, 2), 6, "two")
ROWS = [TrainingRow("a", (1,) * 5, (2,) * 4), TrainingRow("b", (1,) * 3, (2,) * 2)]


@pytest.fixture
def parts(model):
    """(FLOPs of the prompts, of the responses on both routes, by hand from the cost of one layer and the head.)"""
    cost = model_cost(model)
    layer = cost.layers[0]

    def tokens(first, last):  # of positions first..last, counted from 1
        return sum(layer.flops_per_token + layer.flops_per_token_pair * n for n in range(first, last + 1))

    prompt = 6 * (tokens(1, 5) + tokens(1, 3))
    response = tokens(6, 8) + tokens(4, 4)
    return cost, prompt, 6 * response, 2 * response, cost.head_flops_per_token * 6


def test_by_hand(parts, quick):
    cost, prompt, deep, shallow, head = parts
    passes = (MicroBatch((0, 1), 0, 0, 6), MicroBatch((0, 1), 0, 0, 6), MicroBatch((0, 1), 1, 0, 6))
    schedule = Schedule(passes, 3, 1, 1)

    def flops(**changes):
        return training_flops(cost, schedule, ROWS, [SHALLOW, FULL], replace(quick, **changes))

    trained = 2 * (shallow + head) + (deep + head)
    assert flops() == pytest.approx(2 * (trained + prompt) + prompt)  # one prompt pass for both shallow ones
    assert flops(method="full") == pytest.approx(3 * (trained + prompt) + prompt)
    assert flops(prompt_gradient=True) == pytest.approx(2 * (trained + 3 * prompt))
    assert flops(prompt_depth="route") == pytest.approx(2 * (trained + prompt + 2 * prompt / 3))
    assert flops(distill=True) - flops() == pytest.approx(prompt + deep + head)
