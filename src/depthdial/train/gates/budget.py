"""The price of a layer in the loss: fixed, or adjusted until a budget is met and held."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# What one step may add to a dual variable.
_MOST_NATS = 1.0


@dataclass
class Price:
    """alpha x fraction of layers run: the paper's loss (arXiv 2410.20022, section 3).

    Attributes:
        value: nats for one more of the fraction: what a step pays for running all layers rather than none.
    """

    value: float

    def penalty(self, fraction: torch.Tensor) -> torch.Tensor:
        """What is added to the loss for a batch's fraction of layers run, a scalar."""
        return self.value * fraction

    def update(self, fraction: float) -> None:
        """Take note of an optimizer step's fraction."""


@dataclass
class Budget:
    """A dual variable: the price that brings the fraction to a target and holds it there (augmented Lagrangian).

    The loss gets dual x (fraction - goal) + stiffness / 2 x (fraction - goal)^2, and after every optimizer step the dual
    moves by gain x (fraction - goal), in nats; it may turn negative. The square holds the fraction near the goal from the
    first step on, and the dual takes away what is left of the distance. What keeps the dual from running away while gates
    are still on their way: the goal comes down to the target from where they start, and a step moves it by no more than one
    nat.

    Attributes:
        target: of the fraction of all layers.
        start: the fraction of gates that are not trained yet.
        ramp_steps: optimizer steps in which the goal goes from the one to the other.
        gain, stiffness: integral and proportional action, in nats for one of the fraction.
    """

    target: float
    start: float
    ramp_steps: int
    gain: float = 50.0
    stiffness: float = 1000.0
    dual: float = 0.0
    steps: int = 0

    @property
    def goal(self) -> float:
        """Where the fraction should be after the step that comes."""
        done = 1.0 if self.steps >= self.ramp_steps else (self.steps + 1) / self.ramp_steps
        return self.start + (self.target - self.start) * min(done, 1.0)

    def penalty(self, fraction: torch.Tensor) -> torch.Tensor:
        excess = fraction - self.goal
        return self.dual * excess + 0.5 * self.stiffness * excess.square()

    def update(self, fraction: float) -> None:
        self.dual += max(-_MOST_NATS, min(_MOST_NATS, self.gain * (fraction - self.goal)))
        self.steps += 1

    @property
    def value(self) -> float:
        return self.dual
