"""A forecast of self-speculation as a table, a figure and a file beside the rows that it is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from depthdial.files import write_json
from depthdial.oracles.speculation import DraftSetting, SpeculationForecast
from depthdial.report.kit.labels import place_labels
from depthdial.report.kit.style import (
    BLACK,
    GRAY,
    Look,
    family_of,
    figure_style,
    headed,
    look_key,
    looks,
    new_figure,
    save_figure,
)
from depthdial.report.kit.tables import Cells, Column, finished
from depthdial.stats.intervals import Interval
from depthdial.stats.serialize import dump

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORECAST_FILE = "speculation.json"
COLUMNS = (
    Column("reused_layers", "reused"),
    Column("rows", "batch"),
    Column("draft_tokens", "k"),
    Column("acceptance"),
    Column("accepted_tokens", "accepted a round", 2),
    Column("speedup", "speed-up", write=lambda value: f"{value:.2f}x"),
    Column("speedup_without_reuse", "without reuse", write=lambda value: f"{value:.2f}x"),
)


def best_table(forecast: SpeculationForecast, most: int | None = None) -> list[Cells]:
    """A row for each route and batch size, its best draft length; `most` of each batch size, the fastest first."""
    rows: list[Cells] = []
    for one in _fastest(forecast, most):
        interval = Interval(one.speedup, one.low, one.high, forecast.n_sequences)
        cells: Cells = {
            "route": one.route,
            "layers": one.layers,
            "reused_layers": one.reused_layers,
            "rows": one.rows,
            "draft_tokens": one.draft_tokens,
            "acceptance": one.acceptance,
            "accepted_tokens": one.accepted_tokens,
            "speedup": interval if one.low < one.high else one.speedup,
            "speedup_without_reuse": one.speedup_without_reuse,
        }
        rows.append(cells)
    return finished(rows, COLUMNS)


def forecast_sentences(forecast: SpeculationForecast) -> list[str]:
    """The verdict of every batch size."""
    sizes = sorted({one.rows for one in forecast.settings})
    return [f"speculation: {forecast.at(rows).verdict}" for rows in sizes]


def write_forecast(folder: Path | str, forecast: SpeculationForecast) -> Path:
    """Write speculation.json and figures/speculation.png into a folder; gives the path of the first."""
    folder = Path(folder)
    save_figure(draw_forecast(forecast), folder / "figures" / "speculation.png")
    return write_json(folder / FORECAST_FILE, {"verdict": forecast.verdict, **dump(forecast)})


def draw_forecast(forecast: SpeculationForecast) -> Figure:
    """Speed-up of every route at its best draft length against the layers that draft, a panel for each batch size."""
    best = _best(forecast)
    sizes = sorted({one.rows for one in best})
    with figure_style():
        figure = new_figure(3.3)
        panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
        styles = looks(family_of(one.route) for one in best)
        for axes, rows in zip(panels, sizes, strict=True):
            _draw_size(axes, [one for one in best if one.rows == rows], styles)
            axes.set(xlabel="layers that draft", title=f"batch {rows}")
        low, high = panels[0].get_ylim()
        panels[0].set(ylabel="expected speed-up", ylim=(min(low, 0.9), max(high, 1.05)))
        headed(figure, f"Self-speculation on {forecast.model}: {forecast.verdict}")
        points = [replace(look, line="none") for look in styles.values()]
        look_key(figure, points, n_columns=min(4, len(points)), handletextpad=0.4)
        for axes, rows in zip(panels, sizes, strict=True):
            fastest = forecast.at(rows)
            place_labels(axes, [(fastest.layers, fastest.speedup)], [f"{fastest.route}, k={fastest.draft_tokens}"])
    return figure


def _draw_size(axes: Axes, settings: Sequence[DraftSetting], styles: Mapping[str, Look]) -> None:
    axes.axhline(1, color=BLACK, linewidth=0.9)
    for one in settings:
        look = styles[family_of(one.route)]
        axes.plot([one.layers] * 2, [one.low, one.high], color=GRAY, linewidth=0.9, zorder=3)
        axes.plot(one.layers, one.speedup, marker=look.marker, color=look.color, linestyle="none", zorder=4)
    axes.margins(0.15)


def _fastest(forecast: SpeculationForecast, most: int | None) -> list[DraftSetting]:
    by_rows: dict[int, list[DraftSetting]] = {}
    for one in sorted(_best(forecast), key=lambda one: (one.rows, -one.speedup)):
        by_rows.setdefault(one.rows, []).append(one)
    return [one for settings in by_rows.values() for one in settings[:most]]


def _best(forecast: SpeculationForecast) -> list[DraftSetting]:
    keys = dict.fromkeys((one.rows, one.route) for one in forecast.settings)
    return [forecast.at(rows, route) for rows, route in keys]
