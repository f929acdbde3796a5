"""The figures of the reproduction, in the look of the reports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from depthdial.report.kit.style import (
    BLACK,
    BLUE,
    GRAY,
    GREEN,
    VERMILION,
    Look,
    figure_style,
    headed,
    new_figure,
    save_figure,
)
from depthdial.report.study.oracle_plot import draw_oracle
from depthdial.report.study.predictable_plot import draw_predictable
from reproduction.folder import ELASTIC, ELASTIC_COMPUTE, FULL, SPECIALIST, UNTOUCHED
from reproduction.results import Results
from reproduction.stars import draw_offered, draw_stars

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOKS = {
    SPECIALIST: Look("specialists, one for each cost", BLUE, "o", "-"),
    ELASTIC: Look("elastic, equal tokens per route", VERMILION, "s", "--"),
    ELASTIC_COMPUTE: Look("elastic, equal total compute", GREEN, "^", "-."),
    UNTOUCHED: Look("untouched weights", GRAY, "v", ":"),
}


def draw_all(results: Results, folder: Path) -> list[Path]:
    """Draw every figure that the rows are enough for into a folder."""
    drawn = {
        "rouge-cost": draw_rouge_cost(results),
        "stars": draw_stars(results),
        "routes-offered": draw_offered(results),
        "oracle": draw_oracle(results.oracles[SPECIALIST]),
        "predictable": draw_predictable(results.predictable[SPECIALIST]),
    }
    if ELASTIC in results.oracles:
        drawn["oracle-elastic"] = draw_oracle(results.oracles[ELASTIC])
    if ELASTIC in results.predictable:
        drawn["predictable-elastic"] = draw_predictable(results.predictable[ELASTIC])
    return [save_figure(figure, folder / f"{name}.png") for name, figure in drawn.items()]


def draw_rouge_cost(results: Results) -> Figure:
    """Mean ROUGE-L of greedy answers against layers run, with 95% intervals over sequences."""
    layers = list(results.costs.values())
    shown = {kind: look for kind, look in LOOKS.items() if kind in results.scores}
    apart = 0.006 * max(layers)  # so that intervals at one cost do not cover each other
    with figure_style():
        figure = new_figure(3.9)
        axes = figure.add_subplot()
        for place, (kind, look) in enumerate(shown.items()):
            means = [results.scores[kind].mean(route) for route in results.costs]
            x = [cost + apart * (place - (len(shown) - 1) / 2) for cost in layers]
            axes.plot(
                x, [m.mean for m in means], color=look.color, marker=look.marker, linestyle=look.line, label=look.label
            )
            axes.vlines(x, [m.low for m in means], [m.high for m in means], color=look.color, linewidth=1, alpha=0.6)
        whole = results.scores[SPECIALIST].mean(FULL).mean
        axes.axhline(whole, color=BLACK, linewidth=0.8, label="T, the full model fine-tuned")
        axes.set_ylim(bottom=-0.02 * axes.get_ylim()[1])  # a marker at 0 is seen whole
        axes.set_xticks(layers)
        axes.set_xlabel("layers run for a response token")
        axes.set_ylabel("ROUGE-L (F1)")
        headed(figure, _title(results))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, handlelength=3.2)
    return figure


def _title(results: Results) -> str:
    if ELASTIC in results.differences:
        mean = results.differences[ELASTIC].mean
        told = f"{mean.mean:+.1f}% [{mean.low:+.1f}, {mean.high:+.1f}]".replace("-", "−")
        return f"ROUGE-L at equal tokens: elastic against specialists {told}, mean over costs"
    scores = results.scores[SPECIALIST]
    best = max((route for route in results.costs if route != FULL), key=lambda route: scores.mean(route).mean)
    told = f"{scores.mean(best).mean:.3f} with {results.costs[best]} of {results.costs[FULL]} layers"
    return f"ROUGE-L of the best specialist: {told}; of T, the full model: {scores.mean(FULL).mean:.3f}"
