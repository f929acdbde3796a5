"""How fast is the oracle, and is it right? The merged curve and `solve_budget` against a plain dynamic programme.

    python benchmarks/bench_oracle.py --out benchmarks/results/oracle.json

The table is random but shaped like a real one: 10,000 sequences x 24 routes (1..24 layers), scores in 0..1 that rise
with depth at a pace of their own for every sequence, with noise. The plain dynamic programme goes through the
sequences and keeps the best total value for every integer total cost, vectorised over the costs; its one pass gives
the values (not the choices) at every budget. It runs on a tenth of the sequences and, where it is predicted to take no
longer than --dp-limit-sec, on the whole table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from common import RESULTS
from rich.console import Console
from rich.table import Table

from depthdial.files import write_json
from depthdial.oracles.exact.knapsack import prepare, solve_budget_bounded
from depthdial.oracles.oracle import WholeCurve, read_off
from depthdial.provenance import environment

T = TypeVar("T")
BUDGETS_LAYERS = (2.0, 5.6, 9.3, 12.5)


def make_table(n_sequences: int, n_routes: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (n_sequences, n_routes), layers (n_routes,), milliseconds (n_sequences, n_routes)."""
    rng = np.random.default_rng(seed)
    layers = np.arange(1, n_routes + 1)
    reachable = rng.beta(2, 3, (n_sequences, 1))
    pace_layers = n_routes / 8 + n_routes / 3 * rng.random((n_sequences, 1))
    scores = reachable * (1 - np.exp(-layers / pace_layers)) + 0.08 * rng.standard_normal((n_sequences, n_routes))
    msec = (3 + 1.37 * layers) * rng.lognormal(0, 0.2, (n_sequences, n_routes))
    return np.clip(scores, 0, 1), layers, msec


def timed(work: Callable[[], T], n_repeats: int) -> tuple[float, T]:
    """Median seconds of `n_repeats` calls, and the last result."""
    seconds = []
    while True:
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
        if len(seconds) >= n_repeats:
            return float(np.median(seconds)), result


def oracle_curve(values: np.ndarray, costs: np.ndarray) -> WholeCurve:
    return read_off(prepare(values, costs))


def plain_dynamic_programme(values: np.ndarray, layers: np.ndarray) -> np.ndarray:
    """Best total value at every total cost 0..n * max(layers); -inf where nothing fits."""
    n, deepest = len(values), int(layers.max())
    best = np.full(n * deepest + 1, -np.inf)
    best[0] = 0.0
    extended, moved = np.empty_like(best), np.empty_like(best)
    for i, row in enumerate(values):
        reach = i * deepest + 1  # more cannot have been spent so far
        extended[: reach + deepest] = -np.inf
        for value, cost in zip(row, layers, strict=True):
            np.add(best[:reach], value, out=moved[:reach])
            target = extended[cost : cost + reach]
            np.maximum(target, moved[:reach], out=target)
        best, extended = extended, best
    return np.maximum.accumulate(best)


def compare_with_dynamic_programme(values: np.ndarray, layers: np.ndarray, n_repeats: int) -> dict[str, Any]:
    """Both on one table: seconds, ratio, and the largest difference in the mean value over every point of the curve."""
    n = len(values)
    dp_sec, best = timed(lambda: plain_dynamic_programme(values, layers), 1)
    curve_sec, curve = timed(lambda: oracle_curve(values, layers), n_repeats)
    spent = np.rint(curve.budgets * n).astype(int)
    off_by = [0.0]
    for budget in BUDGETS_LAYERS:
        affordable = min(int(np.floor(budget * n + 1e-6)), len(best) - 1)
        off_by.append(abs(solve_budget_bounded(values, layers, budget).value - best[affordable] / n))
    return {
        "n_sequences": n,
        "dynamic_programme_sec": dp_sec,
        "curve_sec": curve_sec,
        "ratio": dp_sec / curve_sec,
        "largest_difference_on_curve": float(np.abs(best[spent] / n - curve.values).max()),
        "largest_difference_of_solve_budget": float(max(off_by)),
    }


def time_solver(values: np.ndarray, costs: np.ndarray, budgets: list[float], n_repeats: int) -> list[dict[str, Any]]:
    """`solve_budget` at each budget: seconds, value, proven gap."""
    rows = []
    for budget in budgets:
        seconds, found = timed(lambda budget=budget: solve_budget_bounded(values, costs, budget), n_repeats)
        rows.append({"budget": budget, "sec": seconds, "value": found.value, "gap": found.gap, "exact": found.exact})
    return rows


def show(results: dict[str, Any], console: Console) -> None:
    """The tables for people."""
    n_sequences, n_routes = results["n_sequences"], results["n_routes"]
    curve = Table(title=f"Whole curve, {n_routes} routes, layers as cost")
    for heading in ("sequences", "merged hulls", "dynamic programme", "ratio", "largest difference"):
        curve.add_column(heading, justify="right")
    for row in results["comparisons"]:
        curve.add_row(
            f"{row['n_sequences']:,}",
            f"{row['curve_sec']:.3f} s",
            f"{row['dynamic_programme_sec']:.2f} s",
            f"{row['ratio']:,.0f}x",
            f"{max(row['largest_difference_on_curve'], row['largest_difference_of_solve_budget']):.1e}",
        )
    if results["predicted_dynamic_programme_sec"] is not None:
        curve.add_row(
            f"{n_sequences:,}",
            f"{results['curve_sec']:.3f} s",
            f"(predicted) {results['predicted_dynamic_programme_sec']:.0f} s",
            f"{results['predicted_dynamic_programme_sec'] / results['curve_sec']:,.0f}x",
            "",
        )
    console.print(curve)
    solver = Table(title=f"solve_budget, {n_sequences:,} x {n_routes}")
    for heading in ("costs", "budget", "time", "mean value", "proven gap"):
        solver.add_column(heading, justify="right")
    for kind in ("layers", "milliseconds"):
        for row in results["solve_budget"][kind]:
            gap = "exact" if row["exact"] else f"{row['gap']:.1e}"
            solver.add_row(kind, f"{row['budget']:.2f}", f"{row['sec']:.3f} s", f"{row['value']:.6f}", gap)
    console.print(solver)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "oracle.json")
    parser.add_argument("--sequences", type=int, default=10_000)
    parser.add_argument("--routes", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dp-limit-sec", type=float, default=90.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    values, layers, msec = make_table(options.sequences, options.routes, options.seed)
    curve_sec, _ = timed(lambda: oracle_curve(values, layers), options.repeats)
    comparisons = [compare_with_dynamic_programme(values[: max(1, len(values) // 10)], layers, options.repeats)]
    # Its work grows with the sequences and with the budgets, so with the square of the sequences.
    small = comparisons[0]
    predicted_sec = small["dynamic_programme_sec"] * (len(values) / small["n_sequences"]) ** 2
    runs_whole = predicted_sec <= options.dp_limit_sec
    if runs_whole:
        comparisons.append(compare_with_dynamic_programme(values, layers, options.repeats))
    msec_budgets = [float(3 + 1.37 * budget) for budget in BUDGETS_LAYERS]
    results = {
        "benchmark": "oracle",
        "n_sequences": len(values),
        "n_routes": len(layers),
        "seed": options.seed,
        "n_repeats": options.repeats,
        **environment(),
        "curve_sec": curve_sec,
        "comparisons": comparisons,
        "predicted_dynamic_programme_sec": None if runs_whole else predicted_sec,
        "solve_budget": {
            "layers": time_solver(values, layers, list(BUDGETS_LAYERS), options.repeats),
            "milliseconds": time_solver(values, msec, msec_budgets, 1),
        },
    }
    console = Console()
    show(results, console)
    write_json(options.out, results)
    console.print(f"Written to {options.out}")
    if any(max(row["largest_difference_on_curve"], row["largest_difference_of_solve_budget"]) > 1e-9 for row in comparisons):
        raise SystemExit("The values differ from the dynamic programme's.")


if __name__ == "__main__":
    main()
