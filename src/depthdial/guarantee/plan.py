"""Guarantees: a setting of a policy that loses at most epsilon of quality against the full model, or no setting at all.

With probability at least 1 - delta over the calibration rows, the expected loss of the certified setting is at most epsilon.
The loss of a sequence is the full model's quality minus that of the route which the policy picks: signed, paired, absolute.

    plan = CertificationPlan(settings=("full", "price 0.01", "price 0.02"), epsilon=0.02)    # before rows are read
    certificate = certify(plan, losses, costs)                                               # (n, 3) each

What a plan holds is fixed before calibration rows are read: the grid, its order, epsilon, delta and the method. Its digest
stands in the certificate. Whoever looks at the rows and plans again has no guarantee. Nor has a policy that goes on learning
after the rows, or adjusts its price to a running budget (the online mode): then no setting of the plan is what runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from depthdial.checks import choice, number, share, whole
from depthdial.errors import InputError
from depthdial.guarantee.p_values import METHODS as P_VALUE_METHODS
from depthdial.guarantee.p_values import p_values, rows_needed, upper_bounds
from depthdial.guarantee.risk_control import conformal_bounds, conformal_setting, fixed_sequence
from depthdial.oracles.costs import LAYER_STEPS
from depthdial.provenance import digest
from depthdial.stats.bootstrap import percentiles, resamples
from depthdial.stats.serialize import dump, load

CONFORMAL = "conformal_risk_control"
METHODS = (*P_VALUE_METHODS, CONFORMAL)
_BOOTSTRAP, _CONFIDENCE = 1000, 0.95
_ZERO = 1e-12
_LEAST_ROWS = 2
# In the digest of plans of before, which could start tests elsewhere too.
_STARTS: dict[str, Any] = {"starts": [1]}


@dataclass(frozen=True)
class CertificationPlan:
    """What will be tested and how, fixed before any calibration row is read.

    Attributes:
        settings: names of the grid's settings, from the safest, which must be the full model, to the cheapest.
        epsilon: the expected loss that is allowed, in (0, 1], in the units of the quality (0.02: 2 points of agreement).
        delta: the probability of a wrong certificate; None with conformal risk control, which has none.
        method: one of `p_values.METHODS`, or "conformal_risk_control", which promises an expectation.
        bounds: the least and the greatest loss that there can be. Where nothing can be better than the full model, as in
            agreement with it, (0, 1) is true too; betting gains little from it, Hoeffding-Bentkus much.
        seed: of the order in which rows are bet on.
        cost_unit: what costs are counted in; savings in `layer_steps` are shares of the full model's, ratios of sums.
        metric: the quality that is promised.
        answer_tokens: the longest answer that it is promised for; None where there is no such limit.
        about: what the settings belong to (digests of model, family, controller): names and plain values.

    Raises:
        InputError: anything of this is out of range.

    Example:
        >>> dd.CertificationPlan(("full", "uls:24", "uls:15"), epsilon=0.02).method
        'betting'
    """

    settings: tuple[str, ...]
    epsilon: float
    delta: float | None = 0.05
    method: str = "betting"
    bounds: tuple[float, float] = (-1.0, 1.0)
    seed: int = 0
    cost_unit: str = "layers"
    metric: str = "quality"
    answer_tokens: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("settings", "bounds"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_plan(self)
        # As JSON gives them back: 1 and 1.0 must not make two digests of one plan.
        object.__setattr__(self, "epsilon", float(self.epsilon))
        object.__setattr__(self, "delta", None if self.delta is None else float(self.delta))
        object.__setattr__(self, "bounds", tuple(map(float, self.bounds)))
        object.__setattr__(self, "about", json.loads(json.dumps(dict(self.about))))

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def digest(self) -> str:
        """Short SHA-256 of everything above: to be written down before the rows are read."""
        return digest(self.to_dict())

    @property
    def least_rows(self) -> int | None:
        """The fewest rows that can certify anything, where not one of them loses; None for more than a million."""
        if self.method == CONFORMAL:
            return max(_LEAST_ROWS, int(np.ceil(self.bounds[1] / self.epsilon - _ZERO)) - 1)
        return rows_needed(self.epsilon, self.delta or 0.0, method=self.method, bounds=self.bounds)

    def certify(self, losses: ArrayLike, costs: ArrayLike, *, provenance: Mapping[str, Any] | None = None) -> Certificate:
        """`certify` with this plan."""
        return certify(self, losses, costs, provenance=provenance)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dump(self) | _STARTS

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> CertificationPlan:
        """The plan that `to_dict` wrote; InputError if fields are missing or unknown."""
        wanted = {f.name for f in fields(cls)} | set(_STARTS)
        if not isinstance(document, Mapping) or set(document) != wanted:
            raise InputError(f"This is not a stored certification plan: it must hold {', '.join(sorted(wanted))}.")
        given = dict(document)
        if (starts := given.pop("starts")) != _STARTS["starts"]:
            raise InputError(f"The plan tests from settings {starts}: tests start from 1 alone, make another plan.")
        return load(cls, given, "certification plan")


@dataclass(frozen=True)
class Certificate:
    """What a plan and its calibration rows certify; made by `certify`.

    Attributes:
        plan, plan_digest: what was fixed before.
        n_rows, rows_digest: how many calibration rows there were, and a digest of their losses and costs.
        certified: index of the certified setting; None if only the full model is left.
        reason: the sentence that says why, where nothing is certified.
        risks: mean loss of each setting on the calibration rows.
        upper_risks: for each setting by itself, the upper confidence bound of its loss at the plan's level, which is the
            smallest epsilon that these rows could have certified (with conformal risk control: what is compared with
            epsilon). Taken as an epsilon after it was read, it is no certificate: it is there to plan the next one.
        p_values: of each setting, 0 for the full model; None with conformal risk control.
        costs: mean cost of each setting.
        cost, saving: mean cost of what may run (the certified setting, or the full model), and how much that is below the
            full model; with bootstrap intervals over rows (95%), which are no part of the guarantee.
        provenance: what the caller says about the rows (data, hashes, seed, versions).

    Example:
        >>> plan = dd.CertificationPlan(("full", "uls:24"), epsilon=0.05)
        >>> dd.certify(plan, losses=np.zeros((500, 2)), costs=np.tile([30, 24], (500, 1))).setting
        'uls:24'
    """

    plan: CertificationPlan
    plan_digest: str
    n_rows: int
    rows_digest: str
    certified: int | None
    reason: str | None
    risks: tuple[float, ...]
    upper_risks: tuple[float, ...]
    p_values: tuple[float, ...] | None
    costs: tuple[float, ...]
    cost: float
    cost_interval: tuple[float, float]
    saving: float
    saving_interval: tuple[float, float]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def setting(self) -> str | None:
        """Name of the certified setting."""
        return None if self.certified is None else self.plan.settings[self.certified]

    @property
    def statement(self) -> str:
        """What is promised, and what is not, in words."""
        if self.reason is not None:
            return self.reason
        plan, (low, high) = self.plan, self.saving_interval
        length = "" if plan.answer_tokens is None else f" on answers of at most {plan.answer_tokens} tokens"
        loses = (
            f"setting '{self.setting}' loses at most {plan.epsilon:g} of {plan.metric} in expectation against the full "
            f"model{length}"
        )
        saves = f"It saves {self.saving:.2f} of {self.costs[0]:.2f} {plan.cost_unit} [{low:.2f}, {high:.2f}]"
        if plan.cost_unit == LAYER_STEPS:
            saves = (
                f"It saves {100 * self.saving:.1f}% [{100 * low:.1f}, {100 * high:.1f}] of the full model's layer-steps "
                "(layers run times decoding steps)"
            )
        how = f"({self.n_rows} rows, {plan.method}, plan {self.plan_digest})."
        if plan.method == CONFORMAL:
            return f"On average over calibration sets, but not with high probability for this one, {loses}. {saves} {how}"
        return f"With probability at least {1 - (plan.delta or 0):.4g} over the calibration rows, {loses}. {saves} {how}"

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, ready for JSON; `from_dict` restores the certificate."""
        return dump(self) | {"plan": self.plan.to_dict()}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Certificate:
        """The certificate that `to_dict` wrote; InputError if fields are missing or unknown, or it is not its plan's."""
        if not isinstance(document, Mapping):
            raise InputError(f"This is not a stored certificate ({document!r}): certify again.")
        plan = CertificationPlan.from_dict(document.get("plan", {}))
        certificate = load(cls, {**document, "plan": plan}, "certificate")
        if certificate.plan.digest != certificate.plan_digest:
            raise InputError("The certificate's plan is not the one that its digest was taken of: certify again.")
        return certificate


def certify(
    plan: CertificationPlan, losses: ArrayLike, costs: ArrayLike, *, provenance: Mapping[str, Any] | None = None
) -> Certificate:
    """Test a plan's settings on calibration rows.

    The guarantee is about sequences drawn as the calibration rows were. These must be independent of each other, and neither
    the policy nor the plan may have seen them (`data.leakage` checks prompts).

    Args:
        losses: (n, m) quality of the full model minus quality of what setting j picks on row i; 0 in column 0.
        costs: (n, m), what it costs, in the plan's unit.
        provenance: names and plain values that the certificate shall carry.

    Raises:
        InputError: too few rows, NaN, shapes that do not fit, losses beyond the plan's bounds, or a grid whose first setting
            is not the full model.

    Example:
        >>> plan = dd.CertificationPlan(("full", "uls:24"), epsilon=0.05)
        >>> losses, costs = np.tile([0, 0.3], (500, 1)), np.tile([30, 24], (500, 1))
        >>> dd.certify(plan, losses, costs).certified is None
        True
    """
    loss, cost = _checked(plan, np.asarray(losses, dtype=float), np.asarray(costs, dtype=float))
    n, ps, uppers = len(loss), None, np.zeros(loss.shape[1])
    if plan.method == CONFORMAL:
        certified = int(conformal_setting(loss, plan.epsilon, plan.bounds[1]))
        uppers[1:] = conformal_bounds(loss, plan.bounds[1])[1:]
    else:
        tested = loss[np.random.default_rng(plan.seed).permutation(n)].T
        options: dict[str, Any] = {"method": plan.method, "bounds": plan.bounds}
        delta = plan.delta or 0.0
        ps = p_values(tested, plan.epsilon, delta=delta, **options)
        ps[0] = 0.0  # the full model loses nothing, and needs no test
        certified = int(fixed_sequence(ps, delta))
        uppers[1:] = upper_bounds(tested[1:], delta, **options)
    runs = np.stack([cost[:, certified], cost[:, 0] - cost[:, certified]], axis=1)
    base = cost[:, 0] if plan.cost_unit == LAYER_STEPS else np.ones(n)
    spent, saved = _intervals(runs, base, plan.seed)
    return Certificate(
        plan=plan,
        plan_digest=plan.digest,
        n_rows=n,
        rows_digest=hashlib.sha256(loss.tobytes() + cost.tobytes()).hexdigest()[:16],
        certified=certified or None,
        reason=None if certified else _reason(plan, n, uppers),
        risks=tuple(loss.mean(axis=0).tolist()),
        upper_risks=tuple(uppers.tolist()),
        p_values=None if ps is None else tuple(ps.tolist()),
        costs=tuple((cost.sum(axis=0) / base.sum()).tolist()),
        cost=float(runs[:, 0].sum() / base.sum()),
        cost_interval=spent,
        saving=float(runs[:, 1].sum() / base.sum()),
        saving_interval=saved,
        provenance=dict(provenance or {}),
    )


def _check_plan(plan: CertificationPlan) -> None:
    choice("method", plan.method, METHODS)
    share("epsilon", plan.epsilon)
    if plan.method == CONFORMAL:
        if plan.delta is not None:
            raise InputError("Conformal risk control promises an expectation and knows no delta: give delta=None.")
    elif plan.delta is None:
        raise InputError(f"The method {plan.method} needs a delta: give a number between 0 and 1, such as 0.05.")
    else:
        number("delta", plan.delta, above=0, below=1)
    names = plan.settings
    if len(names) < 2 or len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
        raise InputError(
            "Give the plan two settings or more, each with a name of its own, from the full model to the cheapest."
        )
    if len(plan.bounds) != 2 or not plan.bounds[0] <= 0 < plan.bounds[1] or plan.bounds[1] < plan.epsilon:
        raise InputError(
            f"The bounds of the loss are {plan.bounds}: give the least (at most 0) and the greatest (at least epsilon)."
        )
    whole("seed", plan.seed, 0)
    try:
        json.dumps(dict(plan.about), allow_nan=False)
    except (TypeError, ValueError):
        raise InputError("What the plan is about holds something that JSON cannot: give names and plain values.") from None


def _checked(plan: CertificationPlan, losses: np.ndarray, costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    m = len(plan.settings)
    if losses.ndim != 2 or losses.shape[1] != m or costs.shape != losses.shape:
        raise InputError(
            f"Losses are of shape {losses.shape} and costs of shape {costs.shape}: give (n, {m}) each, a column for each of "
            f"the plan's {m} settings."
        )
    whole("number of calibration rows", len(losses), _LEAST_ROWS)
    if np.isnan(losses).any():
        raise InputError("A loss is NaN: leave out no row and measure every setting on each of them.")
    if losses.min() < plan.bounds[0] - 1e-9 or losses.max() > plan.bounds[1] + 1e-9:
        raise InputError(
            f"Losses go from {losses.min():g} to {losses.max():g}, beyond the bounds {plan.bounds[0]:g} to "
            f"{plan.bounds[1]:g}: give the plan the bounds that the metric has."
        )
    if not np.isfinite(costs).all():
        raise InputError("A cost is not finite: measure every setting on every row.")
    if np.abs(losses[:, 0]).max() > _ZERO:
        raise InputError(
            f"The first setting '{plan.settings[0]}' does not lose exactly 0 on every row, so it is not the full model: "
            "start the grid with it (a family with the full route, run untouched)."
        )
    return losses, costs


def _reason(plan: CertificationPlan, n: int, uppers: np.ndarray) -> str:
    """Why nothing is certified: fewer rows than any losses could do with, or losses that are too high."""
    bound = f"the loss of setting '{plan.settings[1]}' is only known to be at most {uppers[1]:.3g}"
    told = f"Cannot be certified with {n} rows: {bound}, and epsilon is {plan.epsilon:g}"
    if (least := plan.least_rows) is None:
        return f"{told}; more than a million rows are needed even where nothing is lost."
    return f"{told}; at least {least} rows are needed even where nothing is lost." if n < least else f"{told}."


def _intervals(costs: np.ndarray, base: np.ndarray, seed: int) -> list[tuple[float, float]]:
    """Percentile bootstrap intervals, over rows, of the sum of each column of (n, k) over the sum of `base` (n,)."""
    counts = np.concatenate(list(resamples(np.random.default_rng([seed, 1]), _BOOTSTRAP, len(costs))))
    draws = counts @ costs / np.maximum(counts @ base, _ZERO)[:, None]
    return [(low, high) for low, high in percentiles(draws, _CONFIDENCE).tolist()]
