"""Similarity of a route's hidden states to the full model's (arXiv 2410.20022, Figures 1a, 4 and 5).

Teacher-forced over the response: cosine similarity of the final hidden states (after the final norm; the state before it
reported beside) and the mean over the intermediate ones, 1 <= l <= L-1. A layer that does not run leaves the state as it
is, so a route's states are repeated across the layers it skips. Beside the cosine, which saturates, KL and greedy
agreement on the full model's own greedy answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import torch

from depthdial.checks import whole
from depthdial.data.leakage import require_unsearched
from depthdial.data.tasks import EncodedExample, Task, as_task
from depthdial.engine.prefill import Prefill
from depthdial.engine.session import FIDELITY_TOKENS, Runner
from depthdial.engine.teacher_forcing import (
    HiddenStates,
    Predictions,
    by_route,
    forced_logits,
    forced_states,
    right_padded,
    row_slices,
)
from depthdial.errors import InputError
from depthdial.hf.adapter import warn_if_outside
from depthdial.measure.answers import full_answers, reference_prefill
from depthdial.measure.plan import ModelIdentity, Plan, Routes, cut, make_plan, route_columns
from depthdial.progress import progress_bar
from depthdial.routes import FAMILIES, AnyRoute, Route, family_routes
from depthdial.rows.store import SIMILARITY_COLUMNS, UnitStore
from depthdial.views.snapshot import as_is
from depthdial.views.tokens.depth import TokenDepth


def similarity(
    model: Any,
    tokenizer: Any,
    *,
    task: Task,
    routes: Routes | None = None,
    out: Path | str | None = None,
    batch_size: int = 8,
    max_response_tokens: int | None = None,
    fidelity_tokens: int = FIDELITY_TOKENS,
    allow_searched_rows: bool = False,
    identity: ModelIdentity | None = None,
    progress: bool = False,
) -> pa.Table:
    """Compare every route's hidden states and predictions with the full model's, sequence by sequence.

    The prompt runs at full depth. The response is the reference where there is one, else the full model's own answer.
    The full model's states are computed once a batch; all routes stream past them, so memory is bounded by a batch. Of a
    model with adapters every route runs with them, and the full model is the untouched one, without them.

    Args:
        routes: default: every cost of early exit, ULS, RLS, RLS without layer 1, and unified.
        batch_size: sequences run together.
        max_response_tokens: most tokens of the reference that are used.
        fidelity_tokens: most tokens of the full model's answer that KL and agreement are taken on.
        allow_searched_rows: also measure on rows that routes were searched on, or the model trained on: it flatters them.

    Returns:
        One row for each (sequence, route); the columns are `SIMILARITY_COLUMNS` and the provenance.

    Raises:
        InputError: for bad arguments; for numbers that are not finite, with all finished rows kept.
    """
    whole("batch_size", batch_size, 1)
    whole("fidelity_tokens", fidelity_tokens, 1)
    n_layers = Runner.of(model, tokenizer).n_layers
    chosen = all_families(n_layers) if routes is None else routes
    settings = {
        "kind": "similarity",
        "batch_size": batch_size,
        "response_tokens": max_response_tokens,
        "fidelity_tokens": fidelity_tokens,
    }
    common: dict[str, Any] = {
        "prompt_depth": "full",
        "identity": identity,
        "settings": settings,
        "answer_tokens": fidelity_tokens,
    }
    task = as_task(task)
    plan = make_plan(model, tokenizer, task, chosen, **common)
    if not allow_searched_rows:
        require_unsearched(task, plan.routes, model)
    for route in plan.routes:
        if isinstance(route, TokenDepth):
            raise InputError("Similarity compares routes, and a token-wise depth is not a route: sweep it instead.")
        warn_if_outside(model, route)
    store = UnitStore(plan.run, SIMILARITY_COLUMNS, None if out is None else Path(out))
    batches = plan.runner.batches(plan.examples, batch_size)
    job = _Similarity(plan, store, max_response_tokens, fidelity_tokens)
    with progress_bar("similarity", len(batches) * len(plan.routes), show=progress) as advance:
        for batch in batches:
            job.run(batch, advance)
    return store.collect(plan.units(batches), keep_others=True)


def all_families(n_layers: int) -> list[AnyRoute]:
    """Every cost of every family, without routes that two families share."""
    return list(dict.fromkeys(route for name in FAMILIES for route in family_routes(name, n_layers)))


def cosines(full: HiddenStates, shallow: HiddenStates, route: Route) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cosine similarities, each (n_sequences, n_tokens): final, final before the norm, mean over intermediate states."""
    final = _cosine(full.final, shallow.final)
    pre_norm = _cosine(full.states[-1], shallow.states[-1])
    inner = range(1, route.n_layers)
    if not inner:
        return final, pre_norm, torch.full_like(final, torch.nan)
    total = torch.zeros_like(final)
    for level in inner:
        executed = sum(layer < level for layer in route.layers)
        total += _cosine(full.states[level], shallow.states[executed])
    return final, pre_norm, total / len(inner)


def _cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    with as_is(a.device):
        return torch.nn.functional.cosine_similarity(a.float(), b.float(), dim=-1)


T = TypeVar("T")


@dataclass(frozen=True)
class _Prompts:
    """A batch's prompts behind the full model as it is, and behind the untouched one, which is the same without adapters."""

    measured: Prefill
    reference: Prefill


@dataclass(frozen=True)
class _Texts:
    """Token ids by row of the batch: responses for the hidden states, the full model's answers for KL and agreement."""

    responses: Sequence[Sequence[int]]
    answers: Sequence[Sequence[int]]


@dataclass(frozen=True)
class _Similarity:
    plan: Plan
    store: UnitStore
    max_response_tokens: int | None
    fidelity_tokens: int

    def run(self, batch: Sequence[EncodedExample], advance: Any) -> None:
        missing = [route for route in self.plan.missing(self.store, batch) if not isinstance(route, TokenDepth)]
        advance(len(self.plan.routes) - len(missing))
        if not missing:
            return
        runner = self.plan.runner
        prefilled = runner.prefill(batch)
        prompts = _Prompts(prefilled, reference_prefill(runner, batch, prefilled))
        answers = full_answers(runner, self.store, batch, prompts.reference, self.fidelity_tokens).tokens
        responses = [cut(e.reference_ids or answers[i], self.max_response_tokens) for i, e in enumerate(batch)]
        rows: dict[AnyRoute, dict[int, dict[str, Any]]] = {route: {} for route in missing}
        lengths = {i: max(len(responses[i]), len(answers[i])) for i in range(len(batch))}
        for members in row_slices(range(len(batch)), lengths, prefilled.logits.shape[-1]):
            self._compare(batch, members, missing, prompts, _Texts(responses, answers), rows)
        for route in missing:
            self.store.write(
                self.plan.unit(batch, route), [self._row(e, route, rows[route][i]) for i, e in enumerate(batch)]
            )
            advance(1)

    def _row(self, example: EncodedExample, route: AnyRoute, scores: dict[str, Any]) -> dict[str, Any]:
        one = route.for_sequence(example.id)
        return {"sequence_id": example.id, **route_columns(one, route.name), **scores}

    def _compare(
        self,
        batch: Sequence[EncodedExample],
        members: list[int],
        routes: Sequence[AnyRoute],
        prompts: _Prompts,
        texts: _Texts,
        rows: dict[AnyRoute, dict[int, dict[str, Any]]],
    ) -> None:
        """Fill in the scores of some rows of the batch, on every route."""
        runner = self.plan.runner
        full, teacher = runner.full, runner.untouched
        base = self._forced(teacher, forced_states, members, full, prompts.reference, texts.responses)
        base_logits = self._forced(teacher, forced_logits, members, full, prompts.reference, texts.answers)
        predictions = [Predictions.of(base_logits[p, : len(texts.answers[i])]) for p, i in enumerate(members)]
        for route in routes:
            for one, places in by_route([route.for_sequence(batch[i].id) for i in members]).items():
                group = [members[place] for place in places]
                shallow = self._forced(runner, forced_states, group, one, prompts.measured, texts.responses)
                closeness = cosines(_select(base, places, shallow), shallow, one)
                logits = self._forced(runner, forced_logits, group, one, prompts.measured, texts.answers)
                for j, (place, i) in enumerate(zip(places, group, strict=True)):
                    n_tokens, n_answer = len(texts.responses[i]), len(texts.answers[i])
                    means = [tokens[j, :n_tokens].mean().item() for tokens in closeness]
                    kl, agreement = predictions[place].fidelity(logits[j, :n_answer])
                    rows[route][i] = {
                        "response_tokens": n_tokens,
                        "cosine_final": means[0],
                        "cosine_pre_norm": means[1],
                        "cosine_intermediate": means[2] if one.n_layers > 1 else None,
                        "kl": kl,
                        "agreement": agreement,
                    }

    def _forced(
        self,
        runner: Runner,
        what: Callable[..., T],
        members: list[int],
        route: Route,
        prefilled: Prefill,
        texts: Sequence[Sequence[int]],
    ) -> T:
        tokens, mask = right_padded([texts[i] for i in members], runner.pad_token_id, runner.device)
        ready = prefilled.select(torch.tensor(members, device=runner.device))
        return what(runner.model, route, ready, tokens, mask)


def _select(full: HiddenStates, places: list[int], like: HiddenStates) -> HiddenStates:
    """Some sequences of a pass, cut to as many tokens as `like` has."""
    width = like.final.shape[1]
    states = tuple(state[places, :width] for state in full.states)
    return HiddenStates(states, full.final[places, :width])
