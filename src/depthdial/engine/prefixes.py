"""Routes that begin alike share their first layers: the hidden states after a prefix of layers are computed once.

Layers are deterministic, so what a route computes after its first p layers is what any route computes that begins with the
same p layers, on the same texts behind the same prompts. A search's candidates differ from the route that they drop a layer
of from that layer on, and early exits of the full model have nothing left to compute but the norm and the head.
"""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

import torch

from depthdial.hf.architectures import decoder_stack, layer_states, unwrap
from depthdial.routes import Route
from depthdial.views.view import quiet_view

KEPT_BYTES = 2**29
# On a model once it has been tried: whether passes that begin with known states give the very same numbers.
_ATTRIBUTE = "depthdial_shares_prefixes"


class _Outputs:
    """Outputs of layers by what they are of; those that were used longest ago go first."""

    def __init__(self, keep_bytes: int) -> None:
        self._keep_bytes, self._n_bytes = keep_bytes, 0
        self._kept: OrderedDict[Any, Any] = OrderedDict()

    def __contains__(self, key: Any) -> bool:
        return key in self._kept

    def use(self, key: Any) -> Any:
        self._kept.move_to_end(key)
        return self._kept[key]

    def keep(self, key: Any, output: Any) -> None:
        if key in self._kept or _n_bytes(output) > self._keep_bytes:
            return
        self._kept[key] = output
        self._n_bytes += _n_bytes(output)
        while self._n_bytes > self._keep_bytes:
            self._n_bytes -= _n_bytes(self._kept.popitem(last=False)[1])


class SharedPrefixes:
    """What layers gave after the prefixes of routes, for passes over the same texts; `keep_bytes` of states are kept."""

    def __init__(self, keep_bytes: int = KEPT_BYTES) -> None:
        self._outputs, self._on = _Outputs(keep_bytes), cast(tuple[Any, ...], ())

    def on(self, *about: Any) -> SharedPrefixes:
        """The same memory for other passes: what they are of, such as rows of a batch."""
        other = copy.copy(self)
        other._on = about
        return other

    def run(self, model: Any, route: Route, forward: Callable[[Any], Any]) -> Any:
        """`forward(view)`, where the view of a route takes what is known of its first layers, and keeps what it computes.

        The first time that a model is asked to begin in the middle, both ways are run and compared; a model that gives other
        numbers (a layer that needs more of an earlier one than its output) runs all layers from then on.
        """
        base, n_known = unwrap(model), self._known(route)
        shares = base.__dict__.get(_ATTRIBUTE)
        if shares is False:
            return forward(quiet_view(model, route))
        if n_known == 0 or shares:
            return forward(self._view(model, route, n_known))
        found = forward(quiet_view(model, route))
        try:
            base.__dict__[_ATTRIBUTE] = torch.equal(found.logits, forward(self._view(model, route, n_known)).logits)
        except Exception:
            base.__dict__[_ATTRIBUTE] = False
        return found

    def _known(self, route: Route) -> int:
        """How many of a route's first layers are known, every one of them."""
        n = 0
        while n < len(route) and (self._on, route.layers[: n + 1]) in self._outputs:
            n += 1
        return n

    def _view(self, model: Any, route: Route, n_known: int) -> Any:
        view = quiet_view(model, route)
        layers = decoder_stack(view).layers
        for i in range(n_known - 1, -1, -1):  # so that the longest prefix is the first to go
            output = self._outputs.use((self._on, route.layers[: i + 1]))
            layers[i].forward = functools.partial(_known, output)  # the view's own shell
            # Of the model's own hooks the output is the result already; by some transformers collects hidden states.
            for key, hook in list(layers[i]._forward_hooks.items()):
                if not str(getattr(hook, "__module__", "")).startswith("transformers."):
                    del layers[i]._forward_hooks[key]
            layers[i]._forward_pre_hooks.clear()
        for i in range(n_known, len(route)):
            layers[i].register_forward_hook(functools.partial(self._keep, (self._on, route.layers[: i + 1])))
        return view

    def _keep(self, key: Any, module: Any, arguments: Any, output: Any) -> None:
        self._outputs.keep(key, output)


def _known(output: Any, *_: Any, **__: Any) -> Any:
    """In place of a layer's forward, whose output is known."""
    return output


def _n_bytes(output: Any) -> int:
    states = layer_states(output)
    return int(states.numel() * states.element_size())
