"""Full prefill, shallow decoding: the prompt runs every layer, the response only those of a route.

In all of the paper's experiments only response tokens follow the route (arXiv 2410.20022, section 3): the prompt, and so
the first generated token, goes through every layer, and the layers that later run find the prompt's true keys and values.
A view continues on a cache made of the full cache's layers at its route's indices, so one prefill serves any number of
routes, whose caches share its tensors until they grow.
"""

from __future__ import annotations

import copy
import functools
import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from depthdial.engine.pooling import PooledStates, Pooling
from depthdial.errors import InputError
from depthdial.hf.adapter import warn_if_outside
from depthdial.hf.architectures import accepts, count_layers, unwrap
from depthdial.hf.cache_name import cache_of
from depthdial.hf.untouched import adapter_modules
from depthdial.routes import Route
from depthdial.views.cache import mark
from depthdial.views.generate import reuse_for_route, tell_prompts
from depthdial.views.prompt_pass import Switch, prompted_forward
from depthdial.views.view import PROMPTED_ATTRIBUTE, as_route, quiet_view
from depthdial.views.weights import SHARED_ATTRIBUTE

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache

PromptDepth = Literal["full", "route"]
PROMPT_DEPTHS: tuple[PromptDepth, ...] = ("full", "route")


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

    def cache_for(self, route: Route) -> Cache:
        """A cache of `route`'s layers for a view to continue on; this prefill stays as it is.

        Raises:
            InputError: if a layer of `route` did not see the prompt.
        """
        place = {layer: i for i, layer in enumerate(self.route.layers)}
        missing = next((layer for layer in route.layers if layer not in place), None)
        if missing is not None:
            raise InputError(
                f"Layer {missing} of route {route.name!r} did not see the prompt, which ran {self.route.name!r}: "
                "run the prompt at full depth or through the same route."
            )
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
) -> Prefill:
    """Run a left-padded batch of prompts, (n_sequences, n_tokens), through `route` of the model (default: every layer).

    Args:
        with_gradient: let what continues on it be differentiated through the prompt too.
        watch: layers of the route, 0-based, after which the prompt's hidden states are pooled on the way.
    """
    base = unwrap(model)
    n_layers = count_layers(base)
    route = route or Route(tuple(range(n_layers)), n_layers, "full")
    inputs = prompt_inputs(base, input_ids, attention_mask)
    runner = base if route.is_full and not watch else quiet_view(model, route)
    pooling = Pooling(runner, route.layers, watch, attention_mask) if watch else None
    started = clock_sec(input_ids.device)
    with torch.set_grad_enabled(with_gradient):
        output = runner(**inputs, use_cache=True)
    prefill_sec = clock_sec(input_ids.device) - started
    pooled = None if pooling is None else pooling.states()
    return Prefill(input_ids, attention_mask, cache_of(output), output.logits[:, -1:], route, prefill_sec, pooled)


def prompted_view(model: Any, route: Route | str, prefilled: Prefill | None = None) -> PreTrainedModel:
    """A view of `route` that runs the prompt through every layer of `model`, and the response through the route's.

    For `generate`, pipelines and whatever else calls a model with a cache: sampling, beam search, streaming, assistants,
    prompts in chunks and logits processors work as they are, for the switch is in `forward`. What `generate` is given is the
    prompt, and it may continue on a cache of the whole model that holds its beginning; behind a cache that holds an earlier
    answer, the answer runs again with the rest of the prompt. Hidden states of the first step are those of every layer.

    Called by itself, all tokens are the prompt's while the cache is empty or the whole model's, and the response's from then
    on; `view(.., prompt_columns=n)` says so for prompts in chunks and for passes over prompt and response together.

    Args:
        prefilled: the prompt's pass where it is at hand already; the first forward then only looks it up.

    Raises:
        InputError: from `view`; when called: for static caches, caches of other layers, labels, and what `generate` may be
            asked but cannot do here (see the message).

    Warns:
        RouteWarning: as `view` does.
    """
    route = as_route(route, count_layers(model))
    shallow = quiet_prompted_view(model, route, prefilled)
    warn_if_outside(model, route)
    return shallow


def quiet_prompted_view(model: Any, route: Route, prefilled: Prefill | None = None) -> PreTrainedModel:
    """`prompted_view` without its warning."""
    base = unwrap(model)
    shallow = quiet_view(base, route)
    if adapter_modules(base):  # a snapshot as well: whether adapters are on may change before the prompt comes
        base = quiet_view(base, range(route.n_layers))
    switch = Switch(base, route, prefilled, inspect.signature(type(shallow).forward))
    step = functools.partial(prompted_forward, shallow, switch)
    # generate() reads the signature of forward to learn what it may pass.
    shallow.__dict__["forward"] = functools.update_wrapper(step, type(shallow).forward.__get__(shallow))
    shallow.__dict__[PROMPTED_ATTRIBUTE] = True
    shallow.__dict__[SHARED_ATTRIBUTE].refusal = (
        "A prompted view runs its prompt through the whole model, whose weights it cannot change apart: change the model, "
        "or a copy of it, and make the view after."
    )
    tell_prompts(shallow, functools.partial(reuse_for_route, route.layers, route.n_layers))
    return shallow


def prompt_inputs(model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, Any]:
    """Arguments for one pass over left-padded prompts of which only the last logits matter."""
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
    if accepts(model, "position_ids"):
        inputs["position_ids"] = positions(attention_mask)
    if accepts(model, "logits_to_keep"):
        inputs["logits_to_keep"] = 1
    return inputs


def positions(attention_mask: torch.Tensor, n_last: int | None = None) -> torch.Tensor:
    """Position of each token among the real ones, as transformers' `generate` counts them; of the last `n_last` columns."""
    places = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    return places if n_last is None else places[:, -n_last:]


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
