"""The figure of the simulation: requests per second that a replica takes, by depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from depthdial.report.kit.style import figure_style, headed, new_figure, save_figure


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Bars of each policy, one panel for each replica, over what every layer takes."""
    with figure_style():
        figure = new_figure(2.9)
        panels = figure.subplots(1, 2, sharey=True)
        for axes, name in zip(panels, dict.fromkeys(row["replica"] for row in rows), strict=True):
            of_one = [row for row in rows if row["replica"] == name][::-1]
            bars = axes.barh([row["depth"] for row in of_one], [row["of every layer"] for row in of_one], color="#4477aa")
            axes.bar_label(bars, [f"{row['requests/s']:.3g}/s" for row in of_one], padding=3, fontsize=8)
            axes.axvline(1, color="#555555", linewidth=0.8)
            axes.set_xlim(0, 1.9)
            axes.set_title(name)
            axes.set_xlabel("requests per second, every layer = 1")
            axes.grid(axis="y", visible=False)
        headed(figure, "Load of a replica at which 5% of the requests wait too long (simulated)")
        return save_figure(figure, path)
