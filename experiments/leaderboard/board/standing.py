"""The board itself: quality of every family at equal measured time, from the rows and times that are committed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from depthdial.errors import InputError
from depthdial.files import read_json, write_json, write_text
from depthdial.stats.bootstrap import percentiles, ratios, resamples
from depthdial.stats.intervals import mean_interval

from .entries import BOARD, ELASTIC, FP32, FULL, GATES, TIMES, Family
from .rows import SCORES, Board

SHARES = (0.9, 0.8, 0.7, 0.6)
BATCHES = (1, 32)
YARDSTICK = "greedy"
DRAWS, SEED = 2000, 0
BETTER = {"agreement": 1, "kl": -1, "rouge_l": 1}  # -1: less is better


def frontier(times: np.ndarray, values: np.ndarray, budget: float) -> np.ndarray:
    """The best mean value that sharing requests between points reaches in a mean time of `budget`.

    Args:
        times: (n_points,).
        values: (.., n_points), more is better.

    Returns:
        (..), NaN where every point takes longer.
    """
    is_within = times <= budget * (1 + 1e-9)
    within = np.flatnonzero(is_within)
    if not len(within):
        return np.full(values.shape[:-1], np.nan)
    best = values[..., within].max(-1)
    for slow in np.flatnonzero(~is_within):
        for fast in within:
            share = (budget - times[fast]) / (times[slow] - times[fast])
            best = np.maximum(best, (1 - share) * values[..., fast] + share * values[..., slow])
    return best


def between(times: np.ndarray, values: np.ndarray, budget: float) -> np.ndarray:
    """The value at a time between the two points that are next to it; beyond the slowest point that point's own.

    Args, Returns: as of `frontier`.
    """
    order = np.argsort(times)
    times, values = times[order], values[..., order]
    if budget < times[0] * (1 - 1e-9):
        return np.full(values.shape[:-1], np.nan)
    slow = int(np.searchsorted(times, budget, side="right"))
    if slow == len(times):
        return values[..., -1]
    if slow == 0:  # the fastest point itself, but for rounding
        return values[..., 0]
    fast = slow - 1
    share = (budget - times[fast]) / (times[slow] - times[fast])
    return (1 - share) * values[..., fast] + share * values[..., slow]


@dataclass(frozen=True)
class Standing:
    """Rows and times of a folder."""

    rows: pd.DataFrame
    times: Mapping[str, Any]

    @classmethod
    def of(cls, folder: Path) -> Standing:
        found = cls(Board(folder / "rows").read(), read_json(folder / TIMES, "times"))
        if not found.ids:
            raise InputError(f"{folder / 'rows'} has no rows of the full model: run --only quality first.")
        for config, own in found.rows.groupby("config"):
            if not set(found.ids) <= set(own["sequence_id"]):
                raise InputError(f"{config} lacks rows that the full model has: run --only quality, then --only policies.")
        return found

    @cached_property
    def ids(self) -> list[str]:
        return sorted(self.rows[self.rows["config"] == FULL]["sequence_id"])

    @cached_property
    def counts(self) -> np.ndarray:
        """(n_draws, n_rows): how often each row is drawn; the same for all families, whose differences are paired."""
        return np.concatenate(list(resamples(np.random.default_rng(SEED), DRAWS, len(self.ids))))

    def families(self) -> list[Family]:
        """Those that have rows, and times where they need their own."""
        there = set(self.rows["family"])
        if not self.times.get("tokenwise"):
            there.discard(GATES.name)
        return [family for family in BOARD if family.name in there]

    def points(self, family: Family) -> list[str]:
        """Configurations of a family, the deepest first; the untouched full model where it is one of them."""
        own = (
            self.rows[self.rows["family"] == family.name].groupby("config")["layers_run"].mean().sort_values(ascending=False)
        )
        return [*([FULL] if family.with_full else []), *map(str, own.index)]

    def scores(self, configs: Sequence[str], metric: str) -> np.ndarray:
        """(n_rows, n_configs), in the order of the ids."""
        own = self.rows[self.rows["config"].isin(configs)]
        table = own.pivot(index="sequence_id", columns="config", values=metric)
        return table.loc[self.ids, list(configs)].to_numpy(dtype=float)

    def _cells(self, weights: str, batch: int) -> dict[int, float]:
        """Milliseconds of a step by the number of layers."""
        found: dict[int, float] = {}
        for cell in self.times["cells"]:
            if (cell["weights"], cell["batch"]) == (weights, batch):
                found.setdefault(cell["layers"], cell["step_ms"]["median"])
        return found

    def full_ms(self, batch: int) -> float:
        return max(self._cells(FP32, batch).items())[1]

    def ms(self, config: str, batch: int) -> float:
        """Milliseconds of a decoding step of the batch, choices included."""
        own = self.rows[self.rows["config"] == config]
        family = next((one for one in BOARD if one.name == own["family"].iloc[0]), None)
        if family is GATES:
            return self._tokenwise_share(config, batch) * self.full_ms(batch)
        weights = FP32 if family is None or (family.rule in (None, ELASTIC) and family.with_full) else family.weights
        weights = FP32 if weights == ELASTIC else weights  # merged: matrices of the same sizes
        cells = self._cells(weights, batch)
        mixes = {one["config"]: one["step_ms"]["median"] for one in self.times["mixes"]}
        if batch > 1 and config in mixes:
            found = mixes[config] * self.full_ms(batch) / mixes[FULL]
        elif own["layers_run"].notna().all() and set(own["layers_run"].astype(int)) <= set(cells):
            found = float(own["layers_run"].astype(int).map(cells).mean())
        else:
            found = max(cells.items())[1]  # a model of its own
        return found + (
            self._choice_ms() * batch if family is not None and family.name in ("pudding", "controller") else 0.0
        )

    def _tokenwise_share(self, config: str, batch: int) -> float:
        """Of the full model's time on the same prompts."""
        own = {one["config"]: one["step_ms"]["median"] for one in self.times["tokenwise"] if one["batch"] == batch}
        return own[config] / own[FULL]

    def _choice_ms(self) -> float:
        """What choosing costs a decoding step of one sequence; nothing where it was not timed."""
        one = self.times["choosing"]
        if one is None:
            return 0.0
        return one["overhead_ms"] / max(one["tokens"] - 1, 1)

    def at_equal_time(self) -> list[dict[str, Any]]:
        """For each family, batch and share of the full model's time: every score, and its distance to the yardstick's."""
        found = []
        for batch in BATCHES:
            reached = {family.name: self._reached(family, batch) for family in self.families()}
            yardstick = reached.get(YARDSTICK)
            for name, own in reached.items():
                for place, share in enumerate(SHARES):
                    line: dict[str, Any] = {"family": name, "batch": batch, "share": share}
                    for metric in own:
                        line[metric] = _interval(own[metric][:, place])
                        if yardstick is not None and name != YARDSTICK:
                            difference = own[metric][:, place] - yardstick[metric][:, place]
                            line[f"{metric}_over_{YARDSTICK}"] = _interval(difference)
                    found.append(line)
        return found

    def _reached(self, family: Family, batch: int) -> dict[str, np.ndarray]:
        """By metric, (1 + n_draws, n_shares): what a family reaches on all rows, and on each resample of them.

        Of a depth between two that were measured; `_shared`, where requests are shared between any of its points.
        """
        configs = self.points(family)
        times = np.array([self.ms(one, batch) for one in configs]) / self.full_ms(batch)
        found = {}
        for metric, sign in BETTER.items():
            table = sign * self.scores(configs, metric)
            means = np.concatenate([table.mean(0)[None], ratios(self.counts, table)])
            for name, reach in ((metric, between), (f"{metric}_shared", frontier)):
                found[name] = sign * np.stack([reach(times, means, share) for share in SHARES], axis=1)
        return found

    def by_config(self) -> list[dict[str, Any]]:
        """Every point with its scores and times."""
        found = []
        for family in self.families():
            for config in self.points(family):
                if config == FULL and family.name != YARDSTICK:
                    continue
                own = self.rows[self.rows["config"] == config]
                line: dict[str, Any] = {"family": FULL if config == FULL else family.name, "config": config}
                line["layers"] = None if family.name == "gemma-3-270m" else round(float(own["layers_run"].mean()), 2)
                for metric in SCORES:
                    values = own[metric].to_numpy(dtype=float)
                    one = mean_interval(values) if np.isfinite(values).all() else None
                    line[metric] = None if one is None else [one.mean, one.low, one.high]
                for batch in BATCHES:
                    line[f"ms_{batch}"] = self.ms(config, batch)
                    line[f"time_{batch}"] = line[f"ms_{batch}"] / self.full_ms(batch)
                found.append(line)
        return found


def _interval(reached: np.ndarray) -> list[float] | None:
    """Of (1 + n_draws,): the value on all rows, and the ends of its 95% interval."""
    if not np.isfinite(reached[0]):
        return None
    low, high = percentiles(reached[1:], 0.95)
    return [float(reached[0]), float(low), float(high)]


def document(folder: Path) -> dict[str, Any]:
    """The board of a folder's rows and times, ready for JSON."""
    standing = Standing.of(folder)
    return {
        "rows": len(standing.ids),
        "draws": DRAWS,
        "seed": SEED,
        "full_ms": {str(batch): standing.full_ms(batch) for batch in BATCHES},
        "points": standing.by_config(),
        "at_equal_time": standing.at_equal_time(),
    }


def publish(folder: Path) -> None:
    """Write board.json, table.md and the figure."""
    from .figure import draw
    from .tables import pages

    found = document(folder)
    write_json(folder / "board.json", found)
    print(write_text(folder / "table.md", pages(found)))
    print(draw(found, folder / "figures" / "leaderboard.png"))
