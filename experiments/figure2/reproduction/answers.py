"""Answers of every set of weights on its routes: one greedy answer each, and sampled ones for the predictable oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import depthdial as dd
from depthdial.data.tasks import Task
from depthdial.files import write_atomically
from depthdial.measure.plan import ModelIdentity
from depthdial.rows.store import load_rows, without_text
from reproduction.experiment import Experiment, say
from reproduction.folder import ROWS, SAMPLES, Subject


def evaluate_all(run: Experiment) -> None:
    """Greedy answers of untouched weights, T, specialists and elastic weights, as one table with a column `weights`."""
    subjects = (run.untouched, *run.trained)
    for subject in subjects:
        evaluate(run, subject)
    _merge(run.out / ROWS, subjects, run.answers_of)


def sample_all(run: Experiment) -> None:
    """Sampled answers of T, specialists and (where asked for) elastic weights to the first test rows, as one table."""
    subjects = (run.whole, *run.specialists, *([run.elastic] if run.settings.samples.elastic else []))
    for subject in subjects:
        sample(run, subject)
    _merge(run.out / SAMPLES, subjects, run.samples_of)


def evaluate(run: Experiment, subject: Subject) -> None:
    """The subject's greedy answers to the test rows; nothing is done where they are there."""
    options = {"metrics": ("rouge_l", "nll"), "batch_size": run.settings.eval_batch_size}
    _answer(run, subject, run.test, run.answers_of(subject), "answers", options)


def sample(run: Experiment, subject: Subject) -> None:
    """The subject's sampled answers; nothing is done where they are there."""
    wanted = run.settings.samples
    first = replace(run.test, examples=run.test.examples[: wanted.sequences])
    options = {
        "metrics": ("rouge_l",),
        "samples": wanted.samples,
        "temperature": wanted.temperature,
        "batch_size": max(1, run.settings.eval_batch_size // wanted.samples),
    }
    _answer(run, subject, first, run.samples_of(subject), "sampled answers", options)


def _answer(run: Experiment, subject: Subject, task: Task, folder: Path, what: str, options: dict[str, Any]) -> None:
    if (folder / ROWS).exists():  # written last
        return
    say(f"{what} of {subject.name} on {len(subject.routes)} route{'s' if len(subject.routes) > 1 else ''}")
    model, tokenizer = run.load(subject)
    dd.sweep(
        model,
        tokenizer,
        task=task,
        routes=subject.routes,
        out=folder,
        max_new_tokens=run.settings.max_new_tokens,
        identity=ModelIdentity.of(model, run.label(subject)),
        progress=True,
        **options,
    )


def _merge(path: Path, subjects: Iterable[Subject], folder_of: Callable[[Subject], Path]) -> None:
    tables = []
    for subject in subjects:
        rows = without_text(load_rows(folder_of(subject)))
        tables.append(rows.add_column(0, "weights", pa.array([subject.kind] * len(rows), pa.string())))
    table = pa.concat_tables(tables)
    write_atomically(path, lambda part: pq.write_table(table, part))
