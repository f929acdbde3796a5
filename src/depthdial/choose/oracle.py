"""The oracle: if we knew every route's score on every sequence, which route would each get within a global budget?

Definitions after Glavas et al., "Dynamic layer selection in decoder-only transformers" (arXiv 2410.20022), Figure 2:
budget against quality of the oracle and of the fixed routes, the shares of the routes at each budget, and the star,
the cheapest budget at which the oracle equals the full model.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from depthdial.choose.knapsack import BudgetProblem, prepare
from depthdial.choose.score_table import Rows, ScoreTable, read_scores
from depthdial.choose.stored import array_or_none, plain
from depthdial.choose.yardsticks import (
    Bootstrap,
    FixedRoute,
    bootstrap_curves,
    crossing,
    mixture_curve,
    permuted_curves,
)
from depthdial.errors import InputError

_LOWER_IS_BETTER = {"nll", "kl", "loss", "ppl", "perplexity", "sec", "seconds", "bytes"}
_HEADLINE_SHARES = (0.25, 0.5, 0.75)


class WholeCurve(NamedTuple):
    """The oracle at breakpoints of its curve, and where the costliest fixed route lies beyond the last one, there.

    `budgets` and `values` are (n_budgets,), `shares` (n_budgets, n_routes), `choices` (n_sequences, n_budgets).
    """

    budgets: np.ndarray
    values: np.ndarray
    shares: np.ndarray
    choices: np.ndarray


@dataclass(frozen=True, eq=False)
class OracleCurve:
    """The oracle's quality against the budget, and what it is held against; made by `oracle`.

    Values are in the metric's own units (for a metric such as KL, where less is better, the curve falls); budgets are
    mean costs per sequence, in the units of the cost column.

    Attributes:
        budgets: (n_budgets,) ascending, at most 201: from the cheapest assignment to the one that is best everywhere,
            and on to the costliest fixed route, where the oracle leaves budget unspent.
        value: (n_budgets,) best mean value within each budget. Every budget but that last one is a breakpoint of the
            concave curve: a choice of one route per sequence spends just that and reaches the value, and none is better.
        shares: (n_budgets, n_routes) share of the sequences that go to each route.
        value_interval: (n_budgets, 2) bootstrap interval over sequences; None without bootstrap.
        full_value, full_cost: mean value and mean cost of the full route; None where the rows have none.
        matches_full_at: the cheapest budget whose oracle is at least as good as the full route, exact on costs with
            a common unit (the breakpoints around it are found on the curve, and the budgets between them bisected
            with the exact knapsack); on other costs reached, and cheapest but for the solver's gap and a millionth.
        matches_full_interval: its bootstrap interval: of the crossing of the resampled curves, which are straight
            between breakpoints, moved by the difference between that crossing and the exact one in the sample itself.
        fixed: each route for every sequence, in the order of `routes`.
        mixture: (n_budgets,) the best random mixture of fixed routes at the same mean cost, the upper concave hull of
            the fixed points; NaN below the cheapest fixed route.
        random: (n_budgets,) the oracle's own shares at each budget handed to the sequences at random (expected
            value): what is left when nobody knows which sequence needs which route. `random_cost` is the expected
            cost: what the oracle itself spends when a route costs the same on every sequence.
        permuted: (n_budgets,) the oracle on scores shuffled over the sequences within each route, mean over
            `n_permutations`: how good it is to take the best of unrelated scores, by luck. None without permutations.
        permuted_matches_full_at: mean budget at which those match the full route's mean value.
        scores: the table itself.
    """

    metric: str
    cost: str
    higher_is_better: bool
    full_route: str | None
    budgets: np.ndarray
    value: np.ndarray
    shares: np.ndarray
    value_interval: np.ndarray | None
    full_value: float | None
    full_cost: float | None
    matches_full_at: float | None
    matches_full_interval: tuple[float, float] | None
    fixed: tuple[FixedRoute, ...]
    mixture: np.ndarray
    random: np.ndarray
    random_cost: np.ndarray
    permuted: np.ndarray | None
    permuted_matches_full_at: float | None
    confidence: float
    n_bootstrap: int
    n_permutations: int
    seed: int
    scores: ScoreTable

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

    def pick(self, budget: float) -> np.ndarray:
        """The best choice within any budget: (n_sequences,) indices into `routes`, by `depthdial.solve_budget`.

        Raises:
            InputError: the budget is NaN or below the cheapest assignment.
        """
        return self._problem.solve(budget).choice

    def value_at(self, budget: float) -> float:
        """The mean value of `pick(budget)`."""
        return self._sign * self._problem.solve(budget).value

    def table(self) -> list[dict[str, Any]]:
        """The headline: a row for the star and for 25, 50 and 75% of the full cost; None where there is no figure.

        `budget` (with its interval, for the star), `share_of_full` (of the full route's cost, or the costliest route's
        without one), the oracle with its interval, the best fixed route that fits, the best mixture, random
        assignment, the permuted oracle and the full model's value.
        """
        full_cost = self.full_cost if self.full_cost is not None else max(route.cost for route in self.fixed)
        rows = []
        if self.matches_full_at is not None:
            star = self._row_at("matches full", self.matches_full_at, full_cost)
            if self.matches_full_interval is not None:
                star["budget_low"], star["budget_high"] = self.matches_full_interval
            rows.append(star)
        return rows + [self._row_at(f"{share:.0%}", share * full_cost, full_cost) for share in _HEADLINE_SHARES]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, ready for JSON; `from_dict` restores the curve, `pick` included."""
        document = {field.name: plain(getattr(self, field.name)) for field in fields(self) if field.name != "scores"}
        document["fixed"] = [{field.name: getattr(route, field.name) for field in fields(route)} for route in self.fixed]
        document["scores"] = {field.name: plain(getattr(self.scores, field.name)) for field in fields(self.scores)}
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> OracleCurve:
        """The curve that `to_dict` wrote; InputError if fields are missing or unknown."""
        try:
            given = dict(document)
            scores = dict(given["scores"])
            for name in ("sequence_ids", "routes"):
                scores[name] = tuple(scores[name])
            for name in ("values", "costs", "weights"):
                scores[name] = array_or_none(scores[name])
            given["scores"] = ScoreTable(**scores)
            given["fixed"] = tuple(FixedRoute(**route) for route in given["fixed"])
            for name in (
                "budgets",
                "value",
                "shares",
                "value_interval",
                "mixture",
                "random",
                "random_cost",
                "permuted",
            ):
                given[name] = array_or_none(given[name])
            if given["matches_full_interval"] is not None:
                given["matches_full_interval"] = tuple(given["matches_full_interval"])
            return cls(**given)
        except (KeyError, TypeError, ValueError) as problem:
            raise InputError(f"This is not a stored oracle curve ({problem}); write one with to_dict.") from None

    @cached_property
    def _problem(self) -> BudgetProblem:
        return prepare(self._sign * self.scores.values, self.scores.costs, self.scores.weights)

    @property
    def _sign(self) -> float:
        return 1.0 if self.higher_is_better else -1.0

    def _row_at(self, label: str, budget: float, full_cost: float) -> dict[str, Any]:
        reachable = budget >= self.budgets[0] * (1 - 1e-12)
        affordable = [route for route in self.fixed if route.cost <= budget * (1 + 1e-12)]
        best = max(affordable, key=lambda route: self._sign * route.value, default=None)
        interval = self.value_interval

        def read(curve: np.ndarray | None) -> float | None:
            return None if curve is None or not reachable else float(np.interp(budget, self.budgets, curve))

        return {
            "point": label,
            "budget": budget,
            "budget_low": None,
            "budget_high": None,
            "share_of_full": budget / full_cost if full_cost else None,
            "oracle": self.value_at(budget) if reachable else None,
            "oracle_low": None if interval is None else read(interval[:, 0]),
            "oracle_high": None if interval is None else read(interval[:, 1]),
            "best_fixed": None if best is None else best.route,
            "best_fixed_value": None if best is None else best.value,
            "mixture": None if best is None else float(self._mixture_at(np.array([budget]))[0]),
            "random": read(self.random),
            "permuted": read(self.permuted),
            "full": self.full_value,
        }

    def _mixture_at(self, budgets: np.ndarray) -> np.ndarray:
        costs = np.array([route.cost for route in self.fixed])
        values = np.array([route.value for route in self.fixed])
        return self._sign * mixture_curve(costs, self._sign * values, budgets)


def oracle_curve(
    values: ArrayLike, costs: ArrayLike, weights: ArrayLike | None = None, *, n_points: int = 200
) -> WholeCurve:
    """The whole curve from arrays, read off at no more than `n_points` of its breakpoints, evenly spread in cost.

    If the costliest fixed route costs more than the last breakpoint, its cost is added with the same choices.

    Args:
        values, costs, weights: as in `depthdial.solve_budget`, more is better.

    One merge of all hull steps gives every breakpoint at once: O(n log n) in the number of steps.
    """
    return _read_off(prepare(values, costs, weights), n_points)


def oracle(
    rows: Rows,
    *,
    metric: str = "rouge_l",
    cost: str = "layers_run",
    sequence: str = "sequence_id",
    route: str = "route",
    full_route: str | None = "full",
    weight_by: str | None = None,
    n_bootstrap: int = 1000,
    n_permutations: int = 20,
    seed: int = 0,
    confidence: float = 0.95,
    higher_is_better: bool | None = None,
) -> OracleCurve:
    """The oracle of a (sequence x route) table, with what it is held against.

    Args:
        rows: one row per sequence and route; a pyarrow.Table, a pandas.DataFrame or a dict of arrays.
        metric, cost, sequence, route: names of the columns. A cost may differ between the sequences of one route.
        full_route: the route to match; a table without a route `full` has no star.
        weight_by: a column that weighs a sequence's cost in the mean, such as its generated tokens: its entry in the
            full route's row is taken (its mean over the routes where there is no full route).
        n_bootstrap: resamples of the sequences for the intervals at `confidence`; 0 for none.
        n_permutations: shuffles for the permuted oracle; 0 for none.
        higher_is_better: by default inferred: less is better for names that hold nll, kl, loss, perplexity or the like.

    Raises:
        InputError: a column is missing or holds NaN, a (sequence, route) is missing or double, or an option is wrong.
    """
    _check_options(n_bootstrap, n_permutations, confidence)
    scores = read_scores(
        rows, metric=metric, cost=cost, sequence=sequence, route=route, full_route=full_route, weight_by=weight_by
    )
    full = scores.routes.index(full_route) if full_route in scores.routes else None
    if full is None and full_route not in (None, "full"):
        raise InputError(f"No row has the route {full_route!r}; the table has {', '.join(scores.routes)}.")
    if higher_is_better is None:
        higher_is_better = not _LOWER_IS_BETTER.intersection(re.split(r"[^a-z]+", metric.lower()))
    sign = 1.0 if higher_is_better else -1.0
    values, costs, weights = sign * scores.values, scores.costs, scores.weights
    problem = prepare(values, costs, weights)
    whole = _read_off(problem, n_points=200)
    route_values, route_costs = values.mean(axis=0), scores.mean_costs()
    target = None if full is None else float(route_values[full])
    star = None if target is None else problem.cheapest_reaching(target)
    samples = bootstrap_curves(
        values, costs, weights, whole.choices, whole.budgets, full, n_bootstrap=n_bootstrap, seed=seed
    )
    shuffled, shuffled_stars = permuted_curves(
        values, costs, weights, whole.budgets, target, n_permutations=n_permutations, seed=seed
    )
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    return OracleCurve(
        metric=metric,
        cost=cost,
        higher_is_better=higher_is_better,
        full_route=None if full is None else full_route,
        budgets=whole.budgets,
        value=sign * whole.values,
        shares=whole.shares,
        value_interval=_interval(sign * samples.oracle, tails),
        full_value=None if target is None else sign * target,
        full_cost=None if full is None else float(route_costs[full]),
        matches_full_at=None if star is None else star.cost,
        matches_full_interval=None if star is None else _star_interval(samples, star.cost, problem, target, tails),
        fixed=_fixed_routes(scores.routes, route_costs, sign * route_values, _interval(sign * samples.fixed, tails)),
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
    )


def _check_options(n_bootstrap: int, n_permutations: int, confidence: float) -> None:
    for name, count in (("n_bootstrap", n_bootstrap), ("n_permutations", n_permutations)):
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 0:
            raise InputError(f"{name} is {count!r}; give a whole number, 0 for none.")
    if not 0 < confidence < 1:
        raise InputError(f"The confidence is {confidence!r}; give a number between 0 and 1, such as 0.95.")


def _read_off(problem: BudgetProblem, n_points: int) -> WholeCurve:
    costs = problem.breakpoint_costs
    at = np.arange(len(costs))
    if len(costs) > n_points:
        evenly = np.linspace(costs[0], costs[-1], n_points)
        at = np.unique(np.append(np.searchsorted(costs, evenly[:-1], side="right") - 1, len(costs) - 1))
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


def _interval(samples: np.ndarray, tails: np.ndarray) -> np.ndarray | None:
    """(n, 2) lower and upper ends over the first axis of (n_bootstrap, n)."""
    return np.quantile(samples, tails, axis=0).T if len(samples) else None


def _star_interval(
    samples: Bootstrap, star: float, problem: BudgetProblem, target: float | None, tails: np.ndarray
) -> tuple[float, float] | None:
    if samples.matches_full_at is None or target is None or not len(samples.matches_full_at):
        return None
    straight = crossing(problem.breakpoint_costs, problem.breakpoint_values, target)
    low, high = np.quantile(samples.matches_full_at, tails)
    moved = 0.0 if straight is None else star - straight
    return float(low + moved), float(high + moved)


def _fixed_routes(
    routes: tuple[str, ...], costs: np.ndarray, values: np.ndarray, intervals: np.ndarray | None
) -> tuple[FixedRoute, ...]:
    ends = [(None, None)] * len(routes) if intervals is None else intervals.tolist()
    return tuple(
        FixedRoute(name, float(cost), float(value), low, high)
        for name, cost, value, (low, high) in zip(routes, costs, values, ends, strict=True)
    )
