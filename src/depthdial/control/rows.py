"""What a controller is fitted to and judged by: features of prompts, and the quality of every route behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from depthdial.control.card import ControllerCard
from depthdial.data.leakage import prompt_hashes
from depthdial.data.tasks import Task
from depthdial.errors import InputError
from depthdial.measure.features import FeatureRows, FeatureSpec, read_features
from depthdial.measure.plan import ModelIdentity, make_plan
from depthdial.measure.references import Reference
from depthdial.measure.sweep import sweep
from depthdial.oracles.costs import STEPS
from depthdial.oracles.score_table import ScoreTable, read_samples, read_scores
from depthdial.routes import Route
from depthdial.rows.store import load_rows

# Where the parts of one measurement are, in its folder.
SCORES, FEATURES, KNOWN = "scores", "features", "known"


@dataclass(frozen=True, eq=False)
class MeasuredRows:
    """Sequences with their features and the quality of every route.

    Attributes:
        sequence_ids, prompts: (n,) ids, and hashes of the prompts (`data.leakage`).
        features: (n, n_features) fp32.
        table: the sweep's rows, in the order of the sequences within each route.
    """

    sequence_ids: tuple[str, ...]
    prompts: tuple[str, ...]
    features: np.ndarray
    table: pa.Table

    def values(self, metric: str, routes: Sequence[Route]) -> np.ndarray:
        """(n, n_routes) of one metric, in the order of `routes`; InputError if a row lacks it."""
        found = self._read(routes, metric=metric, cost="layers", full_route=None)
        return _in_order(found.values, found, self.sequence_ids, routes)

    def steps(self, routes: Sequence[Route]) -> np.ndarray:
        """(n, n_routes) decoding steps: of each route's own answer, or of the full model's where that is what is scored."""
        full = next(route.name for route in routes if route.is_full)
        found = self._read(routes, metric="layers_run", cost=STEPS, full_route=full)
        return _in_order(found.costs, found, self.sequence_ids, routes)

    def _read(self, routes: Sequence[Route], **asked: Any) -> ScoreTable:
        # A folder's table may hold rows of other calls as well.
        wanted = pc.field("sequence_id").isin(list(self.sequence_ids)) & pc.field("route").isin([r.name for r in routes])
        return read_scores(self.table.filter(wanted), sequence="sequence_id", route="route", **asked)


def swept(
    model: Any, tokenizer: Any, task: Task, card: ControllerCard, metrics: tuple[str, ...], **options: Any
) -> pa.Table:
    """A sweep of a controller's routes, of which the full one is the untouched full model."""
    own = {"routes": card.routes, "prompt_depth": card.prompt_depth, "max_new_tokens": card.response_tokens}
    return sweep(model, tokenizer, task=task, metrics=metrics, full_untouched=True, **own, **options)


def measure_rows(
    model: Any,
    tokenizer: Any,
    task: Task,
    card: ControllerCard,
    *,
    batch_size: int,
    out: Path | None,
    identity: ModelIdentity,
    progress: bool = False,
) -> MeasuredRows:
    """Measure every sequence of a task; in a folder, a stopped run goes on.

    Rows of a fit, of an evaluation and of a certificate are measured alike, as the card says, KL and agreement always. The
    full route is the untouched full model, whose own greedy answer agreement is taken on, and prompts at full depth run
    untouched: one pass over a prompt gives its features and serves every route.
    """
    plan = make_plan(model, tokenizer, task, card.routes, prompt_depth=card.prompt_depth, identity=identity, settings={})
    features = FeatureRows(plan, card.features, batch_size, None if out is None else out / FEATURES)
    table = swept(
        model,
        tokenizer,
        task,
        card,
        tuple(dict.fromkeys(("kl", "agreement", card.metric))),
        fidelity_tokens=card.response_tokens,
        batch_size=batch_size,
        reference=Reference(plan.session),
        watch=card.features.watched,
        on_prompts=features.keep,
        allow_searched_rows=True,  # the caller has refused what it refuses
        out=None if out is None else out / SCORES,
        identity=identity,
        progress=progress,
    )
    found = features.collect(progress=progress)
    return MeasuredRows(found.sequence_ids, prompt_hashes(task), found.matrix, table)


def read_measured(folder: Path, spec: FeatureSpec, prompts: Sequence[str]) -> MeasuredRows:
    """The rows that `measure_rows` left in a folder; InputError if they are gone, or not of the prompts of these hashes."""
    try:
        features = read_features(load_rows(folder / FEATURES), spec)
        table = load_rows(folder / SCORES)
    except InputError as error:
        raise InputError(f"The rows of the fit are not in {folder} ({error}) - fit the controller again.") from error
    if len(features.sequence_ids) != len(prompts):
        raise InputError(
            f"{folder} holds {len(features.sequence_ids)} rows, and the controller has seen {len(prompts)}: fit it again."
        )
    return MeasuredRows(features.sequence_ids, tuple(prompts), features.matrix, table)


def measure_known(
    model: Any,
    tokenizer: Any,
    task: Task,
    card: ControllerCard,
    sequence_ids: Sequence[str],
    *,
    samples: int,
    batch_size: int,
    out: Path,
    **options: Any,
) -> np.ndarray:
    """(n, n_routes, samples) agreement on answers that are drawn from the full model at temperature 1.

    What could be known of a prompt from other answers to it: the predictable oracle chooses on these, and is paid the
    agreement on the greedy answer.
    """
    options |= {"fidelity_tokens": card.response_tokens, "samples": samples, "out": out / KNOWN}
    options["batch_size"] = max(1, 2 * batch_size // samples)  # all samples of a batch decode together
    table = swept(model, tokenizer, task, card, ("agreement",), **options)
    columns = {"sequence": "sequence_id", "route": "route", "sample": "sample"}
    found = read_samples(table, metric="agreement", cost="layers_run", **columns)
    return _in_order(found.values, found, sequence_ids, card.routes)


def _in_order(values: np.ndarray, found: ScoreTable, wanted_ids: Sequence[str], routes: Sequence[Route]) -> np.ndarray:
    """An array (n, n_routes, ..) of a table in the order of these sequences and routes."""
    rows = {name: i for i, name in enumerate(found.sequence_ids)}
    columns = [found.routes.index(route.name) for route in routes]
    return values[[rows[name] for name in wanted_ids]][:, columns]
