"""The schedule of a training run, drawn before it starts: the rows and routes of every optimizer step.

A run that knows its schedule can be resumed exactly, its token budget is known, and every process of a distributed run
reads its own part of it. Sandwich sampling after Yu and Huang (arXiv 1903.05134): the deepest and the cheapest route in
every step, and random ones between.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from depthdial.errors import InputError
from depthdial.measure.cost import ModelCost
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

    def first(self, n_steps: int) -> Schedule:
        """The first steps of the run."""
        return replace(self, passes=self.passes[: self.n_passes(n_steps)], n_steps=n_steps)

    def n_passes(self, n_steps: int) -> int:
        """Passes of the first steps, on all processes."""
        return n_steps * self.per_step * self.world_size

    def tokens_by_route(self, n_routes: int) -> list[int]:
        """Response tokens that each route runs."""
        return [sum(one.n_tokens for one in self.passes if one.route == i) for i in range(n_routes)]


def make_schedule(
    rows: Sequence[TrainingRow], routes: Sequence[Route], settings: FinetuneSettings, *, world_size: int = 1
) -> Schedule:
    """Draw a run from the settings' seed alone; InputError if the emphasis names a route that is not in the family."""
    names = [route.name for route in routes]
    unknown = next((name for name in settings.emphasis if name not in names), None)
    if unknown is not None:
        raise InputError(f"The emphasis names route {unknown!r}, which is not trained: the routes are {', '.join(names)}.")
    per_step = min(settings.routes_per_step, len(routes))
    budget = settings.max_tokens or settings.epochs * per_step * sum(len(row.response_ids) for row in rows)
    batches = _batches(rows, settings)
    passes: list[MicroBatch] = []
    n_steps = tokens = group = 0
    while tokens < budget:
        chosen = _drawn_routes(n_steps, routes, settings, per_step)
        for _ in range(settings.accumulation):
            ranks = [(next(batches), group + rank) for rank in range(world_size)]
            group += world_size
            for route in chosen:
                for members, number in ranks:
                    n_tokens = sum(len(rows[i].response_ids) for i in members)
                    passes.append(MicroBatch(members, route, number, n_tokens))
                    tokens += n_tokens
        n_steps += 1
    return Schedule(tuple(passes), len(passes) // (n_steps * world_size), n_steps, world_size)


def _batches(rows: Sequence[TrainingRow], settings: FinetuneSettings) -> Iterator[tuple[int, ...]]:
    """Endless batches of rows of like length; every row once before any comes again."""
    lengths = [(len(row.response_ids), len(row.prompt_ids)) for row in rows]
    size = min(settings.batch_size, len(rows))
    pool = size * _POOL_BATCHES
    for number in itertools.count():
        rng = np.random.default_rng([settings.seed, 0, number])
        order = rng.permutation(len(rows)).tolist()
        batches: list[tuple[int, ...]] = []
        for start in range(0, len(order), pool):
            alike = sorted(order[start : start + pool], key=lambda i: lengths[i])
            batches += [tuple(alike[i : i + size]) for i in range(0, len(alike), size)]
        yield from (batches[i] for i in reversed(rng.permutation(len(batches))))


def _drawn_routes(step: int, routes: Sequence[Route], settings: FinetuneSettings, per_step: int) -> list[int]:
    """The routes of a step, the cheapest first: the last pass then meets every weight that a sandwich trains."""
    order = sorted(range(len(routes)), key=lambda i: (len(routes[i]), i))
    if per_step == len(routes):
        return order
    ends = [order[0], order[-1]] if step % settings.ends_every == 0 and per_step > 1 else []
    rng = np.random.default_rng([settings.seed, 1, step])
    weights = np.array([settings.emphasis.get(route.name, 1.0) for route in routes])
    weights[ends] = 0
    n_drawn = min(per_step - len(ends), int((weights > 0).sum()))
    drawn = rng.choice(len(routes), n_drawn, replace=False, p=weights / weights.sum()) if n_drawn else []
    # A route of no weight takes the place of one that cannot be drawn, so that all steps have as many passes.
    spare = [i for i in order if i not in (*ends, *drawn)][: per_step - len(ends) - n_drawn]
    return sorted((*ends, *map(int, drawn), *spare), key=order.index)


def training_flops(
    cost: ModelCost, schedule: Schedule, rows: Sequence[TrainingRow], routes: Sequence[Route], settings: FinetuneSettings
) -> float:
    """FLOPs of a run in theory, to compare runs at equal compute: see `FlopsCount`."""
    return FlopsCount(cost, rows, routes, settings).of(schedule)


class FlopsCount:
    """FLOPs of a run in theory: forward, backward, prompts and teacher; paddings, the adapter's own and the optimizer left
    out.

    A backward pass counts as two forward ones, or as one where the weights are frozen under an adapter. Passes that were
    counted before are not counted again, so that a run which grows is counted in little time.
    """

    def __init__(
        self, cost: ModelCost, rows: Sequence[TrainingRow], routes: Sequence[Route], settings: FinetuneSettings
    ) -> None:
        self._cost, self._rows, self._routes, self._settings = cost, rows, routes, settings
        self._full = Route(tuple(range(len(cost.layers))), len(cost.layers))
        self._total, self._n_counted, self._seen = 0.0, 0, set[int]()

    def of(self, schedule: Schedule) -> float:
        """FLOPs of a schedule that begins as the one of the call before did, and is at least as long."""
        for one in schedule.passes[self._n_counted :]:
            self._add(one)
        self._n_counted = len(schedule.passes)
        return self._total

    def _add(self, one: MicroBatch) -> None:
        settings, route = self._settings, self._routes[one.route]
        passes = 3 if settings.method == "full" else 2
        on_cache = settings.prompt_depth == "full" and not route.is_full
        for i in one.rows:
            prompt, response = len(self._rows[i].prompt_ids), len(self._rows[i].response_ids)
            own = self._cost.of(route, prompt_tokens=prompt, new_tokens=response, prompt_route=None if on_cache else route)
            self._total += passes * (own.decode_flops + own.head_flops)
            if not on_cache or settings.prompt_gradient:
                self._total += passes * own.prompt_flops
            elif one.group not in self._seen:
                self._total += own.prompt_flops
            if settings.distill and one.group not in self._seen:
                taught = self._cost.of(self._full, prompt_tokens=prompt, new_tokens=response)
                self._total += taught.prompt_flops + taught.decode_flops + taught.head_flops
        self._seen.add(one.group)
