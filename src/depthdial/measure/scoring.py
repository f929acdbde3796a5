"""Scores of one batch of a sweep on every route: teacher-forced ones, and those of the answers that are generated."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from depthdial.data.tasks import EncodedExample
from depthdial.engine.decode import Decoded
from depthdial.engine.prefill import Prefill
from depthdial.engine.sampling import GREEDY, DecodingPolicy, sweep_draws
from depthdial.engine.session import Runner
from depthdial.engine.teacher_forcing import Predictions, by_route, forced_logits, nll, right_padded, row_slices
from depthdial.measure.answers import full_answers
from depthdial.measure.cost import ModelCost
from depthdial.measure.plan import AnyDepth, Plan, route_columns
from depthdial.measure.quality import ANSWER_METRICS, ROUGE_METRICS, rouge
from depthdial.measure.token_cost import deciding_flops, token_cost
from depthdial.routes import Route
from depthdial.rows.store import UnitStore
from depthdial.views.tokens.depth import Depth, TokenDepth


@dataclass(frozen=True)
class SweepOptions:
    """How answers are made and scored; `samples` is 0 where each is the greedy one.

    `full_untouched`: prompts and the full route run without the model's adapters, so that the full route is the full model.
    """

    metrics: tuple[str, ...]
    max_new_tokens: int
    fidelity_tokens: int
    use_stemmer: bool
    keep_text: bool
    samples: int = 0
    policy: DecodingPolicy = GREEDY
    full_untouched: bool = False
    rouge_tokenizer: str = "default"

    def settings(self) -> dict[str, Any]:
        """For the run's settings. Plain runs do not speak of what came later, so that folders from before it go on."""
        later = ("samples", "policy", "full_untouched", "rouge_tokenizer")
        said = {name: value for name, value in vars(self).items() if name not in later}
        said |= {"samples": self.samples, **vars(self.policy)} if self.samples else {}
        if self.compares and self.fidelity_tokens > self.max_new_tokens:
            # Rows from before this was so had KL and agreement on no more than `max_new_tokens`.
            said["fidelity"] = "on fidelity_tokens"
        said |= {"full_untouched": True} if self.full_untouched else {}
        return said | ({} if self.rouge_tokenizer == "default" else {"rouge_tokenizer": self.rouge_tokenizer})

    @property
    def answer_tokens(self) -> int:
        """The longest answer that is generated."""
        lengths = (self.max_new_tokens * self.generates, self.fidelity_tokens * self.compares)
        return max(lengths)

    @property
    def generates(self) -> bool:
        return any(metric in (*ROUGE_METRICS, *ANSWER_METRICS) for metric in self.metrics)

    @property
    def compares(self) -> bool:
        return "kl" in self.metrics or "agreement" in self.metrics


@dataclass(frozen=True)
class Scoring:
    plan: Plan
    options: SweepOptions
    tokenizer: Any
    store: UnitStore
    cost: ModelCost
    skipped_flops: Mapping[str, float]  # of a layer that a token skips, by what it leaves in the cache
    teacher: Runner  # the untouched full model that others are compared with; `runner` itself where that is untouched

    @property
    def runner(self) -> Runner:
        return self.plan.runner

    def run(self, batch: Sequence[EncodedExample], advance: Any) -> None:
        missing = self.plan.missing(self.store, batch)
        advance(len(self.plan.routes) - len(missing))
        if not missing:
            return
        # With adapters on, the full route's answers are not the untouched full model's, unless it runs without them.
        is_apart = self._is_adapted and not self.options.full_untouched
        prefilled = (self.runner if is_apart else self.teacher).prefill(batch)
        answers, reference, known = None, prefilled, None
        decodes_full = self.options.generates and not self.options.samples and self.runner.full in missing
        if self.options.compares and is_apart:
            reference = self.teacher.prefill(batch)
        if self.options.compares and not self.options.samples:
            answers = full_answers(self.teacher, self.store, batch, reference, self.options.fidelity_tokens)
            known = answers if self.options.fidelity_tokens == self.options.max_new_tokens else None
        if decodes_full and not is_apart and known is None:
            # Answers of another length take other seconds: those of the full route are decoded as any route's.
            known = full_answers(self.teacher, self.store, batch, reference, self.options.max_new_tokens)
        forced = self._forced_scores(batch, missing, prefilled, reference, answers)
        known = None if is_apart else known
        for route in missing:
            rows = self._rows(batch, route, prefilled, known, forced[route])
            self.store.write(self.plan.unit(batch, route), rows)
            advance(1)

    @property
    def _is_adapted(self) -> bool:
        return self.teacher is not self.runner

    def _running(self, depth: Depth) -> Runner:
        """What a depth runs on: the model as it is, or the untouched full model where the full route shall be that."""
        is_full = isinstance(depth, Route) and depth.is_full
        return self.teacher if self.options.full_untouched and is_full else self.runner

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
    ) -> dict[AnyDepth, list[dict[str, Any]]]:
        """Teacher-forced metrics of every route, a dictionary for each row of the batch."""
        scores: dict[AnyDepth, list[dict[str, Any]]] = {route: [{} for _ in batch] for route in routes}
        if "nll" in self.options.metrics:
            with_reference = [i for i, e in enumerate(batch) if e.reference_ids]
            self._score_references(batch, with_reference, routes, prefilled, scores)
        if self.options.compares and self.options.samples:
            self._score_sampled_fidelity(batch, routes, prefilled, reference, scores)
        elif self.options.compares and answers is not None:
            self._score_fidelity(batch, routes, prefilled, reference, answers, scores)
        return scores

    def _score_sampled_fidelity(
        self,
        batch: Sequence[EncodedExample],
        routes: Sequence[AnyDepth],
        prefilled: Prefill,
        reference: Prefill,
        scores: dict[AnyDepth, list[dict[str, Any]]],
    ) -> None:
        """KL and agreement on answers drawn from the full model, into the scores of every row: `by_sample`, one of each."""
        rows = self._repeated(range(len(batch)))
        repeated = [batch[i] for i in rows]
        prefilled, reference = self._repeat(prefilled, rows), self._repeat(reference, rows)
        drawn = self._sample(self.teacher, batch, rows, self.teacher.full, reference, self.options.fidelity_tokens)
        each: dict[AnyDepth, list[dict[str, float]]] = {route: [{} for _ in rows] for route in routes}
        self._score_fidelity(repeated, routes, prefilled, reference, drawn, each)
        for route in routes:
            for i, found in zip(rows, each[route], strict=True):
                scores[route][i].setdefault("by_sample", []).append(found)

    def _repeated(self, rows: Iterable[int]) -> list[int]:
        """Rows of the batch, each as often as it is sampled; repetitions stand together."""
        return [i for i in rows for _ in range(self.options.samples)]

    def _repeat(self, prefilled: Prefill, rows: Sequence[int]) -> Prefill:
        return prefilled.select(torch.tensor(rows, device=prefilled.input_ids.device))

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
            logits_of = self._logits(batch, self.teacher.full, rows, reference, texts, runner=self.teacher)
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
        runner: Runner | None = None,
    ) -> Iterable[tuple[int, torch.Tensor]]:
        """(row, logits of its own tokens) for some rows of the batch, a slice of them in memory at a time.

        `scores` are told what a token-wise depth ran, unless an earlier text has told them.
        """
        lengths = {i: len(text) for i, text in texts.items()}
        for members in row_slices(rows, lengths, prefilled.logits.shape[-1]):
            tokens, mask = right_padded([texts[i] for i in members], self.runner.pad_token_id, self.runner.device)
            ready = self._prefilled(batch, members, route, prefilled)
            depth = _for_batch(route, [batch[i].id for i in members])
            logits = forced_logits((runner or self._running(depth)).model, depth, ready, tokens, mask)
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
        forced: list[dict[str, Any]],
    ) -> list[dict[str, Any]]:
        rows: dict[int, list[dict[str, Any]]] = {}
        for one, members in self._groups(batch, route).items():
            generated = self._answers(batch, members, one, prefilled, answers) if self.options.generates else {}
            # The full model has answered wherever others are compared with it: so many steps does its answer take.
            one_is_full = isinstance(one, Route) and one.is_full and not self.options.samples
            for i in members:
                example = batch[i]
                about = {
                    "sequence_id": example.id,
                    **route_columns(one, route.name),
                    "prompt_tokens": len(example.prompt_ids),
                    "reference_tokens": len(example.reference_ids),
                }
                scores: dict[str, Any] = dict(forced[i])
                by_sample = scores.pop("by_sample", [{} for _ in range(self.options.samples or 1)])
                answered = generated.get(i, [{} for _ in by_sample])
                if i not in generated and one_is_full and answers is not None:
                    scores |= {"new_tokens": len(answers.tokens[i]), "finish_reason": answers.finish_reasons[i]}
                rows[i] = [
                    {**about, **scores, **fidelity, **answer, **({"sample": number} if self.options.samples else {})}
                    for number, (fidelity, answer) in enumerate(zip(by_sample, answered, strict=True))
                ]
        return [row for i in range(len(batch)) for row in rows[i]]

    def _answers(
        self, batch: Sequence[EncodedExample], members: list[int], route: Depth, prefilled: Prefill, full: Decoded | None
    ) -> dict[int, list[dict[str, Any]]]:
        """Scored answers of some rows of the batch: the greedy one of each, or all of its samples."""
        ready, rows = self._prefilled(batch, members, route, prefilled), members
        runner = self._running(route)
        if self.options.samples:
            rows = self._repeated(members)
            ready = self._repeat(ready, self._repeated(range(len(members))))
            decoded = self._sample(runner, batch, rows, route, ready, self.options.max_new_tokens)
        else:
            # The full model has answered already, where its answers are what others are compared with.
            known = full if route.is_full and len(members) == len(batch) else None
            depth = _for_batch(route, [batch[i].id for i in members])
            decoded = known or runner.decode(depth, ready, self.options.max_new_tokens)
        own = self._own_nll(runner, batch, rows, route, ready, decoded) if "answer_nll" in self.options.metrics else None
        answers: dict[int, list[dict[str, Any]]] = {i: [] for i in members}
        for place, (i, scored) in enumerate(zip(rows, self._score_answers(batch, rows, route, ready, decoded), strict=True)):
            answers[i].append(scored if own is None else {**scored, "answer_nll": own[place]})
        return answers

    def _sample(
        self, runner: Runner, batch: Sequence[EncodedExample], rows: list[int], route: Depth, repeated: Prefill, most: int
    ) -> Decoded:
        """An answer of at most `most` tokens for each of `rows`, whose repetitions stand together, numbered from 0."""
        numbered = self._numbered(batch, rows)
        chance = sweep_draws(self.plan.run.settings["seed"], numbered, route, most)
        depth = _for_batch(route, numbered)
        return runner.decode(depth, repeated, most, self.options.policy, chance)

    def _numbered(self, batch: Sequence[EncodedExample], rows: Sequence[int]) -> list[tuple[str, int]]:
        return [(batch[i].id, place % self.options.samples) for place, i in enumerate(rows)]

    def _own_nll(
        self,
        runner: Runner,
        batch: Sequence[EncodedExample],
        rows: Sequence[int],
        route: Depth,
        ready: Prefill,
        decoded: Decoded,
    ) -> list[float]:
        """Of each answer, under the depth that gave it: how sure it was of it."""
        texts = dict(enumerate(decoded.tokens))
        # A token-wise depth decides about an answer as it did when it wrote it.
        keys = self._numbered(batch, rows) if self.options.samples else [batch[i].id for i in rows]
        found: dict[int, float] = {}
        for members in row_slices(range(len(rows)), {i: len(t) for i, t in texts.items()}, ready.logits.shape[-1]):
            tokens, mask = right_padded([texts[i] for i in members], runner.pad_token_id, runner.device)
            depth = _for_batch(route, [keys[i] for i in members])
            logits = forced_logits(runner.model, depth, self._repeat(ready, members), tokens, mask)
            for i, of_one in zip(members, logits, strict=True):
                found[i] = nll(of_one[: len(texts[i])], torch.tensor(texts[i], device=of_one.device))
        return [found[i] for i in range(len(rows))]

    def _score_answers(
        self, batch: Sequence[EncodedExample], rows: list[int], route: Depth, ready: Prefill, decoded: Decoded
    ) -> list[dict[str, Any]]:
        """The columns of each answer; `rows` says which row of the batch it belongs to."""
        scored = []
        ran = decoded.ran or [None] * len(rows)
        answers = zip(rows, decoded.tokens, decoded.finish_reasons, ran, strict=True)
        for place, (i, tokens, reason, layers) in enumerate(answers):
            example, part = batch[i], decoded.part_of(place)
            answer = self.tokenizer.decode(tokens, skip_special_tokens=True)
            scores: dict[str, Any] = {}
            if example.reference is not None:
                scores = rouge(
                    answer,
                    example.references or example.reference,
                    use_stemmer=self.options.use_stemmer,
                    tokenizer=self.options.rouge_tokenizer,
                )
            scored.append(
                {
                    "batch_size": len(part.rows),
                    "batch_steps": part.steps,
                    "batch_decode_sec": part.decode_sec,
                    "batch_prefill_sec": ready.prefill_sec,
                    "step_sec": part.decode_sec / part.steps if part.steps else None,
                    "decode_sec": part.decode_sec / len(part.rows),
                    **scores,
                    **self._answer_cost(route, len(example.prompt_ids), len(tokens), layers),
                    "new_tokens": len(tokens),
                    "finish_reason": reason,
                    "answer_hash": hashlib.sha256(answer.encode(errors="surrogatepass")).hexdigest()[:16],
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
