"""transformers' `generate` on a view that tells prompt from response: where the prompt ends, and what cannot be honoured.

Whatever is passed to `generate` is the prompt. Its length goes to every forward pass that `generate` itself prepares, so
that prompts in chunks, candidates of an assistant in the prompt's own pass, and passes without a cache are told apart
rightly. A pass that somebody else makes meanwhile (the unconditional one of classifier-free guidance) is judged by its own
cache.
"""

from __future__ import annotations

import copy
import functools
import inspect
import reprlib
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from depthdial.checks import whole
from depthdial.errors import InputError
from depthdial.hf.cache_name import cache_in, cache_name, renamed
from depthdial.views.cache import check_kind, check_layers, empty, held, n_cached

# The view that generates, and how many columns are its prompt's: a variable of the thread, so that threads may share one.
_PROMPT: ContextVar[tuple[Any, int] | None] = ContextVar("depthdial_prompt_columns", default=None)

# Options of `generate` that would run the layers in another way than a forward pass at a time, and what to do instead.
_REFUSED = {
    "assistant_early_exit": "draft with assistant_model=dd.view(model, 'ee:2')",
    "use_mtp": "draft with assistant_model=dd.view(model, 'ee:2')",
    "speculation_type": "draft with assistant_model=dd.view(model, 'ee:2')",
    "penalty_alpha": "use greedy decoding, sampling or beam search",
    "dola_layers": "use greedy decoding, sampling or beam search",
    "diversity_penalty": "use greedy decoding, sampling or beam search",
    "constraints": "use greedy decoding, sampling or beam search",
    "force_words_ids": "use greedy decoding, sampling or beam search",
    "token_healing": "pass what model.heal_tokens(input_ids, tokenizer) gives",
}
# From this release on it is known that they do.
_CHUNKS_FOLLOW_CACHES = "5.23"
_OFF_AT_ZERO = ("penalty_alpha", "diversity_penalty")
_BATCHING = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")


@dataclass(frozen=True)
class Asked:
    """One call of `generate`: its arguments by name, and the configuration that fills in the others."""

    view: Any
    given: dict[str, Any]

    @classmethod
    def of(cls, view: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Asked:
        bound = inspect.signature(type(view).generate).bind(view, *args, **kwargs).arguments
        return cls(view, {**bound, **bound.get("kwargs", {})})

    def option(self, name: str) -> Any:
        """A generation setting: the caller's argument, the configuration that is passed, or else the view's."""
        configs = (self.given.get("generation_config"), getattr(self.view, "generation_config", None))
        said = (self.given.get(name), *(getattr(config, name, None) for config in configs))
        return next((value for value in said if value is not None), None)

    @property
    def is_assisted(self) -> bool:
        return any(self.option(n) is not None for n in ("assistant_model", "prompt_lookup_num_tokens"))

    @property
    def n_given(self) -> int:
        """Columns of the ids or embeddings; 1 without any, where `generate` starts with a token of its own."""
        ids = next((self.given[n] for n in ("inputs_embeds", "inputs", "input_ids") if self.given.get(n) is not None), None)
        return 1 if ids is None else ids.shape[1]

    @property
    def n_columns(self) -> int:
        """Columns of the whole prompt, cached ones among them."""
        mask = self.given.get("attention_mask")
        return self.n_given if mask is None or mask.ndim != 2 else max(mask.shape[1], self.n_given)


# Readies the cache that was passed, and says how many of its columns, from the first on, may be continued on.
Reuse = Callable[[Asked, Any, int], int]


def tell_prompts(view: Any, reuse: Reuse, *, refuse: Callable[[Asked], None] | None = None) -> None:
    """Have `view.generate` say to each forward pass how long the prompt is, and refuse what cannot be honoured.

    Args:
        reuse: called with the call, a cache that is not empty, and the prompt's columns.
        refuse: raises InputError for what this view cannot do beside the rest.
    """
    if not hasattr(type(view), "generate"):  # a model without a head
        return
    own, prepare = view.__dict__, type(view).prepare_inputs_for_generation
    own["generate"] = functools.partial(_generate, view, reuse, refuse)
    # generate() reads the signature to learn what it may pass.
    own["prepare_inputs_for_generation"] = functools.update_wrapper(functools.partial(_prepare, view), prepare.__get__(view))
    own.update(dict.fromkeys(_BATCHING, _no_batching))


def _generate(view: Any, reuse: Reuse, refuse: Any, *args: Any, **kwargs: Any) -> Any:
    kwargs = renamed(kwargs, cache_name())
    asked = Asked.of(view, args, kwargs)
    _refuse(asked)
    if refuse is not None:
        refuse(asked)
    n_prompt = _ready(asked, reuse)
    kwargs.pop("prompt_columns", None)
    if asked.option("prefill_chunk_size") is not None and n_cached(cache_in(asked.given)):
        kwargs = _in_one_chunk(kwargs)
    mark = _PROMPT.set((view, n_prompt))
    try:
        return type(view).generate(view, *args, **kwargs)
    finally:
        _PROMPT.reset(mark)


def _in_one_chunk(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Where transformers' chunks take no notice of what is cached, the rest of a prompt runs at once: the same numbers."""
    from packaging.version import Version
    from transformers import __version__

    if Version(__version__) >= Version(_CHUNKS_FOLLOW_CACHES):
        return kwargs
    config = copy.deepcopy(kwargs.get("generation_config"))
    if config is not None:
        config.prefill_chunk_size = None
    return {**kwargs, "generation_config": config, "prefill_chunk_size": None}


def _prepare(view: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    inputs = type(view).prepare_inputs_for_generation(view, *args, **kwargs)
    now = _PROMPT.get()
    return inputs if now is None or now[0] is not view else {**inputs, "prompt_columns": now[1]}


def _ready(asked: Asked, reuse: Reuse) -> int:
    """The prompt's columns; a cache that was passed is made ready to continue on."""
    said, cache = asked.given.get("prompt_columns"), cache_in(asked.given)
    n_prompt = asked.n_columns if said is None else whole("prompt_columns", said, 0)
    check_kind(cache)
    n_past = n_cached(cache)
    if n_past == 0:
        return n_prompt
    if asked.option("is_assistant"):  # called again and again: what has been drafted and accepted is the response
        marked = held(cache)
        return min(n_past if marked is None else marked.n_full, n_past)
    kept = reuse(asked, cache, n_prompt)
    if kept < n_past and asked.n_given != asked.n_columns:
        raise InputError(
            f"The KV cache holds {n_past - kept} columns of an earlier answer, which must run again as part of this prompt, "
            f"and input_ids has {asked.n_given} of {asked.n_columns} columns: pass all of them, or no {cache_name()}."
        )
    if kept >= asked.n_columns:
        raise InputError(
            f"The KV cache holds all {asked.n_columns} columns of the prompt, and nothing is left to predict from: crop the "
            "cache by one column, or pass more tokens."
        )
    return n_prompt


def reuse_for_route(layers: tuple[int, ...], n_layers: int, asked: Asked, cache: Any, n_prompt: int) -> int:
    """What a prompted view may continue on: a whole model's cache, or its own where no more of the prompt is to come.

    An earlier answer ran the route alone, and now is part of a prompt that runs every layer, so that it runs again.
    """
    n_past = n_cached(cache)
    if len(cache.layers) == n_layers:  # the whole model's, or of a view that leaves no layer out
        return n_past
    check_layers(cache, layers)
    if n_past >= n_prompt:
        return n_past
    if asked.n_given == asked.n_columns:
        empty(cache, asked.view)
    return 0


def reuse_all(asked: Asked, cache: Any, n_prompt: int) -> int:
    """What a token view may continue on whose policy decides in the prompt too: everything."""
    return n_cached(cache)


def reuse_for_tokens(asked: Asked, cache: Any, n_prompt: int) -> int:
    """What a token view may continue on: columns that ran every layer, and all where no more of the prompt is to come."""
    n_past, marked = n_cached(cache), held(cache)
    n_full = n_past if marked is None else min(marked.n_full, n_past)
    if n_past == n_full or n_prompt <= n_full:
        return n_past
    if asked.n_given == asked.n_columns:
        for layer in cache.layers:
            layer.crop(n_full - n_past)
    return n_full


def _refuse(asked: Asked) -> None:
    kind = "A view that tells prompt from response"
    for name, remedy in _REFUSED.items():
        value = asked.option(name)
        if not (value is None or value is False or (name in _OFF_AT_ZERO and value == 0)):
            raise InputError(f"{kind} cannot honour {name}={reprlib.repr(value)}: leave it out, or {remedy}.")
    groups, custom = asked.option("num_beam_groups"), asked.given.get("custom_generate")
    if groups not in (None, 1):
        raise InputError(f"{kind} cannot honour num_beam_groups={groups}: leave it out, or use num_beams.")
    if custom is not None and not callable(custom):
        raise InputError(f"{kind} cannot honour custom_generate={custom!r}: leave it out, or pass a function.")
    if asked.option("cache_implementation") == "paged":
        _no_batching()
    assistant = type(asked.given.get("assistant_model")).__name__
    if "Assistant" in assistant:
        raise InputError(
            f"{kind} has no hidden states for {assistant} to draft from: draft with assistant_model=dd.view(model, 'ee:2'), "
            "or another whole model."
        )
    if asked.is_assisted and asked.given.get("inputs_embeds") is not None:
        raise InputError("Drafted tokens cannot be checked behind inputs_embeds: pass input_ids, or no assistant.")
    guided = asked.option("guidance_scale") not in (None, 1)
    if guided and (asked.is_assisted or asked.option("use_cache") is False):
        with_what = "drafted tokens" if asked.is_assisted else "use_cache=False"
        raise InputError(
            f"{kind} cannot honour guidance_scale={asked.option('guidance_scale')} with {with_what}, since its second pass "
            "goes token by token in a cache of its own: leave one of the two out."
        )


def _no_batching(*args: Any, **kwargs: Any) -> Any:
    raise InputError(
        "Continuous batching mixes prompts and responses in one pass, which a view whose prompt runs every layer cannot "
        "tell apart: use generate(), or dd.view, whose prompt runs the route."
    )
