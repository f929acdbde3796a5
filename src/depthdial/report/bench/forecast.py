"""A forecast of self-speculation as a table, a figure and a file beside the rows that it is made from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from depthdial.files import write_json
from depthdial.oracles.speculation import DraftSetting, SpeculationForecast
from depthdial.report.kit.labels import place_labels
from depthdial.report.kit.style import BLACK, GRAY, family_of, figure_style, headed, look_key, looks, new_figure, save_figure
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
    sizes = sorted({one.rows for one in forecast.settings})
    with figure_style():
        figure = new_figure(3.3)
        panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
        styles = looks(family_of(one.route) for one in _best(forecast))
        for axes, rows in zip(panels, sizes, strict=True):
            _draw_size(axes, [one for one in _best(forecast) if one.rows == rows], rows)
        panels[0].set_ylabel("expected speed-up")
        headed(figure, f"Self-speculation on {forecast.model}: {forecast.verdict}")
        points = [replace(look, line="none") for look in styles.values()]
        look_key(figure, points, n_columns=min(4, len(points)), handletextpad=0.4)
    return figure


def _draw_size(axes: Axes, settings: list[DraftSetting], rows: int) -> None:
    styles = looks(family_of(one.route) for one in settings)
    axes.axhline(1, color=BLACK, linewidth=0.9)
    for one in settings:
        look = styles[family_of(one.route)]
        axes.plot([one.layers] * 2, [one.low, one.high], color=GRAY, linewidth=0.9, zorder=3)
        axes.plot(one.layers, one.speedup, marker=look.marker, color=look.color, linestyle="none", zorder=4)
    axes.margins(0.15)
    best = max(settings, key=lambda one: one.speedup)
    place_labels(axes, [(best.layers, best.speedup)], [f"{best.route}, k={best.draft_tokens}"])
    axes.set(xlabel="layers that draft", title=f"batch {rows}")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.9), max(high, 1.05))


def _fastest(forecast: SpeculationForecast, most: int | None) -> list[DraftSetting]:
    ordered = sorted(_best(forecast), key=lambda one: (one.rows, -one.speedup))
    sizes = dict.fromkeys(one.rows for one in ordered)
    return [one for rows in sizes for one in [one for one in ordered if one.rows == rows][:most]]


def _best(forecast: SpeculationForecast) -> list[DraftSetting]:
    keys = dict.fromkeys((one.rows, one.route) for one in forecast.settings)
    return [forecast.at(rows, route) for rows, route in keys]
