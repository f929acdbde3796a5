"""Sequences x routes -> rows: the quality of every route on every sequence, what it costs, and how long it took.

The table that the oracle of arXiv 2410.20022 (section 4, Figure 2) chooses from.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa

from depthdial.checks import choice, whole
from depthdial.data.tasks import EncodedExample, Task, as_task
from depthdial.engine.decode import Decoded
from depthdial.engine.depth import Depth, TokenwiseDepth
from depthdial.engine.prefill import Prefill
from depthdial.engine.sampling import sampled_metrics, sampling_policy
from depthdial.engine.session import FIDELITY_TOKENS, Session
from depthdial.errors import DataWarning, InputError
from depthdial.hf.weights import weights_hash
from depthdial.measure.cost import model_cost
from depthdial.measure.plan import ModelIdentity, Plan, Routes, make_plan, route_columns
from depthdial.measure.quality import (
    METRICS,
    REFERENCE_METRICS,
    ROUGE_METRICS,
    ROUGE_TOKENIZERS,
    is_seen,
)
from depthdial.measure.references import Reference, check_reference
from depthdial.measure.scoring import (
    Answers,
    Costs,
    Lane,
    Prompts,
    Scores,
    Subject,
    SweepOptions,
    fidelity_scores,
    reference_scores,
)
from depthdial.measure.token_cost import skipped_layer_flops
from depthdial.progress import progress_bar
from depthdial.rows.sharing import share_work
from depthdial.rows.store import SWEEP_COLUMNS, UnitStore, unit_name

OnPrompts = Callable[[Sequence[EncodedExample], Prefill], None]


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
    watch: Sequence[int] = (),
    on_prompts: OnPrompts | None = None,
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
            RouteFamily or its file, controllers or their folders, which choose a route for each sequence, token policies as
            `TokenDepth`, of which `layers_run` and `cost` are the mean over an answer's tokens (else the reference's).
        metrics: default: all of ROUGE, `nll`, `kl` and `agreement`, or ROUGE alone for sampled answers.
        samples: number of answers drawn of every (sequence, route) instead of the greedy one: a row each, numbered in the
            column `sample`. KL and agreement are then on as many answers drawn from the full model. Sampling is seeded
            by the task's seed, the sequence, route and number alone. All samples of a batch decode together behind one
            prefill, so memory grows with batch_size x samples.
        temperature, top_p: what they are drawn with (see `DecodingPolicy`).
        out: a folder for the rows. A stopped run resumes there, whenever it was stopped. Its rows.parquet
            holds the rows of every call with these settings, also of other routes and sequences, or of another process.
        batch_size: sequences run together.
        max_new_tokens: longest answer, in tokens.
        use_stemmer: ROUGE with stems; the paper does without.
        fidelity_tokens: most tokens of the full model's answer that KL and agreement are taken on.
        rouge_tokenizer: `default` (Google's, which sees Latin letters and digits alone: other references have null ROUGE) or
            `unicode`, for any script; see `measure.quality`.
        prompt_depth: `full` (the paper's: the prompt runs every layer) or `route`.
        keep_text: put answers, prompts (as they ran, the template's words included) and references in the rows.
        identity: which model this is, where the caller knows; found out otherwise.
        reference: the full model that KL and agreement compare with, where it is another one than `model` without its
            adapters (such as the model before it was trained); `reference_hash` is that of its weights, where known. A
            `Reference` is the model without its adapters, and what it has said to earlier callers.
        full_untouched: run prompts and the full route without the model's adapters (on `reference`, where that is given):
            the full route is then the full model itself, and one pass over a prompt serves every route.
        allow_searched_rows: also measure on rows that routes were searched on, or the model trained on: it flatters them.
        watch, on_prompts: called with each batch that runs and the full model's pass over its prompts, in which the hidden
            states after the layers of `watch` were pooled.

    Returns:
        One row for each (sequence, route) of this call, or for each sample of it; the columns are `SWEEP_COLUMNS` and the
        provenance.

    Raises:
        InputError: for bad arguments, before anything runs, and for metrics that need references where no row has one; for
            numbers that are not finite, or a folder that cannot be written, with all finished rows kept.

    Warns:
        DataWarning: once, for references in a script that ROUGE's tokenizer cannot see.

    Example:
        >>> rows = dd.sweep(model, tokenizer, task=task, routes=["full", "uls:50%"], metrics=["agreement"])
        >>> rows.num_rows
        8
    """
    given = {name: value for name, value in locals().items() if name not in ("model", "tokenizer", "progress")}
    job = Sweep.of(model, tokenizer, **given)
    with progress_bar("sweep", job.pieces(job.items()), show=progress) as advance:
        job.run_shared(job.items(), advance)
    return job.collect()


@dataclass(frozen=True)
class Sweep:
    """A sweep as items of work, which one process, several, or a cluster's run alike, in any order, again and again.

    Every process makes its own, with the arguments of `sweep` but `progress`:
    ``job = Sweep.of(model, tokenizer, task="rows.jsonl", routes="full,uls:50%", out="rows")``, then ``job.run(item)`` for
    each of ``job.items()``, and ``job.collect()`` gives the table.
    """

    plan: Plan
    store: UnitStore
    batches: Sequence[Sequence[EncodedExample]]
    subject: Subject
    answers: Answers
    on_prompts: OnPrompts | None = None
    watch: Sequence[int] = ()

    @classmethod
    def of(cls, model: Any, tokenizer: Any, **options: Any) -> Sweep:
        """Check everything and open the folder; nothing runs yet."""
        bound = inspect.signature(sweep).bind(model, tokenizer, **options)
        bound.apply_defaults()
        given = SimpleNamespace(**bound.arguments)
        task, samples = as_task(given.task), given.samples
        policy = sampling_policy(samples, given.temperature, given.top_p)
        metrics = check_metrics(default_metrics(task, samples) if given.metrics is None else given.metrics)
        _check_references(task, metrics, given.rouge_tokenizer)
        scored = SweepOptions(
            sampled_metrics(metrics) if samples else metrics,
            whole("max_new_tokens", given.max_new_tokens, 1),
            whole("fidelity_tokens", given.fidelity_tokens, 1),
            given.use_stemmer,
            given.keep_text,
            samples,
            policy,
            given.full_untouched,
            given.rouge_tokenizer,
        )
        batch_size = whole("batch_size", given.batch_size, 1)
        settings, reference = {"kind": "sweep", "batch_size": batch_size, **scored.settings()}, given.reference
        if reference is not None and not isinstance(reference, Reference):
            check_reference(model, reference)
            settings["reference"] = given.reference_hash or weights_hash(reference)
            reference = Reference(Session.of(reference, tokenizer))
        reference = Reference.of(model, tokenizer, reference)
        session = reference.session_of(model, tokenizer)
        plan = make_plan(
            model,
            tokenizer,
            task,
            given.routes,
            prompt_depth=given.prompt_depth,
            identity=given.identity,
            settings=settings,
            answer_tokens=scored.answer_tokens,
            allow_searched_rows=given.allow_searched_rows,
            session=session,
        )
        token_wise = {depth.depth.key_values for depth in plan.depths if isinstance(depth, TokenwiseDepth)}
        skipped = {kind: skipped_layer_flops(session.model, kind) for kind in token_wise}
        costs = Costs(session.model, model_cost(model), given.prompt_depth, skipped)
        return cls(
            plan,
            UnitStore(plan.run, SWEEP_COLUMNS, None if given.out is None else Path(given.out)),
            session.batches(plan.examples, batch_size),
            Subject(session, reference, plan.asked, given.full_untouched),
            Answers(scored, tokenizer, costs, plan.run.settings["seed"]),
            given.on_prompts,
            given.watch,
        )

    def items(self) -> range:
        """The work: batches, by their places, each on all routes."""
        return range(len(self.batches))

    def name(self, item: int) -> str:
        """A name for an item, the same in every process."""
        return unit_name([example.id for example in self.batches[item]], "batch")

    def is_done(self, item: int) -> bool:
        return not self.plan.missing(self.store, self.batches[item])

    def collect(self) -> pa.Table:
        """The rows of all items, once they are done."""
        return self.store.collect(self.plan.units(self.batches), keep_others=True)

    def pieces(self, items: Iterable[int]) -> int:
        """How often `run` advances over some items: once a batch and route."""
        return sum(1 for _ in items) * len(self.plan.depths)

    def run_shared(self, items: Iterable[int], advance: Callable[[float], None] = lambda n: None) -> None:
        """Run items; those that another process is at in the same folder come last, and are not measured twice."""
        for _ in share_work(items, self.store.folder, self.name, lambda _: False, lambda item: self.run(item, advance)):
            pass

    def run(self, item: int, advance: Callable[[float], None] = lambda n: None) -> None:
        """Measure what is missing of a batch, and keep its rows."""
        batch, options, subject = self.batches[item], self.answers.options, self.subject
        missing = self.plan.missing(self.store, batch)
        advance(len(self.plan.depths) - len(missing))
        if not missing:
            return
        prompts = subject.prompts(batch, self.watch)
        needs_teacher = subject.is_apart and (options.compares or self.on_prompts is not None)
        compared = subject.compared(batch, self.watch) if needs_teacher else prompts
        if self.on_prompts is not None:
            self.on_prompts(batch, compared.prefilled)
        lanes = {depth: subject.lane(depth, prompts) for depth in missing}
        known, text = self._full_answers(compared, lanes.values())
        forced = self._forced(compared, lanes, text)
        for depth, lane in lanes.items():
            self.store.write(self.plan.unit(batch, depth), self._rows(lane, depth.name, forced[depth], known))
            advance(1)

    def _full_answers(self, compared: Prompts, lanes: Iterable[Lane]) -> tuple[Decoded | None, Decoded | None]:
        """The reference's own answers: as rows of the full route, where that is the same, and to compare others on."""
        options, reference = self.answers.options, self.subject.reference
        known = text = None
        if options.samples:
            return known, text
        common = (compared.examples, compared.prefilled)
        has_full = any(all(route.is_full for route in lane.routes) for lane in lanes)
        if options.generates and has_full and not self.subject.is_apart:
            # Answers of another length take other seconds: those of the full route are decoded as any route's.
            known = reference.answers(*common, options.max_new_tokens, self.store)
        if options.compares:
            longer = options.max_new_tokens if options.generates else 0
            text = reference.answers(*common, options.fidelity_tokens, self.store, longer=longer)
            if known is None and options.fidelity_tokens == options.max_new_tokens and not self.subject.is_apart:
                known = text
        return known, text

    def _forced(self, compared: Prompts, lanes: Mapping[Depth, Lane], text: Decoded | None) -> dict[Depth, list[dict]]:
        """Teacher-forced scores of every depth, for each answer to each row of the batch."""
        options, n = self.answers.options, self.answers.options.n_answers
        places = range(n * len(compared.examples))
        on_references = reference_scores(lanes, compared.examples) if "nll" in options.metrics else {}
        on_answers: Mapping[Depth, Scores] = {}
        if options.compares:
            repeated = {id(one): one.repeated(n) for one in (compared, *(lane.prompts for lane in lanes.values()))}
            teacher = self.subject.teacher(repeated[id(compared)])
            each = {depth: lane.repeated(n, repeated[id(lane.prompts)]) for depth, lane in lanes.items()}
            if text is None:
                text = self.answers.sampled(
                    teacher, teacher.routes[0], places, teacher.prompts.prefilled, options.fidelity_tokens
                )
            texts = {place: tokens[: options.fidelity_tokens] for place, tokens in enumerate(text.tokens)}
            on_answers = fidelity_scores(teacher, each, texts)
        nothing: Scores = {}
        return {
            depth: [
                {**on_answers.get(depth, nothing).get(i, {}), **on_references.get(depth, nothing).get(i // n, {})}
                for i in places
            ]
            for depth in lanes
        }

    def _rows(self, lane: Lane, name: str, forced: list[dict], known: Decoded | None) -> list[dict[str, Any]]:
        options, n, rows = self.answers.options, self.answers.options.n_answers, {}
        for route, members in lane.groups.items():
            generated = self.answers.scores(lane, route, members, known) if options.generates else {}
            for i in members:
                example = lane.prompts.examples[i]
                about = {
                    "sequence_id": example.id,
                    **route_columns(route, name),
                    "prompt_tokens": len(example.prompt_ids),
                    "reference_tokens": len(example.reference_ids),
                }
                if not generated and route.is_full and known is not None:
                    # The full model has answered wherever others are compared with it: as many steps does its answer take.
                    about |= {"new_tokens": len(known.tokens[i]), "finish_reason": known.finish_reasons[i]}
                for k in range(n):
                    answer = generated[i][k] if generated else {}
                    rows[i, k] = {**about, "sample": k if options.samples else None, **forced[i * n + k], **answer}
        return [rows[key] for key in sorted(rows)]


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
            stacklevel=4,
        )


def check_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    unknown = [m for m in metrics if m not in METRICS]
    if unknown or not metrics or isinstance(metrics, str):
        raise InputError(f"Unknown metric {unknown[0] if unknown else metrics!r}: use some of {', '.join(METRICS)}.")
    return tuple(m for m in METRICS if m in metrics)
