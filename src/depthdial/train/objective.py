"""Training objective: the response's cross-entropy, or the KL to the full model with adapters disabled."""

from __future__ import annotations

import torch
from torch.nn import functional

from depthdial.train.depth.settings import FinetuneSettings


def response_loss(
    settings: FinetuneSettings, logits: torch.Tensor, tokens: torch.Tensor, teacher_logits: torch.Tensor | None
) -> torch.Tensor:
    """The mean loss of some response tokens, a scalar: cross-entropy or, with a teacher, distillation.

    KL(full || route) in nats at `settings.temperature`, times its square (Hinton et al., arXiv 1503.02531, so that gradients
    keep their size), with the share `settings.cross_entropy` of cross-entropy beside it.

    Args:
        logits, teacher_logits: (n_tokens, vocabulary), the route's and the full model's.
        tokens: (n_tokens,), those that came next.
    """
    logits, share = logits.float(), settings.cross_entropy
    if teacher_logits is None:
        return functional.cross_entropy(logits, tokens)
    loss = kl_divergence(teacher_logits.float(), logits, settings.temperature) * settings.temperature**2
    return (1 - share) * loss + share * functional.cross_entropy(logits, tokens) if share else loss


def kl_divergence(teacher_logits: torch.Tensor, logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Mean KL(teacher || student) in nats over tokens, from (n_tokens, vocabulary) logits at one temperature."""
    with torch.no_grad():
        wanted = (teacher_logits / temperature).log_softmax(-1)
        probabilities = wanted.exp()
        negative_entropy = torch.linalg.vecdot(probabilities, wanted).mean()
    # One fused pass for what depends on the student; the rest is a constant that makes the number a KL.
    return functional.cross_entropy(logits / temperature, probabilities) + negative_entropy
