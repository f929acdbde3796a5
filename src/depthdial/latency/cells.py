"""What a benchmark measured: cells of seconds, the machine's ceilings, and the bytes and FLOPs of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from depthdial.checks import choice, number, whole
from depthdial.errors import InputError

STEP, VERIFY, PREFILL, HF_STEP, HF_PREFILL = "step", "verify", "prefill", "hf_step", "hf_prefill"
KINDS = (STEP, VERIFY, PREFILL, HF_STEP, HF_PREFILL)


@dataclass(frozen=True)
class Cell:
    """Seconds of one kind of pass, over all its repeats.

    Attributes:
        kind: `step` (one token a row), `verify` (some tokens a row behind a context), `prefill` (prompts, behind nothing);
            `hf_step` and `hf_prefill` are those of transformers' own `generate` on the untouched model.
        route: by its name in `LatencyModel.routes`.
        rows: sequences that run together.
        tokens: of each row in the pass: 1 for a step, k + 1 for the check of k drafted ones, the prompt's for a prefill.
        context_tokens: in sight of each row before the pass.
        p20_sec, p50_sec, p80_sec: quantiles over the repeats, which warm-up is not among.
        count: how many repeats there were.

    Raises:
        InputError: for an unknown kind, a count below 1, or seconds that are not above 0 and ascending.
    """

    kind: str
    route: str
    rows: int
    tokens: int
    context_tokens: int
    p20_sec: float
    p50_sec: float
    p80_sec: float
    count: int

    def __post_init__(self) -> None:
        choice("kind of cell", self.kind, KINDS)
        for name in ("rows", "tokens", "count"):
            whole(name, getattr(self, name), 1)
        whole("context_tokens", self.context_tokens, 0)
        for name in ("p20_sec", "p50_sec", "p80_sec"):
            number(name, getattr(self, name), above=0)
        if not self.p20_sec <= self.p50_sec <= self.p80_sec:
            raise InputError(
                f"The quantiles {self.p20_sec:g}, {self.p50_sec:g} and {self.p80_sec:g} s do not ascend: give p20, p50, p80."
            )

    @classmethod
    def of(cls, kind: str, route: str, rows: int, tokens: int, context_tokens: int, seconds: Sequence[float]) -> Cell:
        """The cell of some repeats, (n,) seconds each."""
        p20, p50, p80 = np.quantile(np.asarray(seconds, dtype=float), [0.2, 0.5, 0.8]).tolist()
        return cls(kind, route, rows, tokens, context_tokens, p20, p50, p80, len(seconds))


@dataclass(frozen=True)
class Gemm:
    """The fastest matrix product that was found at one number of rows: FLOP/s, and by which way."""

    rows: int
    flops_per_sec: float
    way: str

    def __post_init__(self) -> None:
        whole("rows", self.rows, 1)
        number("flops_per_sec", self.flops_per_sec, above=0)


@dataclass(frozen=True)
class Ceilings:
    """What the machine can do at most, measured beside the model.

    Attributes:
        bandwidth_bytes_per_sec: of reading buffers much larger than the caches.
        bandwidth_way: which of the ways that were tried was the fastest.
        gemm: by rows, ascending.
    """

    bandwidth_bytes_per_sec: float
    bandwidth_way: str
    gemm: tuple[Gemm, ...]

    def __post_init__(self) -> None:
        number("bandwidth_bytes_per_sec", self.bandwidth_bytes_per_sec, above=0)
        if not self.gemm:
            raise InputError("The ceilings hold no matrix product: bench the model again.")

    @property
    def peak_flops_per_sec(self) -> float:
        """Of the fastest product at any number of rows: at few rows products wait for memory."""
        return max(one.flops_per_sec for one in self.gemm)

    def flops_per_sec(self, rows: float) -> float:
        """Of a matrix product with so many rows: between those measured straight lines, outside them the nearest."""
        return float(np.interp(rows, [one.rows for one in self.gemm], [one.flops_per_sec for one in self.gemm]))


@dataclass(frozen=True)
class Sizes:
    """Bytes and FLOPs of a model, as `dd.model_cost` counts them.

    Attributes:
        layer_bytes: (n_layers,) weights that one token reads in each layer.
        head_bytes: of the output head, which every step reads.
        kv_bytes_per_token: (n_layers,) added to the KV cache by a token.
        layer_flops: (n_layers,) of a token in each layer, without attention to others.
        pair_flops: (n_layers,) of attention, for each token in sight.
        head_flops: of the head for a token.
    """

    layer_bytes: tuple[float, ...]
    head_bytes: float
    kv_bytes_per_token: tuple[float, ...]
    layer_flops: tuple[float, ...]
    pair_flops: tuple[float, ...]
    head_flops: float

    def __post_init__(self) -> None:
        number("head_bytes", self.head_bytes, 0)
        number("head_flops", self.head_flops, above=0)
        for name in ("layer_bytes", "kv_bytes_per_token", "layer_flops", "pair_flops"):
            values = getattr(self, name)
            if len(values) != len(self.layer_bytes):
                raise InputError(f"There are {len(values)} {name} of {len(self.layer_bytes)} layers: bench the model again.")
            for value in values:
                number(name, value, 0)

    def step_bytes(self, layers: Sequence[int], rows: int, context_tokens: float) -> float:
        """Read in one decoding step of `rows` sequences: weights once, keys and values of each row."""
        weights = sum(self.layer_bytes[i] for i in layers) + self.head_bytes
        return weights + rows * context_tokens * sum(self.kv_bytes_per_token[i] for i in layers)

    def pass_flops(self, layers: Sequence[int], rows: int, tokens: int, context_tokens: float, heads: int) -> float:
        """Of a pass over `tokens` tokens a row behind a context, of which `heads` a row go through the head."""
        in_sight = context_tokens + (tokens + 1) / 2
        each = sum(self.layer_flops[i] + self.pair_flops[i] * in_sight for i in layers)
        return rows * (tokens * each + heads * self.head_flops)
