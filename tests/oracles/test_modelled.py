"""Milliseconds of rows by a latency model, as a cost of both oracles."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from depthdial.errors import InputError
from depthdial.oracles.modelled import modelled_sec
from depthdial.oracles.oracle import oracle
from depthdial.oracles.predictable import predictable_oracle
from tests.latencies import affine, make_latency

LATENCY = make_latency()


def make_rows(**columns):
    """Two sequences on `full` and `uls:3`, of 5 and 9 tokens, behind prompts of 20 and 30."""
    return {
        "sequence_id": np.array(["a", "a", "b", "b"]),
        "route": np.array(["full", "uls:3"] * 2),
        "route_layers": np.array(["0-5", "0,2,4"] * 2, dtype=object),
        "layers_run": np.array([6.0, 3.0] * 2),
        "n_layers": np.full(4, 6),
        "new_tokens": np.array([5, 5, 9, 9]),
        "prompt_tokens": np.array([20, 20, 30, 30]),
        "agreement": np.array([1.0, 0.9, 1.0, 0.2]),
        "decode_sec": np.array([1.0, 2.0, 3.0, 4.0]),
    } | columns


def expected(rows):
    """Of the four rows, at a batch size."""
    cells = [(6, 4, 20 + 2.5), (3, 4, 20 + 2.5), (6, 8, 30 + 4.5), (3, 8, 30 + 4.5)]
    return np.array([steps * affine(layers, rows, 1, context) / rows for layers, steps, context in cells])


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("kind", [dict, pd.DataFrame, pa.table])
def test_the_oracle_spends_what_answers_take(kind, rows, tmp_path):
    LATENCY.save(tmp_path / "bench.json")
    table = kind(make_rows())
    for latency in (LATENCY, tmp_path, tmp_path / "bench.json"):
        curve = oracle(table, metric="agreement", cost="ms", latency=latency, latency_rows=rows, n_bootstrap=0)
        full, shallow = expected(rows)[::2], expected(rows)[1::2]
        assert curve.cost == "ms" and curve.routes == ("uls:3", "full")
        assert curve.full_cost == pytest.approx(1e3 * full.mean())
        assert curve.budgets[0] == pytest.approx(1e3 * shallow.mean())
        assert curve.value_at(1e3 * (full[1] + shallow[0]) / 2) == pytest.approx(0.95)


def test_without_a_model_the_measured_seconds_are_spent():
    assert oracle(make_rows(), metric="agreement", cost="ms", n_bootstrap=0).full_cost == pytest.approx(2000)


def test_of_samples_the_mean():
    rows = pd.DataFrame(make_rows())
    samples = pd.concat([rows.assign(sample=0), rows.assign(sample=1, new_tokens=rows["new_tokens"] + 4)])
    curve = predictable_oracle(samples, metric="agreement", cost="ms", latency=LATENCY, n_bootstrap=0, n_permutations=0)
    one = 1e3 * (4 * affine(6, 1, 1, 22.5) + 8 * affine(6, 1, 1, 24.5)) / 2
    other = 1e3 * (8 * affine(6, 1, 1, 34.5) + 12 * affine(6, 1, 1, 36.5)) / 2
    assert curve.full_cost == pytest.approx((one + other) / 2)


def test_rows_that_say_less():
    full = {name: column for name, column in make_rows().items() if name in ("layers_run", "n_layers")}
    assert modelled_sec(full, LATENCY) == pytest.approx([affine(6, 1, 1, 40), affine(3, 1, 1, 40)] * 2)
    token_wise = make_rows(route_layers=np.array(["0-5", "by tokens"] * 2, dtype=object), layers_run=np.array([6, 4.5] * 2))
    seconds = modelled_sec({k: token_wise[k] for k in (*full, "route_layers")}, LATENCY)
    assert seconds[1] == pytest.approx((affine(4, 1, 1, 40) + affine(5, 1, 1, 40)) / 2)


@pytest.mark.parametrize(
    ("columns", "options", "told"),
    [
        ({}, {"cost": "layers"}, "A latency model gives milliseconds, and the cost is 'layers': give cost='ms'"),
        ({"n_layers": np.full(4, 8)}, {}, "rows or routes are of a model with 8"),
        ({}, {"latency_rows": 0}, "Invalid latency_rows 0"),
        ({}, {"latency": "nowhere.json"}, "There is no latency model file nowhere.json"),
        (
            {"route_layers": np.array(["0-5", "gates"] * 2, dtype=object), "layers_run": np.array([6, np.nan] * 2)},
            {},
            "do not say how many layers 'gates' ran",
        ),
        ({"route_layers": np.array(["0-5", "0-9"] * 2, dtype=object)}, {}, "Layer 9 does not exist|layers 0 to 5"),
        ({"layers_run": np.array([6.0, 60.0] * 2)}, {}, "'layers_run' holds 60, and 'tiny' has 6 layers"),
        ({"new_tokens": np.array(["x"] * 4)}, {}, "'new_tokens' does not hold numbers"),
        ({"prompt_tokens": np.array([20, 20, 30])}, {}, "'prompt_tokens' and 'sequence_id' differ in length"),
        ({"route_layers": np.array(["0-5"] * 3, dtype=object)}, {}, "'route_layers' and 'sequence_id' differ in length"),
        ({}, {"steps": "all"}, "Unknown steps 'all'"),
        ({}, {"latency": 5}, "not as int: give what depthdial bench writes"),
    ],
)
def test_bad_input_is_answered_in_a_sentence(columns, options, told):
    given = {"metric": "agreement", "cost": "ms", "latency": LATENCY, "n_bootstrap": 0, **options}
    with pytest.raises(InputError, match=told):
        oracle(make_rows(**columns), **given)


def test_rows_that_do_not_say_which_layers_ran():
    with pytest.raises(InputError, match="say nowhere which layers ran: give the column 'route_layers' or 'layers_run'"):
        modelled_sec({"n_layers": np.full(2, 6)}, LATENCY)


def test_every_route_may_be_charged_for_the_full_models_steps():
    rows = make_rows(new_tokens=np.array([5, 3, 9, 20]))
    order = np.array([2, 0, 3, 1])  # of the rows: whatever it is, each keeps its own
    for steps, shallow in (("full", (4, 8)), ("own", (2, 19))):
        table = {name: column[order] for name, column in rows.items()}
        curve = oracle(table, metric="agreement", cost="ms", latency=LATENCY, steps=steps, n_bootstrap=0)
        sec = [n * affine(3, 1, 1, prompt + (n + 1) / 2) for n, prompt in zip(shallow, (20, 30), strict=True)]
        assert curve.full_cost == pytest.approx(500 * (4 * affine(6, 1, 1, 22.5) + 8 * affine(6, 1, 1, 34.5)))
        assert {one.route: one.cost for one in curve.fixed}["uls:3"] == pytest.approx(500 * sum(sec))
