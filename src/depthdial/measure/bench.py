"""`bench`: measure how long passes of a model take on this machine, and make the latency model of it.

The folder of a bench holds a file for every finished unit of it, so that a stopped one goes on, and `bench.json`, the model.
Within a unit everything takes turns after a round of warm-up, transformers' own `generate` on the untouched model too, so
that a machine that slows down slows all of it.
"""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from depthdial.checks import whole
from depthdial.engine.depth import read_depths
from depthdial.engine.session import Session
from depthdial.errors import InputError, one_line
from depthdial.files import check_out_folder, claim, read_json, write_json
from depthdial.latency.cells import HF_PREFILL, HF_STEP, PREFILL, STEP, VERIFY, Ceilings, Cell, Gemm, Sizes
from depthdial.latency.model import BENCH_FILE, LatencyModel
from depthdial.measure.ceilings import measure_ceilings
from depthdial.measure.cost import model_cost
from depthdial.measure.latency import layer_times
from depthdial.measure.passes import Checks, hf_secs, made_prompts, step_secs
from depthdial.measure.plan import ModelIdentity
from depthdial.progress import progress_bar
from depthdial.provenance import environment
from depthdial.routes import Route


@dataclass(frozen=True)
class BenchSettings:
    """What a bench measures.

    Attributes:
        depths: routes to measure; the full one is always among them.
        rows: sequences that decode together.
        context: tokens in sight of each row in a decoding step.
        prompts: lengths of prompts, in tokens, whose passes are measured.
        drafts: numbers of drafted tokens, in a row, whose checks are measured.
        rounds: turns of everything, behind one of warm-up.
        steps: decoding steps in each turn.
        most_tokens: prompts of more tokens than this, over all rows, are left out, and so are the steps behind them.
        baseline: let transformers' own generate on the untouched model take its turns.
        seed: of the prompts' words.

    Raises:
        InputError: for a number that is out of range.

    Example:
        >>> dd.BenchSettings(rows=(1, 4)).rows
        (1, 4)
    """

    depths: tuple[str, ...] = ("full", "uls:75%", "uls:50%", "uls:25%")
    rows: tuple[int, ...] = (1, 8, 32)
    context: tuple[int, ...] = (64, 256)
    prompts: tuple[int, ...] = (16, 64, 256)
    drafts: tuple[int, ...] = (1, 2, 4, 8)
    rounds: int = 5
    steps: int = 6
    most_tokens: int = 1024
    baseline: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        depths = _several(self.depths)
        if not all(isinstance(depth, str) for depth in depths):
            raise InputError(f"The depths of a bench are texts such as 'uls:50%', not {depths!r}: give their text.")
        object.__setattr__(self, "depths", depths)
        for name in ("rows", "context", "prompts", "drafts"):
            values = tuple(sorted({whole(name, value, 1) for value in _several(getattr(self, name))}))
            if not values:
                raise InputError(f"The argument {name} of a bench is empty: give at least one number.")
            object.__setattr__(self, name, values)
        for name in ("rounds", "steps", "most_tokens"):
            whole(name, getattr(self, name), 1)


def _several(given: Any) -> tuple[Any, ...]:
    """One value, or those of a list."""
    return tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (given,)


def bench(
    model: Any,
    tokenizer: Any,
    *,
    settings: BenchSettings | None = None,
    out: Path | str | None = None,
    identity: ModelIdentity | None = None,
    progress: bool = False,
) -> LatencyModel:
    """Measure decoding steps, checks of drafts and prompts against layers, rows and context, and the machine's ceilings.

    Args:
        settings: what is measured (default: `BenchSettings()`, two minutes for a model of 135M parameters on two cores).
        out: a folder for the latency model, `bench.json`. A stopped bench goes on there.
        identity: which model this is, where the caller knows.
        progress: show a bar with an estimate of the time that is left.

    Returns:
        The latency model. Its cells are medians and quantiles over rounds and steps, synchronised with the device.

    Raises:
        InputError: for a depth that is no route of the model, fewer than two numbers of layers, prompts longer than the
            model's context, or a folder of another bench.

    Example:
        >>> settings = dd.BenchSettings(rows=(1, 2), context=(8,), prompts=(4,), drafts=(1,), rounds=2, steps=2)
        >>> latency = dd.bench(model, tokenizer, settings=settings)
        >>> latency.route_sec(dd.Route.parse("uls:50%", n_layers=6)) > 0
        True
    """
    settings = settings or BenchSettings()
    session = Session.of(model, tokenizer)
    job = _Bench(session, tokenizer, settings, _routes(session, model, settings))
    job.check_context()
    identity = identity or ModelIdentity.of(model)
    folder = None if out is None else check_out_folder(Path(out))
    if folder is not None:
        about = {**asdict(settings), **asdict(identity), **environment(), "threads": torch.get_num_threads()}
        about["routes"] = {route.name: str(route) for route in job.routes}
        about.pop("commit")
        claim(folder / "settings.json", {"kind": "bench", **about}, "bench")
    units = list(job.units())
    found: dict[str, Any] = {}
    was_there = False
    with progress_bar("bench", sum(unit.work for unit in units), show=progress) as advance:
        for unit in units:
            path = None if folder is None else folder / "cells" / f"{unit.name}.json"
            if path is not None and path.exists():
                found[unit.name] = read_json(path, "bench")
                was_there = True
            else:
                found[unit.name] = unit.measure()
                if path is not None:
                    write_json(path, found[unit.name])
            advance(unit.work)
    try:
        latency = job.latency_model(found, identity)
    except (AttributeError, InputError, KeyError, TypeError, ValueError) as error:
        if folder is None or not was_there:
            raise
        raise InputError(
            f"The cells of a stopped bench in {folder} are damaged ({one_line(error).rstrip('.')}): delete the folder, or "
            "choose another --out."
        ) from error
    if folder is not None:
        latency.save(folder / BENCH_FILE)
    return latency


@dataclass(frozen=True)
class _Unit:
    """A piece of a bench that is done whole or not at all: its name, what it gives (JSON-ready), and about how long."""

    name: str
    measure: Callable[[], Any]
    work: float


@dataclass(frozen=True)
class _Bench:
    """One bench, ready to run; `routes` from the full one down."""

    session: Session
    tokenizer: Any
    settings: BenchSettings
    routes: tuple[Route, ...]

    @property
    def two(self) -> tuple[Route, Route]:
        """The full route and the one nearest to half of the layers, where two depths are enough."""
        n = self.session.n_layers
        return self.routes[0], min(self.routes[1:], key=lambda route: abs(len(route) - n / 2))

    def check_context(self) -> None:
        most, s = self.session.context_tokens, self.settings
        longest = max(s.context[-1] + s.steps, s.context[0] + s.drafts[-1] + 1, s.prompts[-1])
        if most is not None and longest > most:
            raise InputError(
                f"The bench runs sequences of {longest} tokens, and the model was made for {most}: give shorter "
                "contexts and prompts."
            )

    def units(self) -> Iterator[_Unit]:
        """From what takes the least time on."""
        s = self.settings
        yield _Unit("ceilings", self.ceilings, 30)
        yield _Unit("layers", self.layer_share, 1)
        for rows in s.rows:
            for context in s.context:
                if context == s.context[0] or rows * context <= s.most_tokens:
                    work = (s.rounds + 1) * (rows * context / 30 + s.steps * len(self.routes) * (1 + rows / 8))
                    yield _Unit(f"step-{rows}x{context}", lambda r=rows, c=context: self.steps(r, c), work)
            work = (s.rounds + 1) * sum(2 + rows * (n + 1) / 8 for n in s.drafts)
            yield _Unit(f"verify-{rows}", lambda r=rows: self.checks(r), work)
        for rows in s.rows:
            for tokens in s.prompts:
                if rows * tokens <= s.most_tokens or rows == s.rows[0]:
                    work = (s.rounds + 1) * rows * tokens / 20
                    yield _Unit(f"prefill-{rows}x{tokens}", lambda r=rows, t=tokens: self.prompts(r, t), work)

    def ceilings(self) -> Any:
        rows = {*self.settings.rows, self.settings.rows[0] * self.settings.prompts[-1]}
        weights = self.session.model.get_input_embeddings().weight
        return asdict(measure_ceilings(self.session.device, weights.dtype, self.session.facts.width, sorted(rows)))

    def layer_share(self) -> list[float]:
        """(n_layers,) each layer's time over a mean one's: that of its kind, as measured, where layers are unlike."""
        kinds = list(model_cost(self.session.given).layers)
        if len(set(kinds)) == 1:
            return [1.0] * len(kinds)
        times = layer_times(self.session, self._prompts(1, self.settings.context[0])[0])
        by_kind = {kind: statistics.median(t for t, k in zip(times, kinds, strict=True) if k == kind) for kind in kinds}
        mean = statistics.mean(by_kind[kind] for kind in kinds)
        return [by_kind[kind] / mean for kind in kinds]

    def steps(self, rows: int, context: int) -> list[Any]:
        """Decoding steps of all routes, whose middle one has `context` tokens in sight, in turns with transformers."""
        s, tokens = self.settings, max(1, context - self.settings.steps // 2)
        prompts = self._prompts(rows, tokens)
        prefilled = self.session.prefill_ids(prompts)
        seconds: dict[str, list[float]] = {route.name: [] for route in self.routes}
        first: list[float] = []
        theirs: list[float] = []
        for turn in range(-1, s.rounds):
            steps = s.steps if turn >= 0 else min(2, s.steps)
            for route in self.routes:
                found = step_secs(self.session, route, prefilled, steps)
                seconds[route.name] += found if turn >= 0 else []
            if s.baseline:
                prefill, found = hf_secs(self.session, prompts, steps)
                theirs += found if turn >= 0 else []
                first += [prefill] if turn >= 0 else []
        cells = [Cell.of(STEP, name, rows, 1, context, values) for name, values in seconds.items()]
        if s.baseline:
            cells.append(Cell.of(HF_STEP, self.routes[0].name, rows, 1, context, theirs))
            cells.append(Cell.of(HF_PREFILL, self.routes[0].name, rows, tokens, 0, first))
        return [asdict(cell) for cell in cells]

    def checks(self, rows: int) -> list[Any]:
        """Passes of 2, 3, .. tokens a row behind the shortest context, at two depths."""
        context = self.settings.context[0]
        prefilled = self.session.prefill_ids(self._prompts(rows, context))
        passes = {route: Checks(self.session, route, prefilled) for route in self.two}
        sizes = [(route, n + 1) for route in self.two for n in self.settings.drafts]
        turns = self._turns(sizes, lambda size: passes[size[0]].sec(size[1]))
        return [asdict(Cell.of(VERIFY, r.name, rows, n, context, seconds)) for (r, n), seconds in turns.items()]

    def prompts(self, rows: int, tokens: int) -> list[Any]:
        """Passes over prompts, at two depths."""
        prompts = self._prompts(rows, tokens)
        turns = self._turns(self.two, lambda route: self.session.prefill_ids(prompts, route).prefill_sec)
        return [asdict(Cell.of(PREFILL, route.name, rows, tokens, 0, seconds)) for route, seconds in turns.items()]

    def _turns(self, what: Any, measure: Callable[[Any], float]) -> dict[Any, list[float]]:
        found: dict[Any, list[float]] = {one: [] for one in what}
        for turn in range(-1, self.settings.rounds):
            for one in what:
                seconds = measure(one)
                found[one] += [seconds] if turn >= 0 else []
        return found

    def _prompts(self, rows: int, tokens: int) -> list[list[int]]:
        return made_prompts(self.tokenizer, self.session.facts.vocabulary, rows, tokens, self.settings.seed)

    def latency_model(self, found: dict[str, Any], identity: ModelIdentity) -> LatencyModel:
        """Of all units, by their names."""
        cost = model_cost(self.session.given)
        ceilings = found.pop("ceilings")
        share = found.pop("layers")
        for name, cells in found.items():
            if not (isinstance(cells, list) and cells):
                raise InputError(f"the unit {name!r} holds no cells")
        return LatencyModel(
            model=identity.name,
            weights_hash=identity.weights_hash,
            dtype=identity.dtype,
            device=identity.device,
            threads=torch.get_num_threads(),
            n_layers=self.session.n_layers,
            routes={route.name: route.layers for route in self.routes},
            layer_share=tuple(share),
            sizes=Sizes(
                tuple(layer.weight_bytes for layer in cost.layers),
                cost.head_bytes,
                tuple(layer.kv_bytes_per_token for layer in cost.layers),
                tuple(layer.flops_per_token for layer in cost.layers),
                tuple(layer.flops_per_token_pair for layer in cost.layers),
                cost.head_flops_per_token,
            ),
            ceilings=Ceilings(**{**ceilings, "gemm": tuple(Gemm(**one) for one in ceilings["gemm"])}),
            cells=tuple(Cell(**cell) for unit in found.values() for cell in unit),
            **environment(),
            seed=self.settings.seed,
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        )


def _routes(session: Session, model: Any, settings: BenchSettings) -> tuple[Route, ...]:
    """The routes to measure, the full one first, then by their depth."""
    found = {session.full: None}
    for depth in read_depths(",".join(settings.depths), model, session.n_layers):
        if not isinstance(depth, Route):
            raise InputError(
                f"{getattr(depth, 'name', depth)!r} is no fixed route, and its time is that of those that it "
                "takes: bench routes such as uls:50%."
            )
        found.setdefault(replace(depth, searched_on=frozenset()), None)
    routes = sorted(found, key=lambda route: -len(route))
    if len({len(route) for route in routes}) < 2:
        raise InputError("All depths of this bench run every layer: give at least one that runs fewer, such as uls:50%.")
    return tuple(routes)
