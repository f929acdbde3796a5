"""Training objective: the response's cross-entropy, or the KL to the full model with adapters disabled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True)
class Objective:
    """A mean over response tokens.

    Attributes:
        distill: KL(full || route) in nats at `temperature`, times its square (Hinton et al., arXiv 1503.02531, so that
            gradients keep their size), instead of cross-entropy alone.
        cross_entropy: share of the tokens' cross-entropy beside the KL.
    """

    distill: bool
    temperature: float = 1.0
    cross_entropy: float = 0.0

    def loss(self, logits: torch.Tensor, tokens: torch.Tensor, teacher_logits: torch.Tensor | None) -> torch.Tensor:
        """The loss of some tokens, a scalar.

        Args:
            logits, teacher_logits: (n_tokens, vocabulary), the route's and the full model's.
            tokens: (n_tokens,), those that came next.
        """
        logits = logits.float()
        if not self.distill or teacher_logits is None:
            return functional.cross_entropy(logits, tokens)
        loss = kl_divergence(teacher_logits.float(), logits, self.temperature) * self.temperature**2
        if self.cross_entropy:
            loss = (1 - self.cross_entropy) * loss + self.cross_entropy * functional.cross_entropy(logits, tokens)
        return loss


def kl_divergence(teacher_logits: torch.Tensor, logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Mean KL(teacher || student) in nats over tokens, from (n_tokens, vocabulary) logits at one temperature."""
    with torch.no_grad():
        wanted = (teacher_logits / temperature).log_softmax(-1)
        probabilities = wanted.exp()
        negative_entropy = torch.linalg.vecdot(probabilities, wanted).mean()
    # One fused pass for what depends on the student; the rest is a constant that makes the number a KL.
    return functional.cross_entropy(logits / temperature, probabilities) + negative_entropy
