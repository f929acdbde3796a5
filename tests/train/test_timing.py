"""The clock of a training, told by hand: positions, checkpoints and stops are arithmetic."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_cosine_schedule_with_warmup

from depthdial.errors import InputError
from depthdial.train.depth.settings import FinetuneSettings
from depthdial.train.timing import KeepTime, TimeBudget, anneal_by_time


class Hand:
    """A clock that stands until it is moved."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def budget(clock, *, n_steps=100, minutes=1.0, save_sec=10.0, **more):
    return TimeBudget(n_steps, max_sec=minutes * 60, save_sec=save_sec, clock=clock, **more)


def test_the_learning_rate_falls_by_time_where_steps_are_slow():
    clock = Hand(5.0)
    one = budget(clock, n_steps=1000)
    one.begin()
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=1.0)
    scheduler = get_cosine_schedule_with_warmup(optimizer, 50, 1000)
    anneal_by_time(scheduler, one)
    rates, steps = [], 0
    while not one.is_over:
        clock.now += 1.0
        optimizer.step()
        one.end_step(optimizer.param_groups[0]["lr"])
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
        steps += 1
    assert (steps, clock.now) == (52, 57.0)  # the end of the run is given 3 s
    assert rates[0] == 0 and max(rates) > 0.99 and rates[-1] < 0.01
    assert rates.index(max(rates)) == 3  # the warm-up, too, is a share of the time: 5% of 52 s
    assert rates[4:] == sorted(rates[4:], reverse=True)


@given(
    n_steps=st.integers(1, 400),
    durations=st.lists(st.floats(0.01, 9.0), min_size=1, max_size=60),
    loading=st.floats(0, 20),
    saving=st.floats(0, 4),
    minutes=st.floats(0.2, 3),
)
def test_a_run_ends_in_time_and_positions_only_grow(n_steps, durations, loading, saving, minutes):
    """Whatever steps and checkpoints take, as long as none is slower than all those before it."""
    durations = sorted(durations, reverse=True)
    clock = Hand(loading)
    one = budget(clock, n_steps=n_steps, minutes=minutes, save_sec=None)
    one.begin()
    seen = [one.position(0)]
    first_end = None
    for step, duration in enumerate(durations[:n_steps], start=1):
        if one.is_over:
            break
        clock.now += duration
        one.end_step(1.0)
        if one.is_due:
            clock.now += saving
            one.end_save()
        first_end = clock.now if first_end is None else first_end
        seen.append(one.position(step))
        assert max(step, 0) <= seen[-1] <= max(step, n_steps - 1)
    assert seen == sorted(seen)
    assert clock.now + 3 + 2 * one.save_sec <= max(minutes * 60, first_end + 3 + 2 * one.save_sec) + 1e-6


@given(st.floats(1e6, 1e12), st.lists(st.floats(0.001, 100), min_size=1, max_size=50))
def test_a_budget_that_never_matters_moves_nothing(minutes, durations):
    clock = Hand(3.0)
    one = budget(clock, n_steps=len(durations), minutes=minutes)
    one.begin()
    for step, duration in enumerate(durations, start=1):
        clock.now += duration
        one.end_step(1.0)
        assert one.position(step) == step and not one.is_over


def test_checkpoints_come_by_the_minute_and_not_where_the_end_would_not_fit():
    clock, saved = Hand(), []
    one = budget(clock, minutes=1, save_sec=15)
    one.begin()
    while not one.is_over:
        clock.now += 1.0
        one.end_step(1.0)
        if one.is_due:
            saved.append(clock.now)
            clock.now += 4.0
            one.end_save()
    assert saved == [1.0, 20.0, 39.0]  # the next would be due at 58 s
    assert clock.now == 49.0  # 11 s are left: twice a checkpoint's 4 s, and 3 s


@pytest.mark.parametrize(("minutes", "saving", "every"), [(2, 0.1, 12), (60, 0.1, 60), (60, 5.0, 100), (math.inf, 0.1, 7)])
def test_the_interval_follows_from_the_budget_and_what_a_checkpoint_takes(minutes, saving, every):
    clock = Hand()
    one = budget(clock, minutes=minutes, save_sec=7.0 if minutes == math.inf else None)
    one.begin()
    one.end_step(1.0)
    assert one.is_due  # the first one at once: from then on a kill leaves something
    clock.now += saving
    one.end_save()
    clock.now += every - 0.01
    one.end_step(1.0)
    assert not one.is_due
    clock.now += 0.02
    one.end_step(1.0)
    assert one.is_due


def test_minutes_of_a_stopped_run_count_and_its_way_goes_on(tmp_path):
    settings, ledger = FinetuneSettings(max_minutes=1), tmp_path / "minutes.json"
    given = {"ledger": ledger, "writes": True}
    clock = Hand()
    first = TimeBudget.of(settings, 100, clock=clock, resumes=False, **given)
    first.begin()
    for _ in range(20):
        clock.now += 1.0
        first.end_step(1.0)
    share = first.share
    assert json.loads(ledger.read_text())["used_sec"] == 20
    again = Hand(5.0)  # loading it again took 5 s
    second = TimeBudget.of(settings, 100, clock=again, resumes=True, **given)
    assert (second.used_sec, second.step_sec) == (25, 1.0)
    second.begin(share=share, has_learned=True)
    assert second.position(0) == first.position(0) == 35
    again.now += 16.0
    second.end_step(1.0)
    assert second.position(0) == 67  # half of the way that was left, with half of the time that is left
    assert TimeBudget.of(settings, 100, clock=Hand(), resumes=False, **given).used_sec == 0
    ledger.write_text("{")  # a damaged file is as good as none
    assert TimeBudget.of(settings, 100, clock=Hand(), resumes=True, **given).used_sec == 0
    assert TimeBudget.of(FinetuneSettings(), 100, clock=Hand(), resumes=True, **given) is None


def test_all_processes_do_what_the_first_one_decides():
    told = {}

    def say(values):
        told["values"] = list(values)
        return values

    clocks = Hand(), Hand()
    first, second = (budget(clock) for clock in clocks)
    first.begin()
    second.begin()
    clocks[0].now, clocks[1].now = 10.0, 1000.0
    first.end_step(1.0, say)
    second.end_step(1.0, lambda _: told["values"])
    assert (second.share, second.is_over, second.is_due) == (first.share, first.is_over, first.is_due)
    assert not second.is_over and second.is_due


def test_a_stop_is_logged_and_a_checkpoint_keeps_the_share():
    clock = Hand()
    one = budget(clock)
    keeper = KeepTime(one, list)
    state, control = SimpleNamespace(stateful_callbacks={}, global_step=3, max_steps=9), SimpleNamespace()
    keeper.on_train_begin(None, state, control)
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.0}, {"lr": 0.5}])
    clock.now = 10.0
    keeper.on_optimizer_step(None, state, control, optimizer=optimizer)
    keeper.on_step_end(None, state, control)
    assert vars(control) == {"should_save": True}
    kept = json.loads(json.dumps({"KeepTime": keeper.state()}))
    other = budget(Hand())
    KeepTime(other, list).on_train_begin(None, SimpleNamespace(stateful_callbacks=kept), control)
    assert (other.share, other.has_learned) == (one.share, True) and 0.1 < one.share < 0.2
    clock.now = 59.0
    keeper.on_save(None, state, control)
    assert control.should_training_stop and control.should_log


def test_a_slow_first_step_does_not_end_a_run_and_is_forgotten():
    clock = Hand()
    one = budget(clock)
    one.begin()
    clock.now = 30.0
    one.end_step(0.0)  # its rate is 0, as with a warm-up; another 30 s would not fit, and it takes less
    assert not one.is_over and not one.has_learned
    clock.now += 1.0
    one.end_step(1.0)
    assert one.step_sec == 1.0 and not one.is_over
    clock.now += 20.0
    one.end_step(1.0)
    assert one.is_over


def test_what_is_too_short_says_what_would_do():
    clock = Hand(12.0)
    one = budget(clock, minutes=0.1)
    assert not one.has_room
    complaint = (
        r"^A budget of max_minutes=0\.1 is too short to learn from one step: 0\.2 minutes are used, and .*: give at least"
    )
    assert InputError is type(one.too_short())
    with pytest.raises(InputError, match=complaint + r" 0\.4\.$"):
        raise one.too_short()


def test_a_schedule_that_has_no_position_is_refused():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    with pytest.raises(InputError, match="ReduceLROnPlateau cannot follow the clock: train without max_minutes"):
        anneal_by_time(scheduler, budget(Hand()))
