"""Similarity of a route's hidden states to the full model's (arXiv 2410.20022, Figures 1a, 4 and 5).

Teacher-forced over the response: cosine similarity of the final hidden states (after the final norm; the state before it
reported beside) and the mean over the intermediate ones, 1 <= l <= L-1. A layer that does not run leaves the state as it
is, so a route's states are repeated across the layers it skips. Beside the cosine, which saturates, KL and greedy
agreement on the full model's own greedy answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from depthdial.checks import whole
from depthdial.data.tasks import EncodedExample, Task, as_task
from depthdial.engine.depth import Depth, TokenwiseDepth
from depthdial.engine.prefixes import SharedPrefixes
from depthdial.engine.session import FIDELITY_TOKENS
from depthdial.engine.teacher_forcing import HiddenStates, forced_states, right_padded, row_slices
from depthdial.errors import InputError
from depthdial.measure.plan import ModelIdentity, Routes, cut, make_plan, route_columns
from depthdial.measure.references import Reference
from depthdial.measure.scoring import Lane, Scores, Subject, Texts, fidelity_scores
from depthdial.progress import progress_bar
from depthdial.routes import FAMILIES, AnyRoute, Route, family_routes
from depthdial.rows.store import SIMILARITY_COLUMNS, UnitStore
from depthdial.views.snapshot import as_is


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
    reference: Reference | None = None,
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
        reference: the model without its adapters, and what it has said to earlier callers.

    Returns:
        One row for each (sequence, route); the columns are `SIMILARITY_COLUMNS` and the provenance.

    Raises:
        InputError: for bad arguments; for numbers that are not finite, with all finished rows kept.

    Example:
        >>> table = dd.similarity(model, tokenizer, task=task, routes=["uls:50%", "ee:3"])
        >>> table.num_rows
        8
    """
    whole("batch_size", batch_size, 1)
    whole("fidelity_tokens", fidelity_tokens, 1)
    reference = Reference.of(model, tokenizer, reference)
    session = reference.session_of(model, tokenizer)
    settings = {
        "kind": "similarity",
        "batch_size": batch_size,
        "response_tokens": max_response_tokens,
        "fidelity_tokens": fidelity_tokens,
    }
    plan = make_plan(
        model,
        tokenizer,
        as_task(task),
        all_families(session.n_layers) if routes is None else routes,
        prompt_depth="full",
        identity=identity,
        settings=settings,
        answer_tokens=fidelity_tokens,
        allow_searched_rows=allow_searched_rows,
        session=session,
    )
    if any(isinstance(depth, TokenwiseDepth) for depth in plan.depths):
        raise InputError(
            "Similarity compares the hidden states of routes, which a token-wise depth does not have: sweep it instead."
        )
    store = UnitStore(plan.run, SIMILARITY_COLUMNS, None if out is None else Path(out))
    batches, subject = session.batches(plan.examples, batch_size), Subject(session, reference, plan.asked)
    with progress_bar("similarity", len(batches) * len(plan.depths), show=progress) as advance:
        for batch in batches:
            missing = plan.missing(store, batch)
            advance(len(plan.depths) - len(missing))
            if missing:
                rows = _compare(subject, batch, missing, store, max_response_tokens, fidelity_tokens)
                for depth in missing:
                    store.write(plan.unit(batch, depth), rows[depth])
                    advance(1)
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


def _compare(
    subject: Subject,
    batch: Sequence[EncodedExample],
    depths: Sequence[Depth],
    store: UnitStore,
    response_tokens: int | None,
    fidelity_tokens: int,
) -> dict[Depth, list[dict[str, Any]]]:
    """Rows of a batch at every depth."""
    prompts = subject.prompts(batch)
    compared = subject.compared(batch) if subject.is_apart else prompts
    teacher, lanes = subject.teacher(compared), {depth: subject.lane(depth, prompts) for depth in depths}
    answers = dict(enumerate(subject.reference.answers(batch, compared.prefilled, fidelity_tokens, store).tokens))
    responses = {i: cut(e.reference_ids or answers[i], response_tokens) for i, e in enumerate(batch)}
    fidelity, closeness = fidelity_scores(teacher, lanes, answers), _state_scores(teacher, lanes, responses)
    return {
        depth: [
            {
                "sequence_id": example.id,
                **route_columns(lane.routes[i], depth.name),
                "response_tokens": len(responses[i]),
                **closeness[depth][i],
                **{name: value for name, value in fidelity[depth][i].items() if name in SIMILARITY_COLUMNS},
            }
            for i, example in enumerate(batch)
        ]
        for depth, lane in lanes.items()
    }


def _state_scores(teacher: Lane, lanes: dict[Depth, Lane], texts: Texts) -> dict[Depth, Scores]:
    """Cosines of every lane's hidden states with the reference's, on texts of all rows; means over tokens."""
    found: dict[Depth, Scores] = {depth: {} for depth in lanes}
    lengths, full = {i: len(text) for i, text in texts.items()}, teacher.routes[0]
    for rows in row_slices(range(len(texts)), lengths, teacher.vocabulary):
        prefixes = SharedPrefixes()
        base = _states(teacher, full, rows, texts, prefixes)
        for depth, lane in lanes.items():
            for route, members in lane.groups.items():
                assert isinstance(route, Route)  # token-wise depths were refused
                members = [i for i in rows if i in set(members)]
                if not members:
                    continue
                shallow = _states(lane, route, members, texts, prefixes)
                means = cosines(_select(base, [rows.index(i) for i in members], shallow), shallow, route)
                for place, i in enumerate(members):
                    final, pre_norm, inner = (tokens[place, : lengths[i]].mean().item() for tokens in means)
                    found[depth][i] = {
                        "cosine_final": final,
                        "cosine_pre_norm": pre_norm,
                        "cosine_intermediate": inner if route.n_layers > 1 else None,
                    }
    return found


def _states(lane: Lane, route: Any, rows: Sequence[int], texts: Texts, prefixes: SharedPrefixes) -> HiddenStates:
    session = lane.running(route)
    tokens, mask = right_padded([texts[i] for i in rows], session.pad_token_id, session.device)
    shared = lane.shared(prefixes, route, rows)
    return forced_states(session.model, route, lane.ready(route, rows), tokens, mask, shared)


def _select(full: HiddenStates, places: list[int], like: HiddenStates) -> HiddenStates:
    """Some sequences of a pass, cut to as many tokens as `like` has."""
    width = like.final.shape[1]
    states = tuple(state[places, :width] for state in full.states)
    return HiddenStates(states, full.final[places, :width])
