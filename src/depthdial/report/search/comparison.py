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
class Compared:
    """One method at one number of layers.

    Attributes:
        method: the family's name, searched or not.
        rows: the measured rows of its route, which another method may have found too.
    """

    method: str
    route: Route
    rows: RouteRows

    def interval(self, column: str) -> Interval | None:
        return self.rows.interval(column)


@dataclass(frozen=True)
class Comparison:
    """A search study, read.

    Attributes:
        families: searched families by name, in the study's order; the first is the one to compare with.
        compared: by number of layers (the most first), then by method.
        table: all measured rows.
    """

    study: Mapping[str, Any]
    families: Mapping[str, RouteFamily]
    compared: tuple[Compared, ...]
    table: Any

    @property
    def n_layers(self) -> int:
        return next(iter(self.families.values())).n_layers

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(len(one.route) for one in self.compared))

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(one.method for one in self.compared))

    def at(self, size: int) -> dict[str, Compared]:
        """By method."""
        return {one.method: one for one in self.compared if len(one.route) == size}

    def known_kl(self, size: int) -> dict[str, Interval]:
        """KL to the full model by method, where it was measured."""
        return {name: kl for name, one in self.at(size).items() if (kl := one.interval("kl"))}

    def rows(self) -> list[Cells]:
        """The comparison as a table of the report's.

        `kl` and `nll` in nats; `kl_share`, the mean KL in % of ULS's; `kl_more`, KL above the first method's on the same
        sequences; `search_sec`, what the whole search took (prompts, answers and all sizes); `passes` over its texts.
        """
        table: list[Cells] = []
        for size in self.sizes:
            at, kl = self.at(size), self.known_kl(size)
            first, uls = next(iter(at.values())), kl["uls"].mean if "uls" in kl else 0.0
            for one in at.values():
                table.append(
                    {
                        "method": one.method,
                        "layers": size,
                        **{name: one.interval(name) for name in ("kl", "agreement", "nll", "rouge_l")},
                        "kl_share": 100 * kl[one.method].mean / uls if one.method in kl and uls else None,
                        "kl_more": None if one is first else paired(one.rows, first.rows, "kl"),
                        **search_effort(self.families.get(one.method)),
                        "skipped": ", ".join(map(str, one.route.skipped)),
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
    compared = []
    for size in sizes:
        routes = {name: route for name, family in families.items() for route in family.routes if len(route) == size}
        for method, route in {**routes, **unsearched_routes(size, next(iter(families.values())).n_layers)}.items():
            if route.layers not in measured:
                raise InputError(f"{folder / 'sweep'} has no rows of {method}'s route of {size} layers: {_AGAIN}.")
            compared.append(Compared(method, route, measured[route.layers]))
    return Comparison(study, families, tuple(compared), table)


def unsearched_routes(size: int, n_layers: int) -> dict[str, Route]:
    """The fixed families' routes of so many layers, by family."""
    return {name: Route(FIXED_FAMILIES[name](size, n_layers), n_layers, f"{name}:{size}") for name in UNSEARCHED}


def paired(one: RouteRows, other: RouteRows, column: str) -> Interval | None:
    """95% interval over sequences of the difference of two routes on the same sequences; None where there is none."""
    theirs = dict(zip(other.columns["sequence_id"].tolist(), other.columns[column].tolist(), strict=True))
    mine = zip(one.columns["sequence_id"].tolist(), one.columns[column].tolist(), strict=True)
    return known_interval(np.array([value - theirs.get(sequence, np.nan) for sequence, value in mine]))


def search_effort(family: RouteFamily | None) -> Cells:
    """Seconds and passes over the calibration texts that a whole search took; None for a family that needs none."""
    if family is None:
        return {"search_sec": None, "passes": None}
    about = family.made_by
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
