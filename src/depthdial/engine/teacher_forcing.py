"""Teacher forcing: what a route predicts, and which hidden states it has, on a given continuation of each prompt.

The prompt has been prefilled (at full depth by default); only the continuation runs on the route, so a route of k layers
costs k layers. Token t of a continuation is predicted from the tokens before it, the first one by the prompt's own pass:
with a full prompt all routes agree there, as they do when generating (arXiv 2410.20022, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from depthdial.engine.prefill import Prefill, continue_on, continuing, prompt_inputs
from depthdial.engine.prefixes import SharedPrefixes
from depthdial.hf.architectures import accepts, decoder_stack, layer_states, unwrap
from depthdial.routes import Route
from depthdial.views.snapshot import as_is
from depthdial.views.tokens.depth import Depth
from depthdial.views.view import known_view

# Logits of one pass are kept under this size (0.13 GB in fp32): with a large vocabulary they outweigh everything else.
_MAX_LOGITS = 32_000_000


@dataclass(frozen=True)
class HiddenStates:
    """Hidden states of a teacher-forced pass over one batch.

    Attributes:
        states: the hidden states at the continuation's tokens, k+1 of (n_sequences, n_tokens, width): the route's input,
            then the output of each layer that ran, before the final norm.
        final: (n_sequences, n_tokens, width), after the final norm.
    """

    states: tuple[torch.Tensor, ...]
    final: torch.Tensor


@dataclass(frozen=True)
class Predictions:
    """The full model's predictions on one continuation, ready to be compared with many routes'.

    Attributes:
        log_probabilities, probabilities: (n_tokens, vocabulary), in fp32.
        greedy: (n_tokens,), the most likely tokens.
    """

    log_probabilities: torch.Tensor
    probabilities: torch.Tensor
    greedy: torch.Tensor

    @classmethod
    def of(cls, logits: torch.Tensor) -> Predictions:
        log_probabilities = logits.float().log_softmax(-1)
        return cls(log_probabilities, log_probabilities.exp(), logits.argmax(-1))

    def fidelity(self, logits: torch.Tensor) -> tuple[float, float]:
        """(KL(full || route) in nats, greedy agreement) of a route's logits, (n_tokens, vocabulary): means over tokens.

        At temperature 1. Exactly (0, 1) for the full model's own logits.
        """
        kl, agreed = self.compared(logits)
        return kl, agreed.float().mean().item()

    def compared(self, logits: torch.Tensor) -> tuple[float, torch.Tensor]:
        """The same KL, and (n_tokens,) which tokens a route would have chosen too."""
        difference = self.log_probabilities - logits.float().log_softmax(-1)
        with as_is(logits.device):  # autocast would multiply in half precision
            kl = torch.linalg.vecdot(self.probabilities, difference)
        # Rounding can leave the KL of nearly equal distributions at -1e-9.
        return kl.clamp(min=0).mean().item(), self.greedy == logits.argmax(-1)


def forced_logits(
    model: Any,
    route: Depth,
    prefilled: Prefill,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    prefixes: SharedPrefixes | None = None,
) -> torch.Tensor:
    """Logits that predict each of `tokens`, (n_sequences, n_tokens) and right-padded by `mask`, behind prefilled prompts.

    Args:
        prefixes: of this model, these prompts and these tokens: what other routes have computed of them.

    Returns:
        (n_sequences, n_tokens, vocabulary).
    """
    if tokens.shape[1] == 1:
        return prefilled.logits
    with as_is(tokens.device):
        if prefixes is None or not isinstance(route, Route):
            logits = continued_logits(model, route, prefilled, tokens, mask)
        else:  # the last token predicts nothing that is asked for
            few = (prefilled, tokens[:, :-1], mask[:, :-1])
            logits = prefixes.run(model, route, lambda view: _run(view, prefilled.cache_for(route), *few)).logits
    return torch.cat([prefilled.logits.to(logits), logits], dim=1)


def continued_logits(model: Any, route: Depth, prefilled: Prefill, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The same without those of the first token, (n_sequences, n_tokens - 1, vocabulary): what the route itself computes.

    Differentiable where gradients are enabled; there must be two tokens or more.
    """
    # The last token predicts nothing that is asked for.
    running, cache = continuing(model, route, prefilled)
    return _run(running, cache, prefilled, tokens[:, :-1], mask[:, :-1]).logits


def whole_logits(
    running: Any,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    response_ids: torch.Tensor,
    response_mask: torch.Tensor,
    **options: Any,
) -> torch.Tensor:
    """Logits that predict each of `response_ids`, (n_sequences, n_tokens, vocabulary), by one pass over prompt and response.

    Differentiable where gradients are enabled; `options` are further arguments of `running`.
    """
    output = _whole(running, prompt_ids, prompt_mask, response_ids, response_mask, **options)
    return output.logits[:, -response_ids.shape[1] :]


def routed_logits(
    model: Any,
    route: Route,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    prefixes: SharedPrefixes | None = None,
) -> torch.Tensor:
    """`forced_logits` where the prompt runs the route too, as a saved folder of the route runs it.

    Args:
        prompt_ids, prompt_mask: (n_sequences, n_prompt_tokens), left-padded.
        tokens, mask: (n_sequences, n_tokens), right-padded.
        prefixes: of this model, these prompts and these tokens, for passes of this kind alone.
    """
    given = (prompt_ids, prompt_mask, tokens, mask)
    with as_is(tokens.device):
        if prefixes is None:
            output = _whole(known_view(model, route), *given)
        else:
            output = prefixes.run(model, route, lambda view: _whole(view, *given))
    return output.logits[:, -tokens.shape[1] :]


def _whole(
    running: Any,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    response_ids: torch.Tensor,
    response_mask: torch.Tensor,
    **options: Any,
) -> Any:
    pairs = ((prompt_ids, response_ids), (prompt_mask, response_mask))
    ids, mask = (torch.cat([of_prompt, of_response[:, :-1]], dim=1) for of_prompt, of_response in pairs)
    inputs = prompt_inputs(unwrap(running), ids, mask)
    if "logits_to_keep" in inputs:
        inputs["logits_to_keep"] = response_ids.shape[1]
    return running(**inputs, use_cache=False, **options)


def forced_states(
    model: Any,
    route: Route,
    prefilled: Prefill,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    prefixes: SharedPrefixes | None = None,
) -> HiddenStates:
    """Hidden states at each of `tokens`, (n_sequences, n_tokens) and right-padded by `mask`, behind prefilled prompts.

    Args:
        prefixes: of this model, these prompts and these tokens: what other routes have computed of them.
    """
    last_layer: list[torch.Tensor] = []

    def forward(running: Any) -> Any:
        # The last of transformers' hidden states is after the final norm; the view's layers are its own to hook.
        hook = (
            decoder_stack(running).layers[-1].register_forward_hook(lambda _, __, out: last_layer.append(layer_states(out)))
        )
        options = {"logits_to_keep": 1} if accepts(running, "logits_to_keep") else {}
        with hook:
            return _run(running, prefilled.cache_for(route), prefilled, tokens, mask, output_hidden_states=True, **options)

    with as_is(tokens.device):
        output = forward(known_view(model, route)) if prefixes is None else prefixes.run(model, route, forward)
    return HiddenStates((*output.hidden_states[:-1], last_layer[0]), output.hidden_states[-1])


def _run(running: Any, cache: Any, prefilled: Prefill, tokens: torch.Tensor, mask: torch.Tensor, **options: Any) -> Any:
    return continue_on(running, cache, tokens, torch.cat([prefilled.attention_mask, mask], dim=1), **options)


def right_padded(rows: Sequence[Sequence[int]], pad_token_id: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, mask) of token lists, padded on the right to the longest."""
    width = max(map(len, rows))
    tokens = torch.tensor([[*row, *[pad_token_id] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return tokens, mask


def row_slices(rows: Sequence[int], lengths: Mapping[int, int], vocabulary: int) -> Iterator[list[int]]:
    """Rows of a batch in slices whose logits stay small, texts of like length together so that little is padded."""
    if not rows:
        return
    size = max(1, _MAX_LOGITS // max(1, max(lengths[i] for i in rows) * vocabulary))
    n_slices = -(-len(rows) // size)
    ordered = sorted(rows, key=lambda i: (lengths[i], i))
    for part in range(n_slices):
        yield ordered[part * len(rows) // n_slices : (part + 1) * len(rows) // n_slices]


def nll(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    """Mean negative log-likelihood in nats of `tokens`, (n_tokens,), under `logits`, (n_tokens, vocabulary)."""
    return torch.nn.functional.cross_entropy(logits.float(), tokens).item()


D = TypeVar("D", bound=Depth)


def by_route(routes: Sequence[D]) -> dict[D, list[int]]:
    """Rows of a batch by the route that each takes: one group for a fixed route, more for a random rule."""
    groups: dict[D, list[int]] = {}
    for row, route in enumerate(routes):
        groups.setdefault(route, []).append(row)
    return groups
