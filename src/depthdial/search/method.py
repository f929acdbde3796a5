"""Interface of the search methods: input and result of each, so that methods can be compared.

A method ranks layers, or sets of them, by how much a model loses without them, and names one route for each number of
layers from the model's own down to `min_layers`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from depthdial.errors import InputError
from depthdial.files import read_json, write_json
from depthdial.measure.latency import LayerCosts
from depthdial.routes import Route

Harms = Callable[[Sequence[Route]], Iterator[float]]


@dataclass(frozen=True)
class Problem:
    """A search that a method is to do.

    Attributes:
        min_layers: number of layers of the cheapest route to find.
        costs: of each layer; harm is weighed against what dropping a layer saves.
        harm: how far a route is from what it should say, in nats (KL or NLL): one pass over the calibration answers.
        start_harm: that of every layer.
        states: hidden states of the calibration texts, batch by batch from the one that is asked for: one pass over them.
        n_batches: of these.
        answer_states: (n_tokens, width), the directions of the hidden states at all answers' tokens once some layers alone
            have run on them, behind prompts at full depth; only the layers that no earlier call began with are computed.
        harms: that of several routes, in their order and with the numbers of `harm`, such as by several processes; None for
            one after the other, here.
    """

    n_layers: int
    min_layers: int
    costs: LayerCosts
    harm: Callable[[Route], float]
    start_harm: float
    states: Callable[[int], Iterator[torch.Tensor]]
    n_batches: int
    answer_states: Callable[[Sequence[int]], torch.Tensor]
    harms: Harms | None = None

    @property
    def n_drops(self) -> int:
        return self.n_layers - self.min_layers

    def each_harm(self, routes: Sequence[Route]) -> Iterator[float]:
        """The harm of each route, as it is found, in order."""
        return map(self.harm, routes) if self.harms is None else self.harms(routes)

    def without(self, dropped: Collection[int]) -> Route:
        """The route of all other layers."""
        return Route(tuple(i for i in range(self.n_layers) if i not in dropped), self.n_layers)


@dataclass(frozen=True)
class Found:
    """What a method found.

    Attributes:
        dropped: for each route, from the costliest on, the layers that it drops: one, two, .. Of nested routes in the order
            in which they were dropped.
        importance: by layer, what the method ranks single layers by, the least first.
        passes: how many times it ran the calibration texts.
        harm: of each route, in nats on the calibration answers; None where the method measures none.
    """

    dropped: tuple[tuple[int, ...], ...]
    importance: tuple[float, ...]
    passes: int
    harm: tuple[float, ...] | None = None

    @property
    def is_nested(self) -> bool:
        """Whether every route keeps all layers of each cheaper one."""
        return all(set(a) < set(b) for a, b in zip(self.dropped, self.dropped[1:], strict=False))


class Method(Protocol):
    """One way to search. Its fields are its options, which a route family's record repeats.

    Attributes:
        name: of the family that it finds, without what it costs: `greedy-kl`.
        source: where the method is from, for the record.
        metric: what `Problem.harm` is to measure: kl or nll; None for a method that does not ask.
    """

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> str: ...

    @property
    def metric(self) -> str | None: ...

    def pieces(self, problem: Problem, memory: Memory) -> int:
        """How many pieces of work are left, for a progress bar."""
        ...

    def find(self, problem: Problem, memory: Memory, advance: Callable[[float], None]) -> Found:
        """Search; `memory` is updated after every finished step; a stopped search resumes from it."""
        ...


@dataclass
class Memory:
    """What a search has done so far: in a file beside the one it will write, or in this process only.

    Attributes:
        settings: what decides about the search; the file of another one is not gone on from.
        state: what the method keeps, JSON-ready; empty at the start.
        search_sec: spent on it, over all its starts.
        layer_costs: measured costs, which a search that goes on must not measure again.
    """

    path: Path | None
    settings: Mapping[str, Any]
    state: dict[str, Any] = field(default_factory=dict)
    search_sec: float = 0.0
    layer_costs: list[float] | None = None
    _since_sec: float = field(default_factory=time.perf_counter)

    @classmethod
    def open(cls, path: Path | None, settings: Mapping[str, Any]) -> Memory:
        """The memory of a search of these settings, as it was left."""
        memory = cls(path, settings)
        if path is None or not path.exists():
            return memory
        stored = read_json(path, "unfinished search")
        if not isinstance(stored, dict) or stored.get("settings") != settings:
            return memory
        try:
            return cls(path, settings, dict(stored["state"]), float(stored["search_sec"]), stored["layer_costs"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is a damaged unfinished search: delete it and search again.") from error

    def start_clock(self) -> None:
        self._since_sec = time.perf_counter()

    def keep(self, state: Mapping[str, Any]) -> None:
        """Remember a finished step; the time since the last one counts as search."""
        self.state, now = dict(state), time.perf_counter()
        self.search_sec, self._since_sec = self.search_sec + now - self._since_sec, now
        self.save()

    def save(self) -> None:
        if self.path is not None:
            document = {"settings": self.settings, "state": self.state}
            write_json(self.path, {**document, "search_sec": self.search_sec, "layer_costs": self.layer_costs})

    def clear(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)
