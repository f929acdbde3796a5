"""A model that trains with its gates: hard decisions in the forward pass, soft ones for the gradient.

Hard Gumbel-softmax with a straight-through gradient (Jang et al., arXiv 1611.01144), as arXiv 2410.20022 has it in section
3, and with the temperature that was asked for. Every layer is computed for every token, since the gradient of a decision to
skip needs what was skipped.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from depthdial.engine.teacher_forcing import whole_logits
from depthdial.views.tokens.gates import TokenGates
from depthdial.views.tokens.policy import Decide, TokenPolicy, TokenStep, logistic_noise
from depthdial.views.tokens.view import token_view


class RelaxedGates(TokenPolicy):
    """Gates that learn, at a `temperature` that is set before each pass.

    Unlike other policies it keeps, for the loss, what it decided in the last pass, a layer at a time:
    (n_sequences, n_tokens) decisions without gradient (`hard`), and log-odds of running with one (`odds`).
    """

    name = "gates:training"

    def __init__(self, gates: TokenGates) -> None:
        self.gates, self.temperature = gates, 1.0
        self.hard: list[torch.Tensor] = []
        self.odds: list[torch.Tensor] = []

    def start(self, step: TokenStep) -> Decide:
        see, controlled = self.gates.inputs(step), frozenset(self.gates.config.layers)
        self.hard, self.odds = [], []

        def decide(layer: int, hidden: torch.Tensor) -> torch.Tensor | None:
            if layer not in controlled:
                return None
            odds = self.gates.log_odds(layer, see(hidden))
            # The difference of two Gumbel noises, from PyTorch's own generator, whose state is in Trainer's checkpoints.
            noisy = odds + logistic_noise(torch.rand_like(odds).clamp(min=1e-7, max=1 - 1e-7))
            hard, soft = (noisy > 0).float(), (noisy / self.temperature).sigmoid()
            self.hard.append(hard.detach())
            self.odds.append(odds)
            return (hard + (soft - soft.detach())).to(hidden)  # exactly 0 or 1

        return decide

    def check(self, n_layers: int, width: int) -> None:
        self.gates.check_fit(n_layers, width)


class GatedOutput(NamedTuple):
    """One batch.

    Attributes:
        logits: (n_sequences, n_tokens, vocabulary), those that predict each response token.
        ran: () fraction of all layers that ran, mean over response tokens; without gradient.
        expected: () the same in expectation, with the exact gradient, which has none of the draws' noise.
        rates: (n_controlled,) expected share of response tokens that run each controlled layer; without gradient.
        n_routed: () response tokens that these are means over: all that predict another one.
    """

    logits: torch.Tensor
    ran: torch.Tensor
    expected: torch.Tensor
    rates: torch.Tensor
    n_routed: torch.Tensor


class GatedModel(nn.Module):
    """Teacher-forced logits of a response whose tokens go through the layers that gates choose; both are trained in place.

    `model` may be PEFT's wrapper; `key_values` and `prompt_depth` are those of `token_view`.
    """

    # Says to Trainer that the loss is a mean over one batch, and accumulated as such.
    accepts_loss_kwargs = False

    def __init__(self, model: Any, gates: TokenGates, *, key_values: str = "project", prompt_depth: str = "full") -> None:
        super().__init__()
        self.model, self.gates = model, gates
        self._options: dict[str, Any] = {"key_values": key_values, "prompt_depth": prompt_depth, "execution": "dense"}
        self._policy = RelaxedGates(gates)

    def forward(
        self,
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor,
        response_ids: torch.Tensor,
        response_mask: torch.Tensor,
        temperature: float,
    ) -> GatedOutput:
        """One pass over prompt and response, in tensors as those of `RoutedModel.forward`."""
        self._policy.temperature = temperature
        n_prompt = prompt_ids.shape[1]
        batch = (prompt_ids, prompt_mask, response_ids, response_mask)
        logits = whole_logits(self._view(), *batch, prompt_columns=n_prompt)
        # The last token of a response predicts nothing, and so does not run.
        routed = response_mask[:, 1:].bool()
        n_layers, n_routed = self.gates.config.n_layers, routed.sum()

        def rates(by_layer: list[torch.Tensor]) -> torch.Tensor:
            chosen = torch.stack([one[:, n_prompt:].to(routed.device) for one in by_layer])
            return (chosen * routed).sum((1, 2)) / n_routed.clamp(min=1)

        def fraction(of_layers: torch.Tensor) -> torch.Tensor:
            return (of_layers.sum() + n_layers - len(of_layers)) / n_layers

        expected = rates([odds.sigmoid() for odds in self._policy.odds])
        ran = fraction(rates(self._policy.hard))
        self._policy.hard, self._policy.odds = [], []  # or they would keep the graph
        return GatedOutput(logits, ran, fraction(expected), expected.detach(), n_routed)

    def _view(self) -> Any:
        # Made late, when Trainer has put the model in training mode and on its device, and once: it shares the parameters
        # themselves. It is no sub-module, or they would be found twice.
        if "_routed" not in self.__dict__:
            self.__dict__["_routed"] = token_view(self.model, self._policy, **self._options)
        return self.__dict__["_routed"]
