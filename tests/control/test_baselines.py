"""A controller and its rivals fitted again: on which rows, on which columns, with which calibration."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from depthdial.control.baselines import LENGTH_ONLY, NO_QUALITY, NO_STEPS, _varies, learn_again
from depthdial.control.controller import SequenceController
from depthdial.control.fit import MEASURED
from depthdial.control.rows import MeasuredRows, read_measured
from depthdial.errors import InputError
from tests.conftest import make_llama, make_tokenizer
from tests.tiny_controllers import fit_tiny


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> tuple[SequenceController, MeasuredRows]:
    folder = tmp_path_factory.mktemp("fit")
    controller = fit_tiny(make_llama(), make_tokenizer(), folder)
    return controller, read_measured(folder / MEASURED, controller.card.features, controller.card.fitted_on["prompts"])


def test_each_seed_leaves_another_tenth_out(fitted):
    controller, measured = fitted
    learned = learn_again(controller, measured, rivals=("mean", "ridge"), seeds=3)
    # Its own kind is not its rival.
    assert list(learned) == ["controller", "mean instead", LENGTH_ONLY, NO_STEPS, NO_QUALITY]
    for one in learned.values():
        assert [fit.calibration.quality.shape for fit in one.fits] == [(35, 3)] * 3
        assert quality(one, measured.features).shape == (3, 38, 3)
        assert (quality(one, measured.features)[:, :, 2] == 1).all()
    values = measured.values("agreement", controller.routes)
    means = quality(learned["mean instead"], measured.features)[:, 0, 0]
    assert len(set(means)) == 3 and np.abs(means - values[:, 0].mean()).max() < 0.1
    again = learn_again(controller, measured, rivals=(), seeds=3)["controller"]
    assert np.array_equal(quality(again, measured.features), quality(learned["controller"], measured.features))
    other = learn_again(controller, measured, rivals=(), seeds=3, seed=1)["controller"]
    assert not np.array_equal(quality(again, measured.features), quality(other, measured.features))


def quality(learned, features):
    return np.stack([one.quality for one in learned.predict(features)])


def steps(learned, features):
    return np.stack([one.steps for one in learned.predict(features)])


def test_what_is_ignored_is_the_same_for_all_prompts(fitted):
    controller, measured = fitted
    learned = learn_again(controller, measured, rivals=(), seeds=2)
    own, blind, deaf = (learned[name] for name in ("controller", NO_STEPS, NO_QUALITY))
    assert np.array_equal(quality(own, measured.features), quality(blind, measured.features))
    assert np.array_equal(steps(own, measured.features), steps(deaf, measured.features))
    for number, known in enumerate(own.known()):
        assert np.allclose(steps(blind, measured.features)[number], known.steps.mean(axis=0))
        assert np.allclose(quality(deaf, measured.features)[number], known.quality.mean(axis=0))
        assert np.allclose(blind.known()[number].steps, known.steps.mean(axis=0))
    by_layers = replace(controller, card=replace(controller.card, cost_unit="layers"))
    assert NO_STEPS not in learn_again(by_layers, measured, rivals=(), seeds=1)


def test_of_the_least_rows_none_is_left_out(fitted):
    controller, measured = fitted
    ids = measured.sequence_ids[:32]
    few = replace(measured, sequence_ids=ids, prompts=measured.prompts[:32], features=measured.features[:32])
    keep = [one in ids for one in measured.table.column("sequence_id").to_pylist()]
    few = replace(few, table=measured.table.filter(keep))
    learned = learn_again(controller, few, rivals=(), seeds=2)
    assert [len(known) for known in learned["controller"].known()] == [32, 32]


def test_the_prompts_length_is_all_that_one_of_them_sees(fitted):
    controller, measured = fitted
    learned = learn_again(controller, measured, rivals=(), seeds=1)
    blind = measured.features.copy()
    blind[:, 1:] = np.random.default_rng(0).normal(size=blind[:, 1:].shape)
    before, after = (quality(learned[LENGTH_ONLY], features) for features in (measured.features, blind))
    assert np.array_equal(before, after)
    assert not np.array_equal(*(quality(learned["controller"], features) for features in (measured.features, blind)))
    longer = measured.features.copy()
    longer[:, 0] += 1
    assert not np.array_equal(before, quality(learned[LENGTH_ONLY], longer))


def test_a_family_of_deep_routes_needs_no_budget_of_80_percent():
    """The cheapest route may cost more than the default budget of a fit."""
    model, words = make_llama(), make_tokenizer()
    controller = fit_tiny(model, words, routes=["full", "ee:5"], budget="95%", response_tokens=2)
    features = np.random.default_rng(0).normal(size=(40, controller.card.features.n_features))
    ids = tuple(map(str, range(40)))
    table = pa.table(
        {
            "sequence_id": [*ids, *ids],
            "route": ["ee:5"] * 40 + ["full"] * 40,
            "layers_run": [5.0] * 40 + [6.0] * 40,
            "new_tokens": [None] * 40 + [2] * 40,
            "agreement": [i % 2 for i in range(40)] + [1] * 40,
        }
    )
    learned = learn_again(controller, MeasuredRows(ids, ids, features, table), rivals=(), seeds=1)
    assert learned["controller"].known()[0].quality.shape == (36, 2)


def test_an_unknown_rival_is_told(fitted):
    with pytest.raises(InputError, match="Unknown predictor 'oracle'"):
        learn_again(*fitted, rivals=("oracle",), seeds=1)


def test_prompts_of_one_length_tell_nothing_by_it():
    assert not _varies(np.full(40, 2.0), 5)
    assert not _varies(np.array([2.0] * 35 + [3.0] * 5), 5)
    assert _varies(np.array([2.0] * 30 + [3.0] * 10), 5)
