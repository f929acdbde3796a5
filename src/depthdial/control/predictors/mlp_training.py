"""Training of the MLP predictor.

Five networks are trained at once, each on four fifths of the rows; its own fifth says when to stop. Their mean is one
network again, five times as wide, and every row was learned from. (Bagging, Breiman 1996, with AdamW, arXiv 1711.05101.)
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
import torch

N_MEMBERS, N_HIDDEN = 5, 64
_DROPOUT = 0.2
_BATCH_SIZE, _MOST_EPOCHS, _PATIENCE_EPOCHS = 64, 100, 10
_LEARNING_RATE, _WEIGHT_DECAY = 2e-3, 0.1


class _Members(NamedTuple):
    """m networks of one hidden layer side by side: weights (m, k, h) and (m, h, r), biases (m, 1, h) and (m, 1, r)."""

    weight_in: torch.Tensor
    bias_in: torch.Tensor
    weight_out: torch.Tensor
    bias_out: torch.Tensor

    @classmethod
    def drawn(cls, n_inputs: int, n_routes: int, draw: torch.Generator) -> Self:
        """He's initial weights; the output starts at 0, the mean of the targets, so that stopping at once predicts it."""
        weight = torch.randn((N_MEMBERS, n_inputs, N_HIDDEN), generator=draw, dtype=torch.float32)
        sizes = ((1, N_HIDDEN), (N_HIDDEN, n_routes), (1, n_routes))
        zeros = [torch.zeros((N_MEMBERS, *size), dtype=torch.float32) for size in sizes]
        return cls(weight * (2 / n_inputs) ** 0.5, *zeros)

    def output(self, x: torch.Tensor, draw: torch.Generator | None = None) -> torch.Tensor:
        """(m, b, r) of (m, b, k) or (b, k) inputs; with a generator, hidden units are dropped at random."""
        hidden = torch.relu(x @ self.weight_in + self.bias_in)
        if draw is not None:
            kept = torch.rand(hidden.shape, generator=draw, dtype=torch.float32) >= _DROPOUT
            hidden = hidden * kept / (1 - _DROPOUT)
        return hidden @ self.weight_out + self.bias_out

    @torch.no_grad()
    def errors(self, x: torch.Tensor, y: torch.Tensor, held_out: torch.Tensor) -> torch.Tensor:
        """(m,) mean squared error of each member on its own rows of the (m, n) mask."""
        by_row = ((self.output(x) - y) ** 2).mean(dim=2)
        return (by_row * held_out).sum(dim=1) / held_out.sum(dim=1)

    def mean(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The members' mean as one network: (k, m * h), (m * h,), (m * h, r), (r,)."""
        weight_in, bias_in, weight_out, bias_out = (tensor.detach().double().numpy() for tensor in self)
        inputs = weight_in.transpose(1, 0, 2).reshape(weight_in.shape[1], -1)
        outputs = weight_out.reshape(-1, weight_out.shape[2]) / N_MEMBERS
        return np.ascontiguousarray(inputs), bias_in.reshape(-1), outputs, bias_out.mean(axis=(0, 1))


def trained(inputs: np.ndarray, targets: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The mean of all members, trained on (n, k) inputs and (n, r) targets of mean 0 and variance 1; float64.

    Nothing of torch's global state is used or changed: neither generator nor threads, default dtype or device.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
        x, y = (torch.tensor(table, dtype=torch.float32) for table in (inputs, targets))
        draw = torch.Generator(device="cpu").manual_seed(seed % 2**63)
        part = torch.randperm(len(x), generator=draw) % N_MEMBERS
        held_out = part == torch.arange(N_MEMBERS)[:, None]
        return _fitted(_Members.drawn(x.shape[1], y.shape[1], draw), x, y, held_out, draw).mean()


def _fitted(network: _Members, x: torch.Tensor, y: torch.Tensor, held_out: torch.Tensor, draw: torch.Generator) -> _Members:
    """Every member as it was after the epoch that did best on its own held-out rows."""
    learned = [torch.nonzero(~mask)[:, 0] for mask in held_out]
    best = [tensor.clone() for tensor in network]
    lowest, stale = network.errors(x, y, held_out), torch.zeros(N_MEMBERS, dtype=torch.int64)
    parameters = [tensor.requires_grad_() for tensor in network]
    optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    for _ in range(_MOST_EPOCHS):
        for _ in range(-(-len(x) // _BATCH_SIZE)):
            rows = torch.stack([pool[torch.randint(len(pool), (_BATCH_SIZE,), generator=draw)] for pool in learned])
            optimizer.zero_grad()
            # Summed over the members, which share nothing: each gets the gradient of its own mean error.
            ((network.output(x[rows], draw) - y[rows]) ** 2).mean(dim=(1, 2)).sum().backward()
            optimizer.step()
        errors = network.errors(x, y, held_out)
        better = errors < lowest
        for kept, tensor in zip(best, network, strict=True):
            kept[better] = tensor.detach()[better]
        lowest, stale = torch.where(better, errors, lowest), torch.where(better, 0, stale + 1)
        if bool((stale >= _PATIENCE_EPOCHS).all()):
            break
    return _Members(*best)
