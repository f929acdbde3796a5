"""Rows gathered by route."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from depthdial.errors import InputError
from depthdial.report.study.summary import Speed, family_lines, family_of, full_of, gather, headline_metric, pooled
from depthdial.routes import Route
from depthdial.stats.intervals import mean_interval


def _rows(names: list[str], n_layers: int = 6, n_sequences: int = 3, **columns: Any) -> dict[str, list[Any]]:
    """One row for each sequence and route, with extra columns as functions of (route number, sequence number)."""
    table: dict[str, list[Any]] = {key: [] for key in ("sequence_id", "route", "route_layers", "n_layers", *columns)}
    for number, name in enumerate(names):
        for i in range(n_sequences):
            route = Route.parse(name, n_layers).for_sequence(f"s{i}")
            values = {name: value(number, i) for name, value in columns.items()}
            known = {"sequence_id": f"s{i}", "route": name, "route_layers": str(route), "n_layers": n_layers}
            for key, value in {**known, **values}.items():
                table[key].append(value)
    return table


def test_routes_come_full_first_then_searched_then_by_family_and_falling_cost() -> None:
    rows = _rows(["ee:3", "uls:2", "drop:1", "uls:4", "full"])
    rows["route"] = [name.replace("drop:1", "greedy-kl:5") for name in rows["route"]]
    assert [route.name for route in gather(rows)] == ["full", "greedy-kl:5", "uls:4", "uls:2", "ee:3"]


@pytest.mark.parametrize(
    ("name", "family"),
    [("full", "full"), ("uls:4", "uls"), ("greedy-kl:5", "greedy-kl"), ("drop:1-2", "listed"), ("0-3,5", "listed")],
)
def test_family_is_what_precedes_the_colon(name: str, family: str) -> None:
    assert family_of(name) == family


def test_a_random_rule_is_the_share_of_sequences_on_which_each_layer_ran() -> None:
    (route,) = gather(_rows(["rls:3@0"], n_sequences=40))
    drawn = [Route.parse("rls:3@0", 6).for_sequence(f"s{i}").layers for i in range(40)]
    expected = [sum(layer in layers for layers in drawn) / 40 for layer in range(6)]
    assert route.share_run.tolist() == pytest.approx(expected)
    assert (route.cost_layers, route.fixed_layers) == (3.0, None)


def test_a_fixed_route_knows_its_layers_and_cost() -> None:
    (route,) = gather(_rows(["uls:3"]))
    assert (route.fixed_layers, route.cost, route.is_full) == ((0, 2, 4), 0.5, False)


def test_one_slow_batch_moves_neither_time_nor_speed() -> None:
    """Three batches of one sequence; the machine hiccups in the first batch of the shallow route."""
    rows = _rows(["full", "uls:3"], batch_size=lambda number, i: 1, step_sec=lambda number, i: [0.4, 0.2][number])
    slow = _rows(
        ["full", "uls:3"],
        batch_size=lambda number, i: 1,
        step_sec=lambda number, i: 9.0 if (number, i) == (1, 0) else [0.4, 0.2][number],
    )
    for full, shallow in (gather(rows), gather(slow)):
        assert full.milliseconds() == pytest.approx(400) and shallow.milliseconds() == pytest.approx(200)
        speed, own = shallow.speed_against(full), full.speed_against(full)
        assert speed is not None and speed.ratio == pytest.approx(2.0)
        assert own is not None and (own.ratio, own.low, own.high, own.is_noisy) == (1.0, 1.0, 1.0, False)
    full, shallow = gather(slow)
    speed = shallow.speed_against(full)
    assert speed is not None and (speed.low, speed.high) == pytest.approx((0.4 / 9, 2.0)) and speed.is_noisy
    assert speed.range_text == "0.04–2.00×, too noisy to tell"


def test_speed_compares_the_same_sequences() -> None:
    """A later, longer batch is slower for both routes: the ratio within a batch counts, not that of medians."""
    rows = _rows(
        ["full", "uls:3"],
        batch_size=lambda number, i: 1,
        step_sec=lambda number, i: [(1.0, 2.0, 8.0), (0.5, 1.0, 1.0)][number][i],
    )
    full, shallow = gather(rows)
    speed = shallow.speed_against(full)
    assert speed is not None and (speed.ratio, speed.low, speed.high, speed.repeats) == pytest.approx((2.0, 2.0, 8.0, 2))
    assert shallow.speed_against(full, "batch_prefill_sec") is None


def test_batches_of_other_sizes_are_not_timed_alike() -> None:
    alone = gather(_rows(["full", "uls:3"], batch_size=lambda number, i: 3 if number == 0 else 1))
    alike = gather(_rows(["full", "uls:3"], batch_size=lambda number, i: 3))
    assert not alone[1].is_timed_like(alone[0])
    assert alike[1].is_timed_like(alike[0])


def test_noise_is_a_range_wider_than_the_difference() -> None:
    assert not Speed(1.3, 1.2, 1.4, 5).is_noisy and Speed(1.3, 1.0, 1.4, 5).is_noisy and Speed(0.9, 0.8, 1.0, 2).is_noisy
    assert Speed(1.3, 1.3, 1.3, 1).range_text == "timed once" and Speed(1.3, 1.25, 1.4, 5).range_text == "1.25–1.40×"


def test_missing_numbers_are_left_out_of_means() -> None:
    (route,) = gather(_rows(["full"], rouge_l=lambda _, i: None if i == 0 else i / 10))
    assert route.mean("rouge_l") == pytest.approx(0.15)
    assert route.mean("nll") is None
    assert route.milliseconds() is None


def test_text_that_looks_like_a_number_stays_text() -> None:
    rows = _rows(["full"], answer=lambda _, i: "42" if i else None)
    (route,) = gather(rows)
    assert route.columns["answer"].tolist() == [None, "42", "42"]


@pytest.mark.parametrize("convert", [pd.DataFrame, dict])
def test_rows_may_be_a_data_frame_or_a_dict(convert: Any) -> None:
    rows = convert(_rows(["full", "uls:3"], kl=lambda number, i: float(number + i)))
    assert gather(rows)[1].mean("kl") == pytest.approx(2.0)


def test_curves_share_the_routes_that_families_have_in_common() -> None:
    # ULS at L-1 layers drops the last one, which is early exit; both end at the full model.
    lines = family_lines(gather(_rows(["full", "ee:5", "ee:3", "uls:3"])))
    assert sorted(lines["uls"]) == [3, 5, 6]
    assert sorted(lines["ee"]) == [3, 5, 6]
    assert [route.name for route in lines["uls"][5]] == ["ee:5"]


def test_seeds_of_a_random_rule_are_averaged_within_each_sequence() -> None:
    routes = gather(_rows(["rls:3@0", "rls:3@1"], kl=lambda number, i: float(10 * number + i)))
    interval = pooled(routes, "kl")
    assert interval is not None
    assert interval == mean_interval([5.0, 6.0, 7.0])


def test_the_full_model_is_found_under_another_name() -> None:
    routes = gather(_rows(["ee:6", "ee:3"]))
    full = full_of(routes)
    assert full is not None and full.name == "ee:6"
    assert full_of(gather(_rows(["ee:3"]))) is None


def test_headline_metric_is_agreement_without_references() -> None:
    def nothing(number: int, i: int) -> None:
        return None

    with_both = _rows(["full"], rouge_l=lambda _, i: 0.5, agreement=lambda _, i: 1.0)
    without = _rows(["full"], rouge_l=nothing, agreement=lambda _, i: 1.0)
    assert headline_metric(gather(with_both)) == "rouge_l"
    assert headline_metric(gather(without)) == "agreement"
    assert headline_metric(gather(_rows(["full"]))) is None


def test_rows_that_cannot_be_used_say_so() -> None:
    rows = _rows(["full"])
    with pytest.raises(InputError, match="no column 'route_layers'"):
        gather({key: value for key, value in rows.items() if key != "route_layers"})
    with pytest.raises(InputError, match="no rows"):
        gather({key: [] for key in rows})
    with pytest.raises(InputError, match="6 and 8 layers"):
        gather({**rows, "n_layers": [6, 6, 8]})
    with pytest.raises(InputError, match="Layer 6 does not exist"):
        gather({**rows, "route_layers": ["0-6"] * 3})


def test_interval_of_one_sequence_has_no_ends() -> None:
    (route,) = gather(_rows(["full"], n_sequences=1, kl=lambda _, i: 0.5))
    interval = route.interval("kl")
    assert interval is not None and interval.mean == 0.5 and math.isnan(interval.low)
    assert np.isnan(interval.high)


def test_samples_of_one_sequence_are_no_sequences_of_their_own() -> None:
    once = _rows(["full", "uls:3"], rouge_l=lambda number, i: (i - number) / 10)
    twice = {name: [value for value in column for _ in range(2)] for name, column in once.items()}
    twice["rouge_l"] = [value + (0.05 if i % 2 else -0.05) for i, value in enumerate(twice["rouge_l"])]
    twice["sample"] = [i % 2 for i in range(len(twice["route"]))]
    for single, double in zip(gather(once), gather(twice), strict=True):
        assert double.n_sequences == single.n_sequences == 3
        assert double.columns["rouge_l"] == pytest.approx(single.columns["rouge_l"])
        assert double.cost_layers == single.cost_layers
    greedy = {**once, "sample": [None] * 6}
    assert str(gather(greedy)[0].interval("rouge_l")) == str(gather(once)[0].interval("rouge_l"))
