"""`bench` and `forecast` from the command line, on a tiny random model."""

from __future__ import annotations

import json

import pytest

from depthdial.latency.model import LatencyModel
from depthdial.measure import bench as module
from depthdial.measure.ceilings import measure_ceilings

SMALL = (
    *("--rows", "1,2", "--context", "8", "--prompts", "4", "--drafts", "1,2", "--rounds", "2", "--steps", "2"),
    *("--depths", "full,uls:50%"),
)


@pytest.fixture(autouse=True)
def _small_ceilings(monkeypatch):
    monkeypatch.setattr(module, "measure_ceilings", lambda *size: measure_ceilings(*size, rounds=1, scale=1 / 1024))


def test_a_bench_and_a_forecast_on_it(run, paths, command_line):
    status, out, err = command_line("bench", paths / "base", "--out", paths / "bench", *SMALL)
    assert status == 0, err
    assert (
        "decoding steps" in out and "Memory bandwidth:" in out and f"latency model: {paths / 'bench' / 'bench.json'}" in out
    )
    assert "bench: 100%" in err
    latency = LatencyModel.load(paths / "bench")
    assert latency.measured_rows() == (1, 2) and latency.model == str(paths / "base")
    assert (paths / "bench" / "report.html").exists()
    again = command_line("bench", paths / "base", "--out", paths / "bench", *SMALL)
    assert again[0] == 0 and LatencyModel.load(paths / "bench").cells == latency.cells
    status, out, err = run("sweep", "--routes", "full,uls:50%,ee:4", "--metrics", "agreement", "--fidelity-tokens", "4")
    assert status == 0, err
    words = ("forecast", paths / "out", "--latency", paths / "bench")
    status, out, err = command_line(*words, "--drafts", "1,3", "--batches", "1")
    assert status == 0, err
    assert "speculation: " in out and "batch 1" in out
    document = json.loads((paths / "out" / "speculation.json").read_text())
    assert {one["draft_tokens"] for one in document["settings"]} == {1, 3}
    status, out, err = command_line(*words, "--routes", "uls:5")
    assert (status, err) == (2, "depthdial: No row has the route 'uls:5': the table has full, uls:3, ee:4.\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--rows", "0"), "Invalid rows 0"),
        (("--rows", "many"), "--rows takes whole numbers such as 1,8 or 1-28, not 'many'"),
        (("--depths", "uls:9"), "9"),
        (("--rounds", "0"), "Invalid rounds 0"),
    ],
)
def test_bad_input(paths, command_line, arguments, told):
    status, _, err = command_line("bench", paths / "base", "--out", paths / "bench", *SMALL, *arguments)
    assert status == 2 and told in err and err.startswith("depthdial: ") and err.count("\n") == 1


def test_a_forecast_without_rows_or_times(paths, command_line):
    status, _, err = command_line("forecast", paths / "none", "--latency", paths)
    assert status == 2 and "There are no result rows" in err
