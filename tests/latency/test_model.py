"""The latency model: reading passes off it, mixed batches, layers' costs, and the file."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.errors import InputError
from depthdial.latency.cells import Ceilings, Cell, Gemm
from depthdial.latency.model import LatencyModel
from depthdial.routes import Route
from tests.latencies import affine, cells_of, make_latency

LATENCY = make_latency()
FULL, HALF, LATE = Route(tuple(range(6)), 6), Route((0, 2, 4), 6, "uls:3"), Route((0, 1, 2, 5), 6)


@pytest.mark.parametrize("rows", [1, 2, 5, 8])
def test_a_batch_of_one_route_is_a_step_of_it(rows):
    for route in (FULL, HALF, LATE):
        assert LATENCY.step_sec([route] * rows, 32) == pytest.approx(affine(len(route), rows, 1, 32))
        assert LATENCY.route_sec(route, rows, 32) == pytest.approx(affine(len(route), rows, 1, 32))
        assert LATENCY.step_sec([len(route)] * rows, 32) == pytest.approx(affine(len(route), rows, 1, 32))
    between = LATENCY.route_sec(3, rows) + LATENCY.route_sec(4, rows)
    assert LATENCY.route_sec(3.5, rows) == pytest.approx(between / 2)
    assert LATENCY.route_sec("uls:3", rows) == LATENCY.route_sec((0, 2, 4), rows) == LATENCY.route_sec(3, rows)


@given(st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=9), st.integers(0, 200))
def test_a_mixed_batch_is_a_sum_over_layers(sets, context):
    routes = [Route(tuple(sorted(one)), 6) for one in sets]
    counts = [sum(layer in route.layers for route in routes) for layer in range(6)]
    expected = 2e-3 + 5e-4 * len(routes) + sum(1e-3 + 1e-4 * n + 1e-6 * n * context for n in counts if n)
    assert LATENCY.step_sec(routes, context) == pytest.approx(expected, rel=1e-6)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=9))
def test_numbers_of_layers_are_nested_routes(numbers):
    nested = [Route(tuple(range(n)), 6) for n in numbers]
    assert LATENCY.step_sec(numbers, 10) == pytest.approx(LATENCY.step_sec(nested, 10))
    assert LATENCY.step_sec([*numbers, 6], 10) >= LATENCY.route_sec(6, len(numbers) + 1, 10) * 0.3


def test_a_check_reuses_the_layers_that_drafting_ran():
    whole = LATENCY.verify_sec(2, 5, None, 16)
    assert whole == pytest.approx(affine(6, 2, 5, 16))
    # Three layers run on one token a row in place of five.
    assert whole - LATENCY.verify_sec(2, 5, None, 16, reused_layers=3) == pytest.approx(3 * 1e-4 * 2 * 4)
    assert LATENCY.verify_sec(2, 1, None, 16, reused_layers=3) == pytest.approx(LATENCY.route_sec(None, 2, 16))


def test_prompts_contexts_and_bounds():
    assert LATENCY.prefill_sec(2, 64) == pytest.approx(affine(6, 2, 64, 0))
    assert LATENCY.prefill_sec(2, 64, HALF) == pytest.approx(affine(3, 2, 64, 0))
    assert LATENCY.context() == 40 and LATENCY.context(7) == 7
    assert LATENCY.route_sec(HALF) == LATENCY.route_sec(HALF, 1, 40)
    reading = (6e6 + 5e5 + 2 * 10 * 6 * 64) / 1e10
    assert LATENCY.bound_sec(None, 2, 10) == pytest.approx(reading)
    slow = make_latency(ceilings=Ceilings(1e12, "sum", (Gemm(1, 1e9, "linear"), Gemm(4, 5e8, "linear"))))
    assert slow.bound_sec(None, 2, 10) == pytest.approx(2 * (6 * (5e5 + 128 * 11) + 2.5e5) / 1e9)


def test_layers_cost_what_they_take_and_unlike_ones_their_share():
    costs = LATENCY.layer_costs(rows=2, context_tokens=10)
    assert costs.unit == "ms"
    assert costs.of(HALF) == pytest.approx(3 * (1 + 0.2 + 0.02))
    share = (2.0, 1.0, 0.5, 0.5, 1.0, 1.0)
    clock = {"full": 6.0, "uls:3": 3.5}
    routes = {"full": FULL.layers, "uls:3": HALF.layers}
    cells = [Cell("step", name, 1, 1, 10, 1e-3 * (1 + w), 1e-3 * (1 + w), 1e-3 * (1 + w), 3) for name, w in clock.items()]
    unlike = make_latency(layer_share=share, cells=tuple(cells), routes=routes)
    assert unlike.layer_costs().by_layer == pytest.approx(share)
    assert unlike.route_sec(Route((2, 3), 6)) == pytest.approx(2e-3)
    assert unlike.step_sec([Route((0,), 6), Route((2,), 6)]) == pytest.approx(2e-3 + 2.5e-3)


names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)
seconds = st.floats(1e-6, 1e3)


@given(
    st.builds(
        lambda name, share, date, scale: make_latency(
            model=name,
            layer_share=tuple(share),
            date=date,
            cells=cells_of(lambda *size: scale * affine(*size), LATENCY.routes),
        ),
        names,
        st.lists(st.floats(0.1, 10), min_size=6, max_size=6),
        names,
        seconds,
    )
)
def test_the_file_holds_all_of_it(tmp_path_factory, latency):
    folder = tmp_path_factory.mktemp("bench")
    path = latency.save(folder / "bench.json")
    again = LatencyModel.load(path)
    assert again == latency == LatencyModel.load(folder)
    assert again.step_sec([HALF, FULL], 9) == latency.step_sec([HALF, FULL], 9)


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match=r"There is no latency model file .*bench\.json: check the path\."):
        LatencyModel.load(tmp_path)
    path = LATENCY.save(tmp_path / "bench.json")
    document = json.loads(path.read_text())
    for change, told in (
        ({"format": "other"}, "is not a latency model file: run depthdial bench again"),
        ({"version": 9}, "is of version 9, not 1"),
        ({"cells": [{**document["cells"][0], "rows": 0}]}, r"damaged latency model file \(Invalid rows 0"),
        ({"cells": [{**document["cells"][0], "route": "x"}]}, "is of the route 'x', which has no layers"),
        ({"layer_share": [1.0]}, "tells of other layers than its 6"),
        ({"routes": {"full": [0, 9], "uls:3": [0]}}, "Layer 9 does not exist"),
        ({"cells": document["cells"][:1]}, "at one depth alone"),
        ({"more": 1}, "damaged"),
        ({"layer_share": [1.0] * 5 + [-1.0]}, "Invalid layer_share -1.0"),
        ({"ceilings": {**document["ceilings"], "gemm": []}}, "hold no matrix product"),
        (
            {"ceilings": {**document["ceilings"], "gemm": [{"rows": 1, "flops_per_sec": 0, "way": ""}]}},
            "Invalid flops_per_sec 0",
        ),
        ({"sizes": {**document["sizes"], "pair_flops": [1.0]}}, "There are 1 pair_flops of 6 layers"),
        ({"sizes": {**document["sizes"], "head_bytes": "x"}}, "Invalid head_bytes 'x'"),
    ):
        path.write_text(json.dumps({**document, **change}))
        with pytest.raises(InputError, match=told):
            LatencyModel.load(path)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda m: m.step_sec([]), "0 rows"),
        (lambda m: m.step_sec(3), "a list with an entry for each row, not 3"),
        (lambda m: m.step_sec("full"), "a list with an entry for each row"),
        (lambda m: m.step_sec([7]), "Invalid number of layers 7: use a number above 0 and at most 6"),
        (lambda m: m.step_sec([(0, 6)]), "Layer 6 does not exist: 'tiny' has layers 0 to 5"),
        (lambda m: m.step_sec([Route((0,), 4)]), "a model of 4 layers has no time on 'tiny', which has 6"),
        (lambda m: m.step_sec([3], -1), "Invalid context_tokens -1"),
        (lambda m: m.route_sec("ee:3"), "No route 'ee:3' was measured"),
        (lambda m: m.route_sec(None, 0), "Invalid rows 0"),
        (lambda m: m.route_sec(0), "Invalid number of layers 0"),
        (lambda m: m.route_sec(object()), "Layers are a route, indices or a number, not <object"),
        (lambda m: m.verify_sec(1, 0), "Invalid tokens 0"),
        (lambda m: m.verify_sec(1, 2, reused_layers=7), "Invalid reused_layers 7"),
        (lambda m: m.require_fits(4), "with 6 layers, and the rows or routes are of a model with 4: bench that model"),
        (lambda m: m.require_fits(6, 1.0), "whose head has another size"),
    ],
)
def test_bad_questions_are_answered_in_a_sentence(call, told):
    with pytest.raises(InputError, match=told) as caught:
        call(LATENCY)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_what_was_not_measured_is_said():
    steps = dataclasses.replace(LATENCY, cells=tuple(cell for cell in LATENCY.cells if cell.kind == "step"))
    with pytest.raises(InputError, match="no pass of several tokens behind a context"):
        steps.verify_sec(1, 2)
    with pytest.raises(InputError, match="no prompt's pass"):
        steps.prefill_sec(1, 2)
    with pytest.raises(InputError, match="no measured pass"):
        dataclasses.replace(LATENCY, cells=())
    assert steps.measured_rows() == (1, 2, 8)


def test_cells_are_quantiles_of_their_repeats():
    cell = Cell.of("step", "full", 1, 1, 8, [0.3, 0.1, 0.2, 0.5, 0.4])
    assert (cell.p20_sec, cell.p50_sec, cell.p80_sec, cell.count) == pytest.approx((0.18, 0.3, 0.42, 5))
    with pytest.raises(InputError, match="do not ascend"):
        Cell("step", "full", 1, 1, 8, 0.3, 0.2, 0.4, 3)
    with pytest.raises(InputError, match="Unknown kind of cell 'x'"):
        Cell("x", "full", 1, 1, 8, 0.1, 0.2, 0.4, 3)
    with pytest.raises(InputError, match="Invalid p50_sec nan"):
        Cell("step", "full", 1, 1, 8, 0.1, float("nan"), 0.4, 3)


def test_a_products_ceiling_lies_between_those_measured():
    ceilings = LATENCY.ceilings
    assert [ceilings.flops_per_sec(n) for n in (0, 1, 8, 99)] == [1e10, 1e10, 4e10, 4e10]
    assert ceilings.peak_flops_per_sec == 4e10
    assert ceilings.flops_per_sec(4.5) == pytest.approx(2.5e10)
    assert np.isfinite(ceilings.bandwidth_bytes_per_sec)
