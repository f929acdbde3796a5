"""What a budget counts. By default layer-steps: the layers that an answer's decoding runs, one count for each step.

The *layer-steps* of an answer are the layers that run times its decoding steps: its tokens less the first one, which
comes from the prompt's pass. As the cost of a route or of a choice of routes they are a share of the full model's:

    sum over sequences of the layer-steps of the chosen route / sum over sequences of the layer-steps of the full route,

a ratio of sums, so that a sequence counts for what is computed for it and the full model costs exactly 1. Each sequence
counting the same (`layers`, Figure 2 of arXiv 2410.20022), measured milliseconds (`ms`) and any numeric column stay as
costs by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from depthdial.checks import choice
from depthdial.errors import InputError

LAYER_STEPS, LAYERS, MS, STEPS = "layer_steps", "layers", "ms", "decoding_steps"
# The columns that these are counted from.
LAYERS_COLUMN, TOKENS_COLUMN, DEPTH_COLUMN, SECONDS_COLUMN = "layers_run", "new_tokens", "n_layers", "decode_sec"
_COLUMNS = {
    LAYER_STEPS: (LAYERS_COLUMN, TOKENS_COLUMN, DEPTH_COLUMN),
    LAYERS: (LAYERS_COLUMN, DEPTH_COLUMN),
    MS: (SECONDS_COLUMN,),
    STEPS: (TOKENS_COLUMN,),
}
_UNITS = {
    LAYER_STEPS: "% of the full model's layer-steps",
    LAYERS: "mean layers run per sequence",
    MS: "measured ms per sequence",
    STEPS: "mean decoding steps per sequence",
}


def cost_name(cost: str) -> str:
    """A cost's one name: `layers_run`, the column, is `layers`."""
    return LAYERS if cost == LAYERS_COLUMN else cost


def cost_columns(cost: str) -> tuple[str, ...]:
    """The columns that a cost is read from."""
    return _COLUMNS.get(cost_name(cost), (cost,))


def counted_columns() -> tuple[str, ...]:
    """Every column that a named cost is counted from."""
    return tuple(dict.fromkeys(column for columns in _COLUMNS.values() for column in columns))


def cost_unit(cost: str) -> str:
    """What a budget of this cost is counted in, as an axis says it."""
    return _UNITS.get(cost_name(cost), f"mean {cost} per sequence")


@dataclass(frozen=True)
class CostReader:
    """Reads a cost out of rows that are pivoted to (n_sequences, n_routes) or (n_sequences, n_routes, n_samples).

    Attributes:
        pivot: gives the column of a name as such an array, NaN where a row holds nothing; None if there is no such column.
        require: raises InputError unless such an array of the named column is complete.
        full: index of the full route, or None.
        steps: `own`, the steps of each route's own answer, or `full`, those of the full route's answer for every route.
    """

    pivot: Callable[[str], np.ndarray | None]
    require: Callable[[str], np.ndarray]
    full: int | None
    steps: str = "own"

    def read(self, cost: str) -> tuple[str, np.ndarray, np.ndarray | None]:
        """The cost's name, the costs, and (n_sequences,) what each sequence adds to the total that they are divided by.

        That is the full route's layer-steps, and None where the mean over sequences is the cost. Layer-steps of rows without
        answers, or whose answers take no decoding step at all, are counted in `layers`.

        Raises:
            InputError: for a missing or incomplete column, or where the full route's answers take no steps and others do.
        """
        choice("steps", self.steps, ("own", "full"))
        name = cost_name(cost)
        steps = self.decoding_steps() if name in (LAYER_STEPS, STEPS) else None
        if name == LAYER_STEPS:
            if steps is not None and steps.any():
                return LAYER_STEPS, *self._layer_steps(steps)
            name = LAYERS
        if name == STEPS and steps is not None:
            return STEPS, _per_cell(steps), None
        costs = self.require(_COLUMNS.get(name, (name,))[0])
        return name, 1e3 * costs if name == MS else costs, None

    def full_tokens(self) -> np.ndarray | None:
        """(n_sequences,) tokens of the full route's answers, without one the mean over the routes'; None if unknown."""
        tokens = self.pivot(TOKENS_COLUMN)
        if tokens is None:
            return None
        tokens = _per_cell(tokens)
        found = tokens.mean(axis=1) if self.full is None else tokens[:, self.full]
        return found if np.isfinite(found).all() and found.sum() > 0 else None

    def _layer_steps(self, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        layers = self.pivot(LAYERS_COLUMN)
        if layers is None or np.isinf(layers).any() or (np.isnan(layers) & (steps > 0)).any():
            layers = self.require(LAYERS_COLUMN)
        if (layers < 0).any():
            raise InputError(
                f"The column {LAYERS_COLUMN!r} holds a negative number, {np.nanmin(layers):g}; a cost is at least 0."
            )
        # No step runs no layer, also where a depth by tokens could not say how many layers it ran.
        costs = _per_cell(np.where(steps > 0, layers, 0.0) * steps)
        if self.full is not None:
            full_costs = costs[:, self.full].copy()
        else:
            full_costs = (self.n_layers() or np.nanmax(layers)) * _per_cell(steps).mean(axis=1)
        if not full_costs.sum() > 0:
            raise InputError(
                "The full route's layer-steps add up to 0, answers of one token each, while other routes' do not: "
                "they cannot be shares of that, so give cost='layers'."
            )
        return costs, full_costs

    def decoding_steps(self) -> np.ndarray | None:
        """Decoding steps of each row, its own or the full route's; None where no row tells of any."""
        choice("steps", self.steps, ("own", "full"))
        tokens = self.pivot(TOKENS_COLUMN)
        if tokens is None or np.isnan(tokens).all():
            return None
        steps = np.maximum(tokens - 1.0, 0.0)
        if self.full is None:
            if self.steps == "full":
                raise InputError("The rows have no full route: steps='full' needs its answers, so give steps='own'.")
        else:
            of_full = steps[:, self.full : self.full + 1]
            steps = (
                np.broadcast_to(of_full, steps.shape) if self.steps == "full" else np.where(np.isnan(steps), of_full, steps)
            )
        if not np.isfinite(steps).all():
            self.require(TOKENS_COLUMN)
        return steps

    def n_layers(self) -> int | None:
        """Layers of the full model: from the column `n_layers`, else from the layers that the full route runs."""
        depth = self.pivot(DEPTH_COLUMN)
        if (depth is None or np.isnan(depth).all()) and self.full is not None:
            layers = self.pivot(LAYERS_COLUMN)
            depth = None if layers is None else layers[:, self.full]
        found = np.unique(depth[np.isfinite(depth)]) if depth is not None else []
        return int(found[0]) if len(found) == 1 and found[0] == int(found[0]) else None


def _per_cell(found: np.ndarray) -> np.ndarray:
    return found.mean(axis=2) if found.ndim == 3 else found


def budget_in_units(given: float | str, *, cost: str, full_cost: float, most: float, n_layers: int | None) -> float:
    """A budget as a person gives it, in the units of a curve's budgets.

    `"80%"` is a share of the full model's cost. Of layer-steps a number up to 1 is a share too, and a greater one counts
    layers of the full model's: 27 of 30 is 0.9. (Routes may answer at greater length than the full model and so cost more
    than 1: a real number up to `most`, the greatest budget of the curve, is a share as well.) In all other units a number
    is meant as it is.

    Args:
        full_cost: the full model's cost in those units.

    >>> budget_in_units("27", cost="layer_steps", full_cost=1.0, most=1.0, n_layers=30)
    0.9

    Raises:
        InputError: it is neither a number nor a percentage, or it counts layers and their number is not known.
    """
    text = given.strip() if isinstance(given, str) else None
    try:
        if isinstance(given, bool | np.bool_) or given is None:
            raise TypeError
        if text is not None and text.endswith("%"):
            if not np.isfinite(percent := float(text[:-1])):
                raise ValueError
            return percent / 100 * full_cost
        if text is not None and not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|nan|inf", text, re.IGNORECASE):
            raise ValueError
        number = float(given)
    except (TypeError, ValueError):
        example = "a share (0.8 or '80%') or a count of layers" if cost == LAYER_STEPS else f"{full_cost:g} or '80%', say"
        raise InputError(f"The budget {given!r} is not a number or a percentage: give {example}.") from None
    if cost != LAYER_STEPS or not number > 1 or np.isinf(number):
        return number
    counts = isinstance(given, int | np.integer) or (text is not None and "." not in text)
    if not counts and number <= most * (1 + 1e-12):
        return number
    if n_layers is None:
        raise InputError(
            f"The budget {given!r} counts layers, and the rows do not say how many the full model has: "
            "give a share of the full model's cost, such as 0.8 or '80%'."
        )
    return number / n_layers
