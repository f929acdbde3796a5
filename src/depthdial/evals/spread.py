"""Standard errors of a harness's metrics over documents, by the part that each document has in the score.

A metric is a smooth function of means over documents. Its part of a document (the score plus the document's influence on it,
the delta method) makes the score a plain mean, whose standard error is the usual one; and two depths are compared on the
same documents by the differences of their parts. Source: Miller, "Adding Error Bars to Evals" (arXiv 2411.00640), for means;
the delta method for perplexities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_RESAMPLES = 200


def parts(items: Sequence[Any], value: float) -> np.ndarray | None:
    """(n_documents,) parts whose mean is `value`; None for a metric that is neither a mean nor a perplexity.

    What the metric is, is seen from its value: the harness allows any function of the documents' items.

    Args:
        items: of each document, as the harness collects them: numbers, or (log-likelihood, words or bytes).

    Example:
        >>> parts([1.0, 0.0], 0.5).tolist()
        [1.0, 0.0]
        >>> float(parts([(-2.0, 1), (-4.0, 1)], math.exp(3)).mean()) == math.exp(3)
        True
    """
    try:
        table = np.array([[float(part) for part in (one if isinstance(one, tuple | list) else (one,))] for one in items])
    except (TypeError, ValueError):
        return None
    if table.ndim != 2 or not np.isfinite(table).all() or not math.isfinite(value):
        return None
    if table.shape[1] == 1:
        mean = float(table.mean())
        if _same(value, mean):
            return table[:, 0]
        return value - value * (table[:, 0] - mean) if _same(value, _exp(-mean)) else None
    if table.shape[1] != 2 or not table[:, 1].sum() > 0:
        return None
    ratio = float(table[:, 0].sum() / table[:, 1].sum())
    slopes = {_exp(-ratio): -value, -ratio / math.log(2): -1 / math.log(2), ratio: 1.0}
    slope = next((slope for known, slope in slopes.items() if _same(value, known)), None)
    if slope is None:
        return None
    return value + slope * (table[:, 0] - ratio * table[:, 1]) / table[:, 1].mean()


def standard_error(each: np.ndarray | None, items: Sequence[Any], metric: Callable[[list[Any]], float]) -> float | None:
    """The standard error of a score: of the mean of its parts, or by 200 resamples of the documents where it has none.

    Returns:
        None for a single document, or where the metric cannot be taken of resamples.
    """
    if len(items) < 2:
        return None
    if each is not None:
        return float(each.std(ddof=1) / math.sqrt(len(each)))
    chance = np.random.default_rng(0)
    try:
        values = [float(metric([items[i] for i in chance.integers(len(items), size=len(items))])) for _ in range(_RESAMPLES)]
    except Exception:  # whatever a task's own function may raise
        return None
    return float(np.std(values, ddof=1)) if np.isfinite(values).all() else None


def pooled(members: Sequence[np.ndarray], value: float, by_size: bool) -> np.ndarray | None:
    """Parts of a group's mean over its tasks, from those of each task; None where `value` is no such mean.

    Args:
        by_size: whether tasks count by their number of documents.
    """
    n_all = sum(map(len, members))
    shares = [len(one) / n_all if by_size else 1 / len(members) for one in members]
    if not _same(value, float(sum(share * one.mean() for share, one in zip(shares, members, strict=True)))):
        return None
    moved = [share * n_all / len(one) * (one - one.mean()) for share, one in zip(shares, members, strict=True)]
    return value + np.concatenate(moved)


def _same(value: float, other: float) -> bool:
    return math.isclose(value, other, rel_tol=1e-9, abs_tol=1e-12)


def _exp(power: float) -> float:
    return math.exp(power) if power < 700 else math.inf
