"""The folder of an evaluation: units come back as they were written, and belong to one set of settings."""

from __future__ import annotations

import json

import pytest

from depthdial.errors import InputError
from depthdial.rows.evals import EvalFolder, EvalResults
from tests.report.eval.folders import made, save


def test_units_come_back_in_order(tmp_path):
    units = made(2)
    results = save(tmp_path, units[::-1])
    assert {(unit.task, unit.depth) for unit in results.units} == {(unit.task, unit.depth) for unit in units}
    assert list(results.units) == units  # by task, then from full depth down
    assert results.model == "tiny-model" and results.folder == tmp_path
    assert results.unit("task_1", "ee:15").score("acc").value == results.unit("task_1", "ee:15").score("acc").value


def test_what_is_not_there(tmp_path):
    results = save(tmp_path)
    with pytest.raises(InputError, match="Nothing was evaluated of 'task_9'"):
        results.unit("task_9", "full")
    with pytest.raises(InputError, match="has no metric 'bleu': its metrics are acc, perplexity"):
        results.unit("task_0", "full").score("bleu")


def test_a_folder_has_one_set_of_settings(tmp_path):
    save(tmp_path)
    with pytest.raises(InputError, match="another limit"):
        EvalFolder({"model": "tiny-model", "limit": 4, "lm_eval": "0.4.13"}, tmp_path)


def test_memory_keeps_nothing():
    store = EvalFolder({"model": "m"})
    store.write("one", made(1)[0])
    assert store.read("one") is None


@pytest.mark.parametrize("text", ["{", '{"format": "depthdial-eval", "version": 1}', '{"format": "other"}'])
def test_a_damaged_unit(tmp_path, text):
    save(tmp_path)
    path = next((tmp_path / "units").glob("*.json"))
    path.write_text(text)
    with pytest.raises(InputError, match="evaluation file"):
        EvalResults.load(tmp_path)


def test_a_damaged_score(tmp_path):
    save(tmp_path)
    path = next((tmp_path / "units").glob("*.json"))
    document = json.loads(path.read_text())
    document["scores"][0].pop("value")
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="damaged evaluation file"):
        EvalResults.load(tmp_path)
