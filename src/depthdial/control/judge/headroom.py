"""The score of a controller: how much of the gap between a static mixture of routes and the oracles it closes at equal cost.

The oracle of Glavas et al. (arXiv 2410.20022, Figure 2) shows what choosing a route for each sequence could gain; whether
anything that can be deployed gets it is measured here, on rows that neither the controller nor its prices have seen. Every
comparison is at equal cost, the controller's own cost included, and every figure has a bootstrap interval over sequences.
The mixture that is best in hindsight is the best of many in the sample, which flatters it where several are about equally
good: gains and their intervals then err on the low side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from depthdial.checks import number
from depthdial.control.judge.crossfit_ridge import guessed_values
from depthdial.control.judge.equal_cost import Draws, Reached
from depthdial.control.judge.inputs import (
    CONTROLLER,
    ORACLE,
    PREDICTABLE,
    RANDOM,
    check_options,
    checked_alike,
    checked_numbers,
    checked_predictions,
)
from depthdial.control.judge.reliability import RouteCalibration, calibrated
from depthdial.errors import InputError
from depthdial.oracles.baselines import FixedRoute, fixed_routes
from depthdial.oracles.exact.knapsack import checked_weights, prepare
from depthdial.oracles.prices import choose_routes
from depthdial.stats.bootstrap import percentiles
from depthdial.stats.serialize import dump, load

NO_GAP = "no gap to close"
_REMEDY = "give the steps or tokens of the full answers"
_DRAWN_POINTS = 120
_ROUNDING = 1e-12  # what is no larger than this was left by sums in another order


@dataclass(frozen=True, eq=False)
class MethodScore:
    """One way of choosing. Arrays are (n_budgets + 1,): at each budget and, last, the mean over the budgets.

    Attributes:
        costs: what was really spent, overhead included; mean over the seeds, as are the others.
        values, intervals: mean quality, and its interval (.., 2).
        mixture: the best static mixture of routes at the same cost, seed by seed.
        gains, gain_intervals: values - mixture.
        behind, behind_intervals: the controller's gain minus this one's; None for the controller itself.
        seed_costs, seed_values, seed_gains: (n_seeds, ..), of one seed only for what has none.
    """

    name: str
    costs: np.ndarray
    values: np.ndarray
    intervals: np.ndarray
    mixture: np.ndarray
    gains: np.ndarray
    gain_intervals: np.ndarray
    behind: np.ndarray | None
    behind_intervals: np.ndarray | None
    seed_costs: np.ndarray
    seed_values: np.ndarray
    seed_gains: np.ndarray


@dataclass(frozen=True, eq=False)
class GapScore:
    """What an oracle gains at the controller's cost, and the share that the controller gets; arrays as in `MethodScore`.

    Attributes:
        values, intervals: mean quality of the oracle.
        gaps, gap_intervals: values minus the static mixture at that cost.
        closed, closed_intervals: 100 * the controller's gain / gap; of the mean over the budgets the ratio of the means.
            NaN where the gap's lower end is not above 0: then there is no gap to close. An end is NaN where too many of
            the resampled gaps are not above 0 to give one.
        seed_closed: (n_seeds, ..) for each seed of the controller.
    """

    name: str
    values: np.ndarray
    intervals: np.ndarray
    gaps: np.ndarray
    gap_intervals: np.ndarray
    closed: np.ndarray
    closed_intervals: np.ndarray
    seed_closed: np.ndarray

    def text(self, point: int = -1) -> str:
        """The percentage closed at a budget (by default the mean over all) with its interval, or that there is no gap."""
        if np.isnan(self.closed[point]):
            return NO_GAP
        low, high = ("–" if np.isnan(end) else f"{end:.0f}" for end in self.closed_intervals[point])
        return f"{self.closed[point]:.0f}% [{low}, {high}]"


@dataclass(frozen=True, eq=False)
class Curves:
    """What the controller lies between, at costs (n_points,) from the cheapest to the costliest fixed route.

    `predictable` and its interval (n_points, 2) are None where no other answers were known.
    """

    costs: np.ndarray
    mixture: np.ndarray
    oracle: np.ndarray
    predictable: np.ndarray | None
    predictable_intervals: np.ndarray | None


@dataclass(frozen=True, eq=False)
class ControllerScore:
    """A controller on test rows, beside everything that it must beat; made by `score_controller`.

    Attributes:
        budgets: (n_budgets,) that the prices were set for on calibration rows.
        quality: `sequences` for the mean over sequences, `tokens` where longer answers weigh more.
        overhead: the controller's own cost, in the unit of the costs.
        methods: the controller first, then its rivals: other predictors, and `random` (the controller's own shares of the
            routes, handed out blindly).
        gaps: to the predictable oracle, if other answers were known, and to the oracle.
        shares: (n_budgets, n_routes) of the sequences that the controller sends to each route, mean over the seeds.
        fixed: each route for every sequence, in the order of `routes`.
        calibration: the controller's predictions against what was measured, by route.
        n_known: other answers to each prompt; 0 for none.
    """

    metric: str
    cost: str
    quality: str
    routes: tuple[str, ...]
    budgets: np.ndarray
    overhead: float
    methods: tuple[MethodScore, ...]
    gaps: tuple[GapScore, ...]
    shares: np.ndarray
    fixed: tuple[FixedRoute, ...]
    curves: Curves
    calibration: tuple[RouteCalibration, ...]
    n_sequences: int
    n_seeds: int
    n_known: int
    n_folds: int
    n_bootstrap: int
    confidence: float
    seed: int

    @property
    def controller(self) -> MethodScore:
        return self.methods[0]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, ready for JSON; `from_dict` restores the score."""
        return dump(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ControllerScore:
        """The score that `to_dict` wrote; InputError if fields are missing or unknown."""
        known = {
            name: part for name, part in document.items() if (name, part) != ("mixed", None)
        }  # an empty field of before
        return load(cls, known, "score of a controller")


def score_controller(
    routes: Sequence[str],
    values: ArrayLike,
    costs: ArrayLike,
    predicted: Mapping[str, ArrayLike],
    prices: Mapping[str, ArrayLike],
    budgets: ArrayLike,
    *,
    expected: Mapping[str, ArrayLike] | None = None,
    bases: ArrayLike | None = None,
    counted: ArrayLike | None = None,
    overhead: float = 0.0,
    known: ArrayLike | None = None,
    metric: str = "agreement",
    cost: str = "layers",
    n_folds: int = 10,
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> ControllerScore:
    """Score a controller on test rows.

    Args:
        routes: n_routes names.
        values: (n, n_routes) measured quality of each route on each test sequence, more is better.
        costs: (n, n_routes) or (n_routes,) what is paid, in any unit: layer-steps, layers, or measured ms.
        predicted: by name, (n_seeds, n, n_routes) qualities that were predicted for the test sequences; one of them is
            `controller`, the others are rivals, such as a predictor that sees the prompt's length only.
        prices: by the same names, (n_seeds, n_budgets) set on calibration rows (`policy.prices_for_budgets`) and never on
            these.
        budgets: (n_budgets,) that they were set for.
        expected: by the same names, (n_seeds, n, n_routes) costs that were predicted, in the unit of the prices, by which
            routes are chosen; by default what is paid is known beforehand.
        bases: (n,) such as the full model's own costs: every cost is then what was spent over the sum of these, a share of
            the full model's, in every resample anew; None for the mean over sequences.
        counted: (n,) what each sequence weighs in the mean quality, such as its tokens; None for equal weights. Predicted
            quality times predicted weight has to be given as `predicted` then.
        overhead: what the controller's choosing costs a sequence, in the unit of the scored costs; it counts as spent.
        known: (n, n_routes, n_samples) qualities on other answers to the same prompts, for the predictable oracle.
        metric, cost: what the values and costs are, for who reads the score.
        n_folds: parts of the sequences in the predictable oracle's cross-fitted guesses.
        n_bootstrap: resamples of the sequences for the intervals at `confidence`, at least 100.

    Raises:
        InputError: shapes or names do not fit, numbers are not finite, or an option is wrong.
    """
    problem = prepare(values, costs)
    table, spent = problem.values, problem.costs
    n, n_routes = table.shape
    points = checked_numbers(budgets, "budgets", (None,))
    check_options(n, n_folds, n_bootstrap, confidence)
    if len(routes) != n_routes:
        raise InputError(f"There are {len(routes)} names of routes for {n_routes} columns of values; give one for each.")
    guesses = checked_predictions(predicted, n, n_routes)
    set_prices = checked_alike(prices, "prices", {name: (len(guess), len(points)) for name, guess in guesses.items()})
    number("overhead", overhead, 0)
    resampling, folding, tying = (np.random.default_rng([seed, stream]) for stream in range(3))
    base = None if bases is None else checked_weights(bases, n, "bases", _REMEDY)
    weight = None if counted is None else checked_weights(counted, n, remedy=_REMEDY)
    draws = Draws.of(table, spent, n_bootstrap, resampling, bases=base, counted=weight)
    shapes = {name: guess.shape for name, guess in guesses.items()}
    before = {name: np.broadcast_to(spent, shape) for name, shape in shapes.items()} if expected is None else expected
    weighed = checked_alike(before, "expected costs", shapes)
    choices = {name: _choices(guesses[name], weighed[name], set_prices[name]) for name in guesses}
    reached = {name: draws.chosen(choices[name], overhead if name == CONTROLLER else 0.0) for name in guesses}
    reached[RANDOM] = draws.blind(choices[CONTROLLER])
    oracles = {}
    if known is not None:
        others = checked_numbers(known, "known", (n, n_routes, None))
        oracles[PREDICTABLE] = guessed_values(table, others, n_folds, folding)
    oracles[ORACLE] = table
    own, (fixed_values, fixed_costs) = reached[CONTROLLER], draws.fixed
    gaps = [_gap_score(name, own, draws.oracle(guess, own.costs, tying), confidence) for name, guess in oracles.items()]
    return ControllerScore(
        metric=metric,
        cost=cost,
        quality="sequences" if counted is None else "tokens",
        routes=tuple(routes),
        budgets=points,
        overhead=float(overhead),
        methods=tuple(_method_score(name, reached[name], own, confidence) for name in reached),
        gaps=tuple(gaps),
        shares=np.stack([(choices[CONTROLLER] == route).mean(axis=(0, 1)) for route in range(n_routes)], axis=1),
        fixed=fixed_routes(routes, fixed_costs[0], fixed_values[0], fixed_values[1:], confidence),
        curves=_curves(draws, oracles, confidence, tying),
        calibration=calibrated(tuple(routes), guesses[CONTROLLER], table),
        n_sequences=n,
        n_seeds=len(guesses[CONTROLLER]),
        n_known=0 if known is None else int(np.shape(known)[2]),
        n_folds=n_folds,
        n_bootstrap=n_bootstrap,
        confidence=confidence,
        seed=seed,
    )


def _choices(predicted: np.ndarray, costs: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """(n, n_seeds, n_budgets) routes."""
    chosen = [
        [choose_routes(one, cost, price) for price in row.tolist()]
        for one, cost, row in zip(predicted, costs, prices, strict=True)
    ]
    return np.moveaxis(np.array(chosen), 2, 0)


def _method_score(name: str, reached: Reached, own: Reached, confidence: float) -> MethodScore:
    values, gains = with_mean(reached.values.mean(axis=1)), with_mean(reached.gains)
    behind = None if reached is own else with_mean(own.gains) - gains
    return MethodScore(
        name=name,
        costs=with_mean(reached.costs[0]).mean(axis=0),
        values=values[0],
        intervals=_interval(values, confidence),
        mixture=with_mean(reached.mixture[0]).mean(axis=0),
        gains=gains[0],
        gain_intervals=_interval(gains, confidence),
        behind=None if behind is None else behind[0],
        behind_intervals=None if behind is None else _interval(behind, confidence),
        seed_costs=with_mean(reached.costs[0]),
        seed_values=with_mean(reached.values[0]),
        seed_gains=with_mean(reached.values[0] - reached.mixture[0]),
    )


def _gap_score(name: str, own: Reached, paid: np.ndarray, confidence: float) -> GapScore:
    """`paid`: (n_draws, n_seeds, n_budgets), what the oracle gets at the controller's costs."""
    values, gaps = with_mean(paid.mean(axis=1)), with_mean((paid - own.mixture).mean(axis=1))
    gains, gap_intervals = with_mean(own.gains), _interval(gaps, confidence)
    is_there = gap_intervals[:, 0] > _ROUNDING
    # Where a resample has no gap, its share is as extreme as can be: all or nothing, by the sign of what was gained.
    unbounded = np.where(gains > 0, np.inf, -np.inf)
    ratios = np.divide(100 * gains, gaps, out=unbounded, where=gaps > _ROUNDING)
    ends = percentiles(ratios[1:], confidence, method="inverted_cdf")
    seed_gains, seed_gaps = with_mean(own.values[0] - own.mixture[0]), with_mean(paid[0] - own.mixture[0])
    seed_closed = np.divide(100 * seed_gains, seed_gaps, out=np.full(seed_gains.shape, np.nan), where=seed_gaps > _ROUNDING)
    return GapScore(
        name=name,
        values=values[0],
        intervals=_interval(values, confidence),
        gaps=gaps[0],
        gap_intervals=gap_intervals,
        closed=np.where(is_there, ratios[0], np.nan),
        closed_intervals=np.where(is_there[:, None] & np.isfinite(ends), ends, np.nan),
        seed_closed=np.where(is_there, seed_closed, np.nan),
    )


def _curves(draws: Draws, oracles: Mapping[str, np.ndarray], confidence: float, rng: np.random.Generator) -> Curves:
    means = draws.fixed[1][0]
    at = np.unique(np.concatenate([np.linspace(means.min(), means.max(), _DRAWN_POINTS), means]))
    everywhere = np.tile(at, (len(draws.weights), 1))
    paid = {name: draws.oracle(guess, everywhere, rng) for name, guess in oracles.items()}
    predictable = paid.get(PREDICTABLE)
    return Curves(
        costs=at,
        mixture=draws.mixture(everywhere)[0],
        oracle=paid[ORACLE][0],
        predictable=None if predictable is None else predictable[0],
        predictable_intervals=None if predictable is None else _interval(predictable, confidence),
    )


def with_mean(curves: np.ndarray) -> np.ndarray:
    """Curves (.., n_budgets) with the mean over the budgets as one more entry."""
    return np.concatenate([curves, curves.mean(axis=-1, keepdims=True)], axis=-1)


def _interval(draws: np.ndarray, confidence: float) -> np.ndarray:
    """(n, 2) ends over the resamples of (n_draws, n), whose first row is the sample itself."""
    return percentiles(draws[1:], confidence)
