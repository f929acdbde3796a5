"""The score of a controller on worlds whose truth is known: who knows all closes the gap, who knows nothing does not."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from depthdial.control.judge.headroom import NO_GAP, ControllerScore, score_controller
from depthdial.errors import InputError
from depthdial.oracles.prices import choose_routes, prices_for_budgets

LAYERS = np.array([15.0, 20.0, 25.0, 30.0])
ROUTES = ("greedy-kl:15", "greedy-kl:20", "greedy-kl:25", "full")
BUDGETS = np.array([18.0, 21.0, 24.0])


def world(n: int, seed: int, noise: float = 0.06) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(expected agreement, agreement on the greedy answer, agreement on 4 sampled ones); the full model agrees fully."""
    rng = np.random.default_rng(seed)
    expected = 1 - (1 - LAYERS / 30) * (0.9 + 0.4 * rng.normal(size=(n, 1)) + 0.1 * rng.normal(size=(n, 4)))
    lost = (LAYERS < 30) * noise
    known = expected[..., None] - 0.05 + lost[:, None] * rng.normal(size=(n, 4, 4))
    return expected, expected + lost * rng.normal(size=(n, 4)), known


def scored(
    values: np.ndarray,
    predicted: dict[str, np.ndarray],
    prices: dict[str, np.ndarray] | None = None,
    costs: np.ndarray = LAYERS,
    **options: Any,
) -> ControllerScore:
    """Prices from the predictions themselves where none are given; few resamples."""
    budgets = options.pop("budgets", BUDGETS)
    if prices is None:
        prices = {name: np.stack([prices_for_budgets(one, costs, budgets) for one in p]) for name, p in predicted.items()}
    options = {"n_bootstrap": 150} | options
    return score_controller(ROUTES[: values.shape[1]], values, costs, predicted, prices, budgets, **options)


@pytest.fixture(scope="module")
def example() -> ControllerScore:
    """A controller with some error, one that knows little, known answers and an overhead; three seeds."""
    calibration = world(400, 1)[0]
    expected, values, known = world(300, 2)
    rng = np.random.default_rng(3)

    def predictions(truth: np.ndarray, error: float) -> np.ndarray:
        return truth + error * rng.normal(size=(3, len(truth), 1)) * (1 - LAYERS / 30)

    errors = {"controller": 0.25, "prompt length only": 1.2}
    prices = {
        name: np.stack([prices_for_budgets(one, LAYERS, BUDGETS) for one in predictions(calibration, error)])
        for name, error in errors.items()
    }
    predicted = {name: predictions(expected, error) for name, error in errors.items()}
    return scored(values, predicted, prices, known=known, overhead=0.1)


# Known truths


def test_who_predicts_the_truth_closes_the_whole_gap_to_the_oracle() -> None:
    values = world(60, 0)[1]
    score = scored(values, {"controller": values[None]})
    (gap,) = score.gaps
    assert gap.name == "oracle"
    np.testing.assert_allclose(gap.closed, 100, atol=0.5)
    assert (gap.closed_intervals[:, 1] > 99).all() and (gap.closed_intervals[:, 0] > 98).all()


def test_no_prediction_closes_more_than_the_gap_to_the_oracle() -> None:
    values = world(60, 0)[1]
    noise = np.random.default_rng(1).normal(size=(5, 60, 4))
    score = scored(values, {"controller": values + 0.2 * noise, "noise": noise})
    (gap,) = score.gaps
    assert (gap.seed_closed <= 100.5).all()
    assert (gap.values >= score.controller.values - 1e-4).all()


def test_who_predicts_a_constant_is_a_fixed_route_or_nothing_better_and_its_interval_says_so() -> None:
    _, values, known = world(200, 0)
    constant = np.tile([0.5, 0.7, 0.8, 0.85], (1, 200, 1))
    score = scored(values, {"controller": constant}, known=known, budgets=[20.0, 25.0])
    assert score.controller.costs.tolist() == pytest.approx([20, 25, 22.5])
    assert (score.controller.gains <= 1e-12).all()
    for gap in score.gaps:
        assert (gap.gap_intervals[:, 0] > 0).all()
        assert (gap.closed <= 1e-9).all() and (gap.closed_intervals[:, 1] <= 1e-9).all()


def test_predictions_of_noise_gain_nothing_and_never_significantly() -> None:
    values = world(300, 4)[1]
    noise = np.random.default_rng(5).normal(size=(5, 300, 4)) * (1 - LAYERS / 30)
    score = scored(values, {"controller": values.mean(axis=0) + 0.3 * noise})
    assert (score.controller.gain_intervals[:, 0] < 0.002).all()
    assert abs(score.controller.gains[-1] - score.methods[1].gains[-1]) < 0.01  # as good as its own shares at random


def test_equal_sequences_leave_no_gap_to_close_and_no_percentage() -> None:
    values = np.tile([0.5, 0.7, 0.85, 1.0], (50, 1))
    score = scored(values, {"controller": values[None]}, known=np.repeat(values[..., None], 4, axis=2))
    for gap in score.gaps:
        assert np.isnan(gap.closed).all() and np.isnan(gap.closed_intervals).all() and np.isnan(gap.seed_closed).all()
        assert gap.text() == gap.text(0) == NO_GAP == "no gap to close"


def test_a_difference_that_is_luck_leaves_no_gap_to_the_predictable_oracle() -> None:
    rng = np.random.default_rng(6)
    values = np.array([0.5, 0.7, 0.85, 1.0]) + 0.2 * (LAYERS < 30) * rng.normal(size=(120, 4))
    known = values.mean(axis=0)[:, None] + 0.2 * rng.normal(size=(120, 4, 4))
    score = scored(values, {"controller": known.mean(axis=2)[None]}, known=known)
    predictable, oracle = score.gaps
    assert predictable.text() == NO_GAP
    assert oracle.gap_intervals[-1, 0] > 0 and oracle.text() != NO_GAP


def test_the_predictable_oracle_lies_between_the_mixture_and_the_oracle(example: ControllerScore) -> None:
    predictable, oracle = example.gaps
    assert predictable.name == "predictable oracle" and example.n_known == 4
    assert (predictable.gaps > 0).all() and (predictable.gaps < oracle.gaps).all()
    assert 50 < predictable.closed[-1] < 100 and oracle.closed[-1] < predictable.closed[-1]
    assert (predictable.closed_intervals[:, 0] < predictable.closed).all()
    assert (predictable.closed < predictable.closed_intervals[:, 1]).all()


def test_whoever_sees_less_gains_less_and_by_how_much_is_told(example: ControllerScore) -> None:
    controller, length, random = example.methods
    assert (controller.name, length.name, random.name) == ("controller", "prompt length only", "random")
    assert controller.gain_intervals[-1, 0] > length.gains[-1] > random.gains[-1]
    assert controller.behind is None and (random.gains <= 1e-12).all()
    for rival in (length, random):
        assert rival.behind is not None and rival.behind_intervals is not None
        np.testing.assert_allclose(rival.behind, controller.gains - rival.gains)
        assert rival.behind_intervals[-1, 0] > 0


# What the figures are


def test_costs_values_and_gains_are_what_the_choices_are_paid(example: ControllerScore) -> None:
    expected, values, _ = world(300, 2)
    predicted = np.stack([expected + 0.1 * seed for seed in range(2)])
    prices = {"controller": np.array([[0.01, 0.02, 0.05], [0.0, 0.01, 0.03]])}
    score = scored(values, {"controller": predicted}, prices, overhead=0.3)
    own, rows = score.controller, np.arange(300)
    for seed in range(2):
        for i, price in enumerate(prices["controller"][seed]):
            chosen = choose_routes(predicted[seed], LAYERS, float(price))
            assert own.seed_costs[seed, i] == pytest.approx(LAYERS[chosen].mean() + 0.3)
            assert own.seed_values[seed, i] == pytest.approx(values[rows, chosen].mean())
    np.testing.assert_allclose(own.values, own.seed_values.mean(axis=0))
    np.testing.assert_allclose(own.values - own.mixture, own.gains)
    np.testing.assert_allclose(own.gains, own.seed_gains.mean(axis=0))
    for array in (own.costs, own.values, own.gains, own.mixture):
        assert array.shape == (4,) and array[-1] == pytest.approx(array[:-1].mean())
    gap = score.gaps[-1]
    np.testing.assert_allclose(gap.values - own.mixture, gap.gaps)
    np.testing.assert_allclose(gap.closed, 100 * own.gains / gap.gaps)


def test_shares_fixed_routes_and_curves_are_those_of_the_sample(example: ControllerScore) -> None:
    values = world(300, 2)[1]
    np.testing.assert_allclose(example.shares.sum(axis=1), 1)
    np.testing.assert_allclose(example.shares @ LAYERS + 0.1, example.controller.costs[:-1])
    np.testing.assert_allclose([route.value for route in example.fixed], values.mean(axis=0))
    assert [route.route for route in example.fixed] == list(ROUTES)
    assert all(r.low is not None and r.high is not None and r.low <= r.value + 1e-9 <= r.high + 2e-9 for r in example.fixed)
    curves = example.curves
    assert curves.predictable is not None and curves.predictable_intervals is not None
    assert np.abs(curves.costs[:, None] - np.array(LAYERS)).min(axis=0).max() < 1e-9
    assert (curves.oracle >= curves.mixture - 1e-9).all()
    inside = slice(10, -10)
    assert (curves.predictable_intervals[inside, 0] < curves.predictable[inside]).all()
    assert [part.route for part in example.calibration] == list(ROUTES)


def test_overhead_lowers_the_score_and_enough_of_it_turns_it_negative() -> None:
    values = world(100, 0)[1]
    gains = [scored(values, {"controller": values[None]}, overhead=cost).controller.gains for cost in (0.0, 0.3, 6.0)]
    assert (gains[0] > gains[1]).all() and (gains[1] > gains[2]).all()
    assert gains[2][-1] < 0
    both = scored(values, {"controller": values[None], "rival": values[None]}, overhead=0.3)
    np.testing.assert_allclose(both.methods[0].gains, gains[1])
    np.testing.assert_allclose(both.methods[1].gains, gains[0])  # rivals are not charged
    assert both.overhead == 0.3


def test_costs_that_differ_by_sequence_and_in_ms_are_scored_alike() -> None:
    values = world(80, 0)[1]
    layers, ms = (scored(values, {"controller": values[None]}, costs=LAYERS * k, budgets=BUDGETS * k) for k in (1, 2.5))
    np.testing.assert_allclose(layers.controller.gains, ms.controller.gains, atol=1e-6)
    lengths = np.random.default_rng(0).integers(10, 90, (80, 1))
    score = scored(values, {"controller": values[None]}, costs=LAYERS * lengths, budgets=BUDGETS * 50, cost="ms")
    np.testing.assert_allclose(score.gaps[0].closed, 100, atol=0.5)
    assert score.cost == "ms"


def test_the_interval_of_the_gain_holds_the_true_gain_about_as_often_as_it_says() -> None:
    def tested(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Measured and predicted quality; the routes' means are concave in depth, so their hull is no close call."""
        truth, values, _ = world(n, seed)
        skipped = 1 - LAYERS / 30
        concave = 0.9 * skipped - 1.27 * skipped**1.5
        noise = np.random.default_rng(seed + 1000).normal(size=(1, n, 1))
        return values + concave, truth + concave + 0.3 * noise * skipped

    values, predicted = tested(40_000, 90)
    chosen = choose_routes(predicted[0], LAYERS, 0.03)
    mixed = np.interp(LAYERS[chosen].mean(), LAYERS, values.mean(axis=0))
    gain = values[np.arange(40_000), chosen].mean() - mixed
    above = below = 0
    for seed in range(60):
        values, predicted = tested(80, 100 + seed)
        prices = {"controller": np.array([[0.03]])}
        score = scored(values, {"controller": predicted}, prices, budgets=[20.0], n_bootstrap=100)
        low, high = score.controller.gain_intervals[0]
        above, below = above + (low > gain), below + (high < gain)
    assert above <= 5 and below <= 6  # 1.5 expected each; so many by chance less than once in a hundred
    assert above + below > 0


def test_the_same_seed_gives_the_same_score_and_another_moves_only_intervals() -> None:
    values = world(50, 0)[1]
    first, again, other = (scored(values, {"controller": values[None]}, seed=seed) for seed in (0, 0, 1))
    assert first.to_dict() == again.to_dict()
    np.testing.assert_array_equal(first.controller.gains, other.controller.gains)
    assert not np.array_equal(first.controller.gain_intervals, other.controller.gain_intervals)


# Stored


def test_it_comes_back_from_json_as_it_was(example: ControllerScore) -> None:
    text = json.dumps(example.to_dict(), allow_nan=False)
    restored = ControllerScore.from_dict(json.loads(text))
    assert json.dumps(restored.to_dict()) == text
    assert restored.gaps[0].text() == example.gaps[0].text()
    np.testing.assert_array_equal(restored.methods[1].seed_gains, example.methods[1].seed_gains)
    assert restored.controller is restored.methods[0]


def test_missing_gaps_come_back_as_missing() -> None:
    values = np.tile([0.5, 0.7, 0.85, 1.0], (20, 1))
    score = scored(values, {"controller": values[None]})
    restored = ControllerScore.from_dict(json.loads(json.dumps(score.to_dict(), allow_nan=False)))
    assert restored.gaps[0].text() == NO_GAP and restored.curves.predictable is None


@pytest.mark.parametrize("damage", ["gaps", "methods", "unknown", "empty"])
def test_a_damaged_score_is_refused(example: ControllerScore, damage: str) -> None:
    document: dict[str, Any] = example.to_dict()
    if damage == "unknown":
        document["surprise"] = 1
    elif damage == "empty":
        document = {}
    else:
        document[damage] = [{"name": "oracle"}]
    with pytest.raises(InputError, match="not a stored score of a controller"):
        ControllerScore.from_dict(document)
