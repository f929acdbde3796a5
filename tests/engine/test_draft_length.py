"""The draft length on simulated machines: near the best that is possible, and never much slower than plain decoding."""

from __future__ import annotations

import random

import hypothesis
import hypothesis.strategies as st
import pytest

from depthdial.engine.draft_length import DRAFT_TOKENS, PLAIN, Acceptance, DraftLength, Learned, Offer, PassTimes

PRIORS = {"route": 0.7, "lookup 2": 0.5}


def simulated(
    length, n_tokens, acceptance, draft, check, rows=1, noise=0.0, seed=0, offered=8, source="route", kind="route"
):
    """Plain steps that `n_tokens` of each row take; `check(m)` and `draft` in plain steps."""
    chance = random.Random(seed)
    times, total, done, rounds = length.learned.times, 0.0, 0.0, 0

    def measured(cost):
        return 0.01 * cost * (1 + noise * chance.random())

    while done < n_tokens:
        offers = {} if length.rests else {source: Offer([kind] * rows, [offered] * rows, is_free=source != "route")}
        setting = length.next(rows, offers) if offers else PLAIN
        if setting == PLAIN:
            length.note_step(rows, measured(1.0))
            total, done = total + 1, done + 1
            continue
        k, rounds = setting.draft_tokens, rounds + 1
        accepted = []
        for _ in range(rows):
            n = 0
            while n < k and chance.random() < acceptance:
                n += 1
            accepted.append(n)
        cost = check(k + 1)
        if source == "route":
            cost += k * draft
            times.note("draft", rows, measured(draft))
        times.note("check", rows, measured(check(k + 1)), k + 1)
        length.note_round(rows, offers[source], k, [k] * rows, accepted)
        total, done = total + cost, done + 1 + sum(accepted) / rows
    return total / done, rounds


def new(draft_share=0.6):
    return DraftLength(Learned(PassTimes(draft_share), PRIORS))


def ideal(acceptance, draft, check):
    def speedup(k):
        return sum(acceptance**i for i in range(k + 1)) / (k * draft + check(k + 1))

    return max(1.0, *(speedup(k) for k in DRAFT_TOKENS))


def memory_bound(m):
    return 1 + 0.08 * (m - 1)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.56, 0.7])
@pytest.mark.parametrize("n_tokens", [64, 300])
def test_what_does_not_pay_costs_less_than_two_percent(acceptance, rows, n_tokens):
    assert ideal(acceptance, 0.7, memory_bound) < 1.01
    for seed in range(10):
        share, _ = simulated(new(), n_tokens, acceptance, 0.7, memory_bound, rows, noise=0.1, seed=seed)
        assert share < 1.02


@pytest.mark.parametrize(("acceptance", "draft"), [(0.9, 0.4), (0.95, 0.2), (0.8, 0.3)])
def test_what_pays_is_found(acceptance, draft):
    best = ideal(acceptance, draft, memory_bound)
    assert best > 1.25
    shares = [simulated(new(draft), 600, acceptance, draft, memory_bound, seed=seed)[0] for seed in range(10)]
    assert sum(shares) / len(shares) < 1 / (0.92 * best)


def test_what_was_learned_serves_the_next_batch():
    first = new(0.3)
    simulated(first, 400, 0.85, 0.3, memory_bound)
    share, rounds = simulated(DraftLength(first.learned), 40, 0.85, 0.3, memory_bound, seed=1)
    assert share < 0.85 and rounds > 10
    first = new(0.9)
    simulated(first, 400, 0.1, 0.9, memory_bound)
    assert simulated(DraftLength(first.learned), 64, 0.1, 0.9, memory_bound, seed=1)[1] <= 2


def test_a_setting_that_stops_paying_is_left_and_found_again():
    length = new(0.3)
    assert simulated(length, 300, 0.9, 0.3, memory_bound)[0] < 0.8
    share, _ = simulated(length, 400, 0.0, 0.3, memory_bound)
    assert share < 1.03
    assert simulated(length, 2000, 0.9, 0.3, memory_bound)[0] < 0.85


def test_a_check_that_is_dear_beyond_some_tokens_is_kept_below_them():
    def cliff(m):
        return 1.02 if m <= 4 else 2.2

    length = new()
    simulated(length, 300, 0.6, 0.0, cliff, source="lookup", kind="lookup 2")
    assert length.next(1, {"lookup": Offer(["lookup 2"], [8], is_free=True)}).draft_tokens in (1, 2, 3)


@hypothesis.given(
    acceptance=st.floats(0, 1),
    draft=st.floats(0.05, 1.5),
    slope=st.floats(0.0, 1.0),
    rows=st.integers(1, 8),
    seed=st.integers(0, 99),
    offered=st.integers(1, 8),
)
def test_the_loss_is_bounded_on_any_machine(acceptance, draft, slope, rows, seed, offered):
    def check(m):
        return 1 + slope * (m - 1)

    length = new()
    n_tokens = 256
    share, _ = simulated(length, n_tokens, acceptance, draft, check, rows, seed=seed, offered=offered)
    # Below its share, half a step, and what one round of the longest draft may take that nothing was known of.
    assert share * n_tokens <= 1.01 * (n_tokens + 9) + 0.2 + 8 * draft + check(9)


def test_acceptance_by_place():
    seen = Acceptance(0.5)
    assert seen.tokens(0) == 0 and seen.tokens(2) == pytest.approx(0.75)
    for _ in range(200):
        seen.note(3, 1)  # the first is right, the second wrong, the third not judged
    assert seen.tokens(1) == pytest.approx(1, abs=0.06) and seen.tokens(3) == pytest.approx(1, abs=0.15)


def test_times_are_in_plain_steps_of_as_many_rows():
    times = PassTimes(0.6)
    assert times.draft(1) == 0.6 and times.check(1, 1) == 1 and times.check(1, 3) == pytest.approx(1.16)
    times.note("check", 4, 0.9, tokens=3)  # there is nothing yet to hold it against
    assert times.check(4, 3) == pytest.approx(1.16) and not times.knows_step(4)
    for sec in (0.5, 0.02, 0.02, 0.02):  # the first one comes upon cold caches
        times.note("step", 4, sec)
    times.note("draft", 4, 0.01)
    times.note("check", 4, 0.03, tokens=3)
    for sec in (0.2,) * 7:  # the machine is slower from now on
        times.note("step", 4, sec)
    assert times.draft(4) == times.draft(3) == pytest.approx(0.5)
    assert times.check(4, 3) == pytest.approx(1.5) and times.check(4, 2) == pytest.approx(1.25)
    assert times.check(4, 5) == pytest.approx(2.0) and times.check(4, 5, guess=True) == pytest.approx(1.32)
    for _ in range(7):
        times.note("check", 4, 0.3, tokens=3)
    times.start()
    for _ in range(3):
        times.note("check", 4, 0.24, tokens=3)
    assert times.check(4, 3) == pytest.approx(1.2)


def test_a_longer_draft_that_looked_dear_once_is_tried_again():
    length = new()
    for sec in (0.01,) * 3:
        length.learned.times.note("step", 1, sec)
    length.learned.times.note("check", 1, 0.0101, tokens=2)
    length.learned.times.note("check", 1, 0.05, tokens=4)  # something else ran at that moment
    length = DraftLength(length.learned)
    share, _ = simulated(length, 200, 0.97, 0.0, memory_bound, source="lookup", kind="lookup 2")
    assert share < 0.4


def test_wrong_times_of_an_earlier_batch_are_found_out():
    first = new(0.3)
    first.learned.times.note("step", 1, 0.01)
    for _ in range(9):
        first.learned.times.note("check", 1, 0.09, tokens=2)
        first.learned.times.note("draft", 1, 0.09)
    share, _ = simulated(DraftLength(first.learned), 400, 0.9, 0.3, memory_bound)
    assert share < 0.85


def test_a_latency_model_stands_for_what_was_not_measured():
    class Model:
        def route_sec(self, route=None, rows=1, context_tokens=None):
            return 0.5 if route == "short" else 1.0

        def verify_sec(self, rows, tokens, layers=None, context_tokens=None, *, reused_layers=0):
            return 1 + tokens / 10 - reused_layers / 100

    times = PassTimes(0.9, Model(), "short", reused_layers=2)
    assert times.draft(2) == 0.5 and times.check(2, 3) == pytest.approx(1.28)
    times.note("step", 2, 1.0)
    times.note("check", 2, 2.0, tokens=3)
    assert times.check(2, 3) == 2.0
