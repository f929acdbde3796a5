"""Pools of losses to draw calibration rows from: their means are the true risks.

Three are made here, from a seed; a fourth may come from a file of measured rows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from depthdial.errors import InputError
from depthdial.files import read_json

# Shares of the sequences that a policy sends off the full model, setting by setting.
SHARES = (0.0, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.7, 0.85, 1.0)
FULL_LAYERS, SHALLOW_LAYERS, DEEP_LAYERS = 30, 24, 27
# The true risk of the one setting of the hard pools, over epsilon.
JUST_ABOVE = 1.02


@dataclass(frozen=True)
class Pool:
    """Losses and costs, (n_sequences, n_settings), of an ordered grid whose first setting is the full model."""

    name: str
    settings: tuple[str, ...]
    losses: np.ndarray
    costs: np.ndarray
    bounds: tuple[float, float]

    @property
    def risks(self) -> np.ndarray:
        """True expected loss of each setting, for rows drawn with replacement."""
        return self.losses.mean(axis=0)

    @property
    def savings(self) -> np.ndarray:
        mean = self.costs.mean(axis=0)
        return mean[0] - mean

    def about(self) -> dict[str, Any]:
        raw = np.ascontiguousarray(self.losses).tobytes() + np.ascontiguousarray(self.costs).tobytes()
        return {
            "pool": self.name,
            "sequences": len(self.losses),
            "settings": list(self.settings),
            "bounds": list(self.bounds),
            "risks": [round(risk, 6) for risk in self.risks.tolist()],
            "savings_layers": [round(saving, 6) for saving in self.savings.tolist()],
            "zeros": round(float((self.losses[:, 1:] == 0).mean()), 4),
            "gains": round(float((self.losses[:, 1:] < 0).mean()), 4),
            "digest": hashlib.sha256(raw).hexdigest()[:16],
        }


def policy_pool(seed: int = 0, n: int = 4000) -> Pool:
    """A controller's grid of prices: the easy sequences leave the full model first, the easiest of them for fewer layers.

    Most losses are 0, for most sequences stay; those that leave lose 5 to 30 points of quality, and one in ten gains some.
    """
    rng = np.random.default_rng(seed)
    difficulty = rng.random(n)
    guessed = np.argsort(np.argsort(difficulty + rng.normal(0, 0.25, n))) / n  # the order in which the policy sends them
    means = 0.05 + 0.25 * difficulty
    deep = rng.beta(1.5, 1.5 * (1 - means) / means)
    deep = np.where(rng.random(n) < 0.1, -0.2 * deep, deep)
    shallow = np.clip(deep + rng.beta(1.5, 13.5, n), -1.0, 1.0)
    losses, costs = np.zeros((n, len(SHARES))), np.full((n, len(SHARES)), float(FULL_LAYERS))
    for setting, share in enumerate(SHARES):
        leaves, far = guessed < share, guessed < share / 2
        losses[:, setting] = np.where(far, shallow, np.where(leaves, deep, 0.0))
        costs[:, setting] = np.where(far, SHALLOW_LAYERS, np.where(leaves, DEEP_LAYERS, FULL_LAYERS))
    return Pool("policy", tuple(f"{share:.0%} leave" for share in SHARES), losses, costs, (-1.0, 1.0))


def edge_pool(epsilon: float, seed: int = 0) -> Pool:
    """One setting like those of the policy, whose true risk is just above epsilon: each certificate is a violation."""
    source = policy_pool(seed)
    column = source.losses[:, int(np.searchsorted(source.risks, epsilon * JUST_ABOVE))]
    scaled = column * (epsilon * JUST_ABOVE / column.mean())
    losses = np.stack([np.zeros_like(scaled), scaled], axis=1)
    costs = np.tile([float(FULL_LAYERS), float(DEEP_LAYERS)], (len(losses), 1))
    return Pool("edge", ("full", "just above epsilon"), losses, costs, (-1.0, 1.0))


def rare_pool(epsilon: float, n: int = 50_000) -> Pool:
    """As `edge_pool`, but all of the loss is in few sequences that lose everything: many samples do not hold one of them."""
    losses = np.zeros((n, 2))
    losses[: int(np.ceil(n * epsilon * JUST_ABOVE)), 1] = 1.0
    costs = np.tile([float(FULL_LAYERS), float(DEEP_LAYERS)], (n, 1))
    return Pool("rare", ("full", "just above epsilon"), losses, costs, (0.0, 1.0))


def read_pool(path: Path, metric: str = "agreement") -> Pool:
    """A pool of measured rows.

    Either JSON with `settings`, `losses` and `costs` (lists of rows), or parquet with a row for each sequence and setting:
    columns sequence_id, setting, loss and cost (settings in order of their first rows), or the rows of a sweep, whose routes
    are ordered from the full one to the cheapest and lose `metric` against it.
    """
    if path.suffix == ".json":
        document = read_json(path, "pool")
        if not isinstance(document, dict) or not {"settings", "losses", "costs"} <= set(document):
            raise InputError(f"{path} is no pool: it must hold settings, losses and costs.")
        losses, costs = np.array(document["losses"], dtype=float), np.array(document["costs"], dtype=float)
        return Pool(path.stem, tuple(document["settings"]), losses, costs, (-1.0, 1.0))
    import pyarrow.parquet as pq

    rows = pq.read_table(path).to_pydict()
    if "setting" in rows:
        names, value, cost = "setting", rows["loss"], rows["cost"]
    elif "route" in rows and metric in rows:
        names, value, cost = "route", rows[metric], rows["layers_run"]
    else:
        raise InputError(f"{path} holds neither settings with losses nor routes with {metric}: give --metric.")
    table: dict[str, dict[str, tuple[float, float]]] = {}
    for sequence, name, number, spent in zip(rows["sequence_id"], rows[names], value, cost, strict=True):
        table.setdefault(name, {})[sequence] = (number, spent)
    sequences = sorted(next(iter(table.values())))
    if any(sorted(cells) != sequences for cells in table.values()):
        raise InputError(f"{path} lacks some sequences for some settings: measure all of them.")
    numbers = {name: np.array([cells[sequence] for sequence in sequences], dtype=float) for name, cells in table.items()}
    if names == "route":
        if "full" not in numbers:
            raise InputError(f"{path} has no rows of the full route: measure it too.")
        order = sorted(numbers, key=lambda name: (name != "full", -numbers[name][:, 1].mean()))
        losses = np.stack([numbers["full"][:, 0] - numbers[name][:, 0] for name in order], axis=1)
    else:
        order = list(numbers)
        losses = np.stack([numbers[name][:, 0] for name in order], axis=1)
    costs = np.stack([numbers[name][:, 1] for name in order], axis=1)
    return Pool("rows", tuple(order), losses, costs, (-1.0, 1.0))
