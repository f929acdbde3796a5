"""Parts of documents: their mean is the score, and their spread its standard error."""

from __future__ import annotations

import math

import numpy as np
import pytest

from depthdial.evals.spread import parts, pooled, standard_error

chance = np.random.default_rng(5)
LIKELIHOODS = (-3 - 40 * chance.random(60)).tolist()
SIZES = chance.integers(5, 30, 60).tolist()
PAIRS = list(zip(LIKELIHOODS, SIZES, strict=True))


def weighted(items):
    return math.exp(-sum(one for one, _ in items) / sum(n for _, n in items))


def bits(items):
    return -sum(one for one, _ in items) / sum(n for _, n in items) / math.log(2)


def perplexity(items):
    return math.exp(-sum(items) / len(items) / 10)


@pytest.mark.parametrize(
    ("items", "metric"),
    [
        ((chance.random(60) < 0.6).tolist(), np.mean),
        (PAIRS, weighted),
        (PAIRS, bits),
        ([one / 10 for one in LIKELIHOODS], lambda items: math.exp(-np.mean(items))),
    ],
    ids=["accuracy", "weighted perplexity", "bits per byte", "perplexity"],
)
def test_the_standard_error_is_that_of_resamples(items, metric):
    value = float(metric(items))
    each = parts(items, value)
    assert each is not None and float(each.mean()) == pytest.approx(value, rel=1e-9)
    drawn = np.random.default_rng(1)
    resampled = [metric([items[i] for i in drawn.integers(60, size=60)]) for _ in range(4000)]
    assert standard_error(each, items, metric) == pytest.approx(np.std(resampled), rel=0.12)


def test_another_metric_is_resampled():
    items = [(1, 0), (1, 1), (0, 0), (1, 1), (0, 1)] * 8
    assert parts(items, 0.123) is None
    found = standard_error(None, items, lambda each: float(np.median([one[0] for one in each])))
    assert found is not None and 0 < found < 1
    assert standard_error(None, ["a", "b"], lambda each: 1 / 0) is None
    assert parts(["a", "b"], 0.5) is None and parts([1.0, math.nan], 0.5) is None


def test_one_document_has_no_standard_error():
    assert standard_error(parts([1.0], 1.0), [1.0], np.mean) is None


@pytest.mark.parametrize("by_size", [True, False])
def test_a_group_is_the_mean_of_its_tasks(by_size):
    members = [chance.random(8), chance.random(20), chance.random(5)]
    value = float(np.concatenate(members).mean() if by_size else np.mean([one.mean() for one in members]))
    each = pooled(members, value, by_size)
    assert each is not None and len(each) == 33 and each.mean() == pytest.approx(value)
    shares = [len(one) / 33 if by_size else 1 / 3 for one in members]
    expected = math.sqrt(sum((s * one.std() / math.sqrt(len(one))) ** 2 for s, one in zip(shares, members, strict=True)))
    assert each.std() / math.sqrt(33) == pytest.approx(expected, rel=1e-9)
    assert pooled(members, value + 0.1, by_size) is None
