"""Fabricated search studies: families and rows with plausible trends, made without a model."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from depthdial.files import write_json
from depthdial.report.search.comparison import unsearched_routes
from depthdial.routes import Route
from depthdial.routes.families import RouteFamily
from depthdial.rows.store import PROVENANCE_COLUMNS

N_LAYERS, SIZES = 12, (10, 8)
# Greedy and beam drop the same two layers first, so that a route is shared.
DROPS = {
    "greedy-kl": ((5,), (5, 6), (5, 6, 4), (5, 6, 4, 7)),
    "beam-kl": ((6,), (6, 5), (6, 5, 3), (6, 5, 3, 4)),
    "angular": ((2,), (3, 4), (6, 7, 8), (6, 7, 8, 9)),
}
KL = {"greedy-kl": 0.4, "beam-kl": 0.4, "angular": 0.9, "uls": 2.0, "unified": 1.5, "ee": 3.0}


def family(name: str, *, timed: bool = True) -> RouteFamily:
    drops = DROPS[name]
    full = Route(tuple(range(N_LAYERS)), N_LAYERS, "full")
    routes = [
        Route(tuple(i for i in range(N_LAYERS) if i not in gone), N_LAYERS, f"{name}:{N_LAYERS - len(gone)}")
        for gone in drops
    ]
    effort = {"seconds": 30.0, "passes": 42, "calibration": {"seconds": 4.0, "n_sequences": 8}} if timed else {}
    nested = all(set(a) < set(b) for a, b in itertools.pairwise(drops))
    made_by = {"method": name, "nested": nested, "prompts": ["0" * 16] * 8, **effort}
    return RouteFamily(name, N_LAYERS, tuple(reversed([full, *routes])), made_by)


def make_search_study(folder: Path, n_sequences: int = 6) -> Path:
    families = [family(name) for name in DROPS]
    for one in families:
        one.save(folder / "families" / f"{one.name}.json")
    measured = {Route(tuple(range(N_LAYERS)), N_LAYERS, "full"): 0.0}
    for size in SIZES:
        routes = {one.name: route for one in families for route in one.routes if len(route) == size}
        for name, route in {**routes, **unsearched_routes(size, N_LAYERS)}.items():
            measured.setdefault(route, KL[name] * (12 - size))
    generator, rows = np.random.default_rng(0), []
    offsets = generator.normal(0, 0.05, n_sequences)
    for route, kl in measured.items():
        for i in range(n_sequences):
            rows.append(
                {
                    "sequence_id": f"row-{i}",
                    "route": route.name,
                    "route_layers": str(route),
                    "n_layers": N_LAYERS,
                    "layers_run": float(len(route)),
                    "kl": kl * (1 + offsets[i]),
                    "agreement": 1 / (1 + kl),
                    "nll": 1 + kl,
                    "rouge_l": None,
                    **dict.fromkeys(PROVENANCE_COLUMNS, "fabricated"),
                }
            )
    (folder / "sweep").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "sweep" / "rows.parquet")
    study = {"kind": "search", "methods": list(DROPS), "sizes": list(SIZES), "fractions": [0.83, 0.67]}
    write_json(folder / "study.json", study)
    return folder
