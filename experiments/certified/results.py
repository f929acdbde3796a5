"""Keep the rows of a run of `run.sh`, and make tables and figure of what is kept.

python experiments/certified/results.py RUN_DIR     (copies rows, plans and certificates here, without any text)
python experiments/certified/results.py             (results.json, results.md and certified.png from what is here)
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from depthdial.control.prediction import cost_table
from depthdial.files import read_json, write_json, write_text
from depthdial.guarantee.p_values import p_values
from depthdial.guarantee.plan import Certificate
from depthdial.oracles.prices import choose_routes
from depthdial.report.kit.style import BLUE, GREEN, VERMILION, figure_style, new_figure, save_figure
from depthdial.rows.store import without_text
from depthdial.stats.intervals import mean_interval

HERE = Path(__file__).parent
TITLES = {"alpaca": "Alpaca", "dolly": "Dolly", "cnn_dailymail": "CNN/DailyMail"}
FULL, METRIC, AT = "full", "rouge_l", 0.02
KEPT = {
    "static/plan.json": "static-plan.json",
    "static/certificates.json": "static-certificates.json",
    "prices/plan.json": "prices-plan.json",
    "prices/certificates.json": "prices-certificates.json",
    "fit/controller.json": "controller.json",
    "test/judged.json": "judged.json",
    "test/predictions.parquet": "predictions.parquet",
}
ROWS = {"fit/measured/scores": "fit", "static": "calibration", "test": "test"}


def keep(run: Path) -> None:
    """Copy what a run left; rows without texts."""
    for name in TITLES:
        if not (run / name / "fit" / "controller.json").exists():
            continue
        (HERE / name).mkdir(exist_ok=True)
        for source, target in KEPT.items():
            is_done = source.startswith("fit") or (run / name / "static" / "certificates.json").exists()
            if is_done and (run / name / source).exists():
                shutil.copy(run / name / source, HERE / name / target)
        for source, target in ROWS.items():
            path = run / name / source / "rows.parquet"
            if path.exists():
                table = without_text(pq.read_table(path))
                table = table.drop_columns([c for c in ("agreed",) if c in table.column_names])  # a flag a token
                pq.write_table(table, HERE / name / f"{target}.parquet")


def losses_of(path: Path, depths: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(n, depths) ROUGE-L of the full model less that of each depth, and their layer-steps over the full model's, in all."""
    frame = pq.read_table(path).to_pandas()
    values = frame.pivot(index="sequence_id", columns="route", values=METRIC)
    steps = (frame.assign(steps=frame.layers_run * (frame.new_tokens - 1))).groupby("route").steps.sum()
    losses = values[FULL].to_numpy()[:, None] - values[depths].to_numpy()
    return losses, (steps[depths] / steps[FULL]).to_numpy()


def rows_wanted(losses: np.ndarray, epsilon: float, power: float = 0.8) -> int | None:
    """Rows like these with which a depth would be certified in `power` of the draws, from a coarse grid; None: never."""
    if losses.mean() >= epsilon:
        return None
    rng = np.random.default_rng(0)
    for n in (200, 300, 400, 500, 700, 1000, 1500, 2000, 3000, 5000, 7000, 10_000):
        drawn = losses[rng.integers(0, len(losses), (200, n))]
        if (p_values(drawn, epsilon, method="star_betting") <= 0.05).mean() >= power:
            return n
    return None


def on_data(name: str) -> dict[str, Any]:
    """Everything that is said of one data set."""
    folder = HERE / name
    static = [Certificate.from_dict(one) for one in read_json(folder / "static-certificates.json", "it")["certificates"]]
    depths = list(static[0].plan.settings[1:])
    calibration, _ = losses_of(folder / "calibration.parquet", depths)
    told: dict[str, Any] = {"n": static[0].n_rows, "answer_tokens": static[0].plan.answer_tokens}
    told |= {"full": static[0].provenance["quality"][0], "adapter": static[0].plan.about["weights_hash"][:12]}
    has_test = (folder / "test.parquet").exists()
    test, test_costs = losses_of(folder / "test.parquet", depths) if has_test else (None, None)
    told["depths"] = [
        {
            "depth": depth,
            "layers": int(depth.rpartition(":")[2]),
            "loss": float(calibration[:, i].mean()),
            "sd": float(calibration[:, i].std()),
            "bound": static[0].upper_risks[i + 1],
            "layer_steps": static[0].costs[i + 1],
            "rows_for_two_points": rows_wanted(calibration[:, i], AT),
            "test": None if test is None else _interval(test[:, i]),
            "test_layer_steps": None if test_costs is None else float(test_costs[i]),
        }
        for i, depth in enumerate(depths)
    ]
    told["static"] = [
        _promise(one, None if test is None or not one.certified else test[:, one.certified - 1]) for one in static
    ]
    if (folder / "prices-certificates.json").exists():
        told["prices"] = prices_of(folder)
    if (folder / "judged.json").exists():
        told["gain"] = read_json(folder / "judged.json", "gain")
        told["gain"]["fit"] = len(set(pq.read_table(folder / "fit.parquet")["sequence_id"].to_pylist()))
    return told


def planned(name: str) -> list[dict[str, Any]]:
    """What the rows of the fit say of each depth: on the train split, to plan a certificate, and no certificate."""
    frame = pq.read_table(HERE / name / "fit.parquet").to_pandas()
    depths = [one for one in sorted(set(frame.route), reverse=True) if one != FULL]
    losses, _ = losses_of(HERE / name / "fit.parquet", depths)
    return [
        {"depth": depth, "n": len(losses), "loss": float(own.mean()), "sd": float(own.std()), "rows": rows_wanted(own, AT)}
        for depth, own in zip(depths, losses.T, strict=True)
    ]


def planned_lines(found: dict[str, Any]) -> list[str]:
    """Lines of a table: losses on the rows of each fit."""
    lines = [
        "| data | rows of the fit | depth | loss | sd of the loss | rows for 2 points |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for name, rows in found.items():
        for one in rows:
            wanted = "–" if one["rows"] is None else f"{one['rows']:,}"
            lines.append(
                f"| {TITLES[name]} | {one['n']} | {one['depth']} | {one['loss']:.4f} | {one['sd']:.3f} | {wanted} |"
            )
    return lines


def prices_of(folder: Path) -> list[dict[str, Any]]:
    """The certificates of the controller's prices, and what each loses on the test rows."""
    prices = [Certificate.from_dict(one) for one in read_json(folder / "prices-certificates.json", "it")["certificates"]]
    if not (folder / "predictions.parquet").exists():
        return [_promise(one, None) for one in prices]
    card = read_json(folder / "controller.json", "controller")
    frame = pq.read_table(folder / "predictions.parquet").to_pandas()
    routes = [route["name"] for route in card["routes"]]
    n, full = frame.sequence_id.nunique(), routes.index(FULL)

    def table(column: str) -> np.ndarray:
        return frame[column].to_numpy().reshape(n, len(routes))

    assert list(frame.route[: len(routes)]) == routes
    expected = cost_table(card["cost_unit"], np.array(card["route_costs"]), table("predicted_steps"), card["mean_steps"])
    found = []
    for one in prices:
        if not one.certified:
            found.append(_promise(one, None))
            continue
        chosen = choose_routes(table("predicted"), expected, one.plan.about["prices"][one.certified - 1])
        measured = table("measured")
        found.append(_promise(one, measured[:, full] - measured[np.arange(n), chosen]))
    return found


def _promise(one: Certificate, test: np.ndarray | None) -> dict[str, Any]:
    low, high = one.saving_interval
    at = one.certified
    return {
        "epsilon": one.plan.epsilon,
        "setting": one.setting,
        "layers_saved": one.provenance["layers_saved_per_sequence"] if at else 0.0,
        "saved": {"mean": one.saving, "low": low, "high": high},
        "loss": one.risks[at] if at else None,
        "bound": one.upper_risks[at or 1],
        "test": None if test is None else _interval(test),
        "plan": one.plan_digest,
        "statement": one.statement,
    }


def _interval(values: np.ndarray) -> dict[str, Any]:
    found = mean_interval(values)
    return {"mean": found.mean, "low": found.low, "high": found.high, "n": len(values)}


def markdown(found: dict[str, Any]) -> str:
    """Three tables: certificates of static depths, certificates of controllers, and what each depth loses."""
    return "\n".join([*promises(found, "static"), "", *promises(found, "prices"), "", *depth_lines(found), ""])


def promises(found: dict[str, Any], kind: str) -> list[str]:
    """Lines of a table: what is certified for each loss that was asked for."""
    first = "certified depth" if kind == "static" else "certified price"
    lines = [
        f"| data | rows | loses at most | {first} | layers saved, % | layer-steps saved, % | its loss | loss on test rows |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, told in found.items():
        for one in told.get(kind, ()):
            saved = one["saved"]
            cells = [TITLES[name], str(told["n"]), f"{one['epsilon']:g}", one["setting"] or "none"]
            if one["setting"]:
                cells += [f"{100 * one['layers_saved'] / 30:.1f}"]
                cells += [f"{100 * saved['mean']:.1f} [{100 * saved['low']:.1f}, {100 * saved['high']:.1f}]"]
                cells += [f"{one['loss']:.4f}"]
            else:
                cells += ["0", "0", f"at most {one['bound']:.4f}"]
            lines.append(f"| {' | '.join([*cells, _text(one['test'])])} |")
    return lines


def depth_lines(found: dict[str, Any]) -> list[str]:
    """Lines of a table: the loss of each depth, its spread, and the rows that 2 points would take."""
    lines = [
        "| data | depth | loss | sd of the loss | bound | layer-steps, % | rows for 2 points | loss on test rows |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, told in found.items():
        for one in told["depths"]:
            wanted = "–" if one["rows_for_two_points"] is None else f"{one['rows_for_two_points']:,}"
            cells = [TITLES[name], one["depth"], f"{one['loss']:.4f}", f"{one['sd']:.3f}", f"{one['bound']:.4f}"]
            cells += [f"{100 * one['layer_steps']:.1f}", wanted, _text(one["test"])]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _text(interval: dict[str, Any] | None) -> str:
    return "–" if interval is None else "{mean:.4f} [{low:.4f}, {high:.4f}]".format(**interval)


def draw(found: dict[str, Any], path: Path) -> Path:
    """A panel for each data set: loss and bound of each depth, loss on test rows, and the two points."""
    with figure_style():
        figure = new_figure(2.7)
        panels = figure.subplots(1, len(found), sharex=True, squeeze=False)[0]
        for axes, (name, told) in zip(panels, found.items(), strict=True):
            for place, one in enumerate(told["depths"]):
                axes.plot([100 * one["loss"], 100 * one["bound"]], [place, place], color=BLUE, linewidth=2)
                axes.plot([100 * one["bound"]], [place], marker="|", color=BLUE, markersize=10, markeredgewidth=2)
                axes.plot(
                    [100 * one["loss"]],
                    [place],
                    "o",
                    color=BLUE,
                    label="calibration rows, and the bound" if not place else "",
                )
                if one["test"]:
                    ends = [
                        [100 * (one["test"]["mean"] - one["test"]["low"])],
                        [100 * (one["test"]["high"] - one["test"]["mean"])],
                    ]
                    look = {"fmt": "s", "color": GREEN, "markersize": 4, "elinewidth": 1}
                    label = "test rows, 95% interval" if not place else ""
                    axes.errorbar([100 * one["test"]["mean"]], [place + 0.22], xerr=ends, label=label, **look)
            axes.axvline(100 * AT, color=VERMILION, linestyle="--", linewidth=1.2, label="2 points")
            axes.set_yticks(range(len(told["depths"])), [f"{one['layers']} layers" for one in told["depths"]])
            axes.set_ylim(len(told["depths"]) - 0.4, -0.6)
            axes.set(title=f"{TITLES[name]}, {told['n']} rows", xlabel="ROUGE-L lost, points")
            axes.grid(visible=False, axis="y")
        for axes in panels[1:]:
            axes.set_yticklabels([])
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return save_figure(figure, path)


def main() -> None:
    if len(sys.argv) > 1:
        keep(Path(sys.argv[1]))
    found = {name: on_data(name) for name in TITLES if (HERE / name / "static-certificates.json").exists()}
    plans = {name: planned(name) for name in TITLES if (HERE / name / "fit.parquet").exists()}
    write_json(HERE / "results.json", found)
    write_json(HERE / "planned.json", plans)
    write_text(HERE / "results.md", markdown(found) + "\n" + "\n".join([*planned_lines(plans), ""]))
    draw(found, HERE / "certified.png")
    print(json.dumps({name: [one["statement"] for one in told["static"]] for name, told in found.items()}, indent=1))


if __name__ == "__main__":
    main()
