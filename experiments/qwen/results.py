"""The table and the figure of docs/qwen.md, from the committed rows: how much skipping each of two models stands.

python -m experiments.qwen.results      (in the repository's folder; runs no model)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import depthdial
from depthdial.files import read_json, write_text
from depthdial.guarantee.plan import Certificate
from depthdial.report.kit.style import BLUE, EDGE, VERMILION, figure_style, new_figure, save_figure
from depthdial.routes.families import RouteFamily
from depthdial.rows.store import load_rows
from depthdial.stats.intervals import Interval, mean_interval, share_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FOLDER = Path(__file__).parent
MODELS = {"qwen": "Qwen2.5-Coder-1.5B", "smollm2": "SmolLM2-135M"}
FAMILIES = {
    "qwen": Path(depthdial.__file__).parent / "searched" / "qwen2.5-coder-1.5b.json",
    "smollm2": FOLDER / "smollm2-135m.json",
}
TEXTS = {"code": "code tasks", "ordinary": "MT-bench questions"}
METRICS = {"agreement": "agreement", "kl": "KL, nats", "passed": "share that passes"}
TABLE = {"agreement": "agreement", "kl": "KL, nats", "rouge_l": "ROUGE-L", "passed": "pass"}
CERTIFICATES = {
    "agreement": ("agreement", "code"),
    "agreement-ordinary": ("agreement", "ordinary"),
    "passing": ("passed tests", "code"),
}
_COLOURS = {"qwen": VERMILION, "smollm2": BLUE}
_MARKERS = {"searched": ("o", "-"), "uls": ("s", ":")}


@dataclass(frozen=True)
class Line:
    """One route of one model on one kind of text, over its sequences."""

    model: str
    text: str
    kind: str  # full, searched or uls
    layers: int
    n_layers: int
    values: dict[str, dict[str, float]]  # by metric, by sequence

    @property
    def share(self) -> float:
        """Of the layers."""
        return self.layers / self.n_layers

    def interval(self, metric: str) -> Interval | None:
        """Mean and 95% interval over sequences; Wilson's of a share."""
        known = list(self.values.get(metric, {}).values())
        if not known:
            return None
        return share_interval(int(sum(known)), len(known)) if metric == "passed" else mean_interval(known)


def read_lines(folder: Path = FOLDER / "rows") -> list[Line]:
    """The routes of all runs that are there, deepest first."""
    lines = []
    for model in MODELS:
        for text in TEXTS:
            if not (folder / f"{model}-{text}").exists():
                continue
            frame = load_rows(folder / f"{model}-{text}").to_pandas()
            for name, part in frame.groupby("route"):
                kind = "full" if name == "full" else "uls" if str(name).startswith("uls") else "searched"
                by_sequence = part.set_index("sequence_id")
                values = {
                    metric: {str(key): float(value) for key, value in by_sequence[metric].dropna().items()}
                    for metric in ("rouge_l", *METRICS)
                    if metric in part
                }
                lines.append(Line(model, text, kind, int(part.layers_run.iloc[0]), int(part.n_layers.iloc[0]), values))
    return sorted(lines, key=lambda line: (line.model, line.text, line.kind == "uls", -line.layers))


def searches() -> dict[str, list[tuple[int, int, float]]]:
    """(layers, n_layers, KL) of every route of each model's search, deepest first, on the 20 prompts of both searches."""
    found = {}
    for model, path in FAMILIES.items():
        family = RouteFamily.load(path)
        routes = sorted((route for route in family.routes if not route.is_full), key=len, reverse=True)
        values = family.made_by["kl"]
        found[model] = [(len(route), family.n_layers, kl) for route, kl in zip(routes, values, strict=True)]
    return found


def search_table(shares: Sequence[float] = (0.97, 0.9, 0.8, 0.7, 0.6, 0.5)) -> str:
    """Markdown; for each share the route of each model that is nearest to it."""
    known = searches()
    rows = [
        "| share | Qwen, layers | KL, nats | SmolLM2, layers | KL, nats | SmolLM2's over Qwen's |",
        "| ---: |" + " ---: |" * 5,
    ]
    for share in shares:
        near = [min(known[model], key=lambda one: abs(one[0] / one[1] - share)) for model in MODELS]
        cells = [f"{layers} of {n_layers} | {kl:.3f}" for layers, n_layers, kl in near]
        rows.append(f"| {share:.0%} | {' | '.join(cells)} | {near[1][2] / near[0][2]:.1f} |")
    return "\n".join(rows) + "\n"


def draw_searches(path: Path) -> Path:
    """KL by the share of layers, a line for each model."""
    with figure_style():
        figure = new_figure(2.9, 4.6)
        axes = figure.subplots()
        for model, routes in searches().items():
            marker = "o" if model == "qwen" else "s"
            shares = [layers / n_layers for layers, n_layers, _ in routes]
            kl = [one for _, _, one in routes]
            axes.plot(shares, kl, color=_COLOURS[model], marker=marker, label=MODELS[model], **EDGE)
        axes.set_yscale("log")
        axes.set_yticks([0.01, 0.03, 0.1, 0.3, 1, 3], ["0.01", "0.03", "0.1", "0.3", "1", "3"])
        axes.minorticks_off()
        axes.set_xticks([0.5, 0.6, 0.7, 0.8, 0.9, 1.0], ["50%", "60%", "70%", "80%", "90%", "100%"])
        axes.set_xlabel("share of the layers that run")
        axes.set_ylabel("KL to the full model, nats")
        axes.set_title("Searched routes, on the 20 prompts of the search")
        axes.legend()
        return save_figure(figure, path)


def passed_table(lines: Sequence[Line]) -> str:
    """Markdown; a row for each searched route, or the full one, at which Qwen answered the test tasks."""
    shown = [x for x in lines if (x.model, x.text) == ("qwen", "code") and x.kind != "uls" and x.values.get("passed")]
    full = next(line for line in shown if line.kind == "full").values["passed"]
    rows = ["| layers | tasks that pass | share | lost against the full model |", "| ---: | ---: | ---: | ---: |"]
    for line in shown:
        passed = line.values["passed"]
        lost = "–" if line.kind == "full" else str(mean_interval([full[one] - passed[one] for one in passed]))
        rows.append(f"| {line.layers} | {sum(passed.values()):.0f} of {len(passed)} | {line.interval('passed')} | {lost} |")
    return "\n".join(rows) + "\n"


def certificate_table() -> str:
    """Markdown; a row for each depth that was tested on calibration rows of each kind."""
    head = ["metric", "text", "n", "layers", "loss", "at most, by itself", "certified at a loss of"]
    rows = [f"| {' | '.join(head)} |", "| --- | --- |" + " ---: |" * 5]
    for name, (metric, text) in CERTIFICATES.items():
        path = FOLDER / f"certificate-{name}.json"
        if not path.exists():
            continue
        found = [Certificate.from_dict(one) for one in read_json(path, "certificates")["certificates"]]
        for i, setting in enumerate(found[0].plan.settings[1:], start=1):
            layers, first = setting.rpartition(":")[2], found[0]
            at = [f"{one.plan.epsilon:g}" for one in found if one.certified is not None and one.certified >= i]
            cells = [metric, TEXTS[text], str(first.n_rows), f"{layers} of 28"]
            cells += [f"{first.risks[i]:.3f}", f"{first.upper_risks[i]:.3f}", ", ".join(at) or "–"]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def table(lines: list[Line]) -> str:
    """Markdown; a row for each route."""
    known = [one for one in TABLE if any(line.values.get(one) for line in lines)]
    head = ["model", "text", "route", "layers", "n", *(TABLE[one] for one in known)]
    rows = [f"| {' | '.join(head)} |", f"| --- | --- | --- |{' ---: |' * (2 + len(known))}"]
    for line in lines:
        seen = [line.interval(metric) for metric in known]
        n = max((one.n for one in seen if one is not None), default=0)
        cells = ["–" if one is None else str(one) for one in seen]
        first = [MODELS[line.model], TEXTS[line.text], line.kind, f"{line.layers} of {line.n_layers}", str(n)]
        rows.append(f"| {' | '.join([*first, *cells])} |")
    return "\n".join(rows) + "\n"


def draw(lines: list[Line], path: Path) -> Path:
    """What was measured by the share of layers, models beside each other, with 95% intervals; a row for each text."""
    panels = {text: [one for one in METRICS if any(x.text == text and x.values.get(one) for x in lines)] for text in TEXTS}
    texts = [text for text in TEXTS if panels[text]]
    with figure_style():
        figure = new_figure(2.6 * len(texts) + 0.5)
        axes = figure.subplots(len(texts), max(map(len, panels.values())), squeeze=False)
        for row, text in zip(axes, texts, strict=True):
            for place, metric in zip(row, panels[text], strict=False):
                _panel(place, [line for line in lines if line.text == text], metric)
                place.set_title(f"{TEXTS[text]}: {METRICS[metric]}", fontsize=8)
                place.set_xlabel("share of the layers that run")
            for place in row[len(panels[text]) :]:
                place.axis("off")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
        return save_figure(figure, path)


def _panel(axes: Axes, lines: list[Line], metric: str) -> None:
    for model, label in MODELS.items():
        for kind, (marker, style) in _MARKERS.items():
            found = [
                (line.share, seen)
                for line in lines
                if line.model == model and line.kind in (kind, "full") and (seen := line.interval(metric)) is not None
            ]
            if len(found) < 2:
                continue
            shares, seen = zip(*sorted(found, key=lambda one: one[0]), strict=True)
            mean = np.array([one.mean for one in seen])
            below, above = mean - [one.low for one in seen], np.array([one.high for one in seen]) - mean
            name = "searched" if kind == "searched" else "uniform (ULS)"
            axes.errorbar(
                shares,
                mean,
                yerr=np.nan_to_num([below, above]),
                color=_COLOURS[model],
                marker=marker,
                linestyle=style,
                capsize=2,
                elinewidth=0.8,
                label=f"{label}, {name}",
                **EDGE,
            )
    if metric == "kl":
        axes.set_ylim(bottom=0, top=4)
    else:
        axes.set_ylim(0, 1.03)


def main() -> None:
    print(search_table())
    draw_searches(FOLDER / "search.png")
    lines = read_lines()
    if not lines:
        return
    print(write_text(FOLDER / "table.md", table(lines)).read_text(encoding="utf-8"))
    draw(lines, FOLDER / "comparison.png")
    print(passed_table(lines))
    print(certificate_table())


if __name__ == "__main__":
    main()
