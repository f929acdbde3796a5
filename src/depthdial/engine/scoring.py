"""What an engine says about given tokens without generating any: their log-probabilities on a depth, and how closely an
answer's depth follows the full model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from depthdial.engine.depth import Asked, Batch, Depth, RouteDepth
from depthdial.engine.generation import Generation
from depthdial.engine.logprobs import TokenLogprob, read_logprobs
from depthdial.engine.prefill import continue_on, continuing
from depthdial.engine.session import Session
from depthdial.engine.teacher_forcing import Predictions, forced_logits
from depthdial.hf.cache_name import cache_of
from depthdial.routes import Route
from depthdial.views.tokens.depth import Depth as Running
from depthdial.views.view import known_view

_CHUNK_TOKENS = 256  # of a text in one pass: logits of a large vocabulary outweigh everything else


@dataclass(frozen=True)
class ScoredText:
    """The log-probabilities of a text's tokens.

    Attributes:
        tokens: all of its tokens.
        logprobs: one for each; None for the first, which nothing stands before.
        route: what ran for all of them.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob | None, ...]
    route: Running


@dataclass(frozen=True)
class Fidelity:
    """How closely a depth follows the full model without adapters, on the tokens of an answer and behind its prompt.

    Attributes:
        agreement: share of positions at which both would choose the same token.
        kl: KL(full || depth) in nats, mean over positions.
        n_tokens: positions that were compared.
    """

    agreement: float
    kl: float
    n_tokens: int


def score_text(session: Session, ids: Sequence[int], depth: Depth, about: Asked, key: int, n_top: int) -> ScoredText:
    """Log-probabilities of the tokens of a text, all of which run on the depth, the first ones too.

    With the prompt at full depth, the first token behind it would be scored by the full model, whatever the depth.

    Args:
        key: by which random rules draw.
        n_top: how many likeliest tokens to tell at each position.
    """
    if isinstance(depth, RouteDepth):
        route: Running = depth.route.for_sequence(key)
        running = session
    else:
        assigned = depth.assign(session, Batch([tuple(ids)], [key]), about)
        route = assigned.routes[0]
        running = assigned.running(session, route)
    found: list[TokenLogprob | None] = [None, *(_scored(running, ids, route, n_top) if len(ids) > 1 else ())]
    return ScoredText(tuple(ids), tuple(found), route)


def _scored(session: Session, ids: Sequence[int], route: Running, n_top: int) -> list[TokenLogprob]:
    tokens = torch.tensor([list(ids)], device=session.device)
    found: list[TokenLogprob] = []
    cache: Any = None
    if isinstance(route, Route):
        model, begin = known_view(session.model, route), 0
    else:  # tokens are routed behind a prompt: the first one
        first = session.prefill_ids([ids[:1]])
        found += read_logprobs(first.logits[0], tokens[0, 1:2], n_top)
        model, cache = continuing(session.model, route, first)
        begin = 1
    for start in range(begin, len(ids) - 1, _CHUNK_TOKENS):
        end = min(start + _CHUNK_TOKENS, len(ids) - 1)
        mask = torch.ones(1, end, dtype=torch.long, device=session.device)
        output = continue_on(model, cache, tokens[:, start:end], mask)
        cache = cache_of(output)
        found += read_logprobs(output.logits[0], tokens[0, start + 1 : end + 1], n_top)
    return found


def fidelity_of(
    session: Session, prompt_ids: Sequence[int], answer: Generation, full_untouched: bool = False, most_tokens: int = 256
) -> Fidelity:
    """Teacher-force an answer through the full model and through its own route, and compare them token by token.

    The prompt runs at full depth for both, so that they agree on the first token by construction.

    Args:
        session: that the answer was made on.
        full_untouched: whether an answer on the full route ran without adapters, as a controller's does.
        most_tokens: of the answer that are compared; later ones are left out.
    """
    tokens = torch.tensor([answer.tokens[:most_tokens]], device=session.device)
    mask, n_tokens = torch.ones_like(tokens), tokens.shape[1]
    untouched = session.untouched
    own = untouched if full_untouched and answer.route.is_full else session
    if own is untouched and answer.route.is_full:
        return Fidelity(1.0, 0.0, n_tokens)
    prefilled = session.prefill_ids([prompt_ids])
    base = prefilled if untouched is session else untouched.prefill_ids([prompt_ids])
    full = forced_logits(untouched.model, session.full, base, tokens, mask)[0]
    route = answer.route if isinstance(answer.route, Route) else replace(answer.route, trace=None)
    kl, agreed = Predictions.of(full).compared(forced_logits(own.model, route, prefilled, tokens, mask)[0])
    return Fidelity(agreed.float().mean().item(), kl, n_tokens)
