"""Are certificates right as often as they say? Calibration rows drawn from pools whose means are the true risks.

    python experiments/guarantee/simulate.py [--draws N] [--pool FILE [--metric NAME]] [--only METHOD] [--out DIR]

Writes simulation.json, simulation.md and simulation.png. For each pool, epsilon, delta and n: how often the certified
setting's true risk is above epsilon (with a 95% Wilson interval), and how many layers it saves on average, for every method
and for two rules that promise nothing, the plug-in mean and the normal approximation. With --only the rows of all other
rules stay as they are in simulation.json: draws are the same for every rule.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the pools, the tables and the figure lie beside this file

from pools import Pool, edge_pool, policy_pool, rare_pool, read_pool
from results import draw, markdown

from depthdial.files import read_json, write_json, write_text
from depthdial.guarantee.p_values import METHODS, p_values, upper_bounds
from depthdial.guarantee.plan import CONFORMAL
from depthdial.guarantee.risk_control import conformal_setting, fixed_sequence
from depthdial.provenance import commit, versions
from depthdial.stats.intervals import share_interval

ROWS = (50, 100, 200, 500, 1000)
EPSILONS, DELTAS = (0.01, 0.02, 0.05), (0.05, 0.1)
NORMAL = {0.05: 1.6448536, 0.1: 1.2815516}  # one-sided quantiles
SEED = 0
_CELLS = 6_000_000


def simulate(
    pool: Pool, epsilon: float, *, draws: int, n_rows: tuple[int, ...] = ROWS, only: str | None = None
) -> Iterator[dict[str, Any]]:
    """One row for each n, rule and delta; of one method where `only` names it."""
    for n in n_rows:
        # The same draws for every rule, epsilon and delta.
        rng = np.random.default_rng([SEED, n])
        picked: dict[tuple[str, float | None], list[np.ndarray]] = {}
        size = max(1, _CELLS // (n * len(pool.settings)))
        for start in range(0, draws, size):
            index = rng.integers(0, len(pool.losses), (min(size, draws - start), n))
            for rule, settings in decisions(pool.losses[index], epsilon, pool.bounds, only):
                picked.setdefault(rule, []).append(settings)
        for (rule, delta), parts in picked.items():
            settings = np.concatenate(parts)
            violations = int((pool.risks[settings] > epsilon).sum())
            seen = share_interval(violations, draws)
            yield {
                "pool": pool.name,
                "epsilon": epsilon,
                "delta": delta,
                "n_rows": n,
                "rule": rule,
                "draws": draws,
                "violations": violations,
                "share": seen.mean,
                "share_low": seen.low,
                "share_high": seen.high,
                "mean_risk": float(pool.risks[settings].mean()),
                "mean_saving_layers": float(pool.savings[settings].mean()),
                "certified": float((settings > 0).mean()),
            }


def decisions(
    rows: np.ndarray, epsilon: float, bounds: tuple[float, float], only: str | None = None
) -> Iterator[tuple[tuple[str, float | None], np.ndarray]]:
    """What every rule picks, (draws,), from calibration rows (draws, n, settings)."""
    by_setting = np.ascontiguousarray(np.swapaxes(rows, 1, 2))
    if only is None:
        yield from _without_p_values(rows, by_setting, epsilon, bounds)
    for method in METHODS if only is None else (only,):
        p = None
        for delta in DELTAS:
            if p is None or method in ("betting", "star_betting"):  # only bets are sized for delta
                p = p_values(by_setting, epsilon, method=method, delta=delta, bounds=bounds)
            yield (method, delta), fixed_sequence(p, delta)


def _without_p_values(
    rows: np.ndarray, by_setting: np.ndarray, epsilon: float, bounds: tuple[float, float]
) -> Iterator[tuple[tuple[str, float | None], np.ndarray]]:
    means = by_setting.mean(axis=-1)
    errors = by_setting.std(axis=-1, ddof=1) / np.sqrt(rows.shape[1])
    yield ("plug_in", None), fixed_sequence((means > epsilon).astype(float), 0.5)
    yield (CONFORMAL, None), conformal_setting(rows, epsilon, bounds[1])
    for delta in DELTAS:
        yield ("normal", delta), fixed_sequence((means + NORMAL[delta] * errors > epsilon).astype(float), 0.5)


def smallest_epsilon(n_rows: int, delta: float, *, method: str, bounds: tuple[float, float] = (-1.0, 1.0)) -> float:
    """The smallest epsilon that n rows could certify at all: where not one of them loses anything."""
    return max(float(upper_bounds(np.zeros(n_rows), delta, method=method, bounds=bounds)), 0.0)


def smallest_epsilons() -> list[dict[str, Any]]:
    """The smallest epsilon that n rows can certify at delta = 0.05: where nothing is lost."""
    found = []
    for n in (*ROWS, 2000, 5000):
        row: dict[str, Any] = {"n_rows": n}
        for method in METHODS:
            row[method] = smallest_epsilon(n, 0.05, method=method)
        row["hoeffding_bentkus, losses in [0, 1]"] = smallest_epsilon(n, 0.05, method="hoeffding_bentkus", bounds=(0.0, 1.0))
        found.append(row | {CONFORMAL: 1 / (n + 1)})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=4000)
    parser.add_argument("--pool", type=Path, help="measured rows to draw from, instead of the three made pools")
    parser.add_argument("--metric", default="agreement")
    parser.add_argument("--only", choices=tuple(METHODS), help="draw this method anew, and keep the rows of the others")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    pools: list[dict[str, Any]] = []
    for epsilon in EPSILONS:
        if given.pool is not None:
            here = [read_pool(given.pool, given.metric)]
        else:
            here = [policy_pool(SEED), edge_pool(epsilon, SEED), rare_pool(epsilon)]
        for pool in here:
            if pool.about() not in pools:
                pools.append(pool.about())
            rows.extend(simulate(pool, epsilon, draws=given.draws, only=given.only))
            print(f"{pool.name}, epsilon {epsilon}: done", flush=True)
    about = {"seed": SEED, "draws": given.draws, "versions": versions(), "commit": commit(), "pools": pools}
    if given.only is not None:
        before = read_json(given.out / "simulation.json", "simulation")
        kept = [row for row in before["rows"] if row["rule"] != given.only]
        if before["about"]["pools"] != pools or before["about"]["draws"] != given.draws:
            raise SystemExit("The rows that are there were drawn from other pools, or another number of times.")
        rows = [*kept, *rows]
        about = before["about"] | {given.only: {name: about[name] for name in ("versions", "commit")}}
    document = {"about": about, "rows": rows, "smallest_epsilons": smallest_epsilons()}
    given.out.mkdir(parents=True, exist_ok=True)
    write_json(given.out / "simulation.json", document)
    write_text(given.out / "simulation.md", markdown(document))
    draw(document, given.out / "simulation.png")
    print(json.dumps(about["pools"][0]["risks"]))


if __name__ == "__main__":
    main()
