"""From rows to numbers: ROUGE-L by cost, elastic weights against specialists, oracles, and what the training took.

Every kind of weights in the rows is reported; only the specialists are required.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from depthdial.oracles.baselines import crossing
from depthdial.oracles.oracle import OracleCurve, oracle
from depthdial.oracles.predictable import PredictableCurve, predictable_oracle
from depthdial.report.kit.tables import distinct
from depthdial.stats.bootstrap import percentiles
from depthdial.stats.intervals import Interval, mean_interval
from reproduction.folder import ELASTIC, ELASTIC_COMPUTE, FULL, ROWS, SAMPLES, SPECIALIST, RunFolder
from reproduction.offered import Offered, stars_by_routes_offered

METRIC = "rouge_l"
COMPARED = (ELASTIC, ELASTIC_COMPUTE)
_RESAMPLES = 2000
_UNKNOWN = Interval(math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True)
class Scores:
    """ROUGE-L of every sequence under one kind of weights.

    Attributes:
        routes: cheapest first, `full` last.
        values: (n_sequences, n_routes), the sequences in the same order for all kinds.
    """

    routes: tuple[str, ...]
    values: np.ndarray

    def mean(self, route: str) -> Interval:
        """The mean over sequences with its 95% interval (Student's t)."""
        return mean_interval(self.values[:, self.routes.index(route)])


@dataclass(frozen=True)
class Difference:
    """Weights against specialists, in % of the specialists' mean ROUGE-L, with 95% bootstrap intervals over sequences.

    The resampled sequences are the same for both and for all costs.

    Attributes:
        by_route: for each route, `full` (against T) too.
        mean: over the routes that skip something, each in % of its own specialist; those that score 0 are left out.
    """

    by_route: Mapping[str, Interval]
    mean: Interval


@dataclass(frozen=True, eq=False)
class Results:
    """All that tables and figures are made of.

    Attributes:
        about: JSON-ready: the settings that tell runs apart, how many rows, on which machine and by which commit.
        scores, oracles: by kind of weights. The star of a kind matches that kind's own full route.
        differences: elastic weights, equal in tokens per route or in compute, against specialists; of those that are there.
        predictable: by kind, of those that were sampled.
        offered: stars of the specialists by the number of routes to choose from.
        training: JSON-ready rows, one for each training run.
    """

    about: Mapping[str, Any]
    costs: Mapping[str, int]
    scores: Mapping[str, Scores]
    differences: Mapping[str, Difference]
    oracles: Mapping[str, OracleCurve]
    predictable: Mapping[str, PredictableCurve]
    offered: tuple[Offered, ...]
    training: tuple[Mapping[str, Any], ...]


def gather(run: RunFolder) -> Results:
    """Everything that follows from the rows and the training records.

    Raises:
        InputError: if a step has not run yet.
    """
    tables, samples = run.rows(ROWS), run.rows(SAMPLES)
    # Every sequence counts the same, as in the paper.
    choosing: dict[str, Any] = {"metric": METRIC, "cost": "layers", "seed": run.settings.seed}
    oracles = {kind: oracle(table, **choosing) for kind, table in tables.items()}
    scores = {kind: _scores(table, run.routes) for kind, table in tables.items()}
    predictable = {kind: predictable_oracle(table, **choosing) for kind, table in samples.items()}
    costs = {**{f"uls:{cost}": cost for cost in run.costs}, FULL: run.n_layers}
    return Results(
        about=_about(run, tables[SPECIALIST], predictable[SPECIALIST]),
        costs=costs,
        scores=scores,
        differences={
            kind: difference(scores[kind], scores[SPECIALIST], run.settings.seed) for kind in COMPARED if kind in scores
        },
        oracles=oracles,
        predictable=predictable,
        offered=tuple(stars_by_routes_offered(scores[SPECIALIST], costs, run.settings.seed)),
        training=tuple(_training(run, tables)),
    )


def difference(weights: Scores, specialists: Scores, seed: int, n_resamples: int = _RESAMPLES) -> Difference:
    """How far weights lie above specialists, in % of them; NaN for a specialist that scores 0 everywhere."""
    n = len(weights.values)
    rng = np.random.default_rng([seed, 2])
    counts = rng.multinomial(n, np.full(n, 1 / n), size=n_resamples)
    with np.errstate(divide="ignore", invalid="ignore"):
        observed = _percent(weights.values.mean(axis=0), specialists.values.mean(axis=0))
        resampled = _percent(counts @ weights.values / n, counts @ specialists.values / n)
    known = np.isfinite(observed)
    # A resample may hold only sequences that some poor specialist fails on: it has no percentage and is left out.
    resampled = resampled[np.isfinite(resampled[:, known]).all(axis=1)]
    shallow = known & [route != FULL for route in weights.routes]
    by_route = {
        route: _interval(observed[i], resampled[:, i], n) if known[i] else _UNKNOWN for i, route in enumerate(weights.routes)
    }
    mean = _interval(observed[shallow].mean(), resampled[:, shallow].mean(axis=1), n) if shallow.any() else _UNKNOWN
    return Difference(by_route, mean)


def cost_table(results: Results) -> list[dict[str, Any]]:
    """A row for each cost: ROUGE-L of all weights, and the differences in %."""
    return [
        {
            "layers": layers,
            "route": route,
            **{kind: scores.mean(route) for kind, scores in results.scores.items()},
            **{f"{kind}_difference_percent": one.by_route[route] for kind, one in results.differences.items()},
        }
        for route, layers in results.costs.items()
    ]


def star_table(results: Results) -> list[dict[str, Any]]:
    """A row for each oracle: where it is as good as its own full model, and as good as T."""
    wanted = results.oracles[SPECIALIST].full_value
    table = []
    for kind, curve in results.oracles.items():
        layers, full_cost = curve.matches_full_at, curve.full_cost
        low, high = curve.matches_full_interval or (None, None)
        table.append(
            {
                "weights": kind,
                "matches_full_at_layers": layers,
                "low": low,
                "high": high,
                "share_of_full": None if layers is None or not full_cost else layers / full_cost,
                "full_rouge_l": curve.full_value,
                "shuffled_matches_full_at_layers": curve.permuted_matches_full_at,
                "reaches_T_at_layers": None if wanted is None else crossing(*curve.breakpoints, wanted),
            }
        )
    return table


def share_table(results: Results) -> list[dict[str, Any]]:
    """A row for each route: how many sequences the specialists' oracle sends there at its star, and how they score.

    `rouge_l_there` is the mean over those sequences on that route, None where there are none; `rouge_l_of_T_there` is what T
    scores on the same ones. Empty without a star.
    """
    curve = results.oracles[SPECIALIST]
    if curve.matches_full_at is None:
        return []
    chosen, values = curve.pick(curve.matches_full_at), curve.scores.values
    whole = curve.routes.index(FULL)
    table = []
    for column, route in enumerate(curve.routes):
        there = chosen == column
        means = (float(values[there, place].mean()) if there.any() else None for place in (column, whole))
        row = {"layers": results.costs[route], "route": route, "sequences": int(there.sum()), "share": float(there.mean())}
        table.append({**row, **dict(zip(("rouge_l_there", "rouge_l_of_T_there"), means, strict=True))})
    return sorted(table, key=lambda row: row["layers"])


def sampled_star_table(results: Results) -> list[dict[str, Any]]:
    """A row for each number of samples chosen on: where the choice matches T, paid the same samples and paid the others."""
    table = []
    for kind, curve in results.predictable.items():
        others = dict(zip(curve.chosen_on, curve.predictable_matches_full_at, strict=True))
        for k, same in zip(curve.plugged_in, curve.plug_in_matches_full_at, strict=True):
            at = others.get(k)
            low, high = (curve.matches_full_interval or (None, None)) if k == curve.chosen_on[-1] else (None, None)
            row = {"weights": kind, "chosen_on": k, "paid_the_same_at_layers": same, "is_held_out": k in others}
            table.append({**row, "paid_the_others_at_layers": at, "low": low, "high": high, "full_layers": curve.full_cost})
    return table


def document(results: Results) -> dict[str, Any]:
    """All numbers, ready for JSON."""
    return {
        "about": dict(results.about),
        "rouge_l_by_cost": [{name: _plain(cell) for name, cell in row.items()} for row in cost_table(results)],
        "mean_difference_percent": {kind: _plain(one.mean) for kind, one in results.differences.items()},
        "oracle_matches_full": star_table(results),
        "stars_by_routes_offered": [asdict(one) for one in results.offered],
        "shares_at_the_star": share_table(results),
        "sampled_matches_full": sampled_star_table(results),
        "oracle": {kind: curve.table() for kind, curve in results.oracles.items()},
        "predictable": {kind: curve.table() for kind, curve in results.predictable.items()},
        "training": list(results.training),
    }


def _scores(table: pa.Table, routes: tuple[str, ...]) -> Scores:
    cells = zip(*(table[name].to_pylist() for name in ("sequence_id", "route", METRIC)), strict=True)
    values = {(sequence, route): value for sequence, route, value in cells}
    sequences = list(dict.fromkeys(sequence for sequence, _ in values))
    return Scores(routes, np.array([[values[sequence, route] for route in routes] for sequence in sequences]))


def _about(run: RunFolder, rows: pa.Table, sampled: PredictableCurve) -> dict[str, Any]:
    named = ("model", "task", "max_new_tokens", "seed")
    return {
        **{name: getattr(run.settings, name) for name in named},
        "n_layers": run.n_layers,
        "test_rows": len(set(rows["sequence_id"].to_pylist())),
        "sampled_rows": sampled.n_sequences,
        "samples": sampled.n_samples,
        "temperature": run.settings.samples.temperature,
        "shuffles": sampled.n_permutations,
        **{name: "; ".join(distinct(rows, name)) for name in ("hardware", "versions", "commit")},
    }


def _training(run: RunFolder, kinds: Container[str]) -> list[dict[str, Any]]:
    """What each run took; `total` sums the specialists, which elastic weights are compared with."""
    table = []
    for subject in (one for one in run.trained if one.kind in kinds):
        record = run.training_record(subject)
        row = {name: record[name] for name in ("steps", "response_tokens", "train_flops", "train_sec")}
        tokens = record["response_tokens_by_route"].values()
        table.append({"weights": subject.name, "routes": len(tokens), "tokens_per_route": max(tokens), **row})
    specialists = [row for row in table if row["weights"] in {subject.name for subject in run.specialists}]
    total: dict[str, Any] = {"weights": "all specialists", "routes": len(specialists)}
    total["tokens_per_route"] = max(row["tokens_per_route"] for row in specialists)
    for name in ("steps", "response_tokens", "train_flops", "train_sec"):
        all_known = all(row[name] is not None for row in specialists)
        total[name] = sum(row[name] for row in specialists) if all_known else None
    return [*table, total]


def _percent(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return 100 * (ours - theirs) / theirs


def _interval(mean: float, resampled: np.ndarray, n: int) -> Interval:
    low, high = percentiles(resampled, 0.95) if len(resampled) else (math.nan, math.nan)
    return Interval(float(mean), float(low), float(high), n)


def _plain(cell: Any) -> Any:
    if not isinstance(cell, Interval):
        return cell
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in asdict(cell).items()}
