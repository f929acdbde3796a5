"""Rows that controllers are fitted to and judged by: features and qualities of the same sequences in the same order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import depthdial as dd
from depthdial.control.rows import (
    FEATURES,
    SCORES,
    MeasuredRows,
    measure_known,
    measure_rows,
    read_measured,
)
from depthdial.data.leakage import prompt_hashes
from depthdial.engine.session import Session
from depthdial.errors import InputError
from depthdial.measure.features import features_of, watched_prefill
from depthdial.measure.plan import ModelIdentity
from depthdial.routes import Route
from tests.conftest import make_llama, make_tokenizer
from tests.tiny_controllers import card_for, rows

ROUTES = (Route.parse("ee:3", 6), Route.parse("0,2,4,5", 6), Route.parse("full", 6))


def measured(model, tokenizer, task, out):
    card = card_for(model, tokenizer, task, ROUTES, response_tokens=4)
    return measure_rows(model, tokenizer, task, card, batch_size=5, out=out, identity=ModelIdentity.of(model))


def the_spec():
    return card_for(make_llama(), make_tokenizer(), rows("test"), ROUTES).features


@pytest.fixture(scope="module")
def words():
    return make_tokenizer()


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """(folder, rows) of the twelve test sequences; not to be changed."""
    folder = tmp_path_factory.mktemp("rows")
    return folder, measured(make_llama(), words, rows("test"), folder)


@pytest.mark.slow
def test_features_and_values_are_of_the_same_sequences(whole, words):
    """In batches of 5 sorted by length, of which the last is smaller: each row must still be its own sequence's."""
    found, model = whole[1], make_llama()
    task = rows("test")
    assert set(found.sequence_ids) == {example.id for example in task.examples}
    assert found.prompts == prompt_hashes(task)
    values = found.values("agreement", ROUTES)
    assert values.shape == (12, 3) and (values[:, 2] == 1).all() and len(np.unique(values[:, 0])) > 1
    spec, by_id = the_spec(), {example.id: example for example in task.examples}
    for i in range(12):
        example = by_id[found.sequence_ids[i]]
        ids = words(example.instruction)["input_ids"]
        alone = features_of(watched_prefill(Session.of(model, words), [ids], spec), spec)[0]
        assert found.features[i] == pytest.approx(alone, abs=1e-4)
        one = replace(task, examples=(example,))
        swept = dd.sweep(
            model, words, task=one, routes=["ee:3"], metrics=("agreement",), max_new_tokens=4, fidelity_tokens=4
        )
        assert values[i, 0] == pytest.approx(swept.to_pylist()[0]["agreement"])


def test_values_follow_the_order_of_the_routes_that_are_asked_for(whole):
    found = whole[1]
    ahead, turned = found.values("agreement", ROUTES), found.values("agreement", ROUTES[::-1])
    assert np.array_equal(turned, ahead[:, ::-1])
    assert np.array_equal(found.values("agreement", ROUTES[1:2]), ahead[:, 1:2])


def test_values_follow_the_order_of_the_sequences():
    names, ids = [route.name for route in ROUTES], ("b", "c", "a")
    table = pa.table(
        {
            "sequence_id": [one for _ in names for one in "abc"],
            "route": [name for name in names for _ in "abc"],
            "layers_run": [float(len(route)) for route in ROUTES for _ in "abc"],
            "agreement": [10 * i + j for i, _ in enumerate(names) for j, _ in enumerate("abc")],
        }
    )
    found = MeasuredRows(ids, ("0", "1", "2"), np.zeros((3, 1)), table)
    assert found.values("agreement", ROUTES).tolist() == [[1, 11, 21], [2, 12, 22], [0, 10, 20]]


def test_a_metric_that_was_not_measured_is_told(whole):
    with pytest.raises(InputError, match="rouge_l"):
        whole[1].values("rouge_l", ROUTES)


def test_of_an_adapted_model_features_and_the_full_route_are_the_untouched_models(whole, words, with_lora):
    adapted = with_lora(make_llama())
    found = measured(adapted, words, rows("test"), None)
    assert found.features == pytest.approx(whole[1].features, abs=1e-5)
    values, bare = found.values("agreement", ROUTES), whole[1].values("agreement", ROUTES)
    assert (values[:, 2] == 1).all() and not np.array_equal(values[:, :2], bare[:, :2])


# Read back


def test_rows_are_read_back_as_they_were_measured(whole):
    folder, found = whole
    again = read_measured(folder, the_spec(), found.prompts)
    assert again.sequence_ids == found.sequence_ids and again.prompts == found.prompts
    assert np.array_equal(again.features, found.features)
    assert np.array_equal(again.values("agreement", ROUTES), found.values("agreement", ROUTES))


@pytest.mark.parametrize("lost", [SCORES, FEATURES])
def test_rows_of_a_fit_that_are_gone(whole, words, tmp_path, lost):
    for part in {SCORES, FEATURES} - {lost}:
        (tmp_path / part).mkdir()
        (tmp_path / part / "rows.parquet").write_bytes((whole[0] / part / "rows.parquet").read_bytes())
    spec = the_spec()
    with pytest.raises(InputError, match=r"The rows of the fit are not in .* - fit the controller again") as raised:
        read_measured(tmp_path, spec, whole[1].prompts)
    assert "\n" not in str(raised.value)


def test_rows_of_another_fit(whole, tmp_path):
    folder, found = whole
    spec = the_spec()
    with pytest.raises(InputError, match="holds 12 rows, and the controller has seen 11"):
        read_measured(folder, spec, found.prompts[:-1])
    with pytest.raises(InputError, match=r"do not have .* features each"):
        read_measured(folder, replace(spec, watched=(1,)), found.prompts)


# Other answers


def test_other_answers_are_the_full_models_and_in_the_order_of_the_rows(whole, words, tmp_path):
    model, turned = make_llama(), whole[1].sequence_ids[::-1]
    options = {"samples": 2, "batch_size": 5, "out": tmp_path, "identity": ModelIdentity.of(model)}
    card = card_for(model, words, rows("test"), ROUTES, response_tokens=4)
    known = measure_known(model, words, rows("test"), card, whole[1].sequence_ids, **options)
    assert known.shape == (12, 3, 2)
    assert (known[:, 2] == 1).all() and (known >= 0).all() and (known <= 1).all()
    assert not np.array_equal(known[:, :2, 0], known[:, :2, 1])  # two answers, not one twice
    again = measure_known(model, words, rows("test"), card, turned, **options)
    assert np.array_equal(again, known[::-1])
    table = pq.read_table(tmp_path / "known" / "rows.parquet").to_pylist()
    row = next(r for r in table if r["route"] == "ee:3" and r["sample"] == 1 and r["sequence_id"] == turned[-1])
    assert known[0, 0, 1] == row["agreement"]
