"""Sequences x routes -> rows: the quality of every route on every sequence, what it costs, and how long it took.

The table that the oracle of arXiv 2410.20022 (section 4, Figure 2) chooses from.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from depthdial.checks import choice, whole
from depthdial.data.leakage import require_unsearched
from depthdial.data.tasks import Task, as_task
from depthdial.engine.sampling import sampled_metrics, sampling_policy
from depthdial.engine.session import FIDELITY_TOKENS, Runner
from depthdial.errors import DataWarning, InputError
from depthdial.hf.adapter import warn_if_outside
from depthdial.hf.weights import weights_hash
from depthdial.measure.answers import check_reference
from depthdial.measure.cost import model_cost
from depthdial.measure.plan import ModelIdentity, Routes, make_plan
from depthdial.measure.quality import (
    ANSWER_METRICS,
    METRICS,
    REFERENCE_METRICS,
    ROUGE_METRICS,
    ROUGE_TOKENIZERS,
    is_seen,
)
from depthdial.measure.scoring import Scoring, SweepOptions
from depthdial.measure.token_cost import skipped_layer_flops
from depthdial.progress import progress_bar
from depthdial.rows.store import SWEEP_COLUMNS, UnitStore
from depthdial.views.tokens.depth import TokenDepth


def sweep(
    model: Any,
    tokenizer: Any,
    *,
    task: Task | str | os.PathLike[str],
    routes: Routes,
    metrics: Sequence[str] | None = None,
    samples: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    out: Path | str | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 128,
    fidelity_tokens: int = FIDELITY_TOKENS,
    prompt_depth: str = "full",
    use_stemmer: bool = False,
    keep_text: bool = False,
    allow_searched_rows: bool = False,
    identity: ModelIdentity | None = None,
    reference: Any = None,
    reference_hash: str | None = None,
    full_untouched: bool = False,
    rouge_tokenizer: str = "default",
    progress: bool = False,
) -> pa.Table:
    """Run every sequence of a task on every route and score it.

    With any ROUGE metric answers are generated greedily (and timed); `nll`, `kl` and `agreement` are teacher-forced: the
    first on the reference, the others on the full model's own greedy answer (its first `fidelity_tokens`, whatever
    `max_new_tokens` is). Rows of a sequence without a reference have null ROUGE and NLL. The model runs in evaluation mode,
    whatever mode it is in, and what a sequence gets does not depend on the others of its batch. Of a model with adapters
    every route runs with them, and the full model that KL and agreement compare with is the untouched one, without them.

    Args:
        routes: one or several of: routes, random rules (drawn once per sequence), their texts, their layers `(0, 1, 5)`, a
            RouteFamily or its file, or token policies as `TokenDepth`, of which `layers_run` and `cost` are what the tokens
            of an answer (else of the reference) ran in the mean.
        metrics: default: all of ROUGE, `nll`, `kl` and `agreement`, or ROUGE alone for sampled answers. `answer_nll`, only
            where it is asked for, is the NLL of an answer under the route that wrote it: how sure the route was.
        samples: number of answers drawn of every (sequence, route) instead of the greedy one: a row each, numbered in the
            column `sample`. KL and agreement are then on as many answers drawn from the full model. Sampling is seeded
            by the task's seed, the sequence, route and number alone. All samples of a batch decode together behind one
            prefill, so memory grows with batch_size x samples.
        temperature, top_p: what they are drawn with (see `DecodingPolicy`).
        out: a folder for the rows. A run that was stopped goes on there, whatever moment it was stopped at. Its rows.parquet
            holds the rows of every call with these settings, also of other routes and sequences, or of another process.
        batch_size: sequences run together.
        max_new_tokens: longest answer, in tokens.
        use_stemmer: ROUGE with stems; the paper does without.
        fidelity_tokens: most tokens of the full model's answer that KL and agreement are taken on.
        rouge_tokenizer: `default` (Google's, which sees Latin letters and digits alone: other references have null ROUGE) or
            `unicode`, for any script; see `measure.quality`.
        prompt_depth: `full` (the paper's: the prompt runs every layer) or `route`.
        keep_text: put the answers themselves in the rows, beside their hashes.
        identity: which model this is, where the caller knows; found out otherwise.
        reference: the full model that KL and agreement compare with, where it is another one than `model` without its
            adapters (such as the model before it was trained); `reference_hash` is that of its weights, where known.
        full_untouched: run prompts and the full route without the model's adapters (on `reference`, where that is given):
            the full route is then the full model itself, and one pass over a prompt serves every route.
        allow_searched_rows: also measure on rows that routes were searched on, or the model trained on: it flatters them.

    Returns:
        One row for each (sequence, route) of this call, or for each sample of it; the columns are `SWEEP_COLUMNS` and the
        provenance.

    Raises:
        InputError: for bad arguments, before anything runs, and for metrics that need references where no row has one; for
            numbers that are not finite, or a folder that cannot be written, with all finished rows kept.

    Warns:
        DataWarning: once, for references in a script that ROUGE's tokenizer cannot see.
    """
    task = as_task(task)
    policy = sampling_policy(samples, temperature, top_p)
    chosen = check_metrics(default_metrics(task, samples) if metrics is None else metrics)
    _check_references(task, chosen, rouge_tokenizer)
    options = SweepOptions(
        sampled_metrics(chosen) if samples else chosen,
        whole("max_new_tokens", max_new_tokens, 1),
        whole("fidelity_tokens", fidelity_tokens, 1),
        use_stemmer,
        keep_text,
        samples,
        policy,
        full_untouched,
        rouge_tokenizer,
    )
    whole("batch_size", batch_size, 1)
    settings = {"kind": "sweep", "batch_size": batch_size, **options.settings()}
    if reference is not None:
        check_reference(model, reference)
        settings["reference"] = reference_hash or weights_hash(reference)
    plan = make_plan(
        model,
        tokenizer,
        task,
        routes,
        prompt_depth=prompt_depth,
        identity=identity,
        settings=settings,
        answer_tokens=options.answer_tokens,
    )
    if not allow_searched_rows:
        require_unsearched(task, plan.routes, model)
    for route in plan.routes:
        if not isinstance(route, TokenDepth):
            warn_if_outside(model, route)
    store = UnitStore(plan.run, SWEEP_COLUMNS, None if out is None else Path(out))
    skipped = {depth.key_values for depth in plan.routes if isinstance(depth, TokenDepth)}
    job = Scoring(
        plan,
        options,
        tokenizer,
        store,
        model_cost(model),
        {kind: skipped_layer_flops(plan.runner.model, kind) for kind in skipped},
        (plan.runner if reference is None else Runner.of(reference, tokenizer)).untouched,
    )
    batches = plan.runner.batches(plan.examples, batch_size)
    with progress_bar("sweep", len(batches) * len(plan.routes), show=progress) as advance:
        for batch in batches:
            job.run(batch, advance)
    return store.collect(plan.units(batches), keep_others=True)


def default_metrics(task: Task, samples: int) -> tuple[str, ...]:
    """What a sweep measures by itself: without references sampled answers have fidelity alone.

    Greedy answers are written, timed and counted in any case, and keep all metrics; those without a reference are null.
    """
    if not samples:
        return METRICS
    return ROUGE_METRICS if task.any_reference else (*ROUGE_METRICS, "kl", "agreement")


def _check_references(task: Task, metrics: Sequence[str], tokenizer: str) -> None:
    """Refuse what no row can be scored by, and warn of references that ROUGE cannot see."""
    choice("ROUGE tokenizer", tokenizer, ROUGE_TOKENIZERS)
    answered = [example for example in task.examples if example.references]
    if not answered and all(metric in REFERENCE_METRICS for metric in metrics):
        raise InputError(
            f"No row of {task.origin!r} has a reference, which {', '.join(metrics)} would need: measure agreement and kl, "
            "or say with fields where the references are."
        )
    unseen = [e.id for e in answered if not any(is_seen(text, tokenizer) for text in e.references)]
    if unseen and any(metric in ROUGE_METRICS for metric in metrics):
        warnings.warn(
            f"ROUGE sees Latin letters and digits alone and has no score for {len(unseen)} of {len(task.examples)} "
            f"sequences (such as {unseen[0]!r}): take rouge_tokenizer='unicode' (--rouge-tokenizer unicode), or agreement.",
            DataWarning,
            stacklevel=3,
        )


def check_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    known = (*METRICS, *ANSWER_METRICS)
    unknown = [m for m in metrics if m not in known]
    if unknown or not metrics or isinstance(metrics, str):
        raise InputError(f"Unknown metric {unknown[0] if unknown else metrics!r}: use some of {', '.join(known)}.")
    return tuple(m for m in known if m in metrics)
