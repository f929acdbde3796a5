"""Pooled hidden states of prompts, taken along while a pass over them runs: what a controller may know, at no further pass.

Only the pooled numbers are kept, never the states of all tokens and layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from depthdial.hf.architectures import decoder_stack, layer_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class PooledStates:
    """Hidden states of each prompt after some layers, before any final norm.

    Attributes:
        layers: the layers after which they were taken, 0-based, as the full model numbers them.
        last, mean: (n_sequences, len(layers), width) in fp32: at the prompt's last token, and the mean over its tokens.
    """

    layers: tuple[int, ...]
    last: torch.Tensor
    mean: torch.Tensor

    def select(self, rows: torch.Tensor) -> PooledStates:
        return PooledStates(self.layers, self.last[rows], self.mean[rows])


class Pooling:
    """Hooks on the layers of a view, its own to hook; `states` reads what they saw after its pass, or all parts of it."""

    def __init__(
        self, view: PreTrainedModel, route_layers: Sequence[int], watched: Sequence[int], attention_mask: torch.Tensor
    ) -> None:
        self._watched = tuple(watched)
        self._mask = attention_mask
        self._seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._n_seen = dict.fromkeys(self._watched, 0)
        layers = decoder_stack(view).layers
        for layer in self._watched:
            layers[tuple(route_layers).index(layer)].register_forward_hook(self._hook(layer))

    def states(self) -> PooledStates:
        last, mean = ([self._seen[layer][i] for layer in self._watched] for i in range(2))
        return PooledStates(self._watched, torch.stack(last, dim=1), torch.stack(mean, dim=1))

    def _hook(self, layer: int) -> Any:
        def pool(module: Any, arguments: Any, output: Any) -> None:
            states = layer_states(output).detach()
            weight = self._mask.to(states.device, torch.float32)
            # One product with the mask: no fp32 copy of all tokens where the states are in half precision.
            weight = (weight / weight.sum(dim=1, keepdim=True)).to(states.dtype)
            start = self._n_seen[layer]  # above 0 in a later part of a pass that is made in parts
            self._n_seen[layer] = start + states.shape[1]
            mean = torch.einsum("bt,btd->bd", weight[:, start : self._n_seen[layer]], states)
            last, mean = (x.float().to(self._mask.device) for x in (states[:, -1], mean))
            self._seen[layer] = last, mean + self._seen[layer][1] if start else mean

        return pool
