"""The figure of a certification: what each depth loses, the bound that the rows support, and the losses that are allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from depthdial.guarantee.plan import Certificate
from depthdial.report.kit.curves import METRIC_NAMES
from depthdial.report.kit.style import BLACK, BLUE, GRAY, GREEN, VERMILION, figure_style, headed, new_figure, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LIMITS = (VERMILION, GREEN, BLACK, GRAY)
_STYLES = ("-", "--", ":", "-.")


def draw_certificates(certificates: Sequence[Certificate]) -> Figure:
    """A line for each setting in the order of the tests: from its mean loss to its upper bound; filled where certified."""
    first = certificates[0]
    settings = first.plan.settings[1:]
    with figure_style():
        figure = new_figure(1.5 + 0.33 * len(settings))
        axes = figure.add_subplot()
        for place, (name, risk, bound) in enumerate(zip(settings, first.risks[1:], first.upper_risks[1:], strict=True)):
            is_certified = any((one.certified or 0) > place for one in certificates)
            axes.plot([risk, bound], [place, place], color=BLUE, linewidth=2)
            axes.plot([bound], [place], marker="|", markersize=9, markeredgewidth=2, color=BLUE)
            face = BLUE if is_certified else "white"
            axes.plot([risk], [place], marker="o", color=BLUE, markerfacecolor=face, label=shortened(name))
        for place, one in enumerate(certificates):
            look = {"color": _LIMITS[place % len(_LIMITS)], "linestyle": _STYLES[place % len(_STYLES)]}
            axes.axvline(one.plan.epsilon, linewidth=1.2, **look)
            label = f" {one.plan.epsilon:g}"
            axes.text(one.plan.epsilon, -0.6, label, color=look["color"], fontsize=8, va="center")
        low, high = axes.get_xlim()
        axes.set_xlim(low, high + 0.06 * (high - low))  # room for the last label
        axes.axvline(0, color=GRAY, linewidth=0.8)
        axes.set_yticks(range(len(settings)), [shortened(name) for name in settings])
        axes.set_ylim(len(settings) - 0.4, -0.9)
        axes.grid(visible=False, axis="y")
        metric = METRIC_NAMES.get(first.plan.metric, first.plan.metric)
        axes.set_xlabel(f"{metric} lost against the full model, {first.n_rows} rows")
        headed(figure, "Mean loss, and its upper bound at the plan's level")
    return figure
