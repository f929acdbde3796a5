"""The token view: a model in which each layer runs only for the tokens that a policy sends through it.

A view of all layers (see `view`) whose layers gather their tokens, run, and scatter back. The prompt runs every layer by
default, as in all of the paper's experiments (arXiv 2410.20022, section 3).
"""

from __future__ import annotations

import functools
import inspect
from array import array
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from depthdial.checks import choice
from depthdial.errors import InputError
from depthdial.hf.architectures import (
    check_token_routing,
    decoder_stack,
    has_hiding_masks,
    head_of,
    longest_routed,
    unwrap,
)
from depthdial.hf.cache_name import argument_name, cache_in, without_cache
from depthdial.hf.facts import ModelFacts
from depthdial.views.cache import check_kind, held, mark, n_cached
from depthdial.views.generate import Asked, reuse_all, reuse_for_tokens, tell_prompts
from depthdial.views.passes import PROMPT_DEPTHS, PromptDepth, by_name, n_prompt, positions, setting, tokens_of
from depthdial.views.tokens.cache import KEY_VALUES, KeyValues, TokenCacheLayer, token_cache, token_layers
from depthdial.views.tokens.layer import EXECUTIONS, Execution, StockLayer, TokenPass, check_arguments, run_layer
from depthdial.views.tokens.policy import Decide, TokenPolicy, TokenStep, as_policy
from depthdial.views.view import UNCUT_ATTRIBUTE, quiet_view

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The pass that is under way: a variable of the thread and not of the view, so that threads may share one.
_PASS: ContextVar[TokenPass | None] = ContextVar("depthdial_token_pass", default=None)


@dataclass(frozen=True)
class TracedPass:
    """What ran in one forward pass.

    Attributes:
        ran: (n_sequences, n_tokens, n_layers), true where the layer ran for the token.
        counted: (n_sequences, n_tokens), the response's tokens: neither padding nor prompt.
    """

    ran: torch.Tensor
    counted: torch.Tensor


@dataclass
class TokenTrace:
    """What a token view has run, pass by pass; give one to `token_view` and look at it afterwards.

    Example:
        >>> trace = dd.TokenTrace()
        >>> view = dd.token_view(model, dd.Route((0, 1, 5), n_layers=6), prompt_depth="route", trace=trace)
        >>> _ = view(**tokenizer("the cat sat", return_tensors="pt", return_token_type_ids=False))
        >>> len(trace.passes)
        1
    """

    passes: list[TracedPass] = field(default_factory=list)

    def clear(self) -> None:
        self.passes.clear()

    def layers_run(self) -> torch.Tensor:
        """(n_sequences, n_tokens) layers run for each token of all passes; -1 for padding and prompt."""
        counts = [torch.where(one.counted, one.ran.sum(-1), -1) for one in self.passes]
        return torch.cat(counts, dim=1)

    def mean_layers(self) -> torch.Tensor:
        """(n_sequences,) mean layers run over the response's tokens; NaN where there was none."""
        layers = self.layers_run()
        counted = layers >= 0
        return layers.clamp(min=0).sum(1).double() / counted.sum(1)


def token_view(
    model: Any,
    policy: Any,
    *,
    key_values: KeyValues = "project",
    prompt_depth: PromptDepth = "full",
    execution: Execution = "gather",
    keys: Sequence[int] | None = None,
    trace: TokenTrace | None = None,
) -> PreTrainedModel:
    """A PreTrainedModel that decides token by token which layers run, sharing every weight with `model`.

    `generate`, pipelines, padding and caches work as with the model itself. What `generate` is given is the prompt, in one
    pass or in chunks; an earlier answer that a cache holds runs again as part of it. Called by itself, tokens that come
    while the cache is empty are the prompt. A pass over prompt and response together, or over a part of a prompt, says where
    the response starts: `view(.., prompt_columns=n)`, padding and cached columns counted.

    Args:
        model: a decoder-only model, a view, or a PEFT-wrapped model; it is not changed.
        policy: gates, `Bernoulli`, `StaticRoutes`, `ConfidenceExit`, routes, or any function of (layer, hidden states) that
            gives (n_sequences, n_tokens) booleans.
        key_values: what a token leaves in the cache of a layer that it skips: `project`, `drop` or `copy`.
        prompt_depth: `full` (the prompt runs every layer) or `route` (the policy decides there too).
        execution: `gather` computes only what runs. `dense` computes every layer for every token and mixes output and input
            by the decision, so that gradients reach it: what training needs, and no time is saved.
        keys: an integer a sequence, by which chance is drawn (`sequence_key(id)`); default: its row.
        trace: records what ran.

    Raises:
        InputError: if the policy does not fit the model, its attention is not sdpa or eager, or the model's layers cannot be
            run for some tokens; when called: for static, quantized and offloaded caches, beam search, compiled passes, and
            what `generate` may be asked but cannot do here (see the message).

    Example:
        >>> view = dd.token_view(model, dd.ConfidenceExit("margin", 0.5))
        >>> _ = view.generate(**tokenizer("the cat", return_tensors="pt", return_token_type_ids=False), max_new_tokens=4)
    """
    base, policy = unwrap(model), as_policy(policy)
    choice("key_values", key_values, KEY_VALUES)
    choice("prompt depth", prompt_depth, PROMPT_DEPTHS)
    choice("execution", execution, EXECUTIONS)
    check_token_routing(base)
    n_layers = decoder_stack(base).n_layers
    routed: Any = quiet_view(base, range(n_layers))
    policy.check(n_layers, ModelFacts.of(base).width)
    for index, layer in enumerate(decoder_stack(routed).layers):
        layer.__dict__["forward"] = _RoutedForward(layer, index, has_hiding_masks(base))
    signature, longest = inspect.signature(type(routed).forward), longest_routed(base)
    router = _Router(policy, key_values, prompt_depth, execution, _checked_keys(keys), trace, signature, n_layers, longest)
    forward = functools.partial(_forward, routed, router)
    routed.__dict__["forward"] = functools.update_wrapper(forward, type(routed).forward.__get__(routed))
    routed.__dict__[UNCUT_ATTRIBUTE] = "routes token by token"
    reuse = reuse_for_tokens if prompt_depth == "full" else reuse_all
    tell_prompts(routed, reuse, refuse=None if trace is None else _refuse_retraced)
    return routed


def _refuse_retraced(asked: Asked) -> None:
    if asked.is_assisted or asked.option("use_cache") is False or asked.option("guidance_scale") not in (None, 1):
        raise InputError(
            "A trace is of one pass a token, and assistants, use_cache=False and guidance_scale run some tokens again: "
            "leave them out, or take no trace."
        )


def _checked_keys(keys: Sequence[int] | None) -> tuple[int, ...] | None:
    try:
        return None if keys is None else tuple(array("q", list(keys)))
    except (TypeError, OverflowError):
        raise InputError(
            f"The keys are whole numbers of 64 bits, one a sequence, not {keys!r}: sequence_key(id) makes one."
        ) from None


@dataclass(frozen=True)
class _Router:
    policy: TokenPolicy
    key_values: KeyValues
    prompt_depth: PromptDepth
    execution: Execution
    keys: tuple[int, ...] | None
    trace: TokenTrace | None
    signature: inspect.Signature
    n_layers: int
    longest: int | None


class _RoutedForward:
    """The forward of one layer of a view. No closure, so that a deep copy of the view routes layers of its own."""

    def __init__(self, layer: Any, index: int, hides: bool) -> None:
        self._stock = StockLayer(layer.forward, hides)  # a hook of accelerate's, where there is one
        self._name, self._index = type(layer).__name__, index
        # Bound by hand: inspect's own binding takes as long as a small layer's whole arithmetic.
        _, self._first, *self._names = inspect.signature(type(layer).forward).parameters
        self._is_checked = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        now = _PASS.get()
        if now is None:
            raise InputError("The layers of a token view run only inside its own forward: call the view itself.")
        hidden, *others = args if args else (kwargs.pop(self._first),)
        arguments = {**dict(zip(self._names, others, strict=False)), **kwargs}
        if not self._is_checked:
            check_arguments(self._name, arguments)
            self._is_checked = True
        return run_layer(self._stock, self._index, now, hidden, arguments)


def _forward(routed: Any, router: _Router, *args: Any, prompt_columns: int | None = None, **kwargs: Any) -> Any:
    given: Any = by_name(routed, router.signature, args, kwargs)
    _refuse(routed, router, given, prompt_columns)
    cache: Any = cache_in(given)
    n_layers, n_past = router.n_layers, n_cached(cache)
    if n_past and len(cache.layers) != n_layers:
        raise InputError(
            f"The KV cache is of {len(cache.layers)} layers, and this view has {n_layers}: continue on a cache of the same "
            "model."
        )
    if router.longest is not None and n_past + tokens_of(given).shape[1] > router.longest:
        raise InputError(
            f"{type(routed).__name__} scales its attention by place from token {router.longest + 1} on, which token routing "
            "cannot follow: use shorter sequences, or a route for whole sequences (dd.view)."
        )
    if cache is None:
        cache = token_cache(n_layers)
    elif not cache.layers or not isinstance(cache.layers[0], TokenCacheLayer):
        cache.layers = token_layers(n_layers, cache.layers if n_past else ())  # generate() holds on to the cache it passed
    marked = held(cache)
    now, counted, n_full = _start(routed, router, given, cache, n_past, prompt_columns)
    asked = {**given, argument_name(router.signature.parameters): cache, "use_cache": True, "return_dict": True}
    mine = _PASS.set(now)
    try:
        output = type(routed).forward(routed, **asked)
    finally:
        _PASS.reset(mine)
    n_before = n_past if marked is None else min(marked.n_full, n_past)
    mark(cache, range(n_layers), n_past + n_full if n_before == n_past else n_before)
    if router.trace is not None:
        ran = torch.stack([torch.ones_like(counted) if one is None else one for one in now.ran], dim=-1)
        router.trace.passes.append(TracedPass(ran.cpu(), counted.cpu()))
    if not setting(routed, given, "use_cache"):
        output = without_cache(output)
    return output if setting(routed, given, "return_dict") else output.to_tuple()


def _start(
    routed: Any, router: _Router, given: Any, cache: Any, n_past: int, prompt_columns: int | None
) -> tuple[TokenPass, torch.Tensor, int]:
    """The pass, which of its tokens count as the response's, and how many columns run every layer as the prompt's."""
    tokens, ids, embedded = tokens_of(given), given.get("input_ids"), given.get("inputs_embeds")
    shape, device = tokens.shape[:2], tokens.device
    mask: Any = given.get("attention_mask")
    has_mask = mask is not None
    is_real = mask[:, -shape[1] :].bool() if has_mask else torch.ones(shape, dtype=torch.bool, device=device)
    whole = 0 if n_past else shape[1]  # what comes while the cache is empty is the prompt
    n_first = whole if prompt_columns is None else n_prompt(prompt_columns, n_past, shape[1])
    n_full = n_first if router.prompt_depth == "full" else 0
    columns = torch.arange(shape[1], device=device)
    is_full = (columns < n_full).expand(shape)
    decide: Decide | None = None
    if n_full < shape[1]:
        places = positions(mask, n_last=shape[1]) if has_mask else (columns + n_past).expand(shape)

        def embeddings() -> torch.Tensor:
            return embedded if embedded is not None else routed.get_input_embeddings()(ids)

        keys, logits = _keys(router, shape[0], device), functools.partial(head_of, routed)
        decide = router.policy.start(TokenStep(len(cache.layers), places, keys, is_full, embeddings, logits))
    # Looking at padding once a pass spares looking at every layer.
    padded = None if not has_mask or bool(is_real.all()) else is_real
    now = TokenPass(decide, cache.layers, router.key_values, router.execution, is_full if n_full else None, padded)
    return now, is_real & (columns >= n_first), n_full


def _keys(router: _Router, n_sequences: int, device: Any) -> torch.Tensor:
    if router.keys is None:
        return torch.arange(n_sequences, device=device)
    if len(router.keys) != n_sequences:
        raise InputError(f"There are {len(router.keys)} keys for a batch of {n_sequences}: give one a sequence.")
    return torch.tensor(router.keys, device=device)


def _refuse(routed: Any, router: _Router, given: dict[str, Any], prompt_columns: int | None) -> None:
    if torch.compiler.is_compiling():
        # What a trace raises, the compiler takes for a reason to run without it: break out, so that this is really raised.
        torch._dynamo.graph_break()
        raise InputError(
            "Token routing cannot be compiled, since how many tokens run is known only at run time: call it as it is."
        )
    cache: Any = cache_in(given)
    check_kind(cache)
    if getattr(cache, "is_compileable", False):
        raise InputError(
            "Token routing needs a cache that grows, not a static one: leave cache_implementation as it is, without "
            "StaticCache or compiled generation."
        )
    if cache is not None and (not isinstance(cache, DynamicCache) or cache.offloading):
        raise InputError(
            f"Token routing keeps keys in a cache of its own, neither quantized nor offloaded, and not in a "
            f"{type(cache).__name__}{' that is offloaded' * bool(getattr(cache, 'offloading', False))}: leave "
            "cache_implementation as it is."
        )
    all_prompt = router.prompt_depth == "full" and prompt_columns is None and n_cached(cache) == 0
    if all_prompt and given.get("use_cache") is False:
        raise InputError(
            "A pass with use_cache=False does not say where the response starts, which the policy routes: leave it out, "
            "pass prompt_columns, the number of columns that are the prompt's, or use prompt_depth='route'."
        )
    if all_prompt and given.get("labels") is not None:
        raise InputError(
            "The labels would be scored at the prompt's depth, every layer: pass prompt_columns, the number of columns that "
            "are the prompt's, or use prompt_depth='route'."
        )
    mask: Any = given.get("attention_mask")
    if mask is not None and mask.ndim != 2:
        raise InputError("Token routing makes its own masks: pass attention_mask as (n_sequences, n_tokens), or none.")
    if setting(routed, given, "output_attentions", default=False):
        raise InputError("Token routing has no attention matrix of all tokens to give: leave output_attentions off.")
    if setting(routed, given, "output_router_logits", default=False) and router.execution == "gather":
        raise InputError(
            "Token routing has no router logits of tokens that skip: leave output_router_logits off, or use "
            "execution='dense'."
        )
    if routed.training and any(getattr(module, "gradient_checkpointing", False) for module in routed.modules()):
        raise InputError(
            "Gradient checkpointing drops the KV cache that token routing needs: call "
            "model.gradient_checkpointing_disable()."
        )
