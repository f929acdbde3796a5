"""How many layers really run for a token, counted inside the layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from depthdial.hf.architectures import decoder_stack, unwrap


@dataclass
class LayerCalls:
    """Counted since the last `reset`: calls of layers, and tokens in them, padding and rejected drafts among them."""

    calls: int = 0
    tokens: int = 0

    def reset(self) -> None:
        self.calls = self.tokens = 0

    def note(self, hidden: torch.Tensor) -> None:
        self.calls += 1
        self.tokens += hidden.numel() // hidden.shape[-1]


@contextmanager
def counting(model: Any) -> Iterator[LayerCalls]:
    """Count the layers of a model, and of what is made of it inside: views and deep copies inherit the hooks.

    A layer counts when its MLP runs (itself, where it has no part of that name): one that is called and passes its input on
    without computing does not.
    """
    seen = LayerCalls()

    def listen(_: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        seen.note(arguments[0] if arguments else keywords["hidden_states"])

    layers = decoder_stack(unwrap(model)).layers
    places = [getattr(layer, "mlp", layer) for layer in layers]
    hooks = [place.register_forward_pre_hook(listen, with_kwargs=True) for place in places]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def layers_per_token(seen: LayerCalls, generate: Callable[[int], Any], new_tokens: int, rows: int) -> float:
    """Layers that run for a further token of an answer, in the mean: what a long answer needs beyond one of a token."""
    spent = []
    for n_tokens in (1, new_tokens):
        seen.reset()
        generate(n_tokens)
        spent.append(seen.tokens)
    return (spent[1] - spent[0]) / ((new_tokens - 1) * rows)
