"""Result rows, gathered by route: what every table and figure of a report is made from. Numpy only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from depthdial.errors import InputError
from depthdial.report.kit.style import family_of
from depthdial.routes import FIXED_FAMILIES, RANDOM_FAMILIES, Route, stored_route
from depthdial.rows.store import count_samples
from depthdial.stats.intervals import Interval, coded, known_interval, mean_over_samples

# Families in the order in which tables name them; a searched one, whose name is its own, follows the full model.
_ORDER = ("full", "elastic", "", "uls", "unified", "rls", "rls-wo1", "ee", "listed")
# What `timing.json` calls the seconds of the rows.
_TIMES = {"step_sec": "step_ms", "batch_prefill_sec": "ttft_ms"}
HEADLINE_METRICS = ("rouge_l", "agreement", "kl", "nll")


@dataclass(frozen=True)
class RouteRows:
    """All rows of one route, one for each sequence.

    Attributes:
        family: `full`, `uls`, .., the name of a searched family, or `listed` for routes written as layers.
        share_run: (n_layers,) on which share of the sequences each layer ran; 0 or 1 but for random rules.
        columns: (n_sequences,) arrays by column; NaN where a number is missing; of sampled answers the means.
        times: its entry in a study's `timing.json`, which is measured in turns and so wins over the rows' own times.
    """

    name: str
    family: str
    n_layers: int
    share_run: np.ndarray
    columns: Mapping[str, np.ndarray]
    times: Mapping[str, Any] | None = None

    @property
    def sequence_ids(self) -> list[Any]:
        return self.columns["sequence_id"].tolist()

    @property
    def n_sequences(self) -> int:
        return len(self.sequence_ids)

    @property
    def cost_layers(self) -> float:
        """Mean number of layers run."""
        return round(float(self.share_run.sum()), 9)

    @property
    def cost(self) -> float:
        """Mean fraction of the layers that run."""
        return self.cost_layers / self.n_layers

    @property
    def layer_steps(self) -> float | None:
        """Layers run times decoding steps (tokens of its own answers less the first of each), summed over sequences."""
        tokens, layers = self.columns.get("new_tokens"), self.columns.get("layers_run")
        if tokens is None or layers is None:
            return None
        steps = np.maximum(tokens - 1, 0)  # no step runs no layer, whatever a depth by tokens says of it
        total = float((np.where(steps > 0, layers, 0.0) * steps).sum())
        return total if np.isfinite(total) else None

    def cost_against(self, full: RouteRows | None) -> float:
        """Layer-steps as a share of the full model's on the same sequences; without answers the share of the layers."""
        mine, theirs = self.layer_steps, None if full is None else full.layer_steps
        if full is None or mine is None or not theirs or set(self.sequence_ids) != set(full.sequence_ids):
            return self.cost
        return mine / theirs

    @property
    def fixed_layers(self) -> tuple[int, ...] | None:
        """The layers that run; None where they differ between sequences."""
        if not np.isin(self.share_run, (0.0, 1.0)).all():
            return None
        return tuple(int(i) for i in np.flatnonzero(self.share_run))

    @property
    def is_full(self) -> bool:
        return bool((self.share_run == 1).all())

    def values(self, column: str) -> np.ndarray:
        """The numbers of a column, without the missing ones; empty where there is no such column."""
        values = self.columns.get(column)
        return np.empty(0) if values is None else values[np.isfinite(values)]

    def by_sequence(self, column: str) -> dict[Any, Any]:
        """What a column holds, by sequence; empty where there is no such column."""
        return dict(zip(self.sequence_ids, self.columns[column].tolist(), strict=True)) if column in self.columns else {}

    def interval(self, column: str) -> Interval | None:
        """Mean and 95% interval over sequences; None without a number."""
        return known_interval(self.values(column))

    def mean(self, column: str) -> float | None:
        values = self.values(column)
        return float(values.mean()) if len(values) else None

    def milliseconds(self, column: str = "step_sec") -> float | None:
        """Measured milliseconds in the median repeat; of rows in the median batch, which counts by its sequences.

        For comparisons there is `speed_against`. `step_sec` is of a decoding step, `batch_prefill_sec` to the first token.
        """
        if self.times is not None:
            return float(self.times[_TIMES[column]]["median"])
        values = self.values(column)
        return float(1000 * np.median(values)) if len(values) else None

    @property
    def batch(self) -> int | None:
        """Sequences of the (largest) batch that was timed."""
        sizes = self.values("batch_size")
        return int(self.times["batch"]) if self.times is not None else int(sizes.max()) if len(sizes) else None

    def speed_against(self, full: RouteRows, column: str = "step_sec") -> Speed | None:
        """How many times faster than `full`, in turns or on the same sequences; None where they were not timed alike."""
        if full.times is not None:
            return None if self.times is None else _speed_of(full.times, self.times, _TIMES[column])
        if not self.is_timed_like(full):
            return None
        theirs, mine = full.by_sequence(column), self.by_sequence(column)
        ratios = np.array([theirs.get(sequence, np.nan) / sec for sequence, sec in mine.items() if sec > 0])
        ratios = ratios[np.isfinite(ratios)]
        if not len(ratios):
            return None
        return Speed(float(np.median(ratios)), float(ratios.min()), float(ratios.max()), len(np.unique(ratios)))

    def is_timed_like(self, other: RouteRows) -> bool:
        """Whether both ran in batches of the same sizes, without which their times say nothing about each other."""
        mine, others = np.sort(self.values("batch_size")), np.sort(other.values("batch_size"))
        return bool(len(mine)) and np.array_equal(mine, others)


@dataclass(frozen=True)
class Speed:
    """How many times faster than the full model: the one ratio of time that tables, plots and the verdict show.

    Attributes:
        ratio: of the medians over rounds, or the median over sequences; `low`, `high`: the least and the greatest repeat's.
        repeats: rounds, or batches; one says nothing about noise.
    """

    ratio: float
    low: float
    high: float
    repeats: int

    @property
    def is_noisy(self) -> bool:
        """Whether repeats differ by more than the route does from the full model."""
        return self.high - self.low > abs(self.ratio - 1)

    @property
    def range_text(self) -> str:
        spread = f"{self.low:.2f}–{self.high:.2f}×"
        return "timed once" if self.repeats < 2 else f"{spread}, too noisy to tell" if self.is_noisy else spread


def _speed_of(full: Mapping[str, Any], mine: Mapping[str, Any], name: str) -> Speed:
    """From two entries of `timing.json`; the range is that of either route's rounds against the other's median."""
    theirs, own = full[name], mine[name]
    ratio = theirs["median"] / own["median"]
    low = min(theirs["median"] / own["high"], theirs["low"] / own["median"])
    high = max(theirs["median"] / own["low"], theirs["high"] / own["median"])
    is_same = full["route"] == mine["route"]
    return Speed(ratio, 1.0 if is_same else low, 1.0 if is_same else high, int(mine["n_repeats"]))


def gather(rows: Any, timing: Mapping[str, Any] | None = None) -> list[RouteRows]:
    """Rows by route: the full model first, then searched routes, then the others; costliest first within a family.

    Args:
        rows: a pyarrow.Table, a pandas.DataFrame or a dict of arrays, with the columns of a sweep or a similarity run.
        timing: a study's `timing.json`; of its batch sizes the smallest is taken.
    """
    names = list(rows.column_names if hasattr(rows, "column_names") else rows.keys())
    for name in ("sequence_id", "route", "route_layers", "n_layers"):
        if name not in names:
            raise InputError(f"The table has no column {name!r}: give the rows of `depthdial sweep` or `similarity`.")
    columns = {name: _as_array(rows[name]) for name in names}
    if count_samples(rows):
        columns = mean_over_samples(columns)
    if not len(columns["route"]):
        raise InputError("The table has no rows: run `depthdial sweep` first.")
    pairs = list(zip(columns["sequence_id"], columns["route"], strict=True))
    if len(set(pairs)) < len(pairs):
        raise InputError("The table has two rows of one sequence on one route: report on the rows of one run and model.")
    depths = sorted({int(n) for n in columns["n_layers"]})
    if len(depths) > 1:
        raise InputError(f"The rows are of models with {depths[0]} and {depths[-1]} layers: report on one model at a time.")
    names, codes = coded(map(str, columns["route"]))
    entries = sorted((timing or {}).get("routes", ()), key=lambda entry: -entry["batch"])
    times, found = {entry["route"]: entry for entry in entries}, []
    for i, name in enumerate(names):
        own = {column: values[codes == i] for column, values in columns.items()}
        found.append(RouteRows(name, family_of(name), depths[0], _share_run(own, depths[0]), own, times.get(name)))
    return sorted(found, key=_rank)


def full_of(routes: Sequence[RouteRows]) -> RouteRows | None:
    """The full model's rows, under whatever name its route went."""
    return next((route for route in routes if route.is_full and route.family not in RANDOM_FAMILIES), None)


def headline_metric(routes: Sequence[RouteRows]) -> str | None:
    """ROUGE-L where there are references, else agreement with the full model, else what there is."""
    return next((name for name in HEADLINE_METRICS if any(len(route.values(name)) for route in routes)), None)


def family_lines(routes: Sequence[RouteRows]) -> dict[str, dict[float, list[RouteRows]]]:
    """By family and number of layers run, the routes that are a point of the family's curve.

    Measurements run a route once, whatever its names (early exit and uniform skipping share several), so each curve takes
    the rows of an equal route of another family, the full model's among them.
    """
    lines: dict[str, dict[float, list[RouteRows]]] = {route.family: {} for route in routes if route.family != "full"}
    for family, points in lines.items():
        for route in sorted(routes, key=lambda r: r.cost_layers):
            if route.family == family or _also_in(route, family):
                points.setdefault(route.cost_layers, []).append(route)
    return lines


def pooled(routes: Sequence[RouteRows], column: str) -> Interval | None:
    """The interval over sequences of the mean over `routes` (the seeds of one random rule) for each sequence."""
    by_sequence: dict[Any, list[float]] = {}
    for route in routes:
        for sequence, value in route.by_sequence(column).items():
            if np.isfinite(value):
                by_sequence.setdefault(sequence, []).append(value)
    return known_interval(np.array([np.mean(values) for values in by_sequence.values()]))


def _also_in(route: RouteRows, family: str) -> bool:
    if route.is_full:
        return family != "listed" and route.family not in RANDOM_FAMILIES
    if family not in FIXED_FAMILIES or route.fixed_layers is None:
        return False
    return route.fixed_layers == FIXED_FAMILIES[family](len(route.fixed_layers), route.n_layers)


def _rank(route: RouteRows) -> tuple[int, str, float]:
    is_known = route.family in _ORDER
    return _ORDER.index(route.family if is_known else ""), "" if is_known else route.family, -route.cost_layers


def _as_array(column: Any) -> np.ndarray:
    """Numbers as floats with NaN for null; text as it is, even where it looks like a number."""
    values = np.asarray(column)
    if values.dtype == object and not any(isinstance(value, str) for value in values):
        return np.array([np.nan if value is None else value for value in values], dtype=float)
    return values.astype(float) if values.dtype.kind in "iuf" else values


def _share_run(columns: Mapping[str, np.ndarray], n_layers: int) -> np.ndarray:
    texts = list(map(str, columns["route_layers"]))
    if all(text.startswith("token-wise") for text in texts):
        # Which layers ran differs from token to token, and rows keep how many: every layer gets the mean.
        known = columns["layers_run"][np.isfinite(columns["layers_run"])]
        return np.full(n_layers, known.mean() / n_layers if len(known) else np.nan)
    total = np.zeros(n_layers)
    for text, count in Counter(texts).items():
        route = stored_route(text, n_layers)
        if not isinstance(route, Route):
            raise InputError(f"The column 'route_layers' holds the rule {text!r}: give the layers that ran.")
        total[list(route.layers)] += count
    return total / len(texts)
