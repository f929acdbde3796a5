"""A model whose forward pass takes a route: what transformers' Trainer, DDP and FSDP wrap and train.

The response runs a view of the route, so that memory and time of a training step fall with the layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from depthdial.engine.prefill import Prefill, prefill
from depthdial.engine.teacher_forcing import continued_logits, whole_logits
from depthdial.errors import InputError
from depthdial.hf.architectures import count_layers, unwrap
from depthdial.routes import Route
from depthdial.views.view import quiet_view


class RoutedModel(nn.Module):
    """Teacher-forced logits of a response on a route.

    Args:
        model: a PreTrainedModel or PEFT's wrapper of one; trained in place.
        prompt_depth: `full` (the prompt runs every layer) or `route`.
        prompt_gradient: whether a full-depth prompt behind a shallower route is differentiated through. If not, one pass
            over a batch's prompts serves all its routes.
    """

    # Says to Trainer that the loss is a mean over one batch, and accumulated as such.
    accepts_loss_kwargs = False

    def __init__(self, model: Any, *, prompt_depth: str = "full", prompt_gradient: bool = False) -> None:
        super().__init__()
        self.model, self.prompt_depth, self.prompt_gradient = model, prompt_depth, prompt_gradient
        self._prompts: tuple[int, Prefill] | None = None

    def forward(
        self,
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor,
        response_ids: torch.Tensor,
        response_mask: torch.Tensor,
        layers: tuple[int, ...],
        group: int,
    ) -> torch.Tensor:
        """Logits that predict the last of `response_ids`: all of them, or all but the first.

        The first token of a response is the prompt's own prediction: behind a full-depth prompt without gradient there is
        nothing in it to learn for a shallower route.

        Args:
            prompt_ids, prompt_mask: (n_sequences, n_prompt_tokens), left-padded.
            response_ids, response_mask: (n_sequences, n_tokens), right-padded; two tokens or more.
            layers: the route's.
            group: number of the batch; passes of one group have the same prompts and the same weights.
        """
        route = Route(layers, count_layers(self.model))
        if route.is_full or self.prompt_depth == "route":
            running = self.model if route.is_full else quiet_view(self.model, route)
            return whole_logits(running, prompt_ids, prompt_mask, response_ids, response_mask)
        prompts = self._prefilled(prompt_ids, prompt_mask, group)
        logits = continued_logits(self.model, route, prompts, response_ids, response_mask)
        return torch.cat([prompts.logits, logits], dim=1) if self.prompt_gradient else logits

    def _prefilled(self, prompt_ids: torch.Tensor, prompt_mask: torch.Tensor, group: int) -> Prefill:
        if self.prompt_gradient:
            return prefill(self.model, prompt_ids, prompt_mask, with_gradient=True)
        if self._prompts is None or self._prompts[0] != group:
            self._prompts = None  # before the next one is made, so that there are never two
            self._prompts = (group, prefill(self.model, prompt_ids, prompt_mask))
        return self._prompts[1]


def refuse_checkpointing(model: Any, routes: Any, prompt_depth: str) -> None:
    """InputError if the model recomputes activations where a route continues on a cache, which transformers then drops."""
    on_cache = prompt_depth == "full" and not all(route.is_full for route in routes)
    if on_cache and any(getattr(module, "gradient_checkpointing", False) for module in unwrap(model).modules()):
        raise InputError(
            "Gradient checkpointing drops the KV cache that a route continues on: call "
            "model.gradient_checkpointing_disable(), or train with prompt_depth='route'."
        )
