"""The recorded parts of one model's passes: made when they are first needed, or by a warm-up, and replayed from then on.

A pass is recorded in three kinds of parts. A front makes embeddings, rotary frequencies and masks; a part for some layers
takes the rows that run them from the states of all rows and puts them back; a tail is the final norm and the head. Rows of
one route get one part for all of its layers if these are all that there are, a warm-up asked for it, or it has run often.
Any other pass goes through parts that a warm-up made for the layers that nested routes share, and else through parts of one
layer each, so that tables stay small whatever is mixed and however many routes are tried.

Parts are recorded for some numbers of rows (`bucket_for`) and windows (`graph_window`), and run with fewer of both. Rows
that are missing all read and write row 0 of the states, which belongs to nobody, at the first places of slab rows behind
the members, which `Slab.append` overwrites. Slabs stay where they are from one batch to the next, since a part holds their
addresses; one that has grown is elsewhere, and what was recorded on it is forgotten. All that goes from one part to another
lies in tensors outside the graphs' memory, so that parts may be replayed in any order.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from depthdial.engine.recording import Begin, Recorded, Recorder
from depthdial.engine.slabs import Slab
from depthdial.engine.static_inputs import MOST_ROWS, StaticInputs
from depthdial.engine.walk import Block, Pass, Prefix, Segment, Walk

_MOST_PARTS = 2048  # for layers; the oldest go
_MOST_FREE = 8  # sets of slabs that are kept for batches to come
_OFTEN = 64  # passes, behind which one part for all of their layers is worth what recording it takes
_log = logging.getLogger("depthdial")


def bucket_for(rows: int) -> int:
    """The number of rows that so many are run as: a power of two up to 32, then a multiple of 32.

    Example:
        >>> from depthdial.engine.step_graphs import bucket_for
        >>> [bucket_for(n) for n in (1, 3, 20, 33, 100)]
        [1, 4, 32, 64, 128]
    """
    return 1 << (rows - 1).bit_length() if rows <= 32 else -(-rows // 32) * 32


BUCKETS = tuple(sorted({bucket_for(n) for n in range(1, MOST_ROWS + 1)}))


def graph_window(tokens: int) -> int:
    """The window that so many tokens are attended in: fewer than those of `window_for`, for each needs a graph.

    Example:
        >>> from depthdial.engine.step_graphs import graph_window
        >>> [graph_window(n) for n in (64, 300, 1000, 1100, 5000)]
        [256, 512, 1024, 1536, 6144]
    """
    step = 256
    while tokens > 4 * step:
        step *= 2
    return -(-tokens // step) * step


@dataclass(eq=False)
class SlabSet:
    """Slabs by layer that one batch after the other uses."""

    slabs: dict[int, Slab] = field(default_factory=dict)


@dataclass
class _Part:
    """Something recorded.

    Attributes:
        result: the tensor that it ends with.
    """

    graph: Recorded
    result: torch.Tensor


@dataclass
class _LayersPart(_Part):
    """Some layers for some rows.

    Attributes:
        index: where the states of the rows are, filled for `rows` of a segment.
        slabs: keys and values that it was recorded on.
    """

    index: torch.Tensor
    slabs: tuple[torch.Tensor, ...]
    rows: Any = None

    def fill(self, segment: Segment) -> None:
        if self.rows is not segment.rows:
            _fill(self.index, segment)
            self.rows = segment.rows


@dataclass(frozen=True)
class _Held:
    """Rows of a slab, with or without a member."""

    keys: torch.Tensor
    values: torch.Tensor


class StepGraphs:
    """What was recorded for one model. It refers to none of its weights, so it goes when the model does.

    Attributes:
        why_not: why nothing is recorded any more; None while all is well.
        n_recorded: parts that were ever recorded.
        lock: to be held during a pass and while its result is read.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.why_not: str | None = None
        self.n_recorded = 0
        self.lock = threading.RLock()
        self._recorder, self._is_exact = recorder, False
        self._inputs: dict[int, StaticInputs] = {}
        self._fronts: dict[tuple[int, int, int], _Part] = {}
        self._tails: dict[tuple[int, int], _Part] = {}
        self._layers: dict[tuple[SlabSet, tuple[int, ...], int, int, int], _LayersPart] = {}
        self._runs: dict[int, list[tuple[int, ...]]] = {}
        self._passes: Counter[tuple[int, ...]] = Counter()
        self._free: list[SlabSet] = []

    def lend(self) -> SlabSet:
        """Slabs for a batch: those that were given back last."""
        with self.lock:
            return self._free.pop() if self._free else SlabSet()

    def give_back(self, slabs: SlabSet) -> None:
        with self.lock:
            self._free.append(slabs)
            if len(self._free) > _MOST_FREE:
                gone = self._free.pop(0)
                self._layers = {key: part for key, part in self._layers.items() if key[0] is not gone}

    def refuse(self, reason: str) -> None:
        """End the use of graphs for this model."""
        with self.lock:
            if self.why_not is None:
                _log.warning("Steps run without CUDA graphs, which is slower, because %s.", reason)
            self.why_not = reason
            for table in (self._inputs, self._fronts, self._tails, self._layers, self._free):
                table.clear()

    @contextmanager
    def exactly(self) -> Iterator[None]:
        """Inside, passes go through parts for their own number of rows and window, not through larger ones."""
        self._is_exact = True
        try:
            yield
        finally:
            self._is_exact = False

    def note_runs(self, runs: Iterable[tuple[int, ...]]) -> None:
        """Have passes go through each of these runs of layers as one part."""
        for layers in runs:
            known = self._runs.setdefault(layers[0], [])
            if layers not in known:
                known.append(layers)
                known.sort(key=len, reverse=True)

    def run(
        self,
        walk: Walk,
        slab_set: SlabSet,
        block: Block,
        *,
        start: torch.Tensor | None = None,
        keep: Prefix | None = None,
        has_head: bool = True,
    ) -> torch.Tensor:
        """A pass as `Walk.logits` has it, or `Walk.states` without the head; the result is the caller's to keep."""
        slabs, (n_rows, n_tokens) = block.slabs, block.tokens.shape
        self._recorder.follow()
        if n_tokens not in self._inputs:
            with torch.inference_mode(False):
                self._inputs[n_tokens] = StaticInputs(n_tokens, block.tokens.device)
        inputs = self._inputs[n_tokens]
        inputs.fill(block.tokens, block.positions)
        window = self._window(n_rows, n_tokens, block.attended_tokens)
        self._front(walk, inputs, window, n_rows).graph.replay()
        states = inputs.states[1 : n_rows + 1]
        if start is not None:
            states.copy_(start)
        for segment, layers in self._split(block.segments, walk.n_layers, keep):
            for layer in layers:
                slabs[layer].reserve(bucket_for(segment.n_rows), window)
            self._part(walk, inputs, window, segment, layers, slab_set, slabs).graph.replay()
            if keep is not None and layers[-1] == keep.n_layers - 1:
                keep.states.append(states.clone())
        if not has_head:
            return states.clone()
        tail = self._tail(walk, inputs, window, n_rows)
        tail.graph.replay()
        return tail.result[:n_rows].clone()

    def _split(
        self, segments: Sequence[Segment], n_layers: int, keep: Prefix | None = None
    ) -> Iterator[tuple[Segment, tuple[int, ...]]]:
        """The layers of each part of a pass, in order, with the segment that they are of."""
        for segment in segments:
            cut = 0 if keep is None else sum(layer < keep.n_layers for layer in segment.layers)
            for layers in filter(None, (segment.layers[:cut], segment.layers[cut:])):
                is_alone = len(segments) == 1 and (len(segment.layers) == n_layers or self._is_often(layers))
                for run in [layers] if is_alone else self._known_runs(layers):
                    yield segment, run

    def _is_often(self, layers: tuple[int, ...]) -> bool:
        if layers not in self._passes and len(self._passes) >= _MOST_PARTS:
            self._passes.clear()
        self._passes[layers] += 1
        return self._passes[layers] > _OFTEN

    def _known_runs(self, layers: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        while layers:
            known = (run for run in self._runs.get(layers[0], ()) if layers[: len(run)] == run)
            run = next(known, layers[:1])
            yield run
            layers = layers[len(run) :]

    def _window(self, n_rows: int, n_tokens: int, attended_tokens: int) -> int:
        """The narrowest window that there is a front for; a new one where there is none."""
        known = (
            window
            for tokens, window, rows in self._fronts
            if tokens == n_tokens and window >= attended_tokens and rows >= n_rows
        )
        own = graph_window(attended_tokens)
        return own if self._is_exact else min(known, default=own)

    def _smallest(self, table: Mapping[Any, Any], n_rows: int, *key: Any) -> Any:
        """The part for the fewest rows that are enough."""
        most = bucket_for(n_rows) if self._is_exact else MOST_ROWS
        return next((table[*key, n] for n in BUCKETS if n_rows <= n <= most and (*key, n) in table), None)

    def _record(self, work: Callable[[Begin], torch.Tensor]) -> tuple[Recorded, torch.Tensor]:
        self.n_recorded += 1
        with torch.inference_mode(False), torch.no_grad():
            return self._recorder.record(work)

    def _front(self, walk: Walk, inputs: StaticInputs, window: int, n_rows: int) -> _Part:
        part = self._smallest(self._fronts, n_rows, inputs.n_tokens, window)
        if part is not None:
            return part
        n = bucket_for(n_rows)

        def work(begin: Begin) -> torch.Tensor:
            begin()
            return inputs.make(walk, window, n)

        part = self._fronts[inputs.n_tokens, window, n] = _Part(*self._record(work))
        return part

    def _tail(self, walk: Walk, inputs: StaticInputs, window: int, n_rows: int) -> _Part:
        part = self._smallest(self._tails, n_rows, inputs.n_tokens)
        if part is not None:
            return part
        n = bucket_for(n_rows)
        rows = slice(1, n + 1)

        def work(begin: Begin) -> torch.Tensor:
            def instead(states: torch.Tensor, now: Pass) -> torch.Tensor:
                begin()  # what the model does before its layers is not recorded
                return inputs.states[rows]

            return walk.run_pass(inputs.block(rows, window), instead=instead).logits

        part = self._tails[inputs.n_tokens, n] = _Part(*self._record(work))
        return part

    def _part(
        self,
        walk: Walk,
        inputs: StaticInputs,
        window: int,
        segment: Segment,
        layers: tuple[int, ...],
        slab_set: SlabSet,
        slabs: Mapping[int, Slab],
    ) -> _LayersPart:
        key = (slab_set, layers, inputs.n_tokens, window)
        part = self._smallest(self._layers, segment.n_rows, *key)
        now = tuple(tensor for layer in layers for tensor in slabs[layer].whole)
        if part is not None and not all(mine is other for mine, other in zip(part.slabs, now, strict=True)):
            self._forget(slab_set)
            part = None
        if part is not None:
            part.fill(segment)
            return part
        n = bucket_for(segment.n_rows)
        held: Any = {layer: _Held(*(tensor[:n] for tensor in slabs[layer].whole)) for layer in layers}
        with torch.inference_mode(False):
            index = torch.zeros(n, dtype=torch.long, device=inputs.tokens.device)
        _fill(index, segment)

        def work(begin: Begin) -> torch.Tensor:
            begin()
            states = inputs.states.index_select(0, index)
            states = walk.segment_states(states, inputs.as_pass(held, window), Segment(layers, index, n))
            return inputs.states.index_copy_(0, index, states)

        before = inputs.states.clone()  # trying the part changes them
        part = _LayersPart(*self._record(work), index, now, segment.rows)
        inputs.states.copy_(before)
        while len(self._layers) >= _MOST_PARTS:
            del self._layers[next(iter(self._layers))]
        self._layers[*key, n] = part
        return part

    def _forget(self, slab_set: SlabSet) -> None:
        """What was recorded on slabs that are elsewhere now."""
        current = {id(tensor) for slab in slab_set.slabs.values() for tensor in slab.whole}
        for key, part in list(self._layers.items()):
            if key[0] is slab_set and any(id(tensor) not in current for tensor in part.slabs):
                del self._layers[key]


def _fill(index: torch.Tensor, segment: Segment) -> None:
    rows = range(segment.n_rows) if isinstance(segment.rows, slice) else segment.rows.tolist()
    index.copy_(torch.tensor([row + 1 for row in rows] + [0] * (len(index) - segment.n_rows)))
