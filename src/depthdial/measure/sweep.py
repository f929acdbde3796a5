"""Sequences x routes -> rows: the quality of every route on every sequence, what it costs, and how long it took.

The table that the oracle of arXiv 2410.20022 (section 4, Figure 2) chooses from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from depthdial.errors import InputError
from depthdial.measure.answers import check_reference, full_answers, reference_prefill
from depthdial.measure.batches import MAX_FIDELITY_TOKENS, Runner, batched
from depthdial.measure.cost import ModelCost, model_cost
from depthdial.measure.forced import Predictions, by_route, forced_logits, nll, right_padded, row_slices
from depthdial.measure.plan import AnyDepth, ModelIdentity, Plan, check_positive, make_plan, route_columns
from depthdial.measure.quality import METRICS, ROUGE_METRICS, rouge
from depthdial.measure.results import SWEEP_COLUMNS, UnitStore
from depthdial.measure.sampling import draws, sampled_metrics, sampling_policy
from depthdial.measure.tasks import EncodedExample, Task
from depthdial.measure.token_cost import deciding_flops, skipped_layer_flops, token_cost
from depthdial.models.adapter import warn_if_outside
from depthdial.models.decode import GREEDY, Decoded, DecodingPolicy
from depthdial.models.prompt import Prefill
from depthdial.models.token_depth import Depth, TokenDepth
from depthdial.models.untouched import has_adapters_on, untouched
from depthdial.models.weights import weights_hash
from depthdial.progress import progress_bar


@dataclass(frozen=True)
class SweepOptions:
    """How answers are made and scored; `samples` is 0 where each is the greedy one."""

    metrics: tuple[str, ...]
    max_new_tokens: int
    fidelity_tokens: int
    use_stemmer: bool
    keep_text: bool
    samples: int = 0
    policy: DecodingPolicy = GREEDY

    def settings(self) -> dict[str, Any]:
        """For the run's settings. Greedy runs do not speak of sampling, so that folders from before it go on."""
        greedy = {name: value for name, value in vars(self).items() if name not in ("samples", "policy")}
        return greedy if not self.samples else {**greedy, "samples": self.samples, **vars(self.policy)}

    @property
    def generates(self) -> bool:
        return any(metric in ROUGE_METRICS for metric in self.metrics)


def sweep(
    model: Any,
    tokenizer: Any,
    *,
    task: Task,
    routes: Iterable[AnyDepth | str],
    metrics: Sequence[str] | None = None,
    samples: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    out: Path | str | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 128,
    fidelity_tokens: int = MAX_FIDELITY_TOKENS,
    prompt_depth: str = "full",
    use_stemmer: bool = False,
    keep_text: bool = False,
    identity: ModelIdentity | None = None,
    reference: Any = None,
    reference_hash: str | None = None,
    progress: bool = False,
) -> pa.Table:
    """Run every sequence of a task on every route and score it.

    With any ROUGE metric answers are generated greedily (and timed); `nll`, `kl` and `agreement` are teacher-forced: the
    first on the reference, the others on the full model's own greedy answer (at most 128 tokens). Rows of a sequence
    without a reference have null ROUGE and NLL. Of a model with adapters every route runs with them, and the full model that
    KL and agreement compare with is the untouched one, without them.

    Args:
        routes: routes, random rules (drawn once per sequence), their texts, or token policies as `TokenDepth`, of which
            `layers_run` and `cost` are what the tokens of an answer (else of the reference) ran in the mean.
        metrics: default: all of them, or ROUGE alone for sampled answers.
        samples: draw so many answers of every (sequence, route) instead of the greedy one: a row each, numbered in the
            column `sample`. A row's chance comes from the task's seed, its sequence, route and number alone. All samples
            of a batch decode together behind one prefill, so memory grows with batch_size x samples.
        temperature, top_p: what they are drawn with (see `DecodingPolicy`).
        out: a folder for the rows. A run that was stopped goes on there, whatever moment it was stopped at.
        fidelity_tokens: take KL and agreement on at most so many tokens of the full model's answer (never over 128).
        prompt_depth: `full` (the paper's: the prompt runs every layer) or `route`.
        keep_text: put the answers themselves in the rows, beside their hashes.
        identity: which model this is, where the caller knows; found out otherwise.
        reference: the full model that KL and agreement compare with, where it is another one than `model` without its
            adapters (such as the model before it was trained); `reference_hash` is that of its weights, where known.

    Returns:
        One row for each (sequence, route), or for each sample of it; the columns are `SWEEP_COLUMNS` and the provenance.

    Raises:
        InputError: for bad arguments, before anything runs; for numbers that are not finite, or a folder that cannot be
            written, with all finished rows kept.
    """
    policy = sampling_policy(samples, temperature, top_p)
    chosen = check_metrics(metrics if metrics is not None else ROUGE_METRICS if samples else METRICS)
    options = SweepOptions(
        sampled_metrics(chosen) if samples else chosen,
        check_positive(max_new_tokens, "max_new_tokens"),
        min(check_positive(fidelity_tokens, "fidelity_tokens"), MAX_FIDELITY_TOKENS),
        use_stemmer,
        keep_text,
        samples,
        policy,
    )
    check_positive(batch_size, "batch_size")
    settings = {"kind": "sweep", "batch_size": batch_size, **options.settings()}
    if reference is not None:
        check_reference(model, reference)
        settings["reference"] = reference_hash or weights_hash(reference)
    plan = make_plan(model, tokenizer, task, routes, prompt_depth=prompt_depth, identity=identity, settings=settings)
    for route in plan.routes:
        if not isinstance(route, TokenDepth):
            warn_if_outside(model, route)
    store = UnitStore(plan.run, SWEEP_COLUMNS, None if out is None else Path(out))
    skipped = {depth.key_values for depth in plan.routes if isinstance(depth, TokenDepth)}
    job = _Sweep(
        plan,
        options,
        tokenizer,
        store,
        model_cost(model),
        {kind: skipped_layer_flops(model, kind) for kind in skipped},
        plan.runner if reference is None else Runner.of(reference, tokenizer),
    )
    batches = list(batched(plan.examples, batch_size))
    with progress_bar("sweep", len(batches) * len(plan.routes), show=progress) as advance:
        for batch in batches:
            job.run(batch, advance)
    return store.collect(plan.units(batches))


def check_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    unknown = [m for m in metrics if m not in METRICS]
    if unknown or not metrics or isinstance(metrics, str):
        raise InputError(f"Unknown metric {unknown[0] if unknown else metrics!r}: use some of {', '.join(METRICS)}.")
    return tuple(m for m in METRICS if m in metrics)


@dataclass(frozen=True)
class _Sweep:
    plan: Plan
    options: SweepOptions
    tokenizer: Any
    store: UnitStore
    cost: ModelCost
    skipped_flops: Mapping[str, float]  # of a layer that a token skips, by what it leaves in the cache
    teacher: Runner  # the full model that others are compared with, once its adapters are off

    @property
    def runner(self) -> Runner:
        return self.plan.runner

    def run(self, batch: Sequence[EncodedExample], advance: Any) -> None:
        missing = self.plan.missing(self.store, batch)
        advance(len(self.plan.routes) - len(missing))
        if not missing:
            return
        prefilled = self.runner.prefill(batch)
        answers, reference = None, prefilled
        # With adapters on, the full route's answers are not the untouched full model's.
        is_adapted = self.teacher is not self.runner or has_adapters_on(self.runner.model)
        decodes_full = self.options.generates and not self.options.samples and self.runner.full in missing
        if (decodes_full and not is_adapted) or {"kl", "agreement"} & set(self.options.metrics):
            reference = self._reference(batch, prefilled)
            answers = full_answers(self.teacher, self.store, batch, reference, self.options.max_new_tokens)
        forced = self._forced_scores(batch, missing, prefilled, reference, answers)
        known = None if is_adapted else answers
        for route in missing:
            rows = self._rows(batch, route, prefilled, known, forced[route])
            self.store.write(self.plan.unit(batch, route), rows)
            advance(1)

    def _reference(self, batch: Sequence[EncodedExample], prefilled: Prefill) -> Prefill:
        if self.teacher is self.runner:
            return reference_prefill(self.runner, batch, prefilled)
        with untouched(self.teacher.model):
            return self.teacher.prefill(batch)

    def _groups(self, batch: Sequence[EncodedExample], route: AnyDepth) -> dict[Depth, list[int]]:
        return by_route([route.for_sequence(e.id) for e in batch])

    def _prefilled(self, batch: Sequence[EncodedExample], rows: list[int], route: Depth, full: Prefill) -> Prefill:
        if isinstance(route, TokenDepth) or self.plan.prompt_depth == "full" or route.is_full:
            return full.select(torch.tensor(rows, device=full.input_ids.device))
        return self.runner.prefill([batch[i] for i in rows], route)

    def _forced_scores(
        self,
        batch: Sequence[EncodedExample],
        routes: Sequence[AnyDepth],
        prefilled: Prefill,
        reference: Prefill,
        answers: Decoded | None,
    ) -> dict[AnyDepth, list[dict[str, float]]]:
        """Teacher-forced metrics of every route, a dictionary for each row of the batch."""
        scores: dict[AnyDepth, list[dict[str, float]]] = {route: [{} for _ in batch] for route in routes}
        if "nll" in self.options.metrics:
            with_reference = [i for i, e in enumerate(batch) if e.reference_ids]
            self._score_references(batch, with_reference, routes, prefilled, scores)
        if answers is not None and {"kl", "agreement"} & set(self.options.metrics):
            self._score_fidelity(batch, routes, prefilled, reference, answers, scores)
        return scores

    def _score_references(
        self,
        batch: Sequence[EncodedExample],
        rows: list[int],
        routes: Sequence[AnyDepth],
        prefilled: Prefill,
        scores: dict[AnyDepth, list[dict[str, float]]],
    ) -> None:
        if not rows:
            return
        texts = {i: batch[i].reference_ids for i in rows}
        for route in routes:
            for one, members in self._groups(batch, route).items():
                members = [i for i in members if i in texts]
                for i, logits in self._logits(batch, one, members, prefilled, texts, scores[route]):
                    scores[route][i]["nll"] = nll(logits, torch.tensor(texts[i], device=logits.device))

    def _score_fidelity(
        self,
        batch: Sequence[EncodedExample],
        routes: Sequence[AnyDepth],
        prefilled: Prefill,
        reference: Prefill,
        answers: Decoded,
        scores: dict[AnyDepth, list[dict[str, float]]],
    ) -> None:
        texts = {i: answers.tokens[i][: self.options.fidelity_tokens] for i in range(len(batch))}
        lengths = {i: len(text) for i, text in texts.items()}
        # The full model's logits of a slice serve all routes.
        for rows in row_slices(range(len(batch)), lengths, prefilled.logits.shape[-1]):
            with untouched(self.teacher.model):
                logits_of = self._logits(batch, self.teacher.full, rows, reference, texts, model=self.teacher.model)
                full = {i: Predictions.of(logits) for i, logits in logits_of}
            for route in routes:
                for one, members in self._groups(batch, route).items():
                    members = [i for i in members if i in full]
                    for i, logits in self._logits(batch, one, members, prefilled, texts, scores[route]):
                        scores[route][i]["kl"], scores[route][i]["agreement"] = full[i].fidelity(logits)

    def _logits(
        self,
        batch: Sequence[EncodedExample],
        route: Depth,
        rows: list[int],
        prefilled: Prefill,
        texts: dict[int, tuple[int, ...]],
        scores: list[dict[str, float]] | None = None,
        model: Any = None,
    ) -> Iterable[tuple[int, torch.Tensor]]:
        """(row, logits of its own tokens) for some rows of the batch, a slice of them in memory at a time.

        `scores` are told what a token-wise depth ran, unless an earlier text has told them.
        """
        lengths = {i: len(text) for i, text in texts.items()}
        for members in row_slices(rows, lengths, prefilled.logits.shape[-1]):
            tokens, mask = right_padded([texts[i] for i in members], self.runner.pad_token_id, self.runner.device)
            ready = self._prefilled(batch, members, route, prefilled)
            depth = _for_batch(route, [batch[i].id for i in members])
            logits = forced_logits(self.runner.model if model is None else model, depth, ready, tokens, mask)
            if scores is not None and isinstance(depth, TokenDepth):
                # A text's first token is the prompt's; its last one predicts nothing, and runs beside longer texts alone.
                means = depth.mean_layers([len(texts[i]) - 1 for i in members])
                for i, layers in zip(members, means, strict=True):
                    if layers is not None:
                        scores[i].setdefault("layers_run", layers)
                        scores[i].setdefault("cost", layers / depth.n_layers)
            for i, row_logits in zip(members, logits, strict=True):
                yield i, row_logits[: len(texts[i])]

    def _rows(
        self,
        batch: Sequence[EncodedExample],
        route: AnyDepth,
        prefilled: Prefill,
        answers: Decoded | None,
        forced: list[dict[str, float]],
    ) -> list[dict[str, Any]]:
        rows: dict[int, list[dict[str, Any]]] = {}
        for one, members in self._groups(batch, route).items():
            generated = self._answers(batch, members, one, prefilled, answers) if self.options.generates else {}
            for i in members:
                example = batch[i]
                about = {
                    "sequence_id": example.id,
                    **route_columns(one, route.name),
                    "prompt_tokens": len(example.prompt_ids),
                    "reference_tokens": len(example.reference_ids),
                    **forced[i],
                }
                rows[i] = [{**about, **answer} for answer in generated.get(i, [{}])]
        return [row for i in range(len(batch)) for row in rows[i]]

    def _answers(
        self, batch: Sequence[EncodedExample], members: list[int], route: Depth, prefilled: Prefill, full: Decoded | None
    ) -> dict[int, list[dict[str, Any]]]:
        """Scored answers of some rows of the batch: the greedy one of each, or all of its samples."""
        ready = self._prefilled(batch, members, route, prefilled)
        if self.options.samples:
            numbers = range(self.options.samples)
            repeated = ready.select(
                torch.arange(len(members), device=ready.input_ids.device).repeat_interleave(len(numbers))
            )
            rows = [i for i in members for _ in numbers]
            decoded = self._sample(batch, rows, route, repeated)
        else:
            # The full model has answered already, where its answers are what others are compared with.
            known = full if route.is_full and len(members) == len(batch) else None
            depth = _for_batch(route, [batch[i].id for i in members])
            decoded = known or self.runner.decode(depth, ready, self.options.max_new_tokens)
            rows = members
        answers: dict[int, list[dict[str, Any]]] = {i: [] for i in members}
        for i, scored in zip(rows, self._score_answers(batch, rows, route, ready, decoded), strict=True):
            answers[i].append({**scored, "sample": len(answers[i])} if self.options.samples else scored)
        return answers

    def _sample(self, batch: Sequence[EncodedExample], rows: list[int], route: Depth, repeated: Prefill) -> Decoded:
        """An answer for each of `rows`, whose repetitions stand together and are numbered from 0."""
        most = self.options.max_new_tokens
        numbered = [(batch[i].id, place % self.options.samples) for place, i in enumerate(rows)]
        chance = draws(self.plan.run.settings["seed"], numbered, route, most)
        depth = _for_batch(route, numbered)
        return self.runner.decode(depth, repeated, most, self.options.policy, chance)

    def _score_answers(
        self, batch: Sequence[EncodedExample], rows: list[int], route: Depth, ready: Prefill, decoded: Decoded
    ) -> list[dict[str, Any]]:
        """The columns of each answer; `rows` says which row of the batch it belongs to."""
        timing = {
            "batch_size": len(rows),
            "batch_steps": decoded.steps,
            "batch_decode_sec": decoded.decode_sec,
            "batch_prefill_sec": ready.prefill_sec,
            "step_sec": decoded.decode_sec / decoded.steps if decoded.steps else None,
            "decode_sec": decoded.decode_sec / len(rows),
        }
        scored = []
        ran = decoded.ran or [None] * len(rows)
        for i, tokens, reason, layers in zip(rows, decoded.tokens, decoded.finish_reasons, ran, strict=True):
            example = batch[i]
            answer = self.tokenizer.decode(tokens, skip_special_tokens=True)
            scores = {}
            if example.reference is not None:
                scores = rouge(answer, example.reference, use_stemmer=self.options.use_stemmer)
            scored.append(
                {
                    **timing,
                    **scores,
                    **self._answer_cost(route, len(example.prompt_ids), len(tokens), layers),
                    "new_tokens": len(tokens),
                    "finish_reason": reason,
                    "answer_hash": hashlib.sha256(answer.encode()).hexdigest()[:16],
                    "answer": answer if self.options.keep_text else None,
                }
            )
        return scored

    def _answer_cost(self, route: Depth, prompt_tokens: int, new_tokens: int, ran: torch.Tensor | None) -> dict[str, Any]:
        """The columns of what an answer costs in theory; `ran`, (n_steps, n_layers), of a token-wise depth."""
        size = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
        if not isinstance(route, TokenDepth):
            prompt_route = None if self.plan.prompt_depth == "full" else route
            found = vars(self.cost.of(route, **size, prompt_route=prompt_route))
            return {name: value for name, value in found.items() if name != "layers"}
        assert ran is not None
        skipped = self.skipped_flops[route.key_values]
        found = dict(vars(token_cost(self.cost, ran.numpy(), **size, skipped_flops=skipped)))
        layers = found.pop("layers")
        found["decide_flops"] = deciding_flops(self.runner.model, route.policy, new_tokens, layers)
        if len(ran):
            return {**found, "layers_run": layers, "cost": layers / route.n_layers}
        # An answer of one token ran nothing but the prompt: what it cost is not known from it.
        del found["weight_bytes"]
        return found


def _for_batch(depth: Depth, sequence_ids: Sequence[object]) -> Depth:
    return depth.for_batch(sequence_ids) if isinstance(depth, TokenDepth) else depth
