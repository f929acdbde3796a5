"""A latency model of a large model on several GPUs, from data sheets and stated efficiencies. Nothing here was measured."""

from __future__ import annotations

from dataclasses import dataclass

from depthdial.latency.cells import PREFILL, STEP, VERIFY, Ceilings, Cell, Gemm, Sizes
from depthdial.latency.model import LatencyModel


@dataclass(frozen=True)
class Gpus:
    """GPUs that share every matrix (tensor parallelism).

    Attributes:
        memory_bytes, bandwidth_bytes_per_sec, flops_per_sec, link_bytes_per_sec: of one GPU, by its data sheet (H100 SXM:
            dense bf16; NVLink in one direction).
        bandwidth_share, flops_share: of the data sheet's numbers that kernels reach. Assumed.
        all_reduce_sec: least time of one all-reduce. Assumed.
        step_sec: of a step beside the model: scheduling, sampling. Assumed.
    """

    count: int = 8
    memory_bytes: float = 80e9
    bandwidth_bytes_per_sec: float = 3.35e12
    flops_per_sec: float = 989e12
    link_bytes_per_sec: float = 450e9
    bandwidth_share: float = 0.7
    flops_share: float = 0.5
    all_reduce_sec: float = 15e-6
    step_sec: float = 1e-3

    @property
    def reached_bytes_per_sec(self) -> float:
        """What all of them read, as kernels do."""
        return self.count * self.bandwidth_bytes_per_sec * self.bandwidth_share

    @property
    def reached_flops_per_sec(self) -> float:
        """What all of them compute, as kernels do."""
        return self.count * self.flops_per_sec * self.flops_share


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder whose layers are alike; the defaults are Llama 3.1 70B's (its config.json), held in 16 bits."""

    n_layers: int = 80
    hidden: int = 8192
    intermediate: int = 28672
    heads: int = 64
    kv_heads: int = 8
    vocabulary: int = 128256
    bytes_each: int = 2

    @property
    def layer_weights(self) -> int:
        """Queries and output, keys and values, and the three matrices of the MLP."""
        kv = self.hidden * self.kv_heads // self.heads
        return self.hidden * (2 * self.hidden + 2 * kv + 3 * self.intermediate)

    @property
    def layer_bytes(self) -> int:
        return self.layer_weights * self.bytes_each

    @property
    def head_bytes(self) -> int:
        return self.vocabulary * self.hidden * self.bytes_each

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one token in one layer."""
        return 2 * self.hidden * self.kv_heads // self.heads * self.bytes_each

    @property
    def all_bytes(self) -> int:
        """All layers, the embeddings and the head."""
        return self.n_layers * self.layer_bytes + 2 * self.head_bytes


def layer_sec(shape: Shape, gpus: Gpus, tokens: int, rows: int, context_tokens: float) -> dict[str, float]:
    """Seconds of one layer in a pass over `tokens` tokens of `rows` rows, by what takes them.

    The longer of reading its weights and computing with them, then the cache, then two all-reduces.
    """
    bandwidth, rate = gpus.reached_bytes_per_sec, gpus.reached_flops_per_sec
    moved = 2 * (gpus.count - 1) / gpus.count * tokens * shape.hidden * shape.bytes_each / gpus.link_bytes_per_sec
    return {
        "weights": max(shape.layer_bytes / bandwidth, 2 * shape.layer_weights * tokens / rate),
        "cache": rows * context_tokens * shape.kv_bytes / bandwidth,
        "all-reduces": 2 * (gpus.all_reduce_sec + moved),
    }


def fixed_sec(shape: Shape, gpus: Gpus, rows: int) -> float:
    """Seconds of a pass beside its layers: the head for one token of each row, scheduling, sampling."""
    bandwidth, rate = gpus.reached_bytes_per_sec, gpus.reached_flops_per_sec
    return gpus.step_sec + max(shape.head_bytes / bandwidth, shape.vocabulary * shape.hidden * 2 * rows / rate)


def rows_that_fit(shape: Shape, gpus: Gpus, context_tokens: int, cached_layers: int) -> int:
    """Rows whose keys and values fit beside the weights, a tenth of the memory left free."""
    free = 0.9 * gpus.count * gpus.memory_bytes - shape.all_bytes
    return int(free // (context_tokens * cached_layers * shape.kv_bytes))


def latency_of(shape: Shape, gpus: Gpus, name: str) -> LatencyModel:
    """The passes of `bench`, computed instead of measured."""
    half = tuple(range(0, shape.n_layers, 2))
    routes = {"full": tuple(range(shape.n_layers)), f"uls:{len(half)}": half}

    def cell(kind: str, route: str, rows: int, tokens: int, context: int) -> Cell:
        behind = context or tokens / 2  # in a prompt a token sees half of the others, in the mean
        layer = sum(layer_sec(shape, gpus, rows * tokens, rows, behind).values())
        sec = fixed_sec(shape, gpus, rows) + len(routes[route]) * layer
        return Cell(kind, route, rows, tokens, context, sec, sec, sec, 1)

    cells = [
        *(cell(STEP, r, n, 1, c) for r in routes for n in (1, 8, 32, 64, 128, 256, 512) for c in (256, 1024, 4096)),
        *(cell(VERIFY, r, n, t, 1024) for r in routes for n in (1, 8) for t in (2, 5)),
        *(cell(PREFILL, r, n, t, 0) for r in routes for n in (1, 2, 4, 8) for t in (128, 512, 2048)),
    ]
    per_layer = (float(shape.layer_bytes),) * shape.n_layers
    flops = (2.0 * shape.layer_weights,) * shape.n_layers
    return LatencyModel(
        model=name,
        weights_hash="",
        dtype="bfloat16",
        device="cuda",
        threads=1,
        n_layers=shape.n_layers,
        routes=routes,
        layer_share=(1.0,) * shape.n_layers,
        sizes=Sizes(
            per_layer,
            float(shape.head_bytes),
            (float(shape.kv_bytes),) * shape.n_layers,
            flops,
            (4.0 * shape.hidden,) * shape.n_layers,
            2.0 * shape.vocabulary * shape.hidden,
        ),
        ceilings=Ceilings(
            gpus.count * gpus.bandwidth_bytes_per_sec,
            "data sheet",
            (Gemm(1, gpus.count * gpus.flops_per_sec, "data sheet"),),
        ),
        cells=tuple(cells),
        hardware=f"{gpus.count} GPUs, by data sheet",
    )
