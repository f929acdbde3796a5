"""The token view: a model in which each layer runs only for the tokens that a policy sends through it.

A view of all layers (see `view`) whose layers gather their tokens, run, and scatter back. The prompt runs every layer by
default, as in all of the paper's experiments (arXiv 2410.20022, section 3).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from depthdial.errors import InputError
from depthdial.models.architectures import (
    check_token_routing,
    decoder_stack,
    head_of,
    unwrap,
)
from depthdial.models.prompt import PROMPT_DEPTHS, Prefill, PromptDepth, positions
from depthdial.models.token_cache import KEY_VALUES, KeyValues, TokenCacheLayer, token_cache, token_layers
from depthdial.models.token_layer import EXECUTIONS, Execution, StockLayer, TokenPass, check_arguments, run_layer
from depthdial.models.token_policy import Decide, TokenPolicy, TokenStep, as_policy
from depthdial.models.view import TOKENS_ATTRIBUTE, quiet_view

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
    """What a token view has run, pass by pass; give one to `token_view` and look at it afterwards."""

    passes: list[TracedPass] = field(default_factory=list)

    def clear(self) -> None:
        self.passes.clear()

    def layers_run(self) -> torch.Tensor:
        """(n_sequences, n_tokens) layers run for each token of passes that hold no prompt; -1 for padding and prompt."""
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
    prefilled: Prefill | None = None,
    trace: TokenTrace | None = None,
) -> PreTrainedModel:
    """A PreTrainedModel that decides token by token which layers run, sharing every weight with `model`.

    `generate`, pipelines, padding and caches work as with the model itself. Tokens that come while the cache is empty are
    the prompt. A pass over prompt and response together says where the response starts: `view(.., prompt_columns=n)`.

    Args:
        model: a decoder-only model, a view, or a PEFT-wrapped model; it is not changed.
        policy: gates, `Bernoulli`, `StaticRoutes`, `ConfidenceExit`, routes, or any function of (layer, hidden states) that
            gives (n_sequences, n_tokens) booleans.
        key_values: what a token leaves in the cache of a layer that it skips: `project`, `drop` or `copy`.
        prompt_depth: `full` (the prompt runs every layer) or `route` (the policy decides there too).
        execution: `gather` computes only what runs. `dense` computes every layer for every token and mixes output and input
            by the decision, so that gradients reach it: what training needs, and no time is saved.
        keys: an integer a sequence, by which chance is drawn (`sequence_key(id)`); default: its row.
        prefilled: the prompt's pass where it is at hand already; the first forward then only looks it up.
        trace: is told what ran.

    Raises:
        InputError: if the policy does not fit the model, its attention is not sdpa or eager, or the model's layers cannot be
            run for some tokens; when called: for static caches, beam search and compiled passes.
    """
    base, policy = unwrap(model), as_policy(policy)
    _check_choice("key_values", key_values, KEY_VALUES)
    _check_choice("prompt depth", prompt_depth, PROMPT_DEPTHS)
    _check_choice("execution", execution, EXECUTIONS)
    check_token_routing(base)
    n_layers = decoder_stack(base).n_layers
    policy.check(n_layers, base.config.get_text_config(decoder=True).hidden_size)
    routed: Any = quiet_view(base, range(n_layers))
    for index, layer in enumerate(decoder_stack(routed).layers):
        _route_layer(layer, index)
    given = None if keys is None else tuple(keys)
    router = _Router(
        policy, key_values, prompt_depth, execution, given, prefilled, trace, inspect.signature(type(routed).forward)
    )
    forward = functools.partial(_forward, routed, router)
    routed.__dict__["forward"] = functools.update_wrapper(forward, type(routed).forward.__get__(routed))
    routed.__dict__[TOKENS_ATTRIBUTE] = True
    return routed


def _check_choice(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f"Unknown {what} {value!r}: use {', '.join(known[:-1])} or {known[-1]}.")


@dataclass(frozen=True)
class _Router:
    policy: TokenPolicy
    key_values: KeyValues
    prompt_depth: PromptDepth
    execution: Execution
    keys: tuple[int, ...] | None
    prefilled: Prefill | None
    trace: TokenTrace | None
    signature: inspect.Signature


def _route_layer(layer: Any, index: int) -> None:
    stock = StockLayer(layer.forward)  # a hook of accelerate's, where there is one
    # Bound by hand: inspect's own binding takes as long as a small layer's whole arithmetic.
    _, first, *names = inspect.signature(type(layer).forward).parameters
    is_checked = False

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal is_checked
        now = _PASS.get()
        if now is None:
            raise InputError("The layers of a token view run only inside its own forward: call the view itself.")
        hidden, *others = args if args else (kwargs.pop(first),)
        arguments = {**dict(zip(names, others, strict=False)), **kwargs}
        if not is_checked:
            check_arguments(type(layer).__name__, arguments)
            is_checked = True
        return run_layer(stock, index, now, hidden, arguments)

    layer.__dict__["forward"] = forward


def _forward(routed: Any, router: _Router, *args: Any, prompt_columns: int | None = None, **kwargs: Any) -> Any:
    given = dict(router.signature.bind_partial(routed, *args, **kwargs).arguments)
    given.update(given.pop("kwargs", {}))
    given.pop(next(iter(router.signature.parameters)))
    _refuse(routed, given)
    cache = given.get("past_key_values")
    n_layers = decoder_stack(routed).n_layers
    n_past = 0 if cache is None else cache.get_seq_length()
    if router.prefilled is not None and n_past == 0:
        return _prefilled_output(router.prefilled, cache, n_layers)
    if cache is None:
        cache = token_cache(n_layers)
    elif not cache.layers or not isinstance(cache.layers[0], TokenCacheLayer):
        cache.layers = token_layers(n_layers, cache.layers if n_past else ())  # generate() holds on to the cache it passed
    now, counted = _start(routed, router, given, cache, n_past, prompt_columns)
    wants_cache = given.get("use_cache") is not False
    mark = _PASS.set(now)
    try:
        output = type(routed).forward(routed, **{**given, "past_key_values": cache, "use_cache": True})
    finally:
        _PASS.reset(mark)
    if router.trace is not None:
        router.trace.passes.append(_traced(now, counted))
    if not wants_cache and not isinstance(output, tuple):
        output["past_key_values"] = None
    return output


def _start(
    routed: Any, router: _Router, given: dict[str, Any], cache: Any, n_past: int, prompt_columns: int | None
) -> tuple[TokenPass, torch.Tensor]:
    """The pass, and which of its tokens count as the response's."""
    ids, embedded = given.get("input_ids"), given.get("inputs_embeds")
    tokens = ids if ids is not None else embedded[..., 0]
    shape, device = tokens.shape[:2], tokens.device
    mask = given.get("attention_mask")
    has_mask = mask is not None and mask.ndim == 2
    is_real = mask[:, -shape[1] :].bool() if has_mask else torch.ones(shape, dtype=torch.bool, device=device)
    is_prompt = torch.zeros(shape, dtype=torch.bool, device=device)
    if n_past == 0 and router.prompt_depth == "full":
        is_prompt[:, : shape[1] if prompt_columns is None else prompt_columns] = True
    is_whole_prompt = n_past == 0 and router.prompt_depth == "full" and (prompt_columns or shape[1]) >= shape[1]
    decide: Decide | None = None
    if not is_whole_prompt:
        places = (
            positions(mask, n_last=shape[1]) if has_mask else (torch.arange(shape[1], device=device) + n_past).expand(shape)
        )

        def embeddings() -> torch.Tensor:
            return embedded if embedded is not None else routed.get_input_embeddings()(ids)

        step = TokenStep(
            len(cache.layers),
            places,
            _keys(router, shape[0], device),
            is_prompt,
            embeddings,
            functools.partial(head_of, routed),
        )
        decide = router.policy.start(step)
    # Looking once at a pass spares looking at every layer.
    now = TokenPass(
        decide,
        cache.layers,
        router.key_values,
        router.execution,
        is_prompt if bool(is_prompt.any()) else None,
        None if bool(is_real.all()) else is_real,
    )
    return now, is_real & ~is_prompt


def _keys(router: _Router, n_sequences: int, device: Any) -> torch.Tensor:
    if router.keys is None:
        return torch.arange(n_sequences, device=device)
    if len(router.keys) != n_sequences:
        raise InputError(f"There are {len(router.keys)} keys for a batch of {n_sequences}: give one a sequence.")
    return torch.tensor(router.keys, device=device)


def _prefilled_output(prefilled: Prefill, cache: Any, n_layers: int) -> Any:
    from transformers.modeling_outputs import CausalLMOutputWithPast

    if not prefilled.route.is_full:
        raise InputError(
            f"Token routing continues on a prompt that ran every layer, not on one of route {prefilled.route.name!r}."
        )
    ready = token_cache(n_layers, prefilled.cache)
    if cache is not None:
        cache.layers = ready.layers
        ready = cache
    return CausalLMOutputWithPast(logits=prefilled.logits, past_key_values=ready)  # type: ignore[arg-type]


def _traced(now: TokenPass, counted: torch.Tensor) -> TracedPass:
    everything = torch.ones_like(counted)
    ran = torch.stack([everything if one is None else one for one in now.ran], dim=-1)
    return TracedPass(ran.cpu(), counted.cpu())


def _refuse(routed: Any, given: dict[str, Any]) -> None:
    if getattr(given.get("past_key_values"), "is_compileable", False):
        raise InputError(
            "Token routing needs a cache that grows, not a static one: leave cache_implementation as it is, without "
            "StaticCache or compiled generation."
        )
    if torch.compiler.is_compiling():
        raise InputError(
            "Token routing cannot be compiled, since how many tokens run is known only at run time: call it as it is."
        )
    mask = given.get("attention_mask")
    if mask is not None and mask.ndim != 2:
        raise InputError("Token routing makes its own masks: pass attention_mask as (n_sequences, n_tokens), or none.")
    if given.get("output_attentions") or getattr(routed.config, "output_attentions", False):
        raise InputError("Token routing has no attention matrix of all tokens to give: leave output_attentions off.")
    if routed.training and any(getattr(module, "gradient_checkpointing", False) for module in routed.modules()):
        raise InputError(
            "Gradient checkpointing drops the KV cache that token routing needs: call "
            "model.gradient_checkpointing_disable()."
        )
