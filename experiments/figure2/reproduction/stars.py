"""Figures of the stars: with how many layers an oracle equals the full model, by what it knows and by how many routes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from depthdial.report.kit.style import BLACK, BLUE, GRAY, GREEN, PURPLE, VERMILION, figure_style, headed, new_figure
from reproduction.folder import ELASTIC, ELASTIC_COMPUTE, FULL, SPECIALIST, UNTOUCHED
from reproduction.results import Results, sampled_star_table, star_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER_SHARE = 5.6 / 24  # OPT-1.3B on Alpaca, arXiv 2410.20022, Figure 2
# On white, for lines run through here.
_TEXT: dict[str, Any] = {
    **{"textcoords": "offset points", "va": "center", "fontsize": 8},
    "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.8},
}
_WEIGHTS = {
    UNTOUCHED: "untouched weights",
    SPECIALIST: "specialists",
    ELASTIC: "elastic, equal tokens",
    ELASTIC_COMPUTE: "elastic, equal compute",
}


@dataclass(frozen=True)
class Star:
    """One line of the figure, in layers; None where the full model is not matched.

    Attributes:
        low, high: its 95% interval; both None without one, `high` None alone where it has no end.
    """

    name: str
    color: str
    layers: float | None
    low: float | None = None
    high: float | None = None


def stars_of(results: Results) -> list[Star]:
    """Of greedy answers each kind of weights, the specialists shuffled too; of sampled ones each number chosen on."""
    found = []
    for row in star_table(results):
        kind, at = row["weights"], row["matches_full_at_layers"]
        color = BLUE if kind == SPECIALIST else GRAY if kind == UNTOUCHED else VERMILION
        found.append(Star(f"greedy: {_WEIGHTS[kind]}", color, at, row["low"], row["high"]))
        if kind == SPECIALIST:
            shuffled = row["shuffled_matches_full_at_layers"]
            found.append(Star("greedy: specialists, shuffled scores", PURPLE, shuffled))
    sampled = [row for row in sampled_star_table(results) if row["weights"] == SPECIALIST]
    for row in (sampled[0], sampled[-1]):
        paid = "paid that one" if row["chosen_on"] == 1 else "paid those"
        found.append(Star(f"sampled: chosen on {row['chosen_on']}, {paid}", GREEN, row["paid_the_same_at_layers"]))
    for row in (row for row in sampled if row["is_held_out"]):
        name = f"sampled: chosen on {row['chosen_on']}, paid the others"
        found.append(Star(name, BLACK, row["paid_the_others_at_layers"], row["low"], row["high"]))
    return found


def draw_stars(results: Results) -> Figure:
    """A line for each oracle: where it matches the full model of its own weights, with its interval."""
    stars, full, about = stars_of(results), results.costs[FULL], results.about
    with figure_style():
        figure = new_figure(1.5 + 0.25 * len(stars))
        axes = figure.add_subplot()
        if about["task"] == "alpaca":
            axes.axvline(PAPER_SHARE * full, color=BLACK, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
            axes.annotate(f"paper, OPT-1.3B: {PAPER_SHARE:.1%}", (PAPER_SHARE * full, -0.95), **_TEXT, xytext=(4, 0))
        for place, star in enumerate(stars):
            _draw(axes, place, star, full)
        axes.set_yticks(range(len(stars)), [star.name for star in stars])
        axes.set_ylim(len(stars) - 0.5, -1.5)
        axes.set_xlim(0, full)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"mean layers per sequence, of {full}")
        headed(figure, _title(results))
    return figure


def draw_offered(results: Results) -> Figure:
    """The specialists' star by the number of routes that the oracle may choose from, the mean over sets and their range."""
    full, offered = results.costs[FULL], results.offered
    routes = [one.routes for one in offered]
    with figure_style():
        figure = new_figure(3.4)
        axes = figure.add_subplot()
        axes.fill_between(
            routes,
            [100 * one.lowest / full for one in offered],
            [100 * one.highest / full for one in offered],
            **{"color": BLUE, "alpha": 0.18, "linewidth": 0, "label": "lowest and highest set of routes"},
        )
        measured = [100 * one.mean / full for one in offered]
        axes.plot(routes, measured, color=BLUE, marker="o", label="specialists, mean over sets of routes")
        shuffled = [100 * one.shuffled_mean / full for one in offered]
        axes.plot(
            routes, shuffled, color=PURPLE, marker="s", linestyle=":", label="the same, scores shuffled within each route"
        )
        if results.about["task"] == "alpaca":
            look = {"color": BLACK, "linewidth": 0.9, "linestyle": (0, (2, 2))}
            axes.axhline(100 * PAPER_SHARE, **look, label=f"paper, OPT-1.3B: {PAPER_SHARE:.1%}")
        axes.set_xticks(routes)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("routes that the oracle may choose from, the full one among them")
        axes.set_ylabel("layers at the star (% of all)")
        ends = f"{measured[0]:.0f}% of the layers with {routes[0]}, {measured[-1]:.0f}% with {routes[-1]}"
        headed(figure, f"The star by the number of routes: {ends}")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _draw(axes: Axes, place: int, star: Star, full: int) -> None:
    ends = (star.layers if star.low is None else star.low, full if star.high is None and star.low is not None else star.high)
    left, right = ends[0], star.layers if ends[1] is None else ends[1]
    if star.low is not None:
        axes.plot([left, right], 2 * [place], color=star.color, linewidth=2.5, alpha=0.45, solid_capstyle="butt")
        if star.high is None:
            axes.plot(full, place, marker=">", color=star.color, clip_on=False, zorder=5)
    if star.layers is not None:
        axes.plot(star.layers, place, marker="o", markersize=6, color=star.color, markeredgecolor=BLACK, zorder=5)
    beside: dict[str, Any] = {**_TEXT, "color": star.color}
    if right is None or right > (0.85 if star.low is None else 0.7) * full:  # no room to the right
        axes.annotate(_told(star, full), (full if left is None else left, place), **beside, xytext=(-7, 0), ha="right")
    else:
        axes.annotate(_told(star, full), (right, place), **beside, xytext=(7, 0))


def _told(star: Star, full: int) -> str:
    if star.low is None:
        return "never" if star.layers is None else f"{star.layers / full:.1%}"
    at = "never" if star.layers is None else f"{star.layers / full:.1%}"
    return f"{at} [{100 * star.low / full:.1f}, {'never' if star.high is None else format(100 * star.high / full, '.1f')}]"


def _title(results: Results) -> str:
    star = next(row for row in star_table(results) if row["weights"] == SPECIALIST)
    held_out = [row for row in sampled_star_table(results) if row["weights"] == SPECIALIST and row["is_held_out"]][-1]
    at, known = star["share_of_full"], held_out["paid_the_others_at_layers"]
    told = "never equals the full model" if at is None else f"equals the full model with {at:.1%} of the layers"
    luck = "never" if known is None else f"with {known / held_out['full_layers']:.1%}"
    return f"The oracle {told}; paid other answers, {luck}"
