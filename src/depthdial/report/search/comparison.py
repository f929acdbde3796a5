"""What a search study's folder holds, put side by side: each method's route at each number of layers, as it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from depthdial.errors import InputError
from depthdial.files import read_json
from depthdial.report.kit.tables import Cells, Column, finished
from depthdial.report.study.summary import RouteRows, gather
from depthdial.routes import FIXED_FAMILIES, Route
from depthdial.routes.families import RouteFamily
from depthdial.rows.store import load_rows
from depthdial.stats.intervals import Interval, known_interval
from depthdial.stats.serialize import dump

KIND = "search"
FAMILIES_FOLDER = "families"
COLUMNS = (
    Column("kl_share", "KL, % of ULS's", 1),
    Column("kl_more", "KL above the first's, nats"),
    Column("search_sec", "search, s", 0),
    Column("skipped", "layers skipped"),
)
UNSEARCHED = ("uls", "unified", "ee")
_AGAIN = "run `depthdial search-study` again"


@dataclass(frozen=True)
class Comparison:
    """A search study, read.

    Attributes:
        families: searched families by name, in the study's order; the first is the one to compare with.
        at: by number of layers (the most first) and by method, searched or not, the measured rows of its route.
        table: all measured rows.
    """

    study: Mapping[str, Any]
    families: Mapping[str, RouteFamily]
    at: Mapping[int, Mapping[str, RouteRows]]
    table: Any

    @property
    def n_layers(self) -> int:
        return next(iter(self.families.values())).n_layers

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(self.at)

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(method for routes in self.at.values() for method in routes))

    def known_kl(self, size: int) -> dict[str, Interval]:
        """KL to the full model by method, where it was measured."""
        return {method: kl for method, route in self.at[size].items() if (kl := route.interval("kl"))}

    def rows(self) -> list[Cells]:
        """The comparison as a table of the report's.

        `kl` and `nll` in nats; `kl_share`, the mean KL in % of ULS's; `kl_more`, KL above the first method's on the same
        sequences; `search_sec`, what the whole search took (prompts, answers and all sizes); `passes` over its texts.
        """
        table: list[Cells] = []
        for size, routes in self.at.items():
            kl, first = self.known_kl(size), next(iter(routes))
            uls = kl["uls"].mean if "uls" in kl else 0.0
            for method, route in routes.items():
                skipped = np.flatnonzero(route.share_run == 0)
                table.append(
                    {
                        "method": method,
                        "layers": size,
                        **{name: route.interval(name) for name in ("kl", "agreement", "nll", "rouge_l")},
                        "kl_share": 100 * kl[method].mean / uls if method in kl and uls else None,
                        "kl_more": None if method == first else paired(route, routes[first], "kl"),
                        **search_effort(self.families.get(method)),
                        "skipped": ", ".join(map(str, skipped)),
                    }
                )
        return finished(table, COLUMNS, keep=("method", "layers", "kl"))

    def to_dict(self) -> list[dict[str, Any]]:
        """The same, JSON-ready: an interval as mean, low, high and n."""
        return dump(self.rows())


def read_comparison(folder: Path | str) -> Comparison:
    """Read study.json, families/ and sweep/rows.parquet of a search study's folder.

    Raises:
        InputError: if the folder holds no search study, a file is damaged, or a route was not measured.
    """
    folder = Path(folder)
    path = folder / "study.json"
    study = read_json(path, "study") if path.exists() else None
    if not isinstance(study, dict) or study.get("kind") != KIND:
        raise InputError(f"{folder} holds no search study: give the --out folder of `depthdial search-study`.")
    try:
        names, sizes = list(study["methods"]), list(study["sizes"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / 'study.json'} lacks a field ({error}): {_AGAIN}.") from error
    families = {name: RouteFamily.load(folder / FAMILIES_FOLDER / f"{name}.json") for name in names}
    if not families:
        raise InputError(f"{folder / 'study.json'} names no method: {_AGAIN}.")
    table = load_rows(folder / "sweep")
    measured = {route.fixed_layers: route for route in gather(table)}
    at: dict[int, dict[str, RouteRows]] = {size: {} for size in sizes}
    for size, found in at.items():
        routes = {name: route for name, family in families.items() for route in family.routes if len(route) == size}
        for method, route in {**routes, **unsearched_routes(size, next(iter(families.values())).n_layers)}.items():
            if route.layers not in measured:
                raise InputError(f"{folder / 'sweep'} has no rows of {method}'s route of {size} layers: {_AGAIN}.")
            found[method] = measured[route.layers]
    return Comparison(study, families, at, table)


def unsearched_routes(size: int, n_layers: int) -> dict[str, Route]:
    """The fixed families' routes of so many layers, by family."""
    return {name: Route(FIXED_FAMILIES[name](size, n_layers), n_layers, f"{name}:{size}") for name in UNSEARCHED}


def paired(one: RouteRows, other: RouteRows, column: str) -> Interval | None:
    """95% interval over sequences of the difference of two routes on the same sequences; None where there is none."""
    theirs = other.by_sequence(column)
    differences = [value - theirs.get(sequence, np.nan) for sequence, value in one.by_sequence(column).items()]
    return known_interval(np.array(differences))


def search_effort(family: RouteFamily | None) -> Cells:
    """Seconds and passes over the calibration texts that a whole search took; None for a family that needs none."""
    about = {} if family is None else family.made_by
    search_sec, calibration_sec = about.get("seconds"), about.get("calibration", {}).get("seconds")
    whole = None if search_sec is None or calibration_sec is None else search_sec + calibration_sec
    return {"search_sec": whole, "passes": about.get("passes")}


def first_drops(family: RouteFamily) -> list[int | None]:
    """By layer, how many layers the costliest route without it drops; None where every route keeps it."""
    found: list[int | None] = [None] * family.n_layers
    for route in family.cheapest_first():  # from the cheapest: a costlier route overwrites
        for layer in route.skipped:
            found[layer] = family.n_layers - len(route)
    return found
