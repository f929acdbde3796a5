"""The latency model of one model on one machine: measured passes, ceilings, and any pass read off them.

    step of rows = fixed(rows) + sum over layers of layer(rows that run it, context)

One JSON file, which `depthdial bench` writes. The oracle, searches, controllers, the scheduler and speculation read it as a
cost in milliseconds, so that all of them decide by the same measurements.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from depthdial.checks import number, whole
from depthdial.errors import InputError
from depthdial.files import Document
from depthdial.latency.cells import PREFILL, STEP, VERIFY, Ceilings, Cell, Gemm, Sizes
from depthdial.latency.costs import LayerCosts
from depthdial.latency.passes import Parts, Passes, fit

_DOCUMENT = Document("depthdial-latency", 1, "latency model", "run depthdial bench again")
_LEAST_MS = 1e-6  # what a layer costs at least: measured noise may leave it at 0
_RTOL = 1e-6


@dataclass(frozen=True)
class LatencyModel:
    """How long passes of one model take on one machine, by layers, rows and context.

    Wherever layers are asked for, a Route, its layers, the name of a measured route, or a number of layers may be given; a
    number, which need not be whole, means layers of mean cost. Contexts default to the median of those that were measured.

    Attributes:
        model, weights_hash: which model.
        dtype, device, threads: how it was held and run.
        n_layers: of the model.
        routes: the layers of each route that was measured, by name.
        layer_share: (n_layers,) the time of each layer over that of a mean one; 1 where layers are alike.
        sizes: bytes and FLOPs of the model.
        ceilings: of the machine, measured in the same run.
        cells: everything that was measured.
        versions, hardware, commit, seed, date: where the numbers come from.

    Raises:
        InputError: for a layer that the model does not have, or too few measurements for a step.

    Example:
        >>> latency = dd.LatencyModel.load(folder / "bench.json")
        >>> shallow = dd.Route.parse("uls:50%", n_layers=6)
        >>> latency.step_sec([shallow, 6]) <= latency.step_sec([6, 6])
        True
        >>> latency.verify_sec(rows=1, tokens=5) >= latency.verify_sec(rows=1, tokens=2)
        True
    """

    model: str
    weights_hash: str
    dtype: str
    device: str
    threads: int
    n_layers: int
    routes: Mapping[str, tuple[int, ...]]
    layer_share: tuple[float, ...]
    sizes: Sizes
    ceilings: Ceilings
    cells: tuple[Cell, ...]
    versions: str = ""
    hardware: str = ""
    commit: str = ""
    seed: int = 0
    date: str = ""

    def __post_init__(self) -> None:
        whole("n_layers", self.n_layers, 1)
        if len(self.layer_share) != self.n_layers or len(self.sizes.layer_bytes) != self.n_layers:
            raise InputError(f"The latency model tells of other layers than its {self.n_layers}: bench the model again.")
        for share in self.layer_share:
            number("layer_share", share, above=0)
        for cell in self.cells:
            if cell.route not in self.routes:
                raise InputError(f"A cell is of the route {cell.route!r}, which has no layers: add it to routes.")
        for layers in self.routes.values():
            self._check(layers)
        _ = self._steps  # fitted now, so that a model that cannot be is refused here

    @classmethod
    def load(cls, path: Path | str) -> LatencyModel:
        """The latency model in a file, or in the folder of a bench.

        Raises:
            InputError: if there is none, or it is damaged or of another version.
        """
        if not isinstance(path, str | PathLike):
            raise InputError(
                f"A latency model is given as it is, by its file or by the folder of a bench, not as {type(path).__name__}: "
                "give what depthdial bench writes."
            )
        path = Path(path)
        return _DOCUMENT.read(path / BENCH_FILE if path.is_dir() else path, cls._of_document)

    def save(self, path: Path | str) -> Path:
        """Write it as JSON, by atomic rename."""
        return _DOCUMENT.write(Path(path), asdict(self))

    def step_sec(self, layers: Sequence[Any], context_tokens: float | None = None) -> float:
        """Seconds of one decoding step of a batch, walked layer by layer: each runs for the rows whose route has it.

        Args:
            layers: for each row what it runs. Numbers are of nested routes: the layers of a smaller number are among those
                of a greater one; beside routes a number stands for the first layers.
            context_tokens: in sight of each row.
        """
        if isinstance(layers, str) or not isinstance(layers, Iterable):
            raise InputError(f"Layers by row are a list with an entry for each row, not {layers!r}: give such as [30, 15].")
        rows = list(layers)
        if not rows:
            raise InputError("A step of 0 rows takes no time to speak of: give the layers of at least one row.")
        context = self.context(context_tokens)
        total = self._steps.parts(len(rows)).fixed_sec
        for n_rows, weight in self._weights(rows).items():
            total += weight * self._steps.parts(n_rows).layer(context)
        return total

    def route_sec(self, route: Any = None, rows: int = 1, context_tokens: float | None = None) -> float:
        """Seconds of one decoding step of some rows on one route (default: every layer)."""
        return self._pass(self._steps, rows, 1, route, self.context(context_tokens))

    def verify_sec(
        self,
        rows: int,
        tokens: int,
        layers: Any = None,
        context_tokens: float | None = None,
        *,
        reused_layers: int = 0,
    ) -> float:
        """Seconds of one pass over some tokens of each row behind a context, as when drafts are checked.

        Args:
            tokens: of each row: k + 1 for k drafted ones.
            layers: those that run (default: all).
            reused_layers: how many of the first layers drafting has run on all of the tokens but the last: they run on
                that one alone.
        """
        whole("reused_layers", reused_layers, 0, self.n_layers)
        context = self.context(context_tokens)
        found = self._pass(self._checks, rows, tokens, layers, context)
        if not reused_layers or tokens == 1:
            return found
        saved = self._checks.parts(rows, tokens).layer(context) - self._checks.parts(rows, 1).layer(context)
        return found - saved * sum(self.layer_share[:reused_layers])

    def prefill_sec(self, rows: int, tokens: int, layers: Any = None) -> float:
        """Seconds of one pass over prompts of `tokens` tokens: the time to the first token.

        Raises:
            InputError: if no prompt was measured.
        """
        return self._pass(self._prompts, rows, tokens, layers, 0.0)

    def layer_costs(self, rows: int = 1, context_tokens: float | None = None) -> LayerCosts:
        """Milliseconds of each layer in a decoding step, for a search to weigh."""
        each = 1000 * self._steps.parts(whole("rows", rows, 1)).layer(self.context(context_tokens))
        about = {"measured": f"depthdial bench, {self.date}", "device": self.device, "rows": rows}
        return LayerCosts("ms", tuple(max(each * share, _LEAST_MS) for share in self.layer_share), about)

    def bound_sec(self, layers: Any = None, rows: int = 1, context_tokens: float | None = None) -> float:
        """What the ceilings allow a decoding step at best: the longer of reading its bytes and computing its FLOPs.

        Bytes at the measured bandwidth; FLOPs at the rate of the fastest product, whatever its rows.
        """
        run, context = self._layers(layers), self.context(context_tokens)
        reading = self.sizes.step_bytes(run, rows, context) / self.ceilings.bandwidth_bytes_per_sec
        return max(reading, self.sizes.pass_flops(run, rows, 1, context, 1) / self.ceilings.peak_flops_per_sec)

    def context(self, given: float | None = None) -> float:
        """`given`, or the median of the contexts that steps were measured behind."""
        return self._median_context if given is None else float(number("context_tokens", given, 0))

    def measured_rows(self) -> tuple[int, ...]:
        """The numbers of rows that steps were measured with, ascending."""
        return tuple(sorted({cell.rows for cell in self.cells if cell.kind == STEP}))

    def require_fits(self, n_layers: int, head_flops: float | None = None) -> None:
        """InputError if these are measurements of a model of another shape.

        Args:
            head_flops: of the other side's head for a token, where it is known.
        """
        if n_layers != self.n_layers:
            raise InputError(
                f"The latency model is of {self.model!r} with {self.n_layers} layers, and the rows or routes are of a model "
                f"with {n_layers}: bench that model."
            )
        if head_flops is not None and abs(head_flops / self.sizes.head_flops - 1) > _RTOL:
            raise InputError(
                f"The latency model is of {self.model!r}, whose head has another size than the one here "
                f"({self.sizes.head_flops:g} and {head_flops:g} FLOPs a token): bench the same model."
            )

    def _pass(self, passes: Passes, rows: int, tokens: int, layers: Any, context: float) -> float:
        parts = passes.parts(whole("rows", rows, 1), whole("tokens", tokens, 1))
        return parts.fixed_sec + self.weight(layers) * parts.layer(context)

    @cached_property
    def _steps(self) -> Passes:
        return self._fitted(STEP)

    @cached_property
    def _checks(self) -> Passes:
        """Passes over 1, 2, .. tokens; a step is the one of 1."""
        found = self._fitted(STEP, VERIFY)
        if len(found.curves) == 1:
            raise InputError(
                "The latency model has no pass of several tokens behind a context: bench with --drafts 1,2,4,8."
            )
        return found

    @cached_property
    def _prompts(self) -> Passes:
        if not any(cell.kind == PREFILL for cell in self.cells):
            raise InputError("The latency model has no prompt's pass: bench with --prompts 16,128.")
        return self._fitted(PREFILL)

    def _fitted(self, *kinds: str) -> Passes:
        weights = {name: sum(self.layer_share[i] for i in layers) for name, layers in self.routes.items()}
        return fit([cell for cell in self.cells if cell.kind in kinds], weights)

    @cached_property
    def _median_context(self) -> float:
        return float(np.median([cell.context_tokens for cell in self.cells if cell.kind == STEP]))

    def parts(self, rows: float, tokens: float = 1) -> Parts:
        """The fitted parts of a decoding step, or of a pass over several tokens behind a context."""
        return (self._steps if tokens == 1 else self._checks).parts(rows, tokens)

    def _weights(self, rows: Sequence[Any]) -> dict[int, float]:
        """By the number of rows that run it together: layers, each by its share of a mean layer's time."""
        found: dict[int, float] = {}
        if all(map(_is_number, rows)):
            ascending = sorted(self.weight(row) for row in rows)
            for place, n_layers in enumerate(ascending):
                found[len(rows) - place] = n_layers - (ascending[place - 1] if place else 0)
            return found
        counts: Counter[int] = Counter()
        for row in rows:
            counts.update(self._layers(row))
        for layer, n_rows in counts.items():
            found[n_rows] = found.get(n_rows, 0.0) + self.layer_share[layer]
        return found

    def weight(self, layers: Any = None) -> float:
        """Layers that run, each by its share of a mean layer's time; a number stands for itself."""
        if _is_number(layers):
            return number("number of layers", layers, None, self.n_layers, above=0)
        return sum(self.layer_share[i] for i in self._layers(layers))

    def _layers(self, given: Any) -> tuple[int, ...]:
        if given is None or (isinstance(given, str) and given == "full"):
            return tuple(range(self.n_layers))
        if isinstance(given, str):
            if given not in self.routes:
                measured = ", ".join(self.routes)
                raise InputError(f"No route {given!r} was measured: give a Route for any other than {measured}.")
            return self.routes[given]
        if _is_number(given):
            return tuple(range(whole("number of layers", given, 1, self.n_layers)))
        other = getattr(given, "n_layers", self.n_layers)
        if other != self.n_layers:
            raise InputError(
                f"A route of a model of {other} layers has no time on {self.model!r}, which has {self.n_layers}: "
                "bench the route's own model."
            )
        return self._check(getattr(given, "layers", given))

    def _check(self, layers: Any) -> tuple[int, ...]:
        try:
            run = tuple(int(layer) for layer in layers)
        except (TypeError, ValueError):
            raise InputError(f"Layers are a route, indices or a number, not {layers!r}: give one of them.") from None
        bad = next((layer for layer in run if not 0 <= layer < self.n_layers), None)
        if bad is not None:
            raise InputError(f"Layer {bad} does not exist: {self.model!r} has layers 0 to {self.n_layers - 1}.")
        return run

    @classmethod
    def _of_document(cls, document: Mapping[str, Any]) -> LatencyModel:
        given = {name: value for name, value in document.items() if name not in ("format", "version")}
        sizes: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given["sizes"].items()}
        ceilings = dict(given["ceilings"])
        ceilings["gemm"] = tuple(Gemm(**one) for one in ceilings["gemm"])
        given |= {
            "routes": {name: tuple(layers) for name, layers in given["routes"].items()},
            "layer_share": tuple(given["layer_share"]),
            "sizes": Sizes(**sizes),
            "ceilings": Ceilings(**ceilings),
            "cells": tuple(Cell(**one) for one in given["cells"]),
        }
        return cls(**given)


BENCH_FILE = "bench.json"


def _is_number(given: Any) -> bool:
    return isinstance(given, int | float | np.integer | np.floating) and not isinstance(given, bool)
