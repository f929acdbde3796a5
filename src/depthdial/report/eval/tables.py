"""An evaluation as tables: scores by depth, and every metric with its standard error beside the full model's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from depthdial.report.kit.tables import Cells, Column, any_size, finished
from depthdial.rows.evals import EvalResults, EvalScore, EvalUnit
from depthdial.stats.intervals import Interval, mean_interval

# Student's t at 95% for many documents, where a score has a standard error and no parts.
_WIDE = 1.96
COLUMNS = (
    Column("depth"),
    Column("value", "score"),
    Column("stderr", "standard error"),
    Column("change", "less the full model's"),
    Column("documents"),
    Column("shots", "examples"),
    Column("contexts", "contexts run"),
    Column("one_token_percent", "of one token, %", 0),
    Column("sec", "seconds", write=any_size),
)


def score_interval(score: EvalScore) -> Interval | float:
    """A score with its 95% interval over documents; alone where it has no standard error."""
    if len(score.each) > 1:
        return mean_interval(score.each)
    if score.stderr is None:
        return score.value
    return Interval(score.value, score.value - _WIDE * score.stderr, score.value + _WIDE * score.stderr, 0)


def change(score: EvalScore, full: EvalScore | None) -> Interval | None:
    """A score less the full model's, document by document, with its 95% interval; None where they cannot be paired."""
    if full is None or len(full.each) != len(score.each) or len(score.each) < 2:
        return None
    return mean_interval(np.array(score.each) - np.array(full.each))


def titled(task: str, score: EvalScore) -> str:
    """A task with its metric, and which way is better."""
    arrow = {True: " ↑", False: " ↓", None: ""}[score.higher_is_better]
    return f"{task} ({score.name}{arrow})"


def depths_table(results: EvalResults) -> list[Cells]:
    """A row for each depth, a column for the first metric of each task."""
    names = {task: _first_title(results, task) for task in results.tasks}
    rows: list[Cells] = []
    for depth in results.depths:
        units = {task: results.find(task, depth) for task in results.tasks}
        known = [unit for unit in units.values() if unit is not None]
        cells: Cells = {"depth": depth, "layers": float(np.mean([unit.layers for unit in known]))}
        for task, unit in units.items():
            cells[task] = None if unit is None or not unit.scores else score_interval(unit.score())
        rows.append(cells)
    return finished(rows, (*COLUMNS, *(Column(task, title) for task, title in names.items())), keep=())


def metrics_table(results: EvalResults, task: str) -> list[Cells]:
    """A row for each depth and metric of a task."""
    rows: list[Cells] = []
    full = next((unit for unit in results.units if unit.task == task and unit.is_full), None)
    for depth in results.depths:
        unit = results.find(task, depth)
        for score in () if unit is None else unit.scores:
            assert unit is not None
            rows.append(_metric(unit, score, full))
    return finished(rows, COLUMNS, keep=())


def answer_sentences(results: EvalResults) -> list[str]:
    """For each task the full model's score, beside the fewest layers that are not told apart from it, or else the most."""
    return [told for task in results.tasks if (told := _sentence(results, task))]


def single_sentences(results: EvalResults) -> list[str]:
    """What the full model has scored in place of the depth."""
    found = []
    for task in results.tasks:
        units = [unit for unit in results.units if unit.task == task and "full" in unit.prompt_depth]
        share = max((unit.one_token_share or 0 for unit in units), default=0)
        if share:
            found.append(
                f"{task}: {100 * share:.0f}% of the scored continuations are single tokens, which the full model predicts "
                "behind a full-depth context, whatever the depth."
            )
    return found


def _metric(unit: EvalUnit, score: EvalScore, full: EvalUnit | None) -> Cells:
    theirs = None if full is None or full is unit else next((one for one in full.scores if one.name == score.name), None)
    return {
        "depth": unit.depth,
        "layers": unit.layers,
        "metric": score.name + {True: " ↑", False: " ↓", None: ""}[score.higher_is_better],
        "value": score_interval(score),
        "stderr": score.stderr,
        "change": change(score, theirs),
        "documents": unit.n_documents,
        "shots": unit.n_shot,
        "contexts": unit.prompt_depth,
        "one_token_percent": None if unit.one_token_share is None else 100 * unit.one_token_share,
        "sec": unit.sec,
    }


def _sentence(results: EvalResults, task: str) -> str | None:
    full = results.find(task, "full")
    others = [unit for unit in results.units if unit.task == task and not unit.is_full and unit.scores]
    if full is None or not full.scores or not others:
        return None
    first = full.score()
    lost = [(unit, _loss(unit.score(first.name), first)) for unit in sorted(others, key=lambda unit: unit.layers)]
    kept = next((unit for unit, loss in lost if loss is not None and loss.low <= 0), None)
    told = kept or max(others, key=lambda unit: unit.layers)
    score = told.score(first.name)
    moved = change(score, first)
    beside = "" if moved is None else f", a difference of {moved} on the same {moved.n} documents"
    whole = f"{task}: {first.name} {_number(first.value)} with all {full.n_layers} layers"
    return f"{whole}; {told.depth} ({told.layers:.4g} layers) has {_number(score.value)}{beside}."


def _loss(score: EvalScore, full: EvalScore) -> Interval | None:
    """How much worse than the full model, document by document."""
    moved = change(score, full)
    if moved is None or full.higher_is_better is None:
        return None
    return Interval(-moved.mean, -moved.high, -moved.low, moved.n) if full.higher_is_better else moved


def _first_title(results: EvalResults, task: str) -> str:
    first: Sequence[EvalScore] = next((unit.scores for unit in results.units if unit.task == task and unit.scores), ())
    return titled(task, first[0]) if first else task


def _number(value: float) -> str:
    return f"{value:.3f}"
