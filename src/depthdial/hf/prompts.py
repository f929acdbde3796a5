"""The warning for routes, or an adapter's weights, that were made for prompts that run another way than here.

Behind a prompt at full depth a route finds the keys and values of every layer; where the prompt runs the route too, as a
saved folder runs it, it finds its own. Layers that can go in the one case need not be those that can go in the other.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

from depthdial.errors import RouteWarning
from depthdial.hf.adapter import adapter_card
from depthdial.hf.architectures import unwrap
from depthdial.routes import AnyRoute, Route

_RUN = {"full": "run every layer", "route": "run the route"}
# By model (the one inside PEFT's wrapper): what has been warned of, by the name of what was made and how prompts run.
_WARNED: WeakKeyDictionary[Any, set[tuple[str, str]]] = WeakKeyDictionary()
_BOTH = ContextVar("measures prompts both ways", default=False)


@contextmanager
def both_prompt_depths() -> Iterator[None]:
    """Inside, prompts run the other way on purpose, to be compared: nobody is warned of it."""
    token = _BOTH.set(True)
    try:
        yield
    finally:
        _BOTH.reset(token)


def warn_if_prompts_differ(model: Any, route: AnyRoute, prompt_depth: str, *, stacklevel: int = 3) -> None:
    """Warn, once for each model and family, of a route that was searched for prompts that run another way.

    Of a model whose adapter was trained for prompts that run another way, the adapter is warned of instead.

    Args:
        prompt_depth: how prompts run here, `full` or `route`.
        stacklevel: whose line the warning names; 3 is the caller of the function that calls this one.

    Warns:
        RouteWarning: with what to run or search instead.
    """
    if not isinstance(route, Route) or route.is_full or _BOTH.get():
        return
    card = adapter_card(model)
    is_trained = card is not None and route in card.routes
    made_for = card.prompt_depth if card is not None and is_trained else route.searched_for
    if made_for not in _RUN or made_for == prompt_depth:
        return
    family = card.kind if card is not None and is_trained else route.name.rpartition(":")[0] or route.name
    warned = _WARNED.setdefault(unwrap(model), set())
    if (family, prompt_depth) in warned:
        return
    warned.add((family, prompt_depth))
    if card is not None and is_trained:
        made, verb = f"The {card.kind} adapter of {card.base_name} was trained", "train"
    else:
        made, verb = f"Route {route.name!r} was searched", "search"
    warnings.warn(
        f"{made} for prompts that {_RUN[made_for]}, and here prompts {_RUN[prompt_depth]}: {verb} with "
        f"prompt_depth={prompt_depth!r} (--prompt-depth {prompt_depth}), or run with prompt_depth={made_for!r}.",
        RouteWarning,
        stacklevel=stacklevel,
    )
