"""The oracle: if we knew every route's score on every sequence, which route would each get within a global budget?

Definitions after Glavas et al., "Dynamic layer selection in decoder-only transformers" (arXiv 2410.20022), Figure 2:
budget against quality of the oracle and of the fixed routes, the shares of the routes at each budget, and the star,
the cheapest budget at which the oracle equals the full model.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np

from depthdial.metrics import higher_is_better as direction
from depthdial.oracles.baselines import (
    Bootstrap,
    bootstrap_curves,
    crossing,
    fixed_routes,
    mixture_curve,
    permuted_curves,
    weighted,
)
from depthdial.oracles.costs import LAYER_STEPS
from depthdial.oracles.curve import HEADLINE_SHARES, BudgetCurve, check_options, ends, place_of_full
from depthdial.oracles.exact.knapsack import BudgetProblem, prepare
from depthdial.oracles.score_table import Rows, ScoreTable, read_scores
from depthdial.stats.bootstrap import percentiles


@dataclass(frozen=True, eq=False, kw_only=True)
class OracleCurve(BudgetCurve):
    """The oracle's quality against the budget, and what it is held against; made by `oracle`.

    Budgets are in the units of `cost`: of layer-steps, shares of the full route's; of any other cost its mean per sequence.
    The cost is `layers`, every sequence counting the same, where layer-steps were asked for and the rows tell of no decoding
    steps.

    Attributes:
        budgets: (n_budgets,) ascending, at most 201: from the cheapest assignment to the one that is best everywhere,
            and on to the costliest fixed route, where the oracle leaves budget unspent.
        value: (n_budgets,) best mean value within each budget. Every budget but that last one is a breakpoint of the
            concave curve: a choice of one route per sequence spends just that and reaches the value, and none is better.
        shares: (n_budgets, n_routes) share of the sequences that go to each route.
        value_interval: (n_budgets, 2) bootstrap interval over sequences; None without bootstrap.
        matches_full_at: the cheapest budget whose oracle is at least as good as the full route, exact on costs with
            a common unit (the breakpoints around it are found on the curve, and the budgets between them bisected
            with the exact knapsack); on other costs reached, and cheapest but for the solver's gap and a millionth.
        matches_full_interval: its bootstrap interval: of the crossing of the resampled curves, which are straight
            between breakpoints, moved by the difference between that crossing and the exact one in the sample itself.
        random: (n_budgets,) the oracle's own shares at each budget handed to the sequences at random (expected
            value): what is left when nobody knows which sequence needs which route. `random_cost` is the expected
            cost: what the oracle itself spends when a route costs the same on every sequence.
        permuted: (n_budgets,) the oracle on scores shuffled over the sequences within each route, mean over
            `n_permutations`: how good it is to take the best of unrelated scores, by luck. None without permutations.
        permuted_matches_full_at: mean budget at which those match the full route's mean value.
        scores: the table itself.
        quality: what a mean value is: over `sequences`, or weighted by the `tokens` of the full route's answers.

    Example:
        >>> curve = dd.oracle(rows, metric="agreement")
        >>> curve.full_route
        'full'
    """

    stored_as: ClassVar[str] = "oracle curve"

    value: np.ndarray
    shares: np.ndarray
    value_interval: np.ndarray | None
    matches_full_at: float | None
    random_cost: np.ndarray
    permuted_matches_full_at: float | None
    scores: ScoreTable
    quality: str = "sequences"

    @property
    def routes(self) -> tuple[str, ...]:
        """Names of the routes, in the order of the columns of `shares` and of the indices from `pick`."""
        return self.scores.routes

    @property
    def sequence_ids(self) -> tuple[Hashable, ...]:
        """The sequences, in the order of what `pick` returns."""
        return self.scores.sequence_ids

    @property
    def breakpoints(self) -> tuple[np.ndarray, np.ndarray]:
        """Budgets and values of every breakpoint of the curve; `budgets` holds at most a few hundred of them."""
        return self._problem.breakpoint_costs, self._sign * self._problem.breakpoint_values

    @property
    def n_layers(self) -> int | None:  # type: ignore[override]
        """Layers of the full model, where the rows tell."""
        return self.scores.n_layers

    def pick(self, budget: float | str) -> np.ndarray:
        """The best choice within any budget: (n_sequences,) indices into `routes`, by `depthdial.solve_budget`.

        Args:
            budget: a number in the units of `budgets`, or a percentage of the full route's cost such as `"80%"`. Of
                layer-steps a number above 1 counts layers of the full model's: 27 of 30 is 0.9.

        Raises:
            InputError: the budget is no number, or below the cheapest assignment.
        """
        return self._problem.solve(self._units(budget)).choice

    def value_at(self, budget: float | str) -> float:
        """The mean value of `pick(budget)`."""
        return self._sign * self._problem.solve(self._units(budget)).value + 0.0  # no -0 of a loss

    def table(self) -> list[dict[str, Any]]:
        """The headline: a row for the star and for 25, 50 and 75% of the full cost; None where there is no figure.

        `budget` (with its interval, for the star), `share_of_full` (of the full route's cost, or the costliest route's
        without one), the oracle with its interval, the best fixed route that fits, the best mixture, random
        assignment, the permuted oracle and the full model's value. Of the same choices, where the rows tell: `layers` per
        sequence, measured `ms` per sequence, and the metric as the mean over sequences and weighted by tokens.
        """
        shares = [self._row_at(f"{share:.0%}", share * self._full_cost) for share in HEADLINE_SHARES]
        if self.matches_full_at is None:
            return shares
        return [self._row_at("matches full", self.matches_full_at, self.matches_full_interval), *shares]

    def _columns(self) -> dict[str, np.ndarray | None]:
        shares = {f"share of {name}": column for name, column in zip(self.routes, self.shares.T, strict=True)}
        curves = {name: getattr(self, name) for name in ("mixture", "random", "random_cost", "permuted")}
        return {"budget": self.budgets, "value": self.value, **ends(self.value_interval, "value"), **curves, **shares}

    @cached_property
    def _problem(self) -> BudgetProblem:
        return _problem(self.scores, self._sign, self.quality)

    @property
    def _sign(self) -> float:
        return 1.0 if self.higher_is_better else -1.0

    def _row_at(self, label: str, budget: float, interval: Any = None) -> dict[str, Any]:
        affordable = [route for route in self.fixed if route.cost <= budget * (1 + 1e-12)]
        best = max(affordable, key=lambda route: self._sign * route.value, default=None)
        found = self._problem.solve(budget) if self._reaches(budget) else None
        low, high = (None, None) if self.value_interval is None else self.value_interval.T
        return {
            **self._row(label, budget, interval),
            "oracle": None if found is None else self._sign * found.value + 0.0,
            "oracle_low": self._read(budget, low),
            "oracle_high": self._read(budget, high),
            "best_fixed": None if best is None else best.route,
            "best_fixed_value": None if best is None else best.value,
            "mixture": None if best is None else float(self.mixture_at(np.array([budget]))[0]),
            "random": self._read(budget, self.random),
            "permuted": self._read(budget, self.permuted),
            "full": self.full_value,
            **self.scores.beside(None if found is None else found.choice),
        }

    def mixture_at(self, budgets: np.ndarray) -> np.ndarray:
        """The best mixture of fixed routes at any ascending budgets, (n,), in the units of `budgets`."""
        costs = np.array([route.cost for route in self.fixed])
        values = np.array([route.value for route in self.fixed])
        return self._sign * mixture_curve(costs, self._sign * values, budgets)


def oracle(
    rows: Rows,
    *,
    metric: str = "rouge_l",
    cost: str = LAYER_STEPS,
    sequence: str = "sequence_id",
    route: str = "route",
    full_route: str | None = "full",
    weight_by: str | None = None,
    steps: str = "own",
    latency: Any = None,
    latency_rows: int = 1,
    quality: str = "sequences",
    n_bootstrap: int = 1000,
    n_permutations: int = 20,
    seed: int = 0,
    confidence: float = 0.95,
    higher_is_better: bool | None = None,
) -> OracleCurve:
    """The oracle of a (sequence x route) table, with what it is held against.

    Args:
        rows: one row per sequence and route; a pyarrow.Table, a pandas.DataFrame or a dict of arrays.
        metric: the column to choose by.
        sequence, route: names of the columns that tell rows apart.
        cost: what a budget counts: `layer_steps`, `layers` (by sequence), `ms` or a column. `layer_steps`: layers run times
            decoding steps (an answer's tokens less the first, which comes from the prompt's pass), as a share of the full
            route's on the same sequences; without one, of all layers' over the routes' mean steps. `layers`: layers run,
            every sequence counting the same (the paper's Figure 2). `ms`: measured milliseconds of decoding. Or a column,
            whose entries may differ between sequences of one route. Rows without decoding steps are counted in `layers`.
        full_route: the route to match; a table without a route `full` has no star.
        weight_by: a column that weighs a sequence's cost in the mean: its entry in the full route's row is taken (its mean
            over the routes where there is no full route). Layer-steps are weighted by their steps: a column given instead
            weighs `layers`.
        steps: `own`, the steps of each route's own answer (of the full route's where a row has none), or `full`, those of
            the full route's answer for every route.
        latency: of cost `ms`: a latency model (`dd.LatencyModel`), its file or the folder of a bench, which says what each
            answer takes in place of the measured seconds.
        latency_rows: sequences that decode together by the latency model; each is charged its part of a step.
        quality: `sequences`, values are means over sequences, or `tokens`, weighted by the tokens of the full route's
            answers.
        n_bootstrap: resamples of the sequences for the intervals at `confidence`; 0 for none.
        n_permutations: shuffles for the permuted oracle; 0 for none.
        higher_is_better: the metric's direction; needed where its name does not say (see `depthdial.metrics`).

    Raises:
        InputError: a column is missing or holds NaN, a (sequence, route) is missing or double, an option is wrong, or the
            metric's direction is not known.

    Example:
        >>> curve = dd.oracle(rows, metric="agreement", n_bootstrap=100)
        >>> bool(curve.budgets[0] <= curve.matches_full_at)
        True
    """
    check_options(confidence, n_bootstrap=n_bootstrap, n_permutations=n_permutations)
    columns: dict[str, Any] = {"sequence": sequence, "route": route, "full_route": full_route, "weight_by": weight_by}
    columns |= {"latency": latency, "latency_rows": latency_rows}
    scores = read_scores(rows, metric=metric, cost=cost, steps=steps, **columns)
    sign = 1.0 if direction(metric, higher_is_better) else -1.0
    full = place_of_full(scores.routes, full_route)
    problem, value_weights = _problem(scores, sign, quality), scores.value_weights(quality)
    whole = read_off(problem)
    route_values, route_costs = problem.values.mean(axis=0), scores.mean_costs()
    target = None if full is None else float(route_values[full])
    star = None if target is None else problem.cheapest_reaching(target)
    values, spent, bases = sign * scores.values, scores.spent, scores.bases
    each, (resampling, shuffling) = np.arange(len(values))[:, None], [np.random.default_rng([seed, i]) for i in range(2)]
    chosen, weighing = (spent[each, whole.choices], values[each, whole.choices]), {"value_weights": value_weights}
    samples = bootstrap_curves(
        [chosen], values, bases, whole.budgets, full, resampling, n_bootstrap=n_bootstrap, at_own_points=True, **weighing
    )
    shuffled, shuffled_stars = permuted_curves(
        values, spent, bases, whole.budgets, target, shuffling, n_permutations=n_permutations, **weighing
    )
    fixed_values, fixed_draws = sign * route_values, sign * samples.fixed
    return OracleCurve(
        metric=metric,
        cost=scores.cost,
        higher_is_better=sign > 0,
        full_route=None if full is None else full_route,
        budgets=whole.budgets,
        value=sign * whole.values + 0.0,
        shares=whole.shares,
        value_interval=percentiles(sign * samples.curve, confidence) if n_bootstrap else None,
        full_value=None if target is None else sign * target + 0.0,
        full_cost=None if full is None else float(route_costs[full]),
        matches_full_at=None if star is None else star.cost,
        matches_full_interval=None if star is None else _star_interval(samples, star.cost, problem, target, confidence),
        fixed=fixed_routes(scores.routes, route_costs, fixed_values, fixed_draws, confidence),
        mixture=sign * mixture_curve(route_costs, route_values, whole.budgets),
        random=sign * (whole.shares @ route_values),
        random_cost=whole.shares @ route_costs,
        permuted=sign * shuffled.mean(axis=0) if n_permutations else None,
        permuted_matches_full_at=float(np.mean(shuffled_stars)) if shuffled_stars else None,
        confidence=confidence,
        n_bootstrap=n_bootstrap,
        n_permutations=n_permutations,
        seed=seed,
        scores=scores,
        quality=quality,
    )


class WholeCurve(NamedTuple):
    """`budgets` and `values` are (n_budgets,), `shares` (n_budgets, n_routes), `choices` (n_sequences, n_budgets)."""

    budgets: np.ndarray
    values: np.ndarray
    shares: np.ndarray
    choices: np.ndarray


def read_off(problem: BudgetProblem, n_points: int = 200) -> WholeCurve:
    """The curve at no more than `n_points` of its breakpoints, evenly spread in cost.

    If the costliest fixed route costs more than the last breakpoint, its cost is added with the same choices.
    """
    costs = problem.breakpoint_costs
    at = problem.spread_breakpoints(n_points) if len(costs) > n_points else np.arange(len(costs))
    choices = problem.increments.choices_after(at)
    n_routes = problem.values.shape[1]
    cells = choices + n_routes * np.arange(len(at))
    shares = np.bincount(cells.ravel(), minlength=len(at) * n_routes).reshape(len(at), n_routes) / len(choices)
    budgets, values = costs[at], problem.breakpoint_values[at]
    costliest = float(problem.costs.sum(axis=0).max() / problem.total_weight)
    if costliest > budgets[-1] * (1 + 1e-12):
        budgets, values = np.append(budgets, costliest), np.append(values, values[-1])
        shares, choices = np.vstack([shares, shares[-1:]]), np.hstack([choices, choices[:, -1:]])
    return WholeCurve(budgets, values, shares, choices)


def _problem(scores: ScoreTable, sign: float, quality: str) -> BudgetProblem:
    values = weighted(sign * scores.values, scores.value_weights(quality))
    return prepare(values, scores.costs, scores.weights, bases=scores.full_costs)


def _star_interval(
    samples: Bootstrap, star: float, problem: BudgetProblem, target: float | None, confidence: float
) -> tuple[float, float] | None:
    if samples.matches_full_at is None or target is None:
        return None
    straight = crossing(problem.breakpoint_costs, problem.breakpoint_values, target)
    low, high = percentiles(samples.matches_full_at, confidence) + (0.0 if straight is None else star - straight)
    return float(low), float(high)
