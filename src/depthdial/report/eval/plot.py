"""Scores against layers run, a panel for each task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from depthdial.report.eval.tables import score_interval, titled
from depthdial.report.kit.labels import place_labels
from depthdial.report.kit.style import (
    BLACK,
    GRAY,
    Look,
    family_of,
    figure_style,
    headed,
    log_heights,
    looks,
    new_figure,
    shortened,
)
from depthdial.rows.evals import EvalResults, EvalUnit
from depthdial.stats.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS = 12
_COLUMNS = 3
_LABELLED = 8
_PERPLEXED = 4  # times the full model's: beyond it a panel is logarithmic


def drawn_tasks(results: EvalResults) -> list[str]:
    """The tasks that have a panel: the first ones that have a score."""
    return [task for task in results.tasks if any(unit.task == task and unit.scores for unit in results.units)][:MOST_PANELS]


def draw_evaluation(results: EvalResults) -> Figure:
    """The first metric of each task against layers run, with 95% intervals, the full model's score and chance as lines."""
    tasks = drawn_tasks(results)
    columns = min(_COLUMNS, len(tasks))
    rows = -(-len(tasks) // columns)
    with figure_style():
        figure = new_figure(0.5 + 2.5 * rows, 6.9 if columns > 1 else 4.6)
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        styles = looks(family_of(depth) for depth in results.depths)
        for axes, task in zip(panels, tasks, strict=False):
            _draw_task(axes, [unit for unit in results.units if unit.task == task and unit.scores], styles)
        for axes in panels[len(tasks) :]:
            axes.set_axis_off()
        headed(figure, f"{results.model}: scores by depth")
        for axes, task in zip(panels, tasks, strict=False):
            _label(axes, [unit for unit in results.units if unit.task == task and unit.scores])
    return figure


def _draw_task(axes: Axes, units: list[EvalUnit], styles: dict[str, Look]) -> None:
    full = next((unit for unit in units if unit.is_full), None)
    first = units[0].score()
    if full is not None:
        axes.axhline(full.score().value, color=BLACK, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
    if units[0].chance is not None and first.metric in ("acc", "acc_norm"):
        axes.axhline(units[0].chance, color=GRAY, linewidth=0.8, linestyle=":", zorder=1)
        axes.annotate(
            "chance", (0.02, units[0].chance), xycoords=("axes fraction", "data"), va="bottom", fontsize=7, color=GRAY
        )
    for unit in units:
        look = styles[family_of(unit.depth)]
        interval = score_interval(unit.score())
        if isinstance(interval, Interval):
            axes.plot([unit.layers] * 2, [interval.low, interval.high], color=GRAY, linewidth=0.9, zorder=3)
        axes.plot(unit.layers, unit.score().value, marker=look.marker, color=look.color, linestyle="none", zorder=4)
    values = [unit.score().value for unit in units]
    if min(values) > 0 and max(values) > _PERPLEXED * min(values) and first.higher_is_better is False:
        log_heights(axes)
    axes.margins(0.14)
    axes.set_title(shortened(titled(units[0].task, first), 34), fontsize=8.5)
    axes.set_xlabel("layers run")


def _label(axes: Axes, units: list[EvalUnit]) -> None:
    if len(units) <= _LABELLED:
        place_labels(axes, [(unit.layers, unit.score().value) for unit in units], [unit.depth for unit in units], size=7)
