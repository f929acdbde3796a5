"""Recording work on a GPU once, to be started again as a whole: a CUDA graph in place of a launch for each kernel.

What is recorded works on the same memory whenever it is replayed. So everything that differs between two replays lies in
tensors that are made beforehand and filled before a replay, and nothing that is recorded may ask the GPU for a number.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

import torch

# How often work is run before it is recorded: libraries set themselves up in the first call, and choose in the second.
_WARM_UPS = 2

Begin = Callable[[], object]


class Recorded(Protocol):
    """Work that can be started again."""

    def replay(self) -> object: ...


class Recorder(Protocol):
    """Records work on one device; `recorder_for` gives the one of a device."""

    def record(self, work: Callable[[Begin], torch.Tensor]) -> tuple[Recorded, torch.Tensor]:
        """Record what `work` does once it has called what it is given, and the tensor that it returns.

        The work is run before it is recorded, from its start to its end. In a replay the tensor holds the new result, until
        anything else that was recorded is replayed.
        """
        ...

    def follow(self) -> None:
        """Have what comes wait for what was replayed before, also on another stream."""
        ...


def recorder_for(device: torch.device) -> Recorder | None:
    """What records on a device; None for one that cannot, such as a CPU.

    Example:
        >>> from depthdial.engine.recording import recorder_for
        >>> recorder_for(torch.device("cpu")) is None
        True
    """
    return _CudaGraphs(device) if device.type == "cuda" else None


class _CudaGraphs:
    """Graphs of one device, which share one pool of memory: what a graph leaves there may be overwritten by the next."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._side: Any = None  # one stream for all that is recorded: libraries keep memory for each that they have seen
        self._stream: Any = None

    def record(self, work: Callable[[Begin], torch.Tensor]) -> tuple[Recorded, torch.Tensor]:
        with torch.cuda.device(self._device):
            before = torch.cuda.current_stream()
            if self._side is None:
                self._pool, self._side = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
            side = self._side
            try:
                side.wait_stream(before)
                with torch.cuda.stream(side):
                    for _ in range(_WARM_UPS):
                        work(lambda: None)
                before.wait_stream(side)
                graph = torch.cuda.CUDAGraph()
                # Other threads may go on with what they do meanwhile.
                recording = torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local")
                with ExitStack() as stack:
                    result = work(lambda: stack.enter_context(recording))
            finally:
                torch.cuda.set_stream(before)  # where recording fails, PyTorch leaves the other one
            return graph, result

    def follow(self) -> None:
        current = torch.cuda.current_stream(self._device)
        if self._stream is not None and self._stream != current:
            current.wait_stream(self._stream)
        self._stream = current
