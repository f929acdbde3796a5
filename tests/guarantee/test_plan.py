"""Plans are fixed before rows, certificates say what was shown and no more, and the promise is kept in simulation."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.errors import InputError
from depthdial.guarantee.p_values import p_values, rows_needed, upper_bounds
from depthdial.guarantee.plan import METHODS, Certificate, CertificationPlan, certify

NAMES = ("full", "price 0.01", "price 0.02", "price 0.05")
COSTS = np.array([30.0, 28.0, 25.0, 20.0])

# Its bets follow one another, a step a row, so that long samples and many of them take seconds.
each_method = pytest.mark.parametrize(
    "method", [pytest.param(one, marks=pytest.mark.slow if one == "star_betting" else ()) for one in METHODS]
)


def plan(**options: Any) -> CertificationPlan:
    if options.get("method") == "conformal_risk_control":
        options = {"delta": None} | options
    return CertificationPlan(**{"settings": NAMES, "epsilon": 0.05} | options)


def measured(
    n: int = 400, seed: int = 0, sizes: tuple[float, ...] = (0.0, 0.04, 0.15, 0.9)
) -> tuple[np.ndarray, np.ndarray]:
    """Losses of a tenth of the rows, larger from setting to setting, some of them gains; costs that vary a little."""
    rng = np.random.default_rng(seed)
    hit = (rng.random((n, 1)) < 0.2) * rng.uniform(-0.2, 1.0, (n, 1))
    losses = hit * np.array(sizes)
    costs = COSTS - rng.integers(0, 2, (n, 1)) * np.array([0, 1, 1, 1])
    return losses, costs


@each_method
def test_what_is_certified_and_what_it_saves(method: str) -> None:
    losses, costs = measured(3000)
    certificate = certify(plan(method=method), losses, costs, provenance={"data": "made up"})
    assert certificate.setting == NAMES[certificate.certified or 0] != "full"
    assert certificate.reason is None
    assert certificate.upper_risks[certificate.certified or 0] <= 0.05
    assert certificate.n_rows == 3000
    assert certificate.cost == pytest.approx(costs[:, certificate.certified].mean())
    assert certificate.saving == pytest.approx(30 - certificate.cost)
    assert certificate.saving_interval[0] < certificate.saving < certificate.saving_interval[1]
    assert certificate.cost_interval == pytest.approx([30 - end for end in certificate.saving_interval[::-1]])
    assert (
        f"loses at most 0.05 of quality in expectation against the full model. It saves {certificate.saving:.2f} of 30.00"
        in (certificate.statement)
    )
    promise = (
        "but not with high probability" if method == "conformal_risk_control" else "With probability at least 0.95 over"
    )
    assert promise in certificate.statement
    assert f"3000 rows, {method}, plan {plan(method=method).digest}" in certificate.statement


def test_testing_stops_at_the_first_setting_that_fails() -> None:
    losses, costs = measured(sizes=(0.0, 0.02, 0.9, 0.0))  # the last one loses nothing, behind one that loses too much
    certificate = certify(plan(), losses, costs)
    assert certificate.p_values is not None and certificate.p_values[3] < 0.05 < certificate.p_values[2]
    assert certificate.certified == 1


@each_method
@given(seed=st.integers(0, 99), n=st.integers(2, 300), epsilon=st.sampled_from([0.02, 0.1, 0.4]))
def test_bounds_and_certificates_agree(method: str, seed: int, n: int, epsilon: float) -> None:
    certificate = certify(plan(method=method, epsilon=epsilon), *measured(n, seed))
    fits = [bound <= epsilon for bound in certificate.upper_risks]
    assert (certificate.certified or 0) == (fits.index(False) if False in fits else len(fits)) - 1
    assert (certificate.reason is None) == (certificate.certified is not None)
    if certificate.certified is None:
        assert certificate.setting is None and certificate.saving == 0 and certificate.cost == 30


def test_rows_are_bet_on_in_the_order_that_the_plan_fixed() -> None:
    losses, costs = measured(300)
    found = certify(plan(seed=5), losses, costs).p_values
    order = np.random.default_rng(5).permutation(300)
    assert found is not None
    assert found[1:] == pytest.approx(p_values(losses[order].T, 0.05)[1:])
    assert found != certify(plan(seed=6), losses, costs).p_values
    assert found[0] == 0


def test_too_few_rows_are_told_what_is_missing() -> None:
    costs = np.tile(COSTS, (50, 1))
    certificate = certify(plan(epsilon=0.02), np.zeros((50, 4)), costs)
    needed = rows_needed(0.02, 0.05)
    known = f"the loss of setting 'price 0.01' is only known to be at most {upper_bounds(np.zeros(50), 0.05):.3g}"
    known = f"the loss of setting 'price 0.01' is only known to be at most {upper_bounds(np.zeros(50), 0.05):.3g}"
    lacking = f"at least {needed} rows are needed even where nothing is lost"
    assert certificate.reason == f"Cannot be certified with 50 rows: {known}, and epsilon is 0.02; {lacking}."
    assert certificate.statement == certificate.reason
    assert needed is not None
    for n, told in ((needed - 1, None), (needed, "price 0.05")):
        assert certify(plan(epsilon=0.02), np.zeros((n, 4)), np.tile(COSTS, (n, 1))).setting == told


def test_lossy_settings_are_no_matter_of_rows() -> None:
    losses, costs = measured(2000, sizes=(0.0, 0.9, 0.9, 0.9))
    reason = certify(plan(epsilon=0.01), losses, costs).reason
    assert (
        reason is not None and "at least" not in reason and reason.startswith("Cannot be certified with 2000 rows: the loss")
    )


def test_conformal_risk_control_says_how_many_rows_it_needs() -> None:
    reason = certify(plan(method="conformal_risk_control"), np.zeros((18, 4)), np.tile(COSTS, (18, 1))).reason
    assert reason is not None and "at least 19 rows are needed" in reason
    assert certify(plan(method="conformal_risk_control"), np.zeros((19, 4)), np.tile(COSTS, (19, 1))).certified == 3
    assert plan(method="conformal_risk_control", epsilon=1.0).least_rows == 2  # as many as `certify` takes at the least


def test_an_epsilon_of_one_is_no_demand() -> None:
    losses, costs = measured(20)
    losses[:, 3] = 1.0
    assert certify(plan(epsilon=1), losses, costs).certified == 3


@pytest.mark.parametrize("n", [100, 400])
def test_the_promise_is_kept(n: int) -> None:
    # The mean of a pool drawn from with replacement is the true risk. Setting 2 is just too lossy.
    pool, _ = measured(2000, seed=7, sizes=(0.0, 0.2, 0.72, 0.8))
    truth, epsilon, draws = pool.mean(axis=0), float(pool.mean(axis=0)[2] / 1.01), 400
    rng = np.random.default_rng(1)
    lossy = naive = 0
    for number in range(draws):
        rows = pool[rng.integers(0, 2000, n)]
        chosen = plan(epsilon=epsilon, delta=0.1, seed=number)
        order = np.random.default_rng(number).permutation(n)
        p = p_values(rows[order].T, epsilon, delta=0.1)
        certified = next((j - 1 for j in range(1, 4) if p[j] > 0.1), 3)
        if number < 5:
            assert (certify(chosen, rows, np.tile(COSTS, (n, 1))).certified or 0) == certified
        lossy += truth[certified] > epsilon
        naive += rows.mean(axis=0)[2] <= epsilon
    assert lossy / draws <= 0.1 + 3 * 0.3 / math.sqrt(draws)
    assert naive / draws > 0.3


# Plans and files


def test_a_plan_is_its_digest() -> None:
    first = plan()
    assert first == plan(settings=list(NAMES), bounds=[-1, 1]) and len(first.digest) == 16
    assert plan(epsilon=1).digest == plan(epsilon=1.0).digest
    assert len({first, plan()}) == 1
    others = [
        plan(settings=(*NAMES[:3], "price 0.1")),
        plan(settings=(NAMES[0], NAMES[2], NAMES[1], NAMES[3])),
        plan(epsilon=0.02),
        plan(delta=0.1),
        plan(method="hoeffding"),
        plan(bounds=(0, 1)),
        plan(seed=1),
        plan(cost_unit="ms"),
        plan(about={"controller": "abc"}),
    ]
    assert len({first.digest, *(other.digest for other in others)}) == len(others) + 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.epsilon = 0.5  # type: ignore[misc]


@each_method
@pytest.mark.parametrize("n", [10, 3000])
def test_a_certificate_survives_json(method: str, n: int) -> None:
    chosen = plan(method=method, about={"family": "f1", "prices": (0.1, 0.2)})
    certificate = chosen.certify(*measured(n), provenance={"data": "made up", "seed": 3})
    document = json.loads(json.dumps(certificate.to_dict(), allow_nan=False))
    again = Certificate.from_dict(document)
    assert again == certificate
    assert again.statement == certificate.statement
    assert CertificationPlan.from_dict(document["plan"]) == chosen


def test_stored_documents_that_are_none() -> None:
    document = certify(plan(), *measured()).to_dict()
    without = {key: value for key, value in document.items() if key != "risks"}
    for broken in (3, None, without, document | {"extra": 1}, document | {"risks": 3}):
        with pytest.raises(InputError, match="not a stored certificate"):
            Certificate.from_dict(broken)
    with pytest.raises(InputError, match="not a stored certification plan"):
        Certificate.from_dict(document | {"plan": {"epsilon": 0.1}})
    for part in ({"settings": None}, {"bounds": 3}):
        with pytest.raises(InputError, match="not a stored certification plan"):
            CertificationPlan.from_dict(document["plan"] | part)
    with pytest.raises(InputError, match="tests start from 1 alone"):
        CertificationPlan.from_dict(document["plan"] | {"starts": [1, 2]})
    loosened = document["plan"] | {"epsilon": 0.5}
    with pytest.raises(InputError, match="not the one that its digest was taken of"):
        Certificate.from_dict(document | {"plan": loosened})


def test_the_certificate_knows_its_rows() -> None:
    losses, costs = measured()
    first = certify(plan(), losses, costs)
    assert first.rows_digest == certify(plan(), losses.copy(), costs).rows_digest
    losses[0, 1] += 0.01
    assert first.rows_digest != certify(plan(), losses, costs).rows_digest


# Refusals

REFUSED_PLANS = [
    ({"epsilon": 0.0}, "Invalid epsilon 0.0"),
    ({"epsilon": -0.02}, "Invalid epsilon -0.02"),
    ({"epsilon": 2}, "Invalid epsilon 2"),
    ({"epsilon": math.nan}, "Invalid epsilon nan"),
    ({"epsilon": True}, "Invalid epsilon True"),
    ({"delta": 0.0}, "Invalid delta 0.0"),
    ({"delta": 1}, "Invalid delta 1"),
    ({"delta": None}, "betting needs a delta"),
    ({"method": "guess"}, "Unknown method 'guess': use betting, .* or conformal_risk_control"),
    ({"method": "conformal_risk_control", "delta": 0.05}, "knows no delta: give delta=None"),
    ({"settings": ("full",)}, "two settings or more"),
    ({"settings": ("full", "a", "a")}, "a name of its own"),
    ({"settings": (0.0, 0.1)}, "a name of its own"),
    ({"bounds": (0.1, 1.0)}, "The bounds of the loss are"),
    ({"bounds": (-1.0, 0.01)}, "the greatest .at least epsilon"),
    ({"seed": -1}, "Invalid seed -1"),
    ({"about": {"model": object()}}, "something that JSON cannot"),
]


@pytest.mark.parametrize(("options", "told"), REFUSED_PLANS)
def test_bad_plans(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        plan(**options)
    assert "\n" not in str(caught.value)


def changed(rows: np.ndarray, at: tuple[int, int], value: float) -> np.ndarray:
    rows = rows.copy()
    rows[at] = value
    return rows


LOSSES, COST_ROWS = measured(20)
REFUSED_ROWS = [
    (LOSSES[:1], COST_ROWS[:1], "Invalid number of calibration rows 1"),
    (LOSSES[:0], COST_ROWS[:0], "Invalid number of calibration rows 0"),
    (LOSSES[:, :3], COST_ROWS[:, :3], r"shape \(20, 3\) .* give \(n, 4\) each"),
    (LOSSES, COST_ROWS[:19], r"costs of shape \(19, 4\)"),
    (LOSSES[0], COST_ROWS[0], r"shape \(4,\)"),
    (changed(LOSSES, (3, 2), math.nan), COST_ROWS, "A loss is NaN"),
    (LOSSES, changed(COST_ROWS, (3, 2), math.inf), "A cost is not finite"),
    (changed(LOSSES, (3, 2), 1.2), COST_ROWS, "beyond the bounds -1 to 1"),
    (changed(LOSSES, (3, 2), -math.inf), COST_ROWS, "beyond the bounds -1 to 1"),
    (changed(LOSSES, (3, 0), 0.001), COST_ROWS, "'full' does not lose exactly 0 on every row, so it is not the full model"),
]


@pytest.mark.parametrize(("losses", "costs", "told"), REFUSED_ROWS)
def test_bad_rows(losses: np.ndarray, costs: np.ndarray, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        certify(plan(), losses, costs)
    assert "\n" not in str(caught.value)


def test_unknown_options_raise() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'alpha'"):
        CertificationPlan(settings=NAMES, epsilon=0.1, alpha=0.1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'metric'"):
        certify(plan(), LOSSES, COST_ROWS, metric="agreement")  # type: ignore[call-arg]
