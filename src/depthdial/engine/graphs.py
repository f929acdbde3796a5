"""Steps of rows as CUDA graphs: a pass is a few replays, where layer by layer it is a thousand launches of kernels.

`step_graphs` records and replays. Whenever something was recorded, the pass is run layer by layer too; results that differ
end the use of graphs for this model, as does anything that cannot be recorded. That is said once.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from depthdial.checks import switched_on
from depthdial.engine.closeness import largest_difference
from depthdial.engine.prefill import prefill
from depthdial.engine.recording import Recorder, recorder_for
from depthdial.engine.slabs import Slab
from depthdial.engine.static_inputs import MOST_ROWS
from depthdial.engine.step_graphs import BUCKETS, StepGraphs, bucket_for, graph_window
from depthdial.engine.walk import Block, Prefix, Segment, Walk
from depthdial.errors import one_line
from depthdial.hf.architectures import count_layers
from depthdial.routes import Route
from depthdial.views.signature import signature
from depthdial.views.snapshot import as_is

SWITCH = "DEPTHDIAL_GRAPHS"
MOST_TOKENS = 16  # of each row in a pass; longer ones are prompts, which launches do not hold up
# How far results may be off, of the largest; of bf16 and fp16 the last.
_CLOSE = {torch.float32: 1e-3, torch.float64: 1e-8}
_CLOSE_OF_HALVES = 0.05


def stepping(model: Any) -> Walk | GraphedWalk:
    """What runs the passes of a view of all layers: through graphs, where its device has them, or layer by layer."""
    walk = Walk(model)
    graphs = graphs_of(model)
    return walk if graphs is None else GraphedWalk(walk, graphs)


class GraphedWalk:
    """Passes of one batch through graphs, and layer by layer where there are none; not to be used by two threads at once.

    Args:
        walk: of the model.
        graphs: of the same model, which all of its batches share.
    """

    def __init__(self, walk: Walk, graphs: StepGraphs) -> None:
        self._walk, self.graphs = walk, graphs
        self._lent = graphs.lend()
        for slab in self._lent.slabs.values():
            slab.members = []
        weakref.finalize(self, graphs.give_back, self._lent).atexit = False

    @property
    def n_recorded(self) -> int:
        """How often something was recorded: a pass in which this grows takes longer than others."""
        return self.graphs.n_recorded

    def slab(self, layer: int, keys: torch.Tensor, values: torch.Tensor, capacity_rows: int, window_tokens: int) -> Slab:
        """An empty slab for a layer, like `keys` and `values`: the one that the batch before had, if it is free."""
        if capacity_rows > MOST_ROWS:
            return Slab(keys, values, capacity_rows, window_tokens)
        rows, window = bucket_for(capacity_rows), graph_window(window_tokens)
        with torch.inference_mode(False):  # the next batch may be run in another mode
            slab = self._lent.slabs.get(layer)
            if slab is not None and not slab.members and all(map(_are_alike, slab.whole, (keys, values))):
                slab.clear()
                slab.reserve(rows, window)
            else:
                slab = self._lent.slabs[layer] = Slab(keys, values, rows, window)
            return slab

    def logits(self, block: Block, *, start: torch.Tensor | None = None, keep: Prefix | None = None) -> torch.Tensor:
        """See `Walk.logits`."""
        found = self._run(block, start=start, keep=keep)
        return self._walk.logits(block, start=start, keep=keep) if found is None else found

    def states(self, block: Block) -> torch.Tensor:
        """See `Walk.states`."""
        found = self._run(block, has_head=False)
        return self._walk.states(block) if found is None else found

    def _run(
        self,
        block: Block,
        *,
        start: torch.Tensor | None = None,
        keep: Prefix | None = None,
        has_head: bool = True,
    ) -> torch.Tensor | None:
        """The result of a pass through graphs; None where it is to run layer by layer."""
        graphs, (n_rows, n_tokens) = self.graphs, block.tokens.shape
        if graphs.why_not is not None or n_rows > MOST_ROWS or n_tokens > MOST_TOKENS:
            return None
        kept = None if keep is None else Prefix(keep.n_layers)
        with graphs.lock:
            before = graphs.n_recorded
            try:
                found = graphs.run(self._walk, self._lent, block, start=start, keep=kept, has_head=has_head)
            except Exception as error:  # whatever an architecture does that cannot be recorded
                graphs.refuse(f"{type(error).__name__}: {one_line(error)}")
                return None
            if graphs.n_recorded > before:
                expected = self._walk.logits(block, start=start) if has_head else self._walk.states(block)
                off = largest_difference(found, expected)
                if not off <= _CLOSE.get(found.dtype, _CLOSE_OF_HALVES):
                    graphs.refuse(f"their results are off by {off:.1e} of the largest")
                    return None
        if keep is not None and kept is not None:
            keep.states += kept.states
        return found

    def rehearse(
        self, layers: Sequence[Sequence[int]], slabs: Mapping[int, Slab], rows: int, window: int, n_tokens: int
    ) -> None:
        """Record what a pass of exactly so many rows, tokens of each and slots needs, whose segments have these layers.

        Args:
            slabs: of this walk, which hold nothing; nor do they afterwards, but what is in them is to be cleared.
        """
        device = next(iter(slabs.values())).whole[0].device
        positions = torch.arange(n_tokens, device=device).repeat(rows, 1)
        plan = tuple(Segment(tuple(which), slice(0, rows), rows) for which in layers)
        with self.graphs.lock, self.graphs.exactly():
            for slab in slabs.values():
                slab.members = list(range(rows))
            self._run(Block(torch.zeros_like(positions), positions, plan, slabs, window))
            for slab in slabs.values():
                slab.members = []


def warm_up_graphs(
    model: Any,
    routes: Sequence[Route] | None = None,
    *,
    max_rows: int = 8,
    max_tokens: int = 1024,
    n_tokens: Sequence[int] = (1,),
) -> int:
    """Record what steps of a session's model need, so that nothing is recorded while a request waits.

    It takes about a tenth of a second for each route, number of rows and window. What is not recorded here is when a
    request first needs it. Graphs live as long as the model's weights, in this process: all its sessions share them.

    Args:
        model: of a session, a view of all layers in evaluation mode.
        routes: that rows will run, each for itself and all in one batch (default: all layers).
        max_rows: of a batch.
        max_tokens: of a row, its prompt included.
        n_tokens: of passes, for each row: 1 for steps, more for checks of drafts.

    Returns:
        How many graphs were recorded: 0 where the device has none, or `DEPTHDIAL_GRAPHS` is 0.

    Example:
        >>> from depthdial.engine.graphs import warm_up_graphs
        >>> warm_up_graphs(Session.of(model, tokenizer).model)  # on a CPU
        0
    """
    graphs = graphs_of(model)
    if graphs is None:
        return 0
    before, walk = graphs.n_recorded, GraphedWalk(Walk(model), graphs)
    rows = [n for n in BUCKETS if n < 2 * max_rows and bucket_for(max_rows) >= n]
    windows = sorted({graph_window(n) for n in range(1, max_tokens + 1)})
    n_layers = count_layers(model)
    chosen = list(dict.fromkeys(route.layers for route in routes)) if routes else [tuple(range(n_layers))]
    runs = shared_runs(chosen)
    graphs.note_runs([*runs, *chosen])
    plans = [[layers] for layers in chosen] + ([runs] if len(chosen) > 1 and max_rows > 1 else [])
    device = next(model.parameters()).device
    with as_is(device):
        ids = torch.zeros(1, 1, dtype=torch.long, device=device)
        held: Any = prefill(model, ids, torch.ones_like(ids)).cache.layers
        slabs = {
            layer: walk.slab(layer, held[layer].keys, held[layer].values, rows[-1], windows[-1])
            for layer in sorted({layer for run in runs for layer in run})
        }
        for one, window, n, plan in itertools.product(n_tokens, windows, rows, plans):
            walk.rehearse(plan, {layer: slabs[layer] for run in plan for layer in run}, n, window, one)
        for slab in slabs.values():
            slab.clear()
    return graphs.n_recorded - before


def note_routes(model: Any, routes: Sequence[Route]) -> None:
    """Have rows of each of these routes, and mixes of them, run through as few graphs as can be, also ones recorded later.

    Without it graphs are of one layer each until a route has run often.

    Args:
        model: of a session, a view of all layers in evaluation mode.

    Example:
        >>> from depthdial.engine.graphs import note_routes
        >>> note_routes(Session.of(model, tokenizer).model, [Route((0, 5), 6)])
    """
    graphs = graphs_of(model)
    if graphs is not None:
        layers = [route.layers for route in routes]
        graphs.note_runs([*shared_runs(layers), *layers])


def shared_runs(routes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The layers of all routes, in order, apart wherever one of the routes has a layer and not the next.

    Example:
        >>> from depthdial.engine.graphs import shared_runs
        >>> shared_runs([(0, 1, 2, 3, 4, 5), (0, 1, 4, 5), (0, 5)])
        [(0,), (1,), (2, 3), (4,), (5,)]
    """
    having = {layer: [layer in route for route in map(frozenset, routes)] for layer in sorted({*itertools.chain(*routes)})}
    return [tuple(run) for _, run in itertools.groupby(having, key=lambda layer: having[layer])]


# Sessions come and go, with views of their own of a model whose weights stay: its graphs are kept with one of the weights.
_MOST_ALIKE = 2  # of one model: with adapters and without, say
_by_weight: Any = WeakTensorKeyDictionary()
_by_view: weakref.WeakKeyDictionary[Any, StepGraphs | None] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def graphs_of(model: Any) -> StepGraphs | None:
    """The graphs of a view of all layers, which all views share that compute the same on the same weights.

    They live as long as the weights. None where the device has none, or `DEPTHDIAL_GRAPHS` is 0.

    Raises:
        InputError: for another value of `DEPTHDIAL_GRAPHS` than 0 and 1.
    """
    if not switched_on(SWITCH, on="for CUDA graphs", off="for none"):
        return None
    with _lock:
        if model not in _by_view:
            weights = list(model.parameters())
            recorder = recorder_for(weights[0].device) if len({weight.device for weight in weights}) == 1 else None
            _by_view[model] = None if recorder is None else _shared(model, weights[0], recorder)
        return _by_view[model]


def _shared(model: Any, weight: torch.Tensor, recorder: Recorder) -> StepGraphs:
    known: dict[str, StepGraphs] = _by_weight.setdefault(weight, {})
    alike = signature(model)
    found = known.pop(alike, None) or StepGraphs(recorder)
    while len(known) >= _MOST_ALIKE:
        del known[next(iter(known))]
    known[alike] = found  # the latest is the last to go
    return found


def _are_alike(slab: torch.Tensor, like: torch.Tensor) -> bool:
    is_same = slab.dtype == like.dtype and slab.device == like.device
    return is_same and slab.shape[1] == like.shape[1] and slab.shape[3] == like.shape[3]
