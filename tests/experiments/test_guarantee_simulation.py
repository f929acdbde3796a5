"""The committed simulation: its tables are of its rows, methods keep their promise, and rules without one do not."""

from __future__ import annotations

import json
import re
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from depthdial.errors import InputError
from depthdial.guarantee.p_values import METHODS
from tests.scripts import loaded

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "guarantee"


@pytest.fixture(scope="module")
def document():
    return json.loads((FOLDER / "simulation.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def modules():
    """The experiment's files, under the names that they import each other by; forgotten afterwards."""
    path = list(sys.path)
    with ExitStack() as stack:
        yield {name: stack.enter_context(loaded(FOLDER / f"{name}.py")) for name in ("pools", "results", "simulate")}
    sys.path[:] = path


def test_the_committed_tables_are_of_the_committed_rows(document, modules) -> None:
    assert modules["results"].markdown(document) == (FOLDER / "simulation.md").read_text(encoding="utf-8")


def test_certificates_are_wrong_at_most_as_often_as_they_say(document) -> None:
    rows = [row for row in document["rows"] if row["rule"] in METHODS]
    assert {(row["epsilon"], row["delta"]) for row in rows} == {(e, d) for e in (0.01, 0.02, 0.05) for d in (0.05, 0.1)}
    assert {row["n_rows"] for row in rows} == {50, 100, 200, 500, 1000} and min(row["draws"] for row in rows) >= 2000
    for row in rows:
        assert row["share_low"] <= row["delta"]
        assert row["share"] <= row["delta"] + 3 * np.sqrt(row["delta"] / row["draws"])
    assert all(row["mean_risk"] <= row["epsilon"] for row in document["rows"] if row["rule"] == "conformal_risk_control")


def test_rules_without_a_guarantee_are_wrong_far_more_often(document) -> None:
    hard = [row for row in document["rows"] if row["pool"] in ("edge", "rare")]
    assert all(row["share"] > 0.3 for row in hard if row["rule"] == "plug_in")
    assert max(row["share"] for row in hard if row["rule"] == "normal" and row["delta"] == 0.05) > 0.3


def test_the_pools_are_those_that_the_rows_were_drawn_from(document, modules) -> None:
    pools = modules["pools"]
    made = [pools.policy_pool(document["about"]["seed"])]
    made += [pool for epsilon in (0.01, 0.02, 0.05) for pool in (pools.edge_pool(epsilon), pools.rare_pool(epsilon))]
    # Risks and not digests: another NumPy may draw and round otherwise in the last place.
    for told, pool in zip(document["about"]["pools"], made, strict=True):
        assert told["pool"] == pool.name
        assert told["risks"] == pytest.approx(pool.risks, abs=2e-6)
    assert 0.5 < made[0].about()["zeros"] < 1 and made[0].about()["gains"] > 0
    assert all(pool.risks[1] > epsilon for pool, epsilon in zip(made[1:], np.repeat([0.01, 0.02, 0.05], 2), strict=True))


def test_rows_are_made_anew(modules) -> None:
    simulate, pool = modules["simulate"], modules["pools"].edge_pool(0.05)
    rows = list(simulate.simulate(pool, 0.05, draws=300, n_rows=(100,)))
    shares = {(row["rule"], row["delta"]): row["share"] for row in rows}
    assert shares["betting", 0.05] <= 0.05 and shares["plug_in", None] > 0.3
    assert rows == list(simulate.simulate(pool, 0.05, draws=300, n_rows=(100,)))
    low, share, high = (rows[0][name] for name in ("share_low", "share", "share_high"))
    assert low <= share == rows[0]["violations"] / 300 <= high


def test_measured_rows_can_be_drawn_from(modules, tmp_path: Path) -> None:
    read = modules["pools"].read_pool
    sequences, routes = ["a", "b", "a", "b"], ["drop:3", "drop:3", "full", "full"]
    rows = {"sequence_id": sequences, "route": routes, "agreement": [0.5, 0.9, 1.0, 1.0], "layers_run": [5, 5, 6, 6]}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    pool = read(tmp_path / "rows.parquet")
    assert pool.settings == ("full", "drop:3")
    assert pool.losses.tolist() == [[0.0, 0.5], [0.0, pytest.approx(0.1)]] and pool.savings.tolist() == [0, 1]
    long = {
        "sequence_id": sequences[::-1],
        "setting": routes[::-1],
        "loss": [0.0, 0.0, 0.1, 0.2],
        "cost": [6.0, 6.0, 5.0, 4.0],
    }
    pq.write_table(pa.table(long), tmp_path / "long.parquet")
    assert read(tmp_path / "long.parquet").losses.tolist() == [[0.0, 0.2], [0.0, 0.1]]
    (tmp_path / "pool.json").write_text(json.dumps({"settings": ["full", "x"], "losses": [[0, 0.1]], "costs": [[6, 5]]}))
    assert read(tmp_path / "pool.json").risks.tolist() == [0.0, 0.1]
    for name, broken, told in (
        ("few.parquet", {name: column[:3] for name, column in long.items()}, "lacks some sequences"),
        ("other.parquet", {"sequence_id": ["a"], "route": ["full"]}, "neither settings with losses nor routes"),
    ):
        pq.write_table(pa.table(broken), tmp_path / name)
        with pytest.raises(InputError, match=told):
            read(tmp_path / name)


def test_the_numbers_of_the_page_are_those_of_the_rows(document, modules) -> None:
    page = re.sub(r"\s+", " ", (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8"))
    worst = modules["results"].worst
    for rule, label in (
        ("betting", "betting"),
        ("star_betting", "STaR betting"),
        ("normal", "normal approximation"),
        ("plug_in", "plug-in mean"),
    ):
        cells = []
        for delta in (0.05, 0.1):
            row = worst(document["rows"], rule, None if rule == "plug_in" else delta)
            cells.append(f"{100 * row['share']:.1f} [{100 * row['share_low']:.1f}, {100 * row['share_high']:.1f}]")
        assert f"| {label} | {cells[0]} | {cells[1]} |" in page
    for row in document["smallest_epsilons"]:
        names = ("betting", "empirical_bernstein", "hoeffding_bentkus, losses in [0, 1]", "conformal_risk_control")
        assert f"| {row['n_rows']} | {' | '.join(f'{row[name]:.4f}' for name in names)} |" in page
    for epsilon in (0.01, 0.02, 0.05):
        for rule, label in (("betting", "betting"), ("empirical_bernstein", "empirical Bernstein")):
            mine = [
                r
                for r in document["rows"]
                if (r["pool"], r["epsilon"], r["rule"], r["delta"]) == ("policy", epsilon, rule, 0.05)
            ]
            saved = " | ".join(f"{row['mean_saving_layers']:.2f}" for row in sorted(mine, key=lambda row: row["n_rows"]))
            assert f"| {epsilon:g} | {label} | {saved} |" in page
