"""A stand-in for CUDA graphs on a CPU: what was recorded is replayed operation by operation, on the very tensors.

Not a test. As in a CUDA graph, nothing of Python is run again, results go where they went when they were recorded, and
memory that nobody refers to any more is somebody else's: each replay first fills what other recordings have left behind with
rubbish. Asking for a number, which would have to wait for a GPU, cannot be recorded.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

SYNCHRONIZING = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2"}


class _Recording(TorchDispatchMode):
    def __init__(self, graph):
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[-1]
        if name in SYNCHRONIZING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        out = func(*args, **kwargs)
        self.graph.ops.append((func, args, kwargs, out))
        given = {one.untyped_storage().data_ptr() for one in _tensors((args, kwargs))}
        self.graph.own += [one for one in _tensors(out) if one.untyped_storage().data_ptr() not in given]
        return out


def _tensors(tree):
    return [one for one in tree_flatten(tree)[0] if isinstance(one, torch.Tensor)]


class RecordedOps:
    """In place of `torch.cuda.CUDAGraph`."""

    def __init__(self, recorder):
        self.recorder, self.ops, self.own, self.n_replays = recorder, [], [], 0

    def replay(self):
        self.recorder.spoil(self)
        self.n_replays += 1
        for func, args, kwargs, out in self.ops:
            new = func(*args, **kwargs)
            for ours, theirs in zip(_tensors(out), _tensors(new), strict=True):
                if ours.data_ptr() != theirs.data_ptr():
                    ours.copy_(theirs)


class CpuRecorder:
    """In place of the recorder of a GPU."""

    def __init__(self):
        self.graphs = []

    def record(self, work):
        for _ in range(2):
            work(lambda: None)
        graph = RecordedOps(self)
        with ExitStack() as stack:
            result = work(lambda: stack.enter_context(_Recording(graph)))
        self.graphs.append(graph)
        return graph, result

    def follow(self):
        pass

    def spoil(self, now):
        """Memory of the pool is shared: what one graph computed is gone when another runs."""
        for graph in self.graphs:
            if graph is now:
                continue
            for tensor in graph.own:
                tensor.fill_(_rubbish(tensor.dtype))


def _rubbish(dtype):
    if dtype.is_floating_point:
        return float("nan")
    return True if dtype is torch.bool else torch.iinfo(dtype).max // 2
