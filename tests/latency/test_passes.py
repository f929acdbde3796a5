"""The fit of passes: exact on clocks that it can express, ascending on any, and never below 0."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.errors import InputError
from depthdial.latency.cells import Cell
from depthdial.latency.passes import fit, on_line
from tests.latencies import affine, cells_of

ROUTES = {"full": tuple(range(6)), "uls:3": (0, 2, 4)}
WEIGHTS = {"full": 6.0, "uls:3": 3.0}
SECONDS = st.floats(1e-5, 10)


@given(st.tuples(*[st.floats(0, 1e-2)] * 2), st.tuples(*[st.floats(1e-5, 1e-2)] * 2), st.floats(0, 1e-4))
def test_an_affine_clock_is_recovered(fixed, layer, per_token):
    def clock(layers, rows, tokens, context):
        return fixed[0] + fixed[1] * rows + layers * (layer[0] + layer[1] * rows + per_token * rows * context)

    found = fit([cell for cell in cells_of(clock, ROUTES) if cell.kind == "step"], WEIGHTS)
    for rows in (1, 2, 5, 8, 20):
        parts = found.parts(rows)
        for layers, context in ((1, 0), (6, 40), (3, 500)):
            seconds = parts.fixed_sec + layers * parts.layer(context)
            assert seconds == pytest.approx(clock(layers, rows, 1, context), rel=1e-4)


def test_passes_of_several_tokens_are_recovered_too():
    found = fit([cell for cell in cells_of(affine, ROUTES) if cell.kind in ("step", "verify")], WEIGHTS)
    for rows, tokens in ((1, 2), (2, 4), (8, 9), (3, 7)):
        parts = found.parts(rows, tokens)
        assert parts.fixed_sec + 6 * parts.layer(16) == pytest.approx(affine(6, rows, tokens, 16), rel=1e-6)


@given(st.lists(SECONDS, min_size=12, max_size=12), st.integers(1, 40), st.integers(1, 40))
def test_more_rows_more_tokens_and_more_layers_never_cost_less(seconds, some, more):
    cells, left = [], iter(seconds)
    for rows in (1, 4):
        for name in ROUTES:
            for tokens in (1, 3, 5):
                value = next(left)
                cells.append(Cell("verify", name, rows, tokens, 16, value, value, value, 1))
    found = fit(cells, WEIGHTS)
    less, most = sorted((some, more))
    for few, many in (((less, 1), (most, 1)), ((1, less), (1, most)), ((less, 2), (most, 2))):
        low, high = np.array(found.parts(*few)), np.array(found.parts(*many))
        assert (low >= 0).all() and (high >= low - 1e-12).all()


def test_a_context_that_was_measured_at_few_rows_serves_the_others():
    cells = [cell for cell in cells_of(affine, ROUTES) if cell.kind == "step"]
    cells = [cell for cell in cells if cell.rows < 8 or cell.context_tokens == 16]
    parts = fit(cells, WEIGHTS).parts(8)
    assert parts.context_sec == pytest.approx(8e-6)
    assert parts.fixed_sec + 6 * parts.layer(200) == pytest.approx(affine(6, 8, 1, 200))


def test_one_number_of_rows_is_scaled_beyond_and_held_below():
    cells = [cell for cell in cells_of(affine, ROUTES, rows=(2,)) if cell.kind == "step"]
    found = fit(cells, WEIGHTS)
    assert np.allclose(found.parts(4), 2 * np.array(found.parts(2)))
    assert found.parts(1) == found.parts(2)


def test_one_depth_alone_is_refused():
    cells = [cell for cell in cells_of(affine, {"full": ROUTES["full"]}) if cell.kind == "step"]
    with pytest.raises(InputError, match="at one depth alone: bench at least two"):
        fit(cells, WEIGHTS)
    with pytest.raises(InputError, match="no measured pass"):
        fit([], WEIGHTS)


@given(st.lists(st.floats(0, 100), min_size=2, max_size=5), st.floats(0.5, 12))
def test_lines_are_those_of_numpy_between_the_places(values, at):
    places = np.arange(1, len(values) + 1) * 2.0
    heights = np.sort(values)
    found = on_line(at, places, heights[:, None])[0]
    if at <= places[-1]:
        assert found == pytest.approx(np.interp(at, places, heights))
    else:
        assert found >= heights[-1]
