"""Full prefill, shallow decoding: one pass over a batch of prompts, which any number of routes continue on.

In all of the paper's experiments only response tokens follow the route (arXiv 2410.20022, section 3): the prompt, and so
the first generated token, goes through every layer, and the layers that later run find the prompt's true keys and values.
A view continues on a cache made of the full cache's layers at its route's indices, so one prefill serves any number of
routes, whose caches share its tensors until they grow.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch

from depthdial.engine.pooling import PooledStates, Pooling
from depthdial.errors import InputError
from depthdial.hf.architectures import accepts, count_layers, unwrap
from depthdial.hf.cache_name import cache_argument, cache_of
from depthdial.routes import Route
from depthdial.views.cache import mark
from depthdial.views.passes import positions
from depthdial.views.tokens.cache import token_cache
from depthdial.views.tokens.depth import Depth, TokenDepth
from depthdial.views.view import known_view, quiet_view

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache


@dataclass(frozen=True)
class Prefill:
    """A batch of prompts after one pass through a model.

    Attributes:
        input_ids, attention_mask: (n_sequences, n_tokens), left-padded.
        cache: keys and values of the prompt, one layer for each that ran.
        logits: (n_sequences, 1, vocabulary), those of the first response token.
        route: the layers that ran; their entries in `cache` are in this order.
        prefill_sec: measured seconds of the pass, for the whole batch.
        pooled: hidden states after the layers that were watched, pooled over each prompt; None where none was.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    cache: Cache
    logits: torch.Tensor
    route: Route
    prefill_sec: float
    pooled: PooledStates | None = None

    @property
    def n_sequences(self) -> int:
        return self.input_ids.shape[0]

    def select(self, rows: torch.Tensor) -> Prefill:
        """The same for some of the sequences; `rows` are their indices. The whole batch costs no copy."""
        if rows.tolist() == list(range(self.n_sequences)):
            return self
        cache = _fork(self.cache, range(len(self.cache.layers)))
        cache.batch_select_indices(rows)
        return replace(
            self,
            input_ids=self.input_ids[rows],
            attention_mask=self.attention_mask[rows],
            cache=cache,
            logits=self.logits[rows],
            pooled=None if self.pooled is None else self.pooled.select(rows),
        )

    def require_layers(self, route: Route) -> None:
        """InputError if a layer of `route` did not see the prompt."""
        missing = next((layer for layer in route.layers if layer not in self.route.layers), None)
        if missing is not None:
            raise InputError(
                f"Layer {missing} of route {route.name!r} did not see the prompt, which ran {self.route.name!r}: "
                "run the prompt at full depth or through the same route."
            )

    def cache_for(self, route: Route) -> Cache:
        """A cache of `route`'s layers for a view to continue on; this prefill stays as it is.

        Raises:
            InputError: if a layer of `route` did not see the prompt.
        """
        self.require_layers(route)
        place = {layer: i for i, layer in enumerate(self.route.layers)}
        cache = _fork(self.cache, [place[layer] for layer in route.layers])
        mark(cache, route.layers, self.input_ids.shape[1] if self.route.is_full else 0)
        return cache


def prefill(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    route: Route | None = None,
    *,
    with_gradient: bool = False,
    watch: Sequence[int] = (),
    chunk_tokens: int | None = None,
) -> Prefill:
    """Run a left-padded batch of prompts, (n_sequences, n_tokens), through `route` of the model (default: every layer).

    Args:
        with_gradient: let what continues on it be differentiated through the prompt too.
        watch: layers of the route, 0-based, after which the prompt's hidden states are pooled on the way.
        chunk_tokens: largest number of columns in a pass, for less memory.
    """
    base = unwrap(model)
    n_layers = count_layers(base)
    route = route or Route(tuple(range(n_layers)), n_layers, "full")
    inputs = prompt_inputs(base, input_ids, attention_mask)
    running = base if route.is_full and not watch else quiet_view(model, route)
    pooling = Pooling(running, route.layers, watch, attention_mask) if watch else None
    started = clock_sec(input_ids.device)
    with torch.set_grad_enabled(with_gradient):
        if not chunk_tokens:
            output = running(**inputs, use_cache=True)
        else:
            output, parts = cast(Any, None), _Parts(running, input_ids, attention_mask)
            while not parts.is_over:
                output = parts.advance(chunk_tokens)
    prefill_sec = clock_sec(input_ids.device) - started
    pooled = None if pooling is None else pooling.states()
    return Prefill(input_ids, attention_mask, cache_of(output), output.logits[:, -1:], route, prefill_sec, pooled)


def continuing(model: Any, depth: Depth, prefilled: Prefill) -> tuple[PreTrainedModel, Cache]:
    """A model of this depth, and a cache of prefilled prompts for it to continue on.

    Raises:
        InputError: if a layer that may run did not see the prompt.
    """
    if isinstance(depth, TokenDepth):
        if not prefilled.route.is_full:
            raise InputError(
                f"Token routing continues on a prompt that ran every layer, not on one of route {prefilled.route.name!r}: "
                "prefill at full depth."
            )
        return depth.view(model), token_cache(depth.n_layers, prefilled.cache)
    return known_view(model, depth), prefilled.cache_for(depth)


class PrefillInParts:
    """A prefill that is made in parts, between which the caller does something else.

    Args:
        input_ids, attention_mask: (n_sequences, n_tokens), left-padded.
        route: of the model (default: every layer).
        watch: layers of the route after which hidden states are pooled on the way.

    Example:
        >>> parts = PrefillInParts(model, torch.tensor([[5, 6, 7, 8]]), torch.ones(1, 4, dtype=torch.long))
        >>> parts.advance(3) is None, parts.remaining_tokens
        (True, 1)
        >>> parts.advance(3).logits.shape
        torch.Size([1, 1, 30])
    """

    def __init__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        route: Route | None = None,
        watch: Sequence[int] = (),
    ) -> None:
        base = unwrap(model)
        n_layers = count_layers(base)
        self._route = route or Route(tuple(range(n_layers)), n_layers, "full")
        running = base if self._route.is_full and not watch else quiet_view(model, self._route)
        self._pooling = Pooling(running, self._route.layers, watch, attention_mask) if watch else None
        self._parts = _Parts(running, input_ids, attention_mask)
        self._sec = 0.0

    @property
    def remaining_tokens(self) -> int:
        """Columns that have not run yet."""
        return self._parts.remaining_tokens

    def advance(self, n_tokens: int) -> Prefill | None:
        """Run at most so many further columns; the whole once they all have run, and None before."""
        started = clock_sec(self._parts.ids.device)
        output = self._parts.advance(n_tokens)
        self._sec += clock_sec(self._parts.ids.device) - started
        if not self._parts.is_over:
            return None
        pooled = None if self._pooling is None else self._pooling.states()
        logits = output.logits[:, -1:]
        return Prefill(self._parts.ids, self._parts.mask, cache_of(output), logits, self._route, self._sec, pooled)


class _Parts:
    """A pass over prompts, some columns at a time."""

    def __init__(self, running: Any, ids: torch.Tensor, mask: torch.Tensor) -> None:
        self.ids, self.mask = ids, mask
        self._running, self._cache, self._done = running, None, 0

    @property
    def remaining_tokens(self) -> int:
        return self.ids.shape[1] - self._done

    @property
    def is_over(self) -> bool:
        return self.remaining_tokens == 0

    def advance(self, n_tokens: int) -> Any:
        """The model's output for the next columns."""
        start, end = self._done, min(self._done + n_tokens, self.ids.shape[1])
        part = prompt_inputs(self._running, self.ids[:, start:end], self.mask[:, :end])
        if "position_ids" in part:
            part["position_ids"] = part["position_ids"][:, start:]
        cache = {} if self._cache is None else cache_argument(self._running, self._cache)
        output = self._running(**part, **cache, use_cache=True)
        self._cache, self._done = cache_of(output), end
        return output


def continue_on(running: Any, cache: Any, tokens: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> Any:
    """The output of one pass over `tokens`, (n_sequences, n_tokens), behind what the cache holds.

    Args:
        attention_mask: (n_sequences, cached + n_tokens), 0 for padding.
        options: further arguments of the model's forward.
    """
    inputs: dict[str, Any] = {"input_ids": tokens, "attention_mask": attention_mask}
    if accepts(running, "position_ids"):
        inputs["position_ids"] = positions(attention_mask, n_last=tokens.shape[1])
    return running(**inputs, **cache_argument(running, cache), use_cache=True, **options)


def prompt_inputs(model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, Any]:
    """Arguments for one pass over left-padded prompts of which only the last logits matter."""
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
    if accepts(model, "position_ids"):
        inputs["position_ids"] = positions(attention_mask)
    if accepts(model, "logits_to_keep"):
        inputs["logits_to_keep"] = 1
    return inputs


def left_padded(prompts: Sequence[Sequence[int]], pad_token_id: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(input_ids, attention_mask) of token lists, padded on the left to the longest."""
    width = max(map(len, prompts))
    ids = [[pad_token_id] * (width - len(p)) + list(p) for p in prompts]
    mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _fork(cache: Cache, indices: Any) -> Cache:
    """A cache of some layers of `cache` that may grow by itself: growing replaces a dynamic layer's tensors."""
    fork = copy.copy(cache)
    fork.layers = [copy.copy(cache.layers[i]) for i in indices]
    return fork


def clock_sec(device: torch.device) -> float:
    """A clock to take differences of, once all work queued on `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
