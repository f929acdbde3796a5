from __future__ import annotations

import pytest

from depthdial.engine.groups import Work
from depthdial.engine.schedules import Chooser, MeasuredSteps
from depthdial.routes import Route
from tests.latencies import make_latency

FULL, HALF = Route(tuple(range(6)), 6), Route((0, 2, 4), 6)


class Cost:
    """Fixed seconds of a step, of each layer that is called, and of each row of a layer."""

    def __init__(self, fixed: float, layer: float, row: float) -> None:
        self.parts = fixed, layer, row

    def step_sec(self, layers, context_tokens=None):
        fixed, layer, row = self.parts
        rows = [one.layers for one in layers]
        return fixed + layer * len(set().union(*rows)) + row * sum(map(len, rows))


def observed(*kinds, seconds):
    cost = MeasuredSteps()
    for layers, rows in kinds:
        for noise in (0.9, 1.0, 1.0, 1.0, 5.0):
            cost.observe(Work(rows, layers, layers * rows), noise * seconds(layers, rows))
    return cost


def test_the_parts_of_a_step_are_found_from_medians():
    cost = observed(
        (6, 1), (3, 1), (6, 4), (3, 4), (2, 8), seconds=lambda n, rows: 0.01 + 0.002 * n + 0.003 * rows + 0.0005 * n * rows
    )
    assert cost.is_ready
    # Two rows of 6 layers and one of 3 among them.
    assert cost.step_sec([FULL, FULL, HALF]) == pytest.approx(0.01 + 0.002 * 6 + 0.003 * 3 + 0.0005 * 15)
    assert cost.step_sec([(0, 1), (4, 5)]) == pytest.approx(0.01 + 0.002 * 4 + 0.003 * 2 + 0.0005 * 4)


@pytest.mark.parametrize("kinds", [(), ((6, 1), (6, 2), (6, 8)), ((6, 1), (3, 1), (2, 1)), ((6, 2), (3, 4), (2, 6))])
def test_steps_that_do_not_tell_the_parts_are_not_enough(kinds):
    assert not observed(*kinds, seconds=lambda n, rows: 1.0).is_ready


def test_only_the_latest_steps_tell():
    cost = observed((6, 1), (3, 1), (6, 4), (3, 4), seconds=lambda n, rows: 1.0)
    for n, rows in ((6, 1), (3, 1), (6, 4), (3, 4)):
        for _ in range(32):
            cost.observe(Work(rows, n, n * rows), 0.01 * n)
    assert cost.step_sec([HALF]) == pytest.approx(0.03)


def test_what_is_remembered_is_bounded():
    cost = MeasuredSteps()
    for n in range(1000):
        for _ in range(40):
            cost.observe(Work(1, 1, n), 1.0)
        cost.observe(Work(2, 2, 4), 1.0)
    assert len(cost._seconds) == 256 and Work(2, 2, 4) in cost._seconds and Work(1, 1, 0) not in cost._seconds
    assert max(map(len, cost._seconds.values())) == 32


def test_what_runs_together_is_decided_by_the_cost():
    both = [FULL, HALF] * 4
    chooser = Chooser("auto", Cost(fixed=1.0, layer=1.0, row=0.01))
    chooser.decide(both, 8)  # all of them have rows: together each layer is called once
    assert chooser.now.schedule == "layer-major"
    assert "8 requests on 2 routes takes 7.36e+03 ms layer-major and 1.14e+04 ms by route" in chooser.now.why
    chooser.decide(both, 4)  # two batches either way: those of one route call fewer layers
    assert chooser.now.schedule == "by-route" and "by the latency model" in chooser.now.why
    chooser.decide([FULL] * 8, 4)
    assert chooser.now.schedule == "layer-major" and "on one route" in chooser.now.why


def test_a_small_difference_changes_nothing():
    chooser = Chooser("auto", Cost(fixed=1.0, layer=0.0, row=1.0))  # 2 + 36 and 2 + 36
    chooser.decide([FULL, HALF] * 4, 4)
    assert chooser.now.schedule == "layer-major"
    other = Chooser("auto", Cost(fixed=0.0, layer=1.0, row=0.0))
    other.decide([FULL, HALF] * 4, 4)
    other._cost = Cost(fixed=1.0, layer=0.0, row=1.0)
    other.decide([FULL, HALF] * 4, 4)
    assert other.now.schedule == "by-route"


def test_nothing_is_decided_before_enough_is_measured():
    chooser = Chooser("auto", None)
    chooser.decide([FULL, HALF] * 8, 4)
    assert chooser.now.schedule == "layer-major" and "too few kinds of steps" in chooser.now.why and chooser.wants_probe
    assert chooser.measured is not None
    for n, rows in ((6, 1), (3, 1), (6, 4), (3, 4)):
        chooser.measured.observe(Work(rows, n, n * rows), 1.0 + n)
    chooser.decide([FULL, HALF] * 4, 4)
    assert chooser.now.schedule == "by-route" and "by measured steps" in chooser.now.why


def test_one_walk_over_all_rows_calls_nothing_twice():
    chooser = Chooser("auto", None)
    chooser.decide([FULL, HALF] * 4, 8)
    assert chooser.now.schedule == "layer-major" and "all 8 requests have rows at once" in chooser.now.why
    assert not chooser.wants_probe


@pytest.mark.parametrize("asked", ["layer-major", "by-route"])
def test_what_was_asked_for_stays(asked):
    chooser = Chooser(asked, Cost(1.0, 1.0, 0.01))
    for most in (4, 8):
        chooser.decide([FULL, HALF] * 4, most)
        assert (chooser.now.schedule, chooser.now.why) == (asked, "it was asked for")


def test_a_latency_model_is_a_cost():
    chooser = Chooser("auto", make_latency())
    chooser.decide([FULL, HALF] * 4, 8)
    assert chooser.now.schedule == "layer-major" and "by the latency model" in chooser.now.why
