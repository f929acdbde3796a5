"""A cascade of a controller's cheapest and full route, measured: the rival that predicts nothing and runs twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from depthdial.control.certify import measured_costs
from depthdial.control.controller import SequenceController
from depthdial.control.judge.cascade import best_cascades, cascade_curve
from depthdial.control.rows import MeasuredRows
from depthdial.data.tasks import Task
from depthdial.measure.sweep import sweep


def measured_cascade(
    controller: SequenceController,
    held: MeasuredRows,
    rows: MeasuredRows,
    budgets: np.ndarray,
    tasks: Sequence[Task | None],
    model: Any,
    tokenizer: Any,
    out: Path,
    common: Mapping[str, Any],
) -> tuple[np.ndarray, np.ndarray]:
    """Answer on the cheapest route and, where that answer's own NLL is high, on the full one; thresholds of `held`."""
    parts = []
    card, cheapest = controller.card, int(controller.costs.argmin())
    for part, task in zip(("calibration", "test"), tasks, strict=True):
        table = sweep(
            model,
            tokenizer,
            task=task,  # type: ignore[arg-type]
            routes=[controller.routes[cheapest]],
            metrics=("answer_nll",),
            max_new_tokens=card.response_tokens,
            prompt_depth=card.prompt_depth,
            full_untouched=True,
            out=out / part / "cascade",
            **common,
        )
        by_id = dict(zip(table.column("sequence_id").to_pylist(), table.column("answer_nll").to_pylist(), strict=True))
        those = held if part == "calibration" else rows
        sure = np.full((len(those.sequence_ids), len(controller.routes)), -np.inf)
        sure[:, cheapest] = [-by_id[one] for one in those.sequence_ids]
        parts.append((sure, those.values(card.metric, controller.routes)))
    (sure_held, values_held), (sure, values) = parts
    costs_held, costs = (measured_costs(controller, one.steps(controller.routes)) for one in (held, rows))
    chosen = best_cascades(sure_held, values_held, costs_held, budgets, shallow=[cheapest], deep=[card.full])
    return cascade_curve(chosen, sure, values, costs)
