from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.errors import InputError
from depthdial.measure.cost import model_cost
from depthdial.routes import Route, family_routes
from depthdial.train.depth.settings import FinetuneSettings
from depthdial.train.rows import TrainingRow
from depthdial.train.schedule import FlopsCount, MicroBatch, Schedule, make_schedule, training_flops

ROUTES = [r for r in family_routes("uls", 6) if len(r) in (2, 3, 4, 5)] + [Route(tuple(range(6)), 6, "full")]


def make_rows(n: int) -> list[TrainingRow]:
    return [TrainingRow(str(i), (1,) * (1 + i % 5), (2,) * (1 + i % 7)) for i in range(n)]


@given(
    n_rows=st.integers(8, 60),
    batch_size=st.integers(1, 70),
    accumulation=st.integers(1, 3),
    world_size=st.integers(1, 3),
    per_step=st.integers(1, 6),
    ends_every=st.integers(1, 3),
    max_tokens=st.integers(1, 900),
    seed=st.integers(0, 5),
)
def test_every_process_runs_whole_steps_of_its_own_batches(
    n_rows, batch_size, accumulation, world_size, per_step, ends_every, max_tokens, seed
):
    rows = make_rows(n_rows)
    settings = FinetuneSettings(
        batch_size=batch_size,
        accumulation=accumulation,
        routes_per_step=per_step,
        ends_every=ends_every,
        max_tokens=max_tokens,
        seed=seed,
    )
    schedule = make_schedule(rows, ROUTES, settings, world_size=world_size)
    assert schedule == make_schedule(rows, ROUTES, settings, world_size=world_size)
    n_routes = min(per_step, len(ROUTES))
    assert schedule.per_step == n_routes * accumulation
    assert len(schedule.passes) == schedule.n_steps * schedule.per_step * world_size
    for rank in range(world_size):
        mine = schedule.passes[rank::world_size]
        for start in range(0, len(mine), n_routes):
            group = mine[start : start + n_routes]
            assert len({one.group for one in group}) == len({one.rows for one in group}) == 1
            depths = [len(ROUTES[one.route]) for one in group]
            assert depths == sorted(depths) and len(set(depths)) == n_routes
        # Another process never has the same batch.
        others = {one.group for i, one in enumerate(schedule.passes) if i % world_size != rank}
        assert not others & {one.group for one in mine}
    assert sum(schedule.tokens_by_route(len(ROUTES))) == sum(one.n_tokens for one in schedule.passes) >= max_tokens
    last = schedule.per_step * world_size
    assert sum(one.n_tokens for one in schedule.passes[:-last]) < max_tokens


@given(n_rows=st.integers(8, 60), batch_size=st.integers(1, 9), epochs=st.integers(1, 3))
def test_epochs_meet_every_row_equally_often(n_rows, batch_size, epochs):
    settings = FinetuneSettings(batch_size=batch_size, epochs=epochs)
    schedule = make_schedule(make_rows(n_rows), [ROUTES[0]], settings)
    assert set(Counter(i for one in schedule.passes for i in one.rows).values()) == {epochs}
    assert len(Counter(i for one in schedule.passes for i in one.rows)) == n_rows


def test_a_sandwich_has_the_deepest_and_the_cheapest_route_and_others_between():
    settings = FinetuneSettings(batch_size=1, routes_per_step=3, epochs=10)
    passes = make_schedule(make_rows(30), ROUTES, settings).passes
    middle = Counter()
    for step in range(0, len(passes), 3):
        depths = [len(ROUTES[one.route]) for one in passes[step : step + 3]]
        assert (depths[0], depths[2]) == (2, 6)
        middle[depths[1]] += 1
    assert set(middle) == {3, 4, 5} and min(middle.values()) > 70  # of 300


def test_only_some_steps_are_sandwiches_and_emphasis_draws_more_often():
    settings = FinetuneSettings(
        batch_size=1, routes_per_step=2, epochs=10, ends_every=4, emphasis={"uls:4": 8.0, "full": 0.0, "uls:2": 0.5}
    )
    passes = make_schedule(make_rows(30), ROUTES, settings).passes
    depths = [sorted(len(ROUTES[one.route]) for one in passes[i : i + 2]) for i in range(0, len(passes), 2)]
    assert all(pair == [2, 6] for pair in depths[::4])
    rest = Counter(depth for i, pair in enumerate(depths) if i % 4 for depth in pair)
    assert 6 not in rest
    assert rest[4] > 0.9 * sum(rest.values()) / 2 > rest[3] > rest[2]


def test_rows_of_like_length_share_a_batch():
    passes = make_schedule(make_rows(70), [ROUTES[-1]], FinetuneSettings(batch_size=10)).passes
    assert all(len({1 + i % 7 for i in one.rows}) == 1 for one in passes)


def test_emphasis_on_an_unknown_route():
    with pytest.raises(InputError, match="names route 'uls:7', which is not trained: the routes are uls:2, "):
        make_schedule(make_rows(8), ROUTES, FinetuneSettings(emphasis={"uls:7": 2}))


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


def test_a_run_that_grows_is_counted_piece_by_piece(model, rows, quick):
    schedule = make_schedule(rows, [SHALLOW, FULL], quick)
    count = FlopsCount(model_cost(model), rows, [SHALLOW, FULL], quick)
    pieces = [count.of(schedule.first(n)) for n in (0, 1, 4, 4, schedule.n_steps)]
    assert pieces[0] == 0 and pieces[2] == pieces[3] and pieces == sorted(pieces)
    assert pieces[-1] == training_flops(model_cost(model), schedule, rows, [SHALLOW, FULL], quick)
    first = schedule.first(2)
    assert first.passes == schedule.passes[:4] and first.n_steps == 2
    assert sum(first.tokens_by_route(2)) == sum(one.n_tokens for one in schedule.passes[:4])
