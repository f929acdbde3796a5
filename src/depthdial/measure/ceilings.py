"""What a machine can do at most: bytes read from memory in a second, and FLOP/s of matrix products at some rows.

Whatever the model, and with nothing but torch. Each is tried in several ways, which take turns; the fastest by its median is
the ceiling, and says its name.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from depthdial.engine.prefill import clock_sec
from depthdial.latency.cells import Ceilings, Gemm
from depthdial.views.snapshot import as_is

_ROUNDS = 7
_BUFFER_BYTES = {"cpu": 2**28, "cuda": 2**31}  # much more than any cache, of accelerators of tens of megabytes
_WEIGHT_BYTES = {"cpu": 2**27, "cuda": 2**29}


def measure_ceilings(
    device: torch.device, dtype: torch.dtype, width: int, rows: Sequence[int], *, rounds: int = _ROUNDS, scale: float = 1.0
) -> Ceilings:
    """Measure a device, in about two seconds on two cores.

    Args:
        width: of the model's hidden states, which is that of the products.
        rows: at which products are measured.
        rounds: timed turns of each way, behind one that is not.
        scale: of the buffers' sizes, for tests.
    """
    with as_is(device):
        bandwidth, way = _fastest(_ways_to_read(device, dtype, scale), device, rounds)
        weights = _weights(device, dtype, width, scale)
        gemm = []
        for n in sorted(set(rows)):
            rate, how = _fastest(_ways_to_multiply(weights, n), device, rounds)
            gemm.append(Gemm(n, rate, how))
    return Ceilings(bandwidth, way, tuple(gemm))


def _ways_to_read(device: torch.device, dtype: torch.dtype, scale: float) -> dict[str, tuple[float, Callable[[], object]]]:
    """By name, how many bytes a call reads, and the call."""
    n_bytes = int(_BUFFER_BYTES.get(device.type, 2**28) * scale)
    numbers = torch.ones(n_bytes // 4, dtype=torch.float32, device=device)
    half = len(numbers) // 2
    whole = numbers.view(torch.int32)
    matrix = numbers[: len(numbers) // 1024 * 1024].view(-1, 1024).view(dtype)
    vector = torch.ones(matrix.shape[1], dtype=dtype, device=device)
    return {
        "sum of floats": (numbers.nbytes, numbers.sum),
        "sum of integers": (whole.nbytes, whole.sum),
        "dot product": (2 * half * 4, lambda: torch.dot(numbers[:half], numbers[half : 2 * half])),
        "matrix times vector": (matrix.nbytes, lambda: torch.mv(matrix, vector)),
    }


def _weights(device: torch.device, dtype: torch.dtype, width: int, scale: float) -> list[torch.Tensor]:
    """Matrices of (4 width, width) that are not in the caches when it is their turn again, as those of a model."""
    one = torch.ones(4 * width, width, dtype=dtype, device=device)
    n = max(1, int(_WEIGHT_BYTES.get(device.type, 2**27) * scale) // one.nbytes)
    return [one, *(one.clone() for _ in range(n - 1))]


def _ways_to_multiply(weights: Sequence[torch.Tensor], rows: int) -> dict[str, tuple[float, Callable[[], object]]]:
    """By name, the FLOPs of a call, and the call: a product with every matrix."""
    x = torch.ones(rows, weights[0].shape[1], dtype=weights[0].dtype, device=weights[0].device)
    flops = 2.0 * rows * sum(weight.numel() for weight in weights)
    ways: dict[str, tuple[float, Callable[[], object]]] = {
        "linear": (flops, lambda: [functional.linear(x, weight) for weight in weights])
    }
    packed = _packed(weights)
    if packed is not None:
        multiply = torch.ops.mkldnn._linear_pointwise
        ways["packed linear"] = (flops, lambda: [multiply(x, weight, None, "none", [], "") for weight in packed])
    return ways


def _packed(weights: Sequence[torch.Tensor]) -> list[Any] | None:
    if weights[0].device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    try:
        return [torch.ops.mkldnn._reorder_linear_weight(weight, None) for weight in weights]
    except (AttributeError, RuntimeError):  # a build, a processor or a dtype without it
        return None


def _fastest(ways: Mapping[str, tuple[float, Callable[[], object]]], device: torch.device, rounds: int) -> tuple[float, str]:
    """(the most that a call does in a second, the name of its way), by the median of some turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-1, rounds):
        for name, (_, call) in ways.items():
            started = clock_sec(device)
            call()
            if turn >= 0:
                seconds[name].append(clock_sec(device) - started)
            else:
                clock_sec(device)  # nothing of the warm-up is left over
    rates = {name: amount / max(statistics.median(seconds[name]), 1e-9) for name, (amount, _) in ways.items()}
    best = max(rates, key=lambda name: rates[name])
    return rates[best], best
