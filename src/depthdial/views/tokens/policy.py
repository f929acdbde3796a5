"""Token routing policies: one interface for gates, rates, routes, confidence and any function.

A policy holds settings and no state: every forward pass asks it for a fresh `decide`, so one policy serves any number of
models and threads. Chance is counted, not drawn in turn: a token's numbers follow from (seed, sequence, position, layer), so
that a batch, a chunk or a cache changes nothing (arXiv 2410.20022, section 3, has the gates sampled at evaluation).
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from depthdial.checks import choice, number, whole
from depthdial.errors import InputError
from depthdial.routes import Route

Decide = Callable[[int, torch.Tensor], torch.Tensor | None]
Confidence = Literal["margin", "saturation"]
CONFIDENCES: tuple[Confidence, ...] = get_args(Confidence)

# A 31-bit integer hash (Wellons' search for low-bias mixers): products stay below 2**62, so that no integer overflows.
_MIX = ((16, 0x21F0AAAD), (15, 0x735A2D97))
_BITS31 = (1 << 31) - 1
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@dataclass(frozen=True)
class TokenStep:
    """One forward pass, as a policy sees it before the first layer runs.

    Attributes:
        n_layers: L.
        positions: (n_sequences, n_tokens), place of each token among the real ones of its sequence, from 0.
        keys: (n_sequences,), by which a sequence's chance is drawn: never its place in the batch.
        is_prompt: (n_sequences, n_tokens), tokens that run every layer whatever the policy says.
        embeddings: gives (n_sequences, n_tokens, width), the tokens' input embeddings without positions.
        logits: hidden states (.., width) -> (.., vocabulary), by the model's own final norm and head.
    """

    n_layers: int
    positions: torch.Tensor
    keys: torch.Tensor
    is_prompt: torch.Tensor
    embeddings: Callable[[], torch.Tensor]
    logits: Callable[[torch.Tensor], torch.Tensor]


class TokenPolicy:
    """Decides, layer by layer, which tokens run. Subclass it, or pass a function of (layer, hidden states).

    Attributes:
        name: legible; goes into rows and file names.

    Example:
        >>> view = dd.token_view(model, lambda layer, hidden: hidden[..., 0] > 0)
    """

    name: str = "policy"

    @property
    def fingerprint(self) -> str:
        """Text that differs for policies that decide differently.

        Of a function, or a class that writes nothing about itself, it is good for this very object: nobody else has it, and
        so a run that was stopped goes on with the same object alone.
        """
        told = repr(self)
        if _ADDRESS.search(told) is None:
            return told
        # An address is used again once its object is gone, and would give out another policy's rows for this one's.
        return told + self.__dict__.setdefault("_mark", uuid.uuid4().hex)

    @property
    def trained_on(self) -> frozenset[str]:
        """Hashes of the prompts that it learned from, which may not judge it; none where it does not say."""
        return frozenset()

    def start(self, step: TokenStep) -> Decide:
        """What decides in one forward pass.

        Returns:
            (layer, its input (n_sequences, n_tokens, width)) -> (n_sequences, n_tokens), true where the layer runs; None
            where it runs for every token. Called for layers 0, 1, .. in turn. In dense execution it may be a float tensor
            of zeros and ones that carries a gradient.
        """
        raise NotImplementedError

    def check(self, n_layers: int, width: int) -> None:
        """InputError unless the policy fits a model of `n_layers` layers with hidden states of `width`."""

    def flops_per_token(self, width: int, vocabulary: int, layers_run: float) -> float:
        """What deciding about one token costs, all layers together; `layers_run` is how many it runs in the mean."""
        return 0.0

    def for_sequences(self, rows: Sequence[int]) -> TokenPolicy:
        """The policy for some rows of the batch that it was made for; itself unless it tells rows apart."""
        return self


@dataclass(frozen=True)
class FunctionPolicy(TokenPolicy):
    """Any function of (layer, hidden states); it must not remember earlier passes."""

    decide: Decide
    name: str = "function"

    def start(self, step: TokenStep) -> Decide:
        return self.decide


@dataclass(frozen=True)
class Bernoulli(TokenPolicy):
    """Every token draws for itself, at one rate a layer: what gates with a fixed input come to.

    Attributes:
        rates: L probabilities that a layer runs.
        seed: of the draws.

    Example:
        >>> view = dd.token_view(model, dd.Bernoulli((1, 0.5, 0.5, 0.5, 0.5, 1)))
    """

    rates: tuple[float, ...]
    seed: int = 0
    name: str = "bernoulli"

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "rates", tuple(float(rate) for rate in self.rates))
        except (TypeError, ValueError):
            raise InputError(f"Rates are numbers, one a layer, not {self.rates!r}.") from None
        whole("seed", self.seed)
        for rate in self.rates:
            number("probability that a layer runs", rate, 0, 1)

    def start(self, step: TokenStep) -> Decide:
        chance = uniform_draws(self.seed, step.keys, step.positions, step.n_layers)

        def decide(layer: int, hidden: torch.Tensor) -> torch.Tensor | None:
            return None if self.rates[layer] == 1 else chance[layer] < self.rates[layer]

        return decide

    def check(self, n_layers: int, width: int) -> None:
        if len(self.rates) != n_layers:
            raise InputError(f"There are {len(self.rates)} rates for a model of {n_layers} layers: give one a layer.")


@dataclass(frozen=True)
class StaticRoutes(TokenPolicy):
    """A route for all sequences, or one for each row of the batch: every token of a row runs the same layers.

    Example:
        >>> view = dd.token_view(model, dd.StaticRoutes((dd.Route((0, 1, 5), n_layers=6),)))
    """

    routes: tuple[Route, ...]
    name: str = "static"

    def __post_init__(self) -> None:
        is_several = isinstance(self.routes, Sequence) and not isinstance(self.routes, str)
        routes = tuple(self.routes) if is_several else (self.routes,)
        object.__setattr__(self, "routes", routes)
        other = next((route for route in routes if not isinstance(route, Route)), None)
        if other is not None or not routes:
            raise InputError(f"StaticRoutes takes Route objects, not {other!r}: parse texts with Route.parse first.")

    def start(self, step: TokenStep) -> Decide:
        n_rows = step.positions.shape[0]
        if len(self.routes) not in (1, n_rows):
            raise InputError(f"There are {len(self.routes)} routes for a batch of {n_rows}: give one, or one a sequence.")
        table = torch.zeros(len(self.routes), step.n_layers, dtype=torch.bool)
        for row, route in enumerate(self.routes):
            table[row, list(route.layers)] = True
        everywhere = table.all(0).tolist()
        runs = table.to(step.positions.device)

        def decide(layer: int, hidden: torch.Tensor) -> torch.Tensor | None:
            return None if everywhere[layer] else runs[:, layer, None].expand(n_rows, hidden.shape[1])

        return decide

    def check(self, n_layers: int, width: int) -> None:
        other = next((route for route in self.routes if route.n_layers != n_layers), None)
        if other is not None:
            raise InputError(
                f"Route {other.name!r} is for a model of {other.n_layers} layers, and this one has {n_layers}: "
                "make the route for this depth."
            )

    def for_sequences(self, rows: Sequence[int]) -> TokenPolicy:
        if len(self.routes) == 1:
            return self
        return StaticRoutes(tuple(self.routes[row] for row in rows), self.name)


@dataclass(frozen=True)
class ConfidenceExit(TokenPolicy):
    """Early exit, token by token: once a token is confident, it skips all later layers (CALM, arXiv 2207.07061, 3.2).

    Attributes:
        measure: `margin` (between the two likeliest tokens' probabilities, by the model's own final norm and head) or
            `saturation` (cosine between a layer's input and its output).
        threshold: what the measure must exceed.
        first_layer: no token leaves before this layer.

    Example:
        >>> view = dd.token_view(model, dd.ConfidenceExit("margin", 0.5, first_layer=3))
    """

    measure: Confidence
    threshold: float
    first_layer: int = 1
    name: str = ""

    def __post_init__(self) -> None:
        choice("confidence", self.measure, CONFIDENCES)
        low = 0.0 if self.measure == "margin" else -1.0
        if not isinstance(self.threshold, int | float) or not low <= self.threshold <= 1:
            raise InputError(f"The threshold of {self.measure} lies between {low:g} and 1, not at {self.threshold!r}.")
        whole("first_layer", self.first_layer, 1)
        if not self.name:
            object.__setattr__(self, "name", f"{self.measure}>{self.threshold:g}")

    def start(self, step: TokenStep) -> Decide:
        stays = torch.ones_like(step.positions, dtype=torch.bool)
        before: torch.Tensor | None = None

        def decide(layer: int, hidden: torch.Tensor) -> torch.Tensor | None:
            nonlocal stays, before
            if layer >= self.first_layer and stays.any():
                stays = stays & ~(self.measured(step, before, hidden, stays) > self.threshold)
            before = hidden if self.measure == "saturation" else None
            return None if layer < self.first_layer else stays

        return decide

    def measured(
        self, step: TokenStep, before: torch.Tensor | None, hidden: torch.Tensor, asked: torch.Tensor
    ) -> torch.Tensor:
        """(n_sequences, n_tokens) confidence before a layer runs; -1 or unspecified for tokens that are not asked.

        Args:
            before, hidden: the input of the layer before, and of this one, (n_sequences, n_tokens, width).
            asked: (n_sequences, n_tokens) the tokens to ask: a head is the dearest matrix of a small model.
        """
        if self.measure == "saturation":
            assert before is not None  # layers are asked in turn, and the first one cannot be left
            # Rounding may lift a cosine over 1, and then a threshold of 1 would not mean "never".
            return torch.nn.functional.cosine_similarity(before.float(), hidden.float(), dim=-1).clamp(max=1)
        likeliest = step.logits(hidden[asked][None])[0].float().softmax(-1).topk(2, dim=-1).values
        measured = torch.full(asked.shape, -1.0, device=hidden.device)
        measured[asked] = likeliest[:, 0] - likeliest[:, 1]
        return measured

    def check(self, n_layers: int, width: int) -> None:
        if self.first_layer >= n_layers:
            raise InputError(
                f"The argument first_layer {self.first_layer} lies outside a model of {n_layers} layers: choose a lower one."
            )

    def flops_per_token(self, width: int, vocabulary: int, layers_run: float) -> float:
        # Asked before every layer until it leaves: the head for a margin, three products of states for a cosine.
        asked = max(layers_run - self.first_layer + 1, 0.0)
        return asked * (2.0 * width * vocabulary if self.measure == "margin" else 6.0 * width)


def as_policy(policy: Any) -> TokenPolicy:
    """A policy from a policy, a Route (or several), or a function of (layer, hidden states); else InputError."""
    if isinstance(policy, TokenPolicy):
        return policy
    if isinstance(policy, Route) or (isinstance(policy, Sequence) and policy and all(isinstance(p, Route) for p in policy)):
        return StaticRoutes(policy)  # type: ignore[arg-type]
    if callable(getattr(policy, "policy", None)):
        raise InputError("Gates decide in two ways: pass gates.policy('sampled') or gates.policy('argmax').")
    if callable(policy) and not isinstance(policy, type):
        return FunctionPolicy(policy, getattr(policy, "__name__", "function"))  # type: ignore[arg-type]
    raise InputError(
        f"{policy!r} is no token policy: pass gates, Bernoulli, StaticRoutes, ConfidenceExit, or a function of "
        "(layer, hidden states)."
    )


def uniform_draws(seed: int, keys: torch.Tensor, positions: torch.Tensor, n_layers: int) -> torch.Tensor:
    """Numbers in (0, 1) by counter, (n_layers, n_sequences, n_tokens) in float32, for keys (n_sequences,) and positions
    (n_sequences, n_tokens): the same for a token however its sequence is batched, padded or cached.
    """
    layers = torch.arange(n_layers, device=positions.device)
    mixed = _mix(torch.full_like(keys, seed % _BITS31) + (keys & _BITS31))
    mixed = _mix(mixed + _mix(keys >> 31 & _BITS31))
    mixed = _mix(mixed[:, None] + _mix(positions + 1))
    mixed = _mix(mixed[None] + _mix(layers + 1)[:, None, None])
    # 23 bits and a half: exact in float32, and never 0 or 1.
    return ((mixed >> 8).float() + 0.5) * 2.0**-23


def sequence_key(sequence_id: object) -> int:
    """The key of a sequence, from its id."""
    return int.from_bytes(hashlib.sha256(str(sequence_id).encode()).digest()[:7], "big")


def _mix(numbers: torch.Tensor) -> torch.Tensor:
    mixed = numbers & _BITS31
    for shift, factor in _MIX:
        mixed = (mixed ^ (mixed >> shift)) * factor & _BITS31
    return mixed ^ (mixed >> 15)


def logistic_noise(draws: torch.Tensor) -> torch.Tensor:
    """Standard logistic noise from numbers in (0, 1): added to log-odds, its sign is a draw at those odds."""
    return draws.log() - (-draws).log1p()
