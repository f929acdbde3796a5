"""How far two ways of computing the same are apart."""

from __future__ import annotations

import torch


def largest_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a share of the largest expected number; not finite where a result is not.

    Example:
        >>> from depthdial.engine.closeness import largest_difference
        >>> largest_difference(torch.tensor([1.0, 4.5]), torch.tensor([1.0, 4.0]))
        0.125
    """
    found, expected = found.float(), expected.float()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
