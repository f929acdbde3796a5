"""The name of the KV cache in calls and outputs: `past_key_values`, which transformers 5.24 renamed to `cache`.

Views take either. What they call is given the name that its own signature has, which is the one that does not warn: a
checkpoint's own Python code may have the old name with any release.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from depthdial.errors import InputError

CACHE_NAMES = ("cache", "past_key_values")


def cache_name() -> str:
    """What the installed transformers calls it, in outputs and in `generate`."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    # Not remembered: functools.cache is no function that torch.compile goes through without a warning.
    return "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


def argument_name(parameters: Collection[str]) -> str:
    """What a function of these parameters calls it."""
    return next((name for name in CACHE_NAMES if name in parameters), None) or cache_name()


def cache_argument(model: Any, cache: Any) -> dict[str, Any]:
    """The cache as an argument by name of a model's forward pass."""
    return {argument_name(inspect.signature(type(model).forward).parameters): cache}


def cache_in(given: Mapping[str, Any]) -> Any:
    """The cache among arguments by name; None without one."""
    return next((given[name] for name in CACHE_NAMES if given.get(name) is not None), None)


def renamed(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Arguments whose cache, if there is one, goes by `name`."""
    caches = {key: given[key] for key in CACHE_NAMES if key in given}
    found = [cache for cache in caches.values() if cache is not None]
    if len(found) == 2 and found[0] is not found[1]:
        raise InputError(
            f"The KV caches in {' and '.join(caches)} are two, and one argument by either name: pass one of them, as {name}."
        )
    rest = {key: value for key, value in given.items() if key not in caches}
    return {**rest, name: found[0] if found else None} if caches else rest


def cache_of(output: Any) -> Any:
    """The cache in a model's output."""
    return getattr(output, cache_name())


def without_cache(output: Any) -> Any:
    """The same output without its cache."""
    return type(output)(**{name: value for name, value in output.items() if name != cache_name()})
