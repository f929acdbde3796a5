"""How much of the oracle's gain could be known before an answer is written, and how much is luck.

The oracle of Glavas et al. (arXiv 2410.20022, Figure 2) picks the best of many noisy scores and is judged by the same
scores: it overstates, and the more so the more routes there are. With several sampled answers to every sequence on every
route it is split: the *predictable* oracle chooses on some samples and is paid the others (see `crossfit`). In expectation

    predictable  <=  the oracle that knows every expected score  <=  plug-in,

whatever the number of samples, and both sides close in as it grows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from depthdial.errors import InputError
from depthdial.metrics import higher_is_better as direction
from depthdial.oracles import crossfit
from depthdial.oracles.baselines import bootstrap_curves, crossing, fixed_routes, mixture_curve
from depthdial.oracles.costs import LAYER_STEPS
from depthdial.oracles.curve import HEADLINE_SHARES, BudgetCurve, check_options, ends, place_of_full
from depthdial.oracles.score_table import Rows, ScoreTable, read_samples
from depthdial.stats.bootstrap import percentiles

_EVEN_BUDGETS = 200
# Resampled curves are read off at so many points of each allocation.
_BOOTSTRAP_POINTS = 100


@dataclass(frozen=True, eq=False, kw_only=True)
class PredictableCurve(BudgetCurve):
    """The oracle split into what is predictable and what is luck, against the budget; made by `predictable_oracle`.

    All curves are mean values within a budget, of answers sampled under one decoding policy. Budgets are in the units of
    `cost`: of layer-steps shares of the full route's, with the mean steps of a cell's samples taken as known; of others
    means per sequence. Stars
    (`.._matches_full_at`) are the lowest budget at which a curve, straight between `budgets`, reaches the full route's mean
    over all samples; None where it does not.

    Attributes:
        budgets: (n_budgets,) ascending, from the cheapest assignment to the costliest fixed route, each route's own
            mean cost among them.
        n_sequences, n_samples: how many sequences, and samples of each (sequence, route), there are.
        shrink: whether guesses were drawn to the routes' means before choosing.
        chosen_on: numbers k of samples that were chosen on: 1, 2, 4, .. up to half of them.
        predictable: (len(chosen_on), n_budgets) the held-out value of the best choice on k samples. In expectation a lower
            bound for each k.
        predictable_interval: (n_budgets, 2) bootstrap interval over sequences at the largest k; None without bootstrap.
        predictable_matches_full_at: a star for each k.
        matches_full_interval: bootstrap interval of the star at the largest k; an end is None where so many of the
            resampled curves never reach the full route. None without bootstrap or full route.
        plugged_in: numbers k of samples that were chosen on and paid: those of `chosen_on`, and all of them.
        plug_in: (len(plugged_in), n_budgets) the oracle paid the samples that it chose on; with one sample the paper's,
            under this policy. In expectation an upper bound for each k.
        plug_in_matches_full_at: a star for each of them.
        permuted: (n_budgets,) the predictable oracle at the largest k on cells shuffled over the sequences within each
            route. Where sequences differ only by luck it falls on the mixture; where they differ lastingly in difficulty it
            may lie above, as shuffled difficulties no longer cancel between routes. None without permutations.
        random: (n_budgets,) the predictable oracle's own choices handed to sequences at random.
        n_layers: layers of the full model, where the rows tell.

    Example:
        >>> dd.predictable_oracle(samples, metric="agreement", n_bootstrap=0, n_permutations=0).n_samples
        4
    """

    stored_as: ClassVar[str] = "predictable curve"

    n_sequences: int
    n_samples: int
    shrink: bool
    chosen_on: tuple[int, ...]
    predictable: np.ndarray
    predictable_interval: np.ndarray | None
    predictable_matches_full_at: tuple[float | None, ...]
    plugged_in: tuple[int, ...]
    plug_in: np.ndarray
    plug_in_matches_full_at: tuple[float | None, ...]
    mixture_matches_full_at: float | None
    n_splits: int
    n_layers: int | None = None  # type: ignore[misc]

    @property
    def matches_full_at(self) -> float | None:
        """The predictable oracle's star at the largest number of samples."""
        return self.predictable_matches_full_at[-1]

    def at(self, budget: float | str) -> dict[str, float | None]:
        """Every curve within one budget, given as in `OracleCurve.pick`; None where a curve does not reach so low.

        `predictable` (with `predictable_low` and `predictable_high`) is at the largest k, `plug_in` on one sample,
        `plug_in_all` on all of them.

        Raises:
            InputError: the budget is no number, or below the cheapest assignment.
        """
        budget = self._units(budget)
        if not self._reaches(budget):
            raise InputError(
                f"The budget {budget:g} is below the cheapest assignment, whose mean cost is {self.budgets[0]:.10g}; "
                "give at least that."
            )
        low, high = (None, None) if self.predictable_interval is None else self.predictable_interval.T
        curves = {
            "predictable": self.predictable[-1],
            "predictable_low": low,
            "predictable_high": high,
            "plug_in": self.plug_in[0],
            "plug_in_all": self.plug_in[-1],
            "permuted": self.permuted,
            "random": self.random,
            "mixture": self.mixture,
        }
        return {name: self._read(budget, curve) for name, curve in curves.items()}

    def table(self) -> list[dict[str, Any]]:
        """A row for each star, and for 25, 50 and 75% of the full cost where that can be met.

        `point`, `budget` (with its interval, for the predictable star), `share_of_full` (of the full route's cost, or the
        costliest one's), the curves of `at`, and the full route's value.
        """
        points = [
            ("predictable matches full", self.matches_full_at, self.matches_full_interval),
            ("plug-in matches full", self.plug_in_matches_full_at[0], None),
            ("mixture matches full", self.mixture_matches_full_at, None),
            *((f"{share:.0%}", share * self._full_cost, None) for share in HEADLINE_SHARES),
        ]
        return [
            {**self._row(label, budget, interval), **self.at(budget), "full": self.full_value}
            for label, budget, interval in points
            if budget is not None and self._reaches(budget)
        ]

    def _columns(self) -> dict[str, np.ndarray | None]:
        chosen = {f"predictable on {k}": curve for k, curve in zip(self.chosen_on, self.predictable, strict=True)}
        paid = {f"plug-in on {k}": curve for k, curve in zip(self.plugged_in, self.plug_in, strict=True)}
        others = {name: getattr(self, name) for name in ("permuted", "random", "mixture")}
        return {"budget": self.budgets, **chosen, **ends(self.predictable_interval, "predictable"), **paid, **others}


def predictable_oracle(
    rows: Rows,
    *,
    metric: str = "rouge_l",
    cost: str = LAYER_STEPS,
    sequence: str = "sequence_id",
    route: str = "route",
    sample: str = "sample",
    full_route: str | None = "full",
    steps: str = "own",
    latency: Any = None,
    latency_rows: int = 1,
    shrink: bool = True,
    n_splits: int = 20,
    n_bootstrap: int = 1000,
    n_permutations: int = 20,
    seed: int = 0,
    confidence: float = 0.95,
    higher_is_better: bool | None = None,
) -> PredictableCurve:
    """The predictable oracle of sampled answers, with what it is held against.

    Args:
        rows: one row per sequence, route and sample (`sweep` with `samples`); a pyarrow.Table, a pandas.DataFrame or a dict
            of arrays. An even number of samples.
        metric, sequence, route, sample: names of the columns.
        cost, steps: as in `oracle`. Layer-steps of a cell are the mean over its samples, taken for the expected ones and for
            known before the answer; any other cost must be the same for all samples of a cell.
        full_route: the route to match; a table without a route `full` has no star.
        latency, latency_rows: as in `oracle`; of a cell's samples the mean is taken, as of layer-steps.
        shrink: choose by the best linear guesses of the expected scores instead of the bare means of the samples chosen on
            (see `crossfit.shrunk`). A lower bound either way; bare means fall below the static mixture where most
            differences are luck, as whoever believes luck is paid nothing for it.
        n_splits: random orders of the samples that are cut into sets to choose on.
        n_bootstrap: resamples of the sequences for the intervals at `confidence`; 0 for none.
        n_permutations: shuffles for the permuted oracle; 0 for none.
        higher_is_better: the metric's direction; needed where its name does not say.

    Raises:
        InputError: a column is missing or holds NaN, a row is missing or double, samples are odd or there is one alone, the
            cost depends on the answer, an option is wrong, or the metric's direction is not known.

    Example:
        >>> curve = dd.predictable_oracle(samples, metric="agreement", n_bootstrap=0, n_permutations=0)
        >>> curve.chosen_on
        (1, 2)
    """
    check_options(confidence, n_splits=n_splits, n_bootstrap=n_bootstrap, n_permutations=n_permutations)
    columns: dict[str, Any] = {"sequence": sequence, "route": route, "sample": sample, "full_route": full_route}
    columns |= {"latency": latency, "latency_rows": latency_rows}
    scores = read_samples(rows, metric=metric, cost=cost, steps=steps, **columns)
    sign = 1.0 if direction(metric, higher_is_better) else -1.0
    full = place_of_full(scores.routes, full_route)
    values, n_samples = sign * scores.values, scores.values.shape[2]
    means = values.mean(axis=2)
    route_values, route_costs, budgets = means.mean(axis=0), scores.mean_costs(), _budgets(scores)
    splitting, resampling, shuffling = (np.random.default_rng([seed, stream]) for stream in range(3))
    sizes = _sizes(n_samples)
    sets = {k: crossfit.choosing_sets(n_samples, k, n_splits, splitting) for k in (*sizes, n_samples)}
    fitted = {k: crossfit.fitted(values, scores, sets[k], splitting, shrink=shrink) for k in sizes}
    predictable = np.stack([crossfit.mean_paid(fitted[k], budgets) for k in sizes])
    # In expectation no less than the best choice that knows every expected score: a maximum of means lies above the maximum
    # of their expectations (Jensen). The more samples, the closer.
    own = (crossfit.fitted(values, scores, chosen, splitting, held_out=False) for chosen in sets.values())
    plug_in = np.stack([crossfit.mean_paid(each, budgets) for each in own])
    permuted = None
    if n_permutations:
        permuted = sign * crossfit.permuted_held_out_curve(
            values, scores, budgets, shuffling, n_permutations=n_permutations, shrink=shrink
        )
    most = fitted[sizes[-1]]
    # Who is handed a choice at random is paid the mean over the sequences.
    blind = [(allocations, np.broadcast_to(paid.mean(axis=0), paid.shape)) for allocations, paid in most]
    # On a resample the splits and what the guesses are drawn to stay those of the sample.
    each, choices = np.arange(len(values))[:, None], [allocations.choices(_BOOTSTRAP_POINTS) for allocations, _ in most]
    chosen = [(scores.costs[each, routes], paid[each, routes]) for routes, (_, paid) in zip(choices, most, strict=True)]
    resampled = bootstrap_curves(chosen, means, scores.bases, budgets, full, resampling, n_bootstrap=n_bootstrap)
    mixture = mixture_curve(route_costs, route_values, budgets)
    target = None if full is None else float(route_values[full])
    fixed_values, fixed_draws = sign * route_values, sign * resampled.fixed
    return PredictableCurve(
        metric=metric,
        cost=scores.cost,
        full_route=None if full is None else full_route,
        budgets=budgets,
        n_sequences=len(values),
        n_samples=n_samples,
        shrink=shrink,
        chosen_on=sizes,
        predictable=sign * predictable + 0.0,
        predictable_interval=percentiles(sign * resampled.curve, confidence) if n_bootstrap else None,
        predictable_matches_full_at=tuple(_star(budgets, curve, target) for curve in predictable),
        matches_full_interval=_star_interval(resampled.matches_full_at, confidence),
        plugged_in=tuple(sets),
        plug_in=sign * plug_in + 0.0,
        plug_in_matches_full_at=tuple(_star(budgets, curve, target) for curve in plug_in),
        permuted=permuted,
        random=sign * crossfit.mean_paid(blind, budgets),
        mixture=sign * mixture + 0.0,
        mixture_matches_full_at=_star(budgets, mixture, target),
        fixed=fixed_routes(scores.routes, route_costs, fixed_values, fixed_draws, confidence),
        full_value=None if target is None else sign * target + 0.0,  # no -0 of a loss
        full_cost=None if full is None else float(route_costs[full]),
        confidence=confidence,
        n_splits=n_splits,
        n_bootstrap=n_bootstrap,
        n_permutations=n_permutations,
        seed=seed,
        higher_is_better=sign > 0,
        n_layers=scores.n_layers,
    )


def _sizes(n_samples: int) -> tuple[int, ...]:
    """1, 2, 4, .. and half of the samples."""
    powers = [2**i for i in range(n_samples.bit_length()) if 2**i < n_samples // 2]
    return (*powers, n_samples // 2)


def _budgets(scores: ScoreTable) -> np.ndarray:
    fixed = scores.mean_costs()
    cheapest = float(scores.costs.min(axis=1).sum() / scores.bases.sum())
    return np.unique(np.concatenate([np.linspace(cheapest, float(fixed.max()), _EVEN_BUDGETS), fixed]))


def _star(budgets: np.ndarray, curve: np.ndarray, target: float | None) -> float | None:
    there = ~np.isnan(curve)
    return None if target is None else crossing(budgets[there], curve[there], target)


def _star_interval(stars: np.ndarray | None, confidence: float) -> tuple[float | None, float | None] | None:
    if stars is None:
        return None
    # Order statistics, for there is nothing between a budget and never.
    low, high = percentiles(stars, confidence, method="inverted_cdf").tolist()
    return low if np.isfinite(low) else None, high if np.isfinite(high) else None
