"""The schedule of a training run, drawn before it starts: the rows and routes of every optimizer step.

A run that knows its schedule can be resumed exactly, its token budget is known, and every process of a distributed run
reads its own part of it. Sandwich sampling after Yu and Huang (arXiv 1903.05134): the deepest and the cheapest route in
every step, and random ones between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from depthdial.errors import InputError
from depthdial.routes import Route
from depthdial.train.depth.settings import FinetuneSettings
from depthdial.train.rows import TrainingRow

# Batches hold rows of similar length, sorted among the rows of this number of batches.
_POOL_BATCHES = 32


@dataclass(frozen=True)
class MicroBatch:
    """One batch on one route: one forward and backward pass.

    Attributes:
        rows: indices of training rows.
        route: index of the route.
        group: number of the batch: those of one group are the same rows, in the same optimizer step.
        n_tokens: response tokens.
    """

    rows: tuple[int, ...]
    route: int
    group: int
    n_tokens: int


@dataclass(frozen=True)
class Schedule:
    """A training run, pass by pass.

    Attributes:
        passes: in order; with several processes they take turns, and each process's own are in order.
        per_step: passes of one optimizer step on one process.
        n_steps: optimizer steps.
        world_size: processes.
    """

    passes: tuple[MicroBatch, ...]
    per_step: int
    n_steps: int
    world_size: int

    def tokens_by_route(self, n_routes: int, n_steps: int | None = None) -> list[int]:
        """Response tokens that each route has run after `n_steps` optimizer steps (default: all)."""
        done = len(self.passes) if n_steps is None else n_steps * self.per_step * self.world_size
        tokens = [0] * n_routes
        for one in self.passes[:done]:
            tokens[one.route] += one.n_tokens
        return tokens


def make_schedule(
    rows: Sequence[TrainingRow], routes: Sequence[Route], settings: FinetuneSettings, *, world_size: int = 1
) -> Schedule:
    """Draw a run from the settings' seed alone.

    Raises:
        InputError: if the emphasis names a route that is not in the family, or leaves none to draw.
    """
    _check_emphasis(routes, settings)
    draw = _RouteDraw(routes, settings)
    batches = _Batches(rows, settings)
    budget = _budget_tokens(rows, routes, settings)
    passes: list[MicroBatch] = []
    n_steps = tokens = group = 0
    while tokens < budget:
        chosen = draw.step(n_steps)
        for _ in range(settings.accumulation):
            ranks = [(batches.next(), group + rank) for rank in range(world_size)]
            group += world_size
            for route in chosen:
                for members, number in ranks:
                    n_tokens = sum(len(rows[i].response_ids) for i in members)
                    passes.append(MicroBatch(members, route, number, n_tokens))
                    tokens += n_tokens
        n_steps += 1
    return Schedule(tuple(passes), len(passes) // (n_steps * world_size), n_steps, world_size)


def _budget_tokens(rows: Sequence[TrainingRow], routes: Sequence[Route], settings: FinetuneSettings) -> float:
    if settings.max_tokens is not None:
        return settings.max_tokens
    repeats = min(settings.routes_per_step, len(routes))
    return settings.epochs * repeats * sum(len(row.response_ids) for row in rows)


class _Batches:
    """Endless batches of rows of like length; every row once before any comes again."""

    def __init__(self, rows: Sequence[TrainingRow], settings: FinetuneSettings) -> None:
        self._lengths = [(len(row.response_ids), len(row.prompt_ids)) for row in rows]
        self._size = min(settings.batch_size, len(rows))
        self._seed = settings.seed
        self._passes = 0
        self._left: list[tuple[int, ...]] = []

    def next(self) -> tuple[int, ...]:
        if not self._left:
            self._left = self._shuffled()
            self._passes += 1
        return self._left.pop()

    def _shuffled(self) -> list[tuple[int, ...]]:
        rng = np.random.default_rng([self._seed, 0, self._passes])
        order = rng.permutation(len(self._lengths)).tolist()
        pool, batches = self._size * _POOL_BATCHES, []
        for start in range(0, len(order), pool):
            alike = sorted(order[start : start + pool], key=lambda i: self._lengths[i])
            batches += [tuple(alike[i : i + self._size]) for i in range(0, len(alike), self._size)]
        return [batches[i] for i in rng.permutation(len(batches))]


class _RouteDraw:
    """The routes of each step, the cheapest first: the last pass then meets every weight that a sandwich trains."""

    def __init__(self, routes: Sequence[Route], settings: FinetuneSettings) -> None:
        self._seed, self._n, self._ends_every = settings.seed, len(routes), settings.ends_every
        self._order = sorted(range(len(routes)), key=lambda i: (len(routes[i]), i))
        self._weights = np.array([settings.emphasis.get(route.name, 1.0) for route in routes])
        self._per_step = min(settings.routes_per_step, len(routes))

    def step(self, number: int) -> list[int]:
        if self._per_step == self._n:
            return self._order
        ends = [self._order[0], self._order[-1]] if number % self._ends_every == 0 and self._per_step > 1 else []
        rng = np.random.default_rng([self._seed, 1, number])
        weights = self._weights.copy()
        weights[ends] = 0
        n_drawn = min(self._per_step - len(ends), int((weights > 0).sum()))
        drawn = rng.choice(self._n, n_drawn, replace=False, p=weights / weights.sum()) if n_drawn else []
        # A route of no weight takes the place of one that cannot be drawn, so that all steps have as many passes.
        spare = [i for i in self._order if i not in (*ends, *drawn)][: self._per_step - len(ends) - n_drawn]
        return sorted((*ends, *map(int, drawn), *spare), key=self._order.index)


def _check_emphasis(routes: Sequence[Route], settings: FinetuneSettings) -> None:
    names = [route.name for route in routes]
    unknown = next((name for name in settings.emphasis if name not in names), None)
    if unknown is not None:
        raise InputError(f"The emphasis names route {unknown!r}, which is not trained: the routes are {', '.join(names)}.")
