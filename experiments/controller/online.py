"""A controller on a stream: what the running budget costs and keeps beside a price set once, whatever order rows come in.

    python experiments/controller/online.py

Reads the committed controller and its predictions for the test rows; runs no model. Leaves online.json and online.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import depthdial as dd
from depthdial.choose.policy import choose_routes
from depthdial.files import write_json, write_text
from depthdial.measure.provenance import environment
from depthdial.report.table_files import markdown_table

HERE = Path(__file__).parent
SHARES = (0.6, 0.7, 0.8, 0.9)
SHUFFLES = 200


def main() -> None:
    controller = dd.SequenceController.from_pretrained(HERE / "fit")
    predicted, measured = tables(HERE / "alpaca" / "predictions.parquet", [route.name for route in controller.routes])
    rows = [row for share in SHARES for row in at_budget(controller, predicted, measured, share)]
    write_json(HERE / "online.json", {"rows": rows, "n_sequences": len(predicted), "shuffles": SHUFFLES, **environment()})
    print(write_text(HERE / "online.md", markdown_table(rows)).read_text())


def tables(path: Path, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(n, n_routes) predicted and measured quality, in the order of the test rows."""
    table = pq.read_table(path)
    assert table.column("route").to_pylist()[: len(names)] == names
    return tuple(table.column(name).to_numpy().reshape(-1, len(names)) for name in ("predicted", "measured"))  # type: ignore[return-value]


def at_budget(controller: Any, predicted: np.ndarray, measured: np.ndarray, share: float) -> list[dict[str, Any]]:
    """A price set once; the stream in random orders; and the stream that brings what needs depth first."""
    budget = share * controller.card.full_cost
    costs, n = controller.costs, np.arange(len(predicted))
    at = controller.at(budget)
    fixed = choose_routes(predicted, costs, at.price)
    rng = np.random.default_rng(0)
    found = [paid(controller, predicted, measured, rng.permutation(len(n)), budget) for _ in range(SHUFFLES)]
    hard_first = np.argsort(predicted[:, 0])
    cost, value, worst = paid(controller, predicted, measured, hard_first, budget)
    mean = np.array(found).mean(axis=0)
    return [
        row(budget, "price set once", costs[fixed].mean(), measured[n, fixed].mean(), None),
        row(budget, f"online, mean of {SHUFFLES} orders", mean[0], mean[1], max(one[2] for one in found)),
        row(budget, "online, hardest first", cost, value, worst),
    ]


def paid(
    controller: Any, predicted: np.ndarray, measured: np.ndarray, order: np.ndarray, budget: float
) -> tuple[float, float, float]:
    """(mean cost, mean quality, the most that a beginning of the stream has spent beyond its budget)."""
    stream = controller.online(budget)
    chosen = stream.pick(predicted[order])
    spent = controller.costs[chosen].cumsum()
    ahead = float((spent - budget * np.arange(1, len(order) + 1)).max())
    return stream.state.mean_cost, float(measured[order, chosen].mean()), ahead


def row(budget: float, how: str, cost: float, value: float, ahead: float | None) -> dict[str, Any]:
    return {
        "budget, layers": f"{budget:g}",
        "policy": how,
        "layers run": f"{cost:.2f}",
        "agreement": f"{value:.3f}",
        "most ahead of the budget, layers": "–" if ahead is None else f"{ahead:.1f}",
    }


if __name__ == "__main__":
    main()
