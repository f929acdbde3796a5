"""Likelihoods of continuations behind their contexts, at any depth.

Two ways (`prompt_depth`), which differ in what predicts the first token of a continuation:

| way     | context                              | continuation                                                             |
| ------- | ------------------------------------ | ------------------------------------------------------------------------ |
| `route` | on the depth                         | on the depth; so an exported folder scores it                            |
| `full`  | every layer, with a cache            | first token by the context's own pass, the rest on the depth behind it   |

With `full`, a continuation of one token is therefore scored by the full model, whatever the depth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from depthdial.engine.depth import Asked, Assignment, Batch, Depth, LosslessDepth, RouteDepth, TokenwiseDepth
from depthdial.engine.prefill import Prefill
from depthdial.engine.session import Session
from depthdial.engine.teacher_forcing import forced_logits, right_padded
from depthdial.routes import Route
from depthdial.views.snapshot import as_is
from depthdial.views.tokens.depth import Depth as Running
from depthdial.views.tokens.depth import TokenDepth
from depthdial.views.tokens.policy import sequence_key
from depthdial.views.tokens.view import TokenTrace, token_view
from depthdial.views.view import known_view


@dataclass(frozen=True)
class Continuation:
    """Tokens to score behind a context of at least one token; together with it at most one more than the model's context."""

    context: tuple[int, ...]
    tokens: tuple[int, ...]

    @property
    def read(self) -> tuple[int, ...]:
        """What a pass over both reads: the last token predicts nothing that is asked for."""
        return self.context + self.tokens[:-1]


@dataclass(frozen=True)
class Likelihood:
    """The score of a continuation.

    Attributes:
        log_likelihood: of all of its tokens together, in nats.
        is_greedy: whether each of them is the likeliest one.
        layers: that ran for the passes which predict its tokens, in the mean over them.
    """

    log_likelihood: float
    is_greedy: bool
    layers: float


@dataclass(frozen=True)
class Standing:
    """A depth that does not depend on the prompt: what runs, and on what."""

    session: Session
    running: Running


def standing(session: Session, depth: Depth) -> Standing | None:
    """What runs for every prompt; None for random rules and for controllers, which decide for each."""
    if isinstance(depth, RouteDepth):
        return Standing(session, depth.route) if isinstance(depth.route, Route) else None
    if not isinstance(depth, LosslessDepth | TokenwiseDepth):
        return None
    # Of one token: what it is asked for are the weights and the policy.
    assigned = depth.assign(session, Batch([[session.pad_token_id]], [0]), Asked("full"))
    return Standing(assigned.running(session, assigned.routes[0]), assigned.routes[0])


@dataclass(frozen=True)
class Scorer:
    """Scores continuations at one depth.

    Attributes:
        session: of the model, without packed weights, so that scores are those of the saved view.
        asked: what the depth is asked beside the prompts.
    """

    session: Session
    depth: Depth
    asked: Asked

    def score(self, batch: Sequence[Continuation], prompt_depth: str) -> list[Likelihood]:
        """The likelihoods of a batch, in order.

        Args:
            prompt_depth: `route` or `full`.
        """
        contexts = list(dict.fromkeys(one.context for one in batch))
        given = Batch(contexts, [sequence_key(context) for context in contexts])
        found: dict[int, Likelihood] = {}
        with as_is(self.session.device):
            assignment = self._assigned(given, prompt_depth)
            for session, running, members in _together(assignment, self.session):
                kept = [place for place, one in enumerate(batch) if contexts.index(one.context) in members]
                rows = [batch[place] for place in kept]
                if prompt_depth == "full":
                    ready = assignment.prefilled(session, given, members, running)
                    scores = _behind(session, running, ready, [contexts[i] for i in members], rows)
                else:
                    scores = _whole(session, running, rows)
                found |= dict(zip(kept, scores, strict=True))
        return [found[place] for place in range(len(batch))]

    def _assigned(self, given: Batch, prompt_depth: str) -> Assignment:
        fixed = standing(self.session, self.depth) if prompt_depth == "route" else None
        if fixed is not None:
            return Assignment((fixed.running,) * len(given.ids), None, session=fixed.session)
        return self.depth.assign(self.session, given, self.asked)


def _together(assignment: Assignment, session: Session) -> Iterator[tuple[Session, Running, list[int]]]:
    """Contexts that run the same on the same weights: (what they run on, what runs, their places)."""
    groups: dict[Any, tuple[Session, Running, list[int]]] = {}
    for place, route in enumerate(assignment.routes):
        own = assignment.running(session, route)
        groups.setdefault((id(own.model), route), (own, route, []))[2].append(place)
    yield from groups.values()


def _behind(
    session: Session,
    running: Running,
    ready: Prefill,
    contexts: Sequence[tuple[int, ...]],
    rows: Sequence[Continuation],
) -> list[Likelihood]:
    """Continuations behind the passes over their contexts."""
    places = torch.tensor([contexts.index(row.context) for row in rows], device=session.device)
    if isinstance(running, TokenDepth):
        running = running.for_batch(row.context for row in rows)
    tokens, mask = right_padded([row.tokens for row in rows], session.pad_token_id, session.device)
    logits = forced_logits(session.model, running, ready.select(places), tokens, mask)
    lengths = [len(row.tokens) for row in rows]
    # The first token comes out of the context's pass, which ran every layer.
    behind = running.mean_layers([n - 1 for n in lengths]) if isinstance(running, TokenDepth) else None
    each = [running.cost_layers] * len(rows) if isinstance(running, Route) else [one or 0.0 for one in behind or ()]
    first = ready.route.cost_layers
    layers = [(first + (n - 1) * one) / n for n, one in zip(lengths, each, strict=True)]
    return [_scored(one[:n], row.tokens, ran) for one, n, row, ran in zip(logits, lengths, rows, layers, strict=True)]


def _whole(session: Session, running: Running, rows: Sequence[Continuation]) -> list[Likelihood]:
    """Contexts and continuations in one pass, padded on the right, where causal attention does not see it."""
    ids, mask = right_padded([row.read for row in rows], session.pad_token_id, session.device)
    layers: list[float]
    if isinstance(running, Route):
        logits = known_view(session.model, running)(input_ids=ids).logits
        layers = [running.cost_layers] * len(rows)
    else:
        trace = TokenTrace()
        model = token_view(
            session.model,
            running.policy,
            key_values=running.key_values,
            prompt_depth="route",
            keys=[sequence_key(row.context) for row in rows],
            trace=trace,
        )
        logits = model(input_ids=ids, attention_mask=mask).logits
        layers = [
            counts[len(row.context) - 1 : len(row.read)].double().mean().item()
            for counts, row in zip(trace.layers_run(), rows, strict=True)
        ]
    return [
        _scored(one[len(row.context) - 1 : len(row.read)], row.tokens, ran)
        for one, row, ran in zip(logits, rows, layers, strict=True)
    ]


def _scored(logits: torch.Tensor, tokens: Sequence[int], layers: float) -> Likelihood:
    """Of (n_tokens, vocabulary) logits that predict `tokens`."""
    wanted = torch.tensor(tokens, device=logits.device)
    told = logits.log_softmax(-1).gather(1, wanted[:, None])
    return Likelihood(float(told.sum()), bool((logits.argmax(-1) == wanted).all()), layers)
