"""A forecast as a table, sentences, a figure and a file."""

from __future__ import annotations

import json

import pytest

from depthdial.report.bench.forecast import best_table, draw_forecast, forecast_sentences, write_forecast
from depthdial.report.kit.table_files import markdown_table
from tests.report.bench.folders import forecast_of


def test_the_best_draft_length_of_every_route_and_batch():
    forecast = forecast_of(0.8)
    rows = best_table(forecast)
    assert {(row["rows"], row["route"]) for row in rows} == {(n, r) for n in (1, 2, 8) for r in ("uls:3", "greedy-kl:5")}
    speeds = [(row["rows"], -row["speedup"].mean) for row in rows]
    assert speeds == sorted(speeds) and best_table(forecast, most=1) == rows[::2]
    for row in rows:
        best = forecast.at(row["rows"], row["route"])
        assert row["draft_tokens"] == best.draft_tokens and row["speedup"].mean == best.speedup
        assert row["reused_layers"] == {"uls:3": 1, "greedy-kl:5": 4}[row["route"]]
    assert "speed-up" in markdown_table(rows) and "x [" in markdown_table(rows)
    assert [one.split(":")[0] for one in forecast_sentences(forecast)] == ["speculation"] * 3
    assert forecast.at(8).verdict in forecast_sentences(forecast)[2]


@pytest.mark.parametrize("acceptance", [0.0, 0.99])
def test_the_figure_has_a_panel_for_each_batch_with_the_break_even(acceptance):
    figure = draw_forecast(forecast_of(acceptance))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["batch 1", "batch 2", "batch 8"]
    for axes in figure.axes:
        low, high = axes.get_ylim()
        assert low <= 0.9 and high >= 1.05
        assert list(axes.get_lines()[0].get_ydata()) == [1, 1]
        assert len(axes.get_lines()) == 1 + 2 * 2


def test_the_file(tmp_path):
    forecast = forecast_of(0.5)
    path = write_forecast(tmp_path, forecast)
    document = json.loads(path.read_text())
    assert document["verdict"] == forecast.verdict and len(document["settings"]) == len(forecast.settings)
    assert (tmp_path / "figures" / "speculation.png").stat().st_size > 5000
