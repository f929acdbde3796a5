"""Prompted views: the prompt runs every layer, the response only those of a route.

In all of the paper's experiments only response tokens follow the route (arXiv 2410.20022, section 3).
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from depthdial.hf.adapter import warn_if_outside
from depthdial.hf.architectures import count_layers, unwrap
from depthdial.hf.untouched import adapter_modules
from depthdial.routes import Route
from depthdial.views.generate import reuse_for_route, tell_prompts
from depthdial.views.prompt_pass import Switch, prompted_forward
from depthdial.views.view import UNCUT_ATTRIBUTE, as_route, quiet_view
from depthdial.views.weights import SHARED_ATTRIBUTE

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def prompted_view(model: Any, route: Route | str) -> PreTrainedModel:
    """A view of `route` that runs the prompt through every layer of `model`, and the response through the route's.

    For `generate`, pipelines and whatever else calls a model with a cache: sampling, beam search, streaming, assistants,
    prompts in chunks and logits processors work as they are, for the switch is in `forward`. What `generate` is given is the
    prompt, and it may continue on a cache of the whole model that holds its beginning; behind a cache that holds an earlier
    answer, the answer runs again with the rest of the prompt. Hidden states of the first step are those of every layer.

    Called by itself, all tokens are the prompt's while the cache is empty or the whole model's, and the response's from then
    on; `view(.., prompt_columns=n)` says so for prompts in chunks and for passes over prompt and response together.

    Raises:
        InputError: from `view`; when called: for static caches, caches of other layers, labels, and what `generate` may be
            asked but cannot do here (see the message).

    Warns:
        RouteWarning: as `view` does.

    Example:
        >>> shallow = dd.prompted_view(model, "uls:50%")
        >>> _ = shallow.generate(**tokenizer("the cat", return_tensors="pt", return_token_type_ids=False), max_new_tokens=4)
    """
    route, base = as_route(route, count_layers(model)), unwrap(model)
    shallow = quiet_view(base, route)
    if adapter_modules(base):  # a snapshot as well: whether adapters are on may change before the prompt comes
        base = quiet_view(base, range(route.n_layers))
    switch = Switch(base, route, inspect.signature(type(shallow).forward))
    step = functools.partial(prompted_forward, shallow, switch)
    # generate() reads the signature of forward to learn what it may pass.
    shallow.__dict__["forward"] = functools.update_wrapper(step, type(shallow).forward.__get__(shallow))
    shallow.__dict__[UNCUT_ATTRIBUTE] = "runs its prompt at full depth"
    shallow.__dict__[SHARED_ATTRIBUTE].refusal = (
        "A prompted view runs its prompt through the whole model, whose weights it cannot change apart: change the model, "
        "or a copy of it, and make the view after."
    )
    tell_prompts(shallow, functools.partial(reuse_for_route, route.layers, route.n_layers))
    warn_if_outside(model, route)
    return shallow
