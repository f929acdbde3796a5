"""Tables and the figure of the simulation, from its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from depthdial.report.kit.style import (
    BLACK,
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    figure_style,
    new_figure,
    save_figure,
)

LOOKS: dict[str, tuple[str, str, str, Any]] = {  # label, colour, marker, line
    "betting": ("betting", BLUE, "o", "-"),
    "star_betting": ("STaR betting", SKY, "*", (0, (6, 1, 1, 1))),
    "empirical_bernstein": ("empirical Bernstein", GREEN, "s", "--"),
    "hoeffding_bentkus": ("Hoeffding-Bentkus", PURPLE, "^", "-."),
    "hoeffding": ("Hoeffding", GRAY, "v", ":"),
    "conformal_risk_control": ("conformal risk control (an expectation)", ORANGE, "D", (0, (4, 1))),
    "normal": ("normal approximation (no guarantee)", VERMILION, "x", "--"),
    "plug_in": ("plug-in mean (no guarantee)", BLACK, "P", "-"),
}


def markdown(document: dict[str, Any]) -> str:
    """Three tables: violations, layers saved, and the smallest epsilon by n."""
    rows, n_rows = document["rows"], sorted({row["n_rows"] for row in document["rows"]})
    head = "| " + " | ".join(f"n = {n}" for n in n_rows) + " |"
    rule = " ---: |" * len(n_rows)
    lines = [
        f"Share of {document['about']['draws']:,} draws (%, 95% interval) in which what was certified has a true risk "
        "above epsilon.",
        "",
        f"| pool | epsilon | delta | rule {head}",
        f"| --- | ---: | ---: | --- |{rule}",
    ]
    for key, cells in _grouped(rows):
        shares = [_percent(cells[n]) for n in n_rows]
        lines.append(f"| {' | '.join([*_named(key), *shares])} |")
    lines += ["", "Mean layers saved.", "", f"| pool | epsilon | delta | rule {head}", f"| --- | ---: | ---: | --- |{rule}"]
    for key, cells in _grouped(rows):
        if key[0] not in ("edge", "rare"):  # whatever is certified there is a violation
            savings = [f"{cells[n]['mean_saving_layers']:.2f}" for n in n_rows]
            lines.append(f"| {' | '.join([*_named(key), *savings])} |")
    table = document["smallest_epsilons"]
    names = [name for name in table[0] if name != "n_rows"]
    lines += ["", "Smallest epsilon that n rows can certify at all, at delta = 0.05: where nothing is lost.", ""]
    lines += [f"| n | {' | '.join(name.replace('_', ' ') for name in names)} |", "| ---: |" + " ---: |" * len(names)]
    lines += [f"| {row['n_rows']} | {' | '.join(f'{row[name]:.4f}' for name in names)} |" for row in table]
    return "\n".join([*lines, ""])


def worst(rows: list[dict[str, Any]], rule: str, delta: float | None, n: int | None = None) -> dict[str, Any]:
    """The row with the most violations of a rule, over pools, epsilons and (unless it is given) n."""
    found = [r for r in rows if r["rule"] == rule and r["delta"] == delta and n in (None, r["n_rows"])]
    return max(found, key=lambda row: row["share"])


def draw(document: dict[str, Any], path: Path, delta: float = 0.05) -> Path:
    """Worst violations by n over pools and epsilons, and layers saved by n in the first pool at two epsilons."""
    rows, pool = document["rows"], document["rows"][0]["pool"]
    n_rows = sorted({row["n_rows"] for row in rows})
    with figure_style():
        figure = new_figure(3.6)
        axes = figure.subplots(1, 3, width_ratios=[1.25, 1, 1])
        for rule, (label, color, marker, line) in LOOKS.items():
            level = None if rule in ("plug_in", "conformal_risk_control") else delta
            style: dict[str, Any] = {"color": color, "marker": marker, "linestyle": line}
            at = [worst(rows, rule, level, n) for n in n_rows]
            shares = [100 * row["share"] for row in at]
            below, above = [r["share"] - r["share_low"] for r in at], [r["share_high"] - r["share"] for r in at]
            ends = [[100 * max(length, 0.0) for length in side] for side in (below, above)]
            axes[0].errorbar(n_rows, shares, yerr=ends, label=label, linewidth=1.2, **style)
            for panel, epsilon in zip(axes[1:], (0.02, 0.05), strict=True):
                mine = [r for r in rows if (r["pool"], r["epsilon"], r["rule"], r["delta"]) == (pool, epsilon, rule, level)]
                panel.plot(n_rows, [row["mean_saving_layers"] for row in mine], linewidth=1.2, **style)
        axes[0].axhline(100 * delta, color=BLACK, linewidth=0.8)
        axes[0].annotate("delta", (n_rows[0], 100 * delta), ha="left", va="bottom", fontsize=8)
        axes[0].set_yscale("symlog", linthresh=1)
        axes[0].set_yticks([0, 1, 2, 5, 10, 20, 50, 100], ["0", "1", "2", "5", "10", "20", "50", "100"])
        axes[0].set(title="Violations, worst case", ylabel="draws, %", xlabel="calibration rows", ylim=(-0.15, 110))
        for panel, epsilon in zip(axes[1:], (0.02, 0.05), strict=True):
            panel.set(title=f"Saved at epsilon {epsilon:g}", ylabel="layers", xlabel="calibration rows")
        for panel in axes:
            panel.set_xscale("log")
            panel.set_xticks(n_rows, [str(n) for n in n_rows])
            panel.minorticks_off()
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return save_figure(figure, path)


def _grouped(rows: list[dict[str, Any]]) -> list[tuple[tuple[str, float, float | None, str], dict[int, dict[str, Any]]]]:
    found: dict[tuple[str, float, float | None, str], dict[int, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["pool"], row["epsilon"], row["delta"], row["rule"]), {})[row["n_rows"]] = row
    order = list(LOOKS)
    return sorted(found.items(), key=lambda item: (item[0][0], item[0][1], item[0][2] or 1.0, order.index(item[0][3])))


def _named(key: tuple[str, float, float | None, str]) -> list[str]:
    pool, epsilon, delta, rule = key
    return [pool, f"{epsilon:g}", "–" if delta is None else f"{delta:g}", LOOKS[rule][0]]


def _percent(row: dict[str, Any]) -> str:
    return f"{100 * row['share']:.1f} [{100 * row['share_low']:.1f}, {100 * row['share_high']:.1f}]"
