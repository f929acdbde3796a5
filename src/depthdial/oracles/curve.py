"""What all curves against a budget share: units of the budget, reading, the fixed routes beside them, and storage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from depthdial.checks import number, whole
from depthdial.errors import InputError
from depthdial.oracles.baselines import FixedRoute
from depthdial.oracles.costs import budget_in_units, cost_name, cost_unit
from depthdial.stats.serialize import dump, load

HEADLINE_SHARES = (0.25, 0.5, 0.75)
_RTOL = 1e-12


@dataclass(frozen=True, eq=False, kw_only=True)
class BudgetCurve:
    """What curves share. Values are in the metric's own units; budgets in those of `cost`, and `budgets` ascends.

    Attributes:
        cost: what is spent: `layer_steps`, `layers`, `ms` or a column's name.
        full_value, full_cost: mean value and mean cost of the full route; None where the rows have none.
        fixed: each route for every sequence, in order of cost.
        mixture: (n_budgets,) the best random mixture of fixed routes at the same mean cost, the upper concave hull of
            the fixed points; NaN below the cheapest fixed route.
        higher_is_better: the metric's direction; where less is better, curves fall.
    """

    stored_as: ClassVar[str]
    n_layers: ClassVar[Any]  # layers of the full model, where the rows tell

    metric: str
    cost: str
    higher_is_better: bool = True
    full_route: str | None
    full_value: float | None
    full_cost: float | None
    budgets: np.ndarray
    fixed: tuple[FixedRoute, ...]
    mixture: np.ndarray
    random: np.ndarray
    permuted: np.ndarray | None
    matches_full_interval: tuple[Any, Any] | None
    confidence: float
    n_bootstrap: int
    n_permutations: int
    seed: int

    @property
    def cost_unit(self) -> str:
        """What budgets are counted in, as an axis says it."""
        return cost_unit(self.cost)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, ready for JSON; `from_dict` restores the curve."""
        return dump(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """The curve that `to_dict` wrote; InputError if fields are missing or unknown."""
        given = dict(document)
        # Documents from before costs had names hold per-sequence costs, by the name of their column.
        given["cost"] = cost = cost_name(given.get("cost", ""))
        if isinstance(given.get("scores"), Mapping):
            given["scores"] = {**given["scores"], "cost": cost}
        return load(cls, given, cls.stored_as)

    def to_pandas(self) -> Any:
        """A pandas.DataFrame, one row a budget: every curve that there is; InputError without pandas."""
        try:
            import pandas
        except ImportError:
            raise InputError("The package pandas is not installed: pip install pandas, or use to_dict().") from None
        return pandas.DataFrame({name: column for name, column in self._columns().items() if column is not None})

    def _columns(self) -> dict[str, np.ndarray | None]:
        raise NotImplementedError

    @property
    def _full_cost(self) -> float:
        """The full route's cost; without one the costliest route's."""
        return self.full_cost if self.full_cost is not None else max(route.cost for route in self.fixed)

    def _units(self, budget: float | str) -> float:
        most = float(self.budgets[-1])
        return budget_in_units(budget, cost=self.cost, full_cost=self._full_cost, most=most, n_layers=self.n_layers)

    def _reaches(self, budget: float) -> bool:
        return bool(budget >= self.budgets[0] * (1 - _RTOL))

    def _read(self, budget: float, curve: np.ndarray | None) -> float | None:
        """A curve at a budget in its own units; None where there is none, or where it does not reach so low."""
        at = np.nan if curve is None or not self._reaches(budget) else float(np.interp(budget, self.budgets, curve))
        return None if np.isnan(at) else at

    def _row(self, point: str, budget: float, interval: tuple[float | None, float | None] | None) -> dict[str, Any]:
        """How each row of a table begins."""
        low, high = interval or (None, None)
        share = budget / self._full_cost if self._full_cost else None
        return {"point": point, "budget": budget, "budget_low": low, "budget_high": high, "share_of_full": share}


def place_of_full(routes: tuple[str, ...], full_route: str | None) -> int | None:
    """The full route's place; None where it goes by the usual name and there is none, InputError if it was named."""
    if full_route in routes:
        return routes.index(full_route)
    if full_route not in (None, "full"):
        raise InputError(f"No row has the route {full_route!r}; the table has {', '.join(routes)}.")
    return None


def check_options(confidence: float, *, n_splits: int = 1, **counts: int) -> None:
    """InputError for a count that is no whole number of at least 0 (of splits 1), or no confidence."""
    whole("n_splits", n_splits, 1)
    for name, count in counts.items():
        whole(name, count, 0)
    number("confidence", confidence, above=0, below=1)


def ends(interval: np.ndarray | None, name: str) -> dict[str, np.ndarray | None]:
    """An (n, 2) interval as two columns."""
    low, high = (None, None) if interval is None else interval.T
    return {f"{name}_low": low, f"{name}_high": high}
