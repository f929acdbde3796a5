"""A controller on a stream: what the running budget costs and keeps beside a price set once, whatever order rows come in.

    python experiments/controller/online.py

Reads the committed controller and its predictions for the test rows; runs no model. Leaves online.json and online.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import depthdial as dd
from depthdial.control.prediction import Prediction
from depthdial.files import write_json, write_text
from depthdial.provenance import environment
from depthdial.report.kit.table_files import markdown_table

HERE = Path(__file__).parent
SHARES = (0.6, 0.7, 0.8, 0.9)
SHUFFLES = 200


def main() -> None:
    controller = dd.SequenceController.from_pretrained(HERE / "fit")
    rows = read_rows(HERE / "alpaca" / "predictions.parquet", [route.name for route in controller.routes])
    found = [row for share in SHARES for row in at_budget(controller, rows, share)]
    write_json(
        HERE / "online.json", {"rows": found, "n_sequences": len(rows.measured), "shuffles": SHUFFLES, **environment()}
    )
    print(write_text(HERE / "online.md", markdown_table(found)).read_text())


@dataclass(frozen=True)
class TestRows:
    """What was predicted of the test rows, and (n, n_routes) measured quality and decoding steps."""

    predicted: Prediction
    measured: np.ndarray
    steps: np.ndarray


def read_rows(path: Path, names: list[str]) -> TestRows:
    """The committed predictions, in the order of the test rows."""
    table = pq.read_table(path)
    assert table.column("route").to_pylist()[: len(names)] == names
    columns = ("predicted", "predicted_steps", "measured", "measured_steps")
    quality, likely, measured, steps = (table.column(name).to_numpy().reshape(-1, len(names)) for name in columns)
    return TestRows(Prediction(quality, likely), measured, steps)


def at_budget(controller: Any, rows: TestRows, share: float) -> list[dict[str, Any]]:
    """A price set once; the stream in random orders; and the stream that brings what needs depth first."""
    n = np.arange(len(rows.measured))
    fixed = controller.at(share).pick(rows.predicted)
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(n)) for _ in range(SHUFFLES)]
    found = [paid(controller, rows, order, share) for order in orders]
    cost, value, worst = paid(controller, rows, np.argsort(rows.predicted.quality[:, 0]), share)
    mean = np.array(found).mean(axis=0)
    costs = controller.card.costs_of(rows.steps)
    return [
        row(share, "price set once", costs[n, fixed].mean(), rows.measured[n, fixed].mean(), None),
        row(share, f"online, mean of {SHUFFLES} orders", mean[0], mean[1], max(one[2] for one in found)),
        row(share, "online, hardest first", cost, value, worst),
    ]


def paid(controller: Any, rows: TestRows, order: np.ndarray, budget: float) -> tuple[float, float, float]:
    """(mean cost, mean quality, the most that a beginning of the stream has spent beyond its budget).

    Sequences come one by one, and what an answer took is known before the next one is chosen.
    """
    stream, costs = controller.online(budget), controller.card.costs_of(rows.steps)
    chosen = np.empty(len(order), dtype=np.intp)
    for place, one in enumerate(order):
        some = rows.predicted[one : one + 1]
        picked = stream.pick(some)
        stream.settle(some, picked, rows.steps[one : one + 1, picked[0]])
        chosen[place] = picked[0]
    spent = costs[order, chosen].cumsum()
    ahead = float((spent - budget * np.arange(1, len(order) + 1)).max())
    return stream.state.mean_cost, float(rows.measured[order, chosen].mean()), ahead


def row(budget: float, how: str, cost: float, value: float, ahead: float | None) -> dict[str, Any]:
    return {
        "budget, % of layer-steps": f"{100 * budget:.0f}",
        "policy": how,
        "spent, %": f"{100 * cost:.1f}",
        "agreement": f"{value:.3f}",
        "most ahead of the budget, full answers": "–" if ahead is None else f"{ahead:.2f}",
    }


if __name__ == "__main__":
    main()
