"""Theoretical cost of a training run, so that runs can be compared at equal compute. Never seconds."""

from __future__ import annotations

from collections.abc import Sequence

from depthdial.measure.cost import ModelCost
from depthdial.routes import Route
from depthdial.train.depth.settings import FinetuneSettings
from depthdial.train.rows import TrainingRow
from depthdial.train.schedule import Schedule


def training_flops(
    cost: ModelCost, schedule: Schedule, rows: Sequence[TrainingRow], routes: Sequence[Route], settings: FinetuneSettings
) -> float:
    """FLOPs of a run: forward, backward, prompts and teacher; paddings, the adapter's own and the optimizer left out.

    A backward pass counts as two forward ones, or as one where the weights are frozen under an adapter.
    """
    passes = 3 if settings.method == "full" else 2
    full = Route(tuple(range(len(cost.layers))), len(cost.layers))
    total, seen = 0.0, set[int]()
    for one in schedule.passes:
        route = routes[one.route]
        on_cache = settings.prompt_depth == "full" and not route.is_full
        for i in one.rows:
            prompt, response = len(rows[i].prompt_ids), len(rows[i].response_ids)
            own = cost.of(route, prompt_tokens=prompt, new_tokens=response, prompt_route=None if on_cache else route)
            total += passes * (own.decode_flops + own.head_flops)
            if not on_cache or settings.prompt_gradient:
                total += passes * own.prompt_flops
            elif one.group not in seen:
                total += own.prompt_flops
            if settings.distill and one.group not in seen:
                taught = cost.of(full, prompt_tokens=prompt, new_tokens=response)
                total += taught.prompt_flops + taught.decode_flops + taught.head_flops
        seen.add(one.group)
    return total
