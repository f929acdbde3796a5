"""The forward pass of a prompted view: prompt columns through every layer, the response's through the route's.

Where the prompt ends follows from the cache, or is said by `prompt_columns`. A pass that holds both is run as two, so that
what comes out depends neither on how a prompt is cut into passes nor on how many tokens of a response come at once.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from depthdial.errors import InputError
from depthdial.hf.cache_name import argument_name, cache_in, cache_name, without_cache
from depthdial.routes import Route
from depthdial.views.cache import check_kind, check_layers, cut, empty, n_cached
from depthdial.views.passes import by_name, join_logits, n_prompt, setting, split, tokens_of


@dataclass(frozen=True)
class Switch:
    """What a prompted view runs: `base` for the prompt, then `route`."""

    base: Any
    route: Route
    signature: inspect.Signature


def prompted_forward(shallow: Any, switch: Switch, *args: Any, prompt_columns: int | None = None, **kwargs: Any) -> Any:
    """One pass of a prompted view.

    Args:
        prompt_columns: how many columns are the prompt's, padding and cached ones counted. Default: with an empty cache all
            of them, behind a cache of the whole model all that come, behind a cache of the route none.
    """
    given = by_name(shallow, switch.signature, args, kwargs)
    _refuse(given, prompt_columns)
    cache: Any = cache_in(given)
    route, n_tokens, n_past = switch.route, tokens_of(given).shape[1], n_cached(cache)
    is_whole = n_past > 0 and not route.is_full and len(cache.layers) == route.n_layers
    if n_past and not is_whole:
        check_layers(cache, route.layers)
    if prompt_columns is None:
        n_full = n_tokens if is_whole or not n_past else 0
    else:
        n_full = n_prompt(prompt_columns, n_past, n_tokens)
    if n_full == 0:
        if is_whole:
            cut(cache, route.layers, n_past)
        if given.get("use_cache") is None and cache is not None:
            given["use_cache"] = True  # a configuration may say that there is no cache, where one was passed
        return type(shallow).forward(shallow, **given)
    if n_past and not is_whole and not route.is_full:
        raise InputError(
            f"The KV cache is of route {route.name!r} alone, and {n_full} more columns of the prompt must run every layer: "
            f"pass the whole prompt without {cache_name()}, or behind a cache of the whole model."
        )
    return _with_prompt(shallow, switch, given, n_full, prompt_columns)


def _with_prompt(shallow: Any, switch: Switch, given: dict[str, Any], n_full: int, prompt_columns: int | None) -> Any:
    """A pass of which the first `n_full` columns, one or more, are the prompt's."""
    n_rest, n_past = tokens_of(given).shape[1] - n_full, n_cached(cache_in(given))
    _refuse_in_prompt(shallow, given, n_rest)
    first, rest = split(given, n_full, n_past) if n_rest else (given, {})
    output = _whole(switch, first, n_past + n_full)
    cache = output[cache_name()]
    is_done = prompt_columns is None or n_past + n_full >= prompt_columns
    if is_done and len(cache.layers) != len(switch.route.layers):
        cut(cache, switch.route.layers, n_past + n_full)
    if n_rest:
        logits = output["logits"]
        behind = {argument_name(switch.signature.parameters): cache}
        output = type(shallow).forward(shallow, **_known(switch, rest) | _CACHED | behind)
        output["logits"] = join_logits(logits, output["logits"], given, n_rest)
    output[cache_name()] = cache
    if given.get("use_cache") is False:
        output = without_cache(output)
    return output if setting(shallow, given, "return_dict") else output.to_tuple()


_CACHED = {"use_cache": True, "return_dict": True}


def _known(switch: Switch, given: dict[str, Any]) -> dict[str, Any]:
    """Without the argument that `split` adds, where the architecture does not know it."""
    is_known = "logits_to_keep" in switch.signature.parameters
    return given if is_known else {name: value for name, value in given.items() if name != "logits_to_keep"}


def _whole(switch: Switch, given: dict[str, Any], n_after: int) -> Any:
    """The pass of the whole model, whose cache holds `n_after` columns afterwards."""
    cache = cache_in(given)
    if cache is not None and n_cached(cache) == 0:
        empty(cache, switch.base)  # generate() holds on to the cache that it passed
    output = switch.base(**_known(switch, given) | _CACHED)
    if n_cached(output.get(cache_name())) != n_after:
        raise InputError(
            f"{type(switch.base).__name__} leaves no KV cache for the route to continue on: call "
            "model.gradient_checkpointing_disable(), or use dd.view, whose prompt runs the route."
        )
    return output


def _refuse(given: dict[str, Any], prompt_columns: int | None) -> None:
    cache: Any = cache_in(given)
    paged = next((name for name in ("read_index", "block_table") if given.get(name) is not None), None)
    if type(cache).__name__ == "PagedAttentionCache":
        paged = "PagedAttentionCache"
    if paged is not None:
        raise InputError(f"A prompted view cannot tell prompts in continuous batching, with its {paged}: use generate().")
    check_kind(cache)
    if getattr(cache, "is_compileable", False):
        raise InputError(
            f"A {type(cache).__name__} has no room for the keys that a prompt at full depth leaves in layers outside the "
            "route: leave cache_implementation out for a dynamic KV cache, or use dd.view, whose prompt runs the route."
        )
    if given.get("use_cache") is False and prompt_columns is None and n_cached(cache) == 0:
        raise InputError(
            "A pass with use_cache=False does not say where the response starts, which runs the route alone: leave it out "
            "for a dynamic KV cache, or pass prompt_columns, the number of columns that are the prompt's."
        )


def _refuse_in_prompt(shallow: Any, given: dict[str, Any], n_rest: int) -> None:
    if given.get("labels") is not None:
        raise InputError(
            "The labels would be scored at the prompt's depth, not the route's: leave them out, pass prompt_columns, and "
            "take the loss of the logits."
        )
    for name in ("output_hidden_states", "output_attentions", "output_router_logits") if n_rest else ():
        if setting(shallow, given, name, default=False):
            raise InputError(
                f"A pass over prompt and response, which run different layers, has no {name}: leave it off, or run the "
                "prompt in a pass of its own."
            )
