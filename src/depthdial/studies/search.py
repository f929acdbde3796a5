"""The search study: every method on the same calibration prompts, judged on rows that no method saw.

Beside them the fixed families that need no search: ULS, early exit and unified skipping. A study that was stopped goes on
where it stood.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from depthdial.checks import choice, whole
from depthdial.data.leakage import prompt_hashes, require_apart, require_no_test_split, require_unsearched
from depthdial.data.tasks import Task, as_task
from depthdial.errors import InputError
from depthdial.files import claim, write_json
from depthdial.hf.architectures import count_layers
from depthdial.measure.latency import COSTS
from depthdial.measure.plan import ModelIdentity
from depthdial.measure.references import KEPT_BYTES, Reference
from depthdial.measure.sweep import sweep
from depthdial.report.search.comparison import (
    FAMILIES_FOLDER,
    KIND,
    UNSEARCHED,
    Comparison,
    read_comparison,
    unsearched_routes,
)
from depthdial.report.search.page import write_search_report
from depthdial.routes import Route
from depthdial.routes.families import RouteFamily
from depthdial.search.calibration import SPECULATION
from depthdial.search.run import family_name, options_of, search_routes

DEFAULT_METHODS = ("greedy-kl", "beam-kl", "greedy-nll", "single-drop-kl", "block-influence", "angular")


@dataclass(frozen=True)
class SearchStudySettings:
    """How large a comparison of searches is.

    Attributes:
        methods: names of families to search, such as greedy-kl, beam-nll, angular; the first is compared with. Empty for
            DEFAULT_METHODS, without NLL where calibration rows have no references.
        fractions: of the layers, at which routes are compared.
        cost: what dropping a layer saves: layers, flops, or ms (measured here).
        screen: of greedy and beam: layers tried in each round after the first; 0: all.
        beam_width: of beam: sets kept of each size.
        answer_tokens: length of the answers compared.
        batch_size: sequences run together, of the search and of the measurement.
        fidelity_tokens: tokens of the full answers for KL and agreement.
        rouge: also generate answers and score them.
        max_new_tokens: longest answer, in tokens.
        latency: a bench.json or its folder: of cost ms, and of methods such as greedy-speculation.

    Example:
        >>> dd.SearchStudySettings(methods=("angular", "greedy-kl"), fractions=(0.8,)).cost
        'layers'
    """

    methods: tuple[str, ...] = ()
    fractions: tuple[float, ...] = (0.9, 0.8, 0.67)
    cost: str = "layers"
    screen: int | None = 8
    beam_width: int = 4
    answer_tokens: int = 16
    batch_size: int = 16
    fidelity_tokens: int = 32
    rouge: bool = False
    max_new_tokens: int = 64
    latency: str | None = None

    def __post_init__(self) -> None:
        names = [family_name(name) for name in self.methods]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"Method {twice!r} is named twice: name each once.")
        if not self.fractions or not all(0 < fraction < 1 for fraction in self.fractions):
            given = ", ".join(f"{fraction:g}" for fraction in self.fractions) or "none"
            raise InputError(f"Fractions of the layers lie between 0 and 1, such as 0.9 and 0.67, not {given}.")
        choice("cost", self.cost, COSTS)
        for name in ("beam_width", "answer_tokens", "batch_size", "fidelity_tokens", "max_new_tokens"):
            whole(name, getattr(self, name), 1)
        if self.screen is not None:
            whole("screen", self.screen, 1)
        drafting = [name for name in names if options_of(name).get("metric") == SPECULATION]
        if drafting and self.latency is None:
            raise InputError(
                f"The search {drafting[0]!r} needs measured times: give latency='bench.json', of depthdial bench."
            )
        if self.latency is not None and not drafting and self.cost != "ms":
            raise InputError("A latency model is for cost='ms' or methods such as greedy-speculation: leave it out.")

    def names(self, has_references: bool) -> tuple[str, ...]:
        """Names of the families in full."""
        chosen = self.methods or tuple(name for name in DEFAULT_METHODS if has_references or not name.endswith("-nll"))
        return tuple(family_name(name) for name in chosen)

    def sizes(self, n_layers: int) -> tuple[int, ...]:
        """Numbers of layers to compare at, the most first."""
        found = sorted({round(fraction * n_layers) for fraction in self.fractions}, reverse=True)
        wrong = next((n for n in found if not 1 <= n < n_layers), None)
        if wrong is not None:
            raise InputError(
                f"One of the fractions comes to {wrong} of {n_layers} layers: name fractions that drop a layer and keep one."
            )
        return tuple(found)

    def of_search(self, name: str) -> dict[str, Any]:
        """How a family of this name is searched: options of `search_routes`."""
        options = options_of(name)
        if options["method"] in ("greedy", "beam"):
            options["screen"] = self.screen
        if options["method"] == "beam":
            options["beam_width"] = self.beam_width
        drafts = options.get("metric") == SPECULATION  # which counts time by itself
        if drafts or self.cost == "ms":
            options["latency"] = self.latency
        options["cost"] = "layers" if drafts else self.cost
        return {**options, "answer_tokens": self.answer_tokens, "batch_size": self.batch_size}


@dataclass(frozen=True)
class SearchStudyResult:
    """What a comparison leaves: the report's path, and what every method reached."""

    report: Path
    comparison: Comparison


def search_study(
    model: Any,
    tokenizer: Any,
    *,
    task: Task,
    calibration: Task,
    out: Path | str,
    settings: SearchStudySettings | None = None,
    name: str | None = None,
    say: Callable[[str], None] | None = None,
    progress: bool = False,
) -> SearchStudyResult:
    """Search routes by every method, measure them beside the fixed families, and write the report.

    Leaves families/NAME.json, sweep/rows.parquet, comparison.json, tables/, figures/ and report.html in `out`.

    Args:
        task: sequences to judge routes on.
        calibration: prompts to search on, of a split that is not for evaluation; none of `task`'s.
        name: what the model was loaded by.
        say: called with one line at the start of each step.

    Raises:
        InputError: if the tasks share a prompt, calibration is a test split, `out` belongs to another study, or from any
            step.

    Example:
        >>> settings = dd.SearchStudySettings(methods=("angular", "block-influence"), fractions=(0.5,))
        >>> result = dd.search_study(model, tokenizer, task=task, calibration=many, out=folder / "search", settings=settings)
    """
    settings, folder, say = settings or SearchStudySettings(), Path(out), say or (lambda line: None)
    require_no_test_split(calibration, "search routes")
    task, calibration = as_task(task), as_task(calibration, held_out=True)
    require_apart(task, prompt_hashes(calibration), "to search the routes")
    require_unsearched(task, model=model, can_allow=False)
    n_layers = count_layers(model)
    names, sizes = settings.names(calibration.has_references), settings.sizes(n_layers)
    identity = ModelIdentity.of(model, name)
    about = {
        "kind": KIND,
        **asdict(settings),
        "methods": names,
        "unsearched": UNSEARCHED,
        "sizes": sizes,
        "model": identity.name,
        "weights_hash": identity.weights_hash,
        "task": task.name,
        "split": task.split,
        "data": task.fingerprint,
        "sequences": len(task.examples),
        "calibration_split": calibration.split,
        "calibration_data": calibration.fingerprint,
        "calibration_sequences": len(calibration.examples),
        "seed": task.seed,
    }
    claim(folder / "study.json", about, "search study")
    families, reference = [], Reference.of(model, tokenizer, keep_bytes=KEPT_BYTES)
    for number, method in enumerate(names, start=1):
        say(f"{number}/{len(names)} {method} on {len(calibration.examples)} calibration prompts")
        path = folder / FAMILIES_FOLDER / f"{method}.json"
        if not path.exists():
            search_routes(
                model,
                tokenizer,
                task=calibration,
                **settings.of_search(method),
                min_layers=min(sizes),
                out=path,
                identity=identity,
                reference=reference,
                progress=progress,
                allow_searched_rows=True,  # what the model was trained on may not judge, which it is not for here
            )
        families.append(RouteFamily.load(path))
        require_unsearched(task, families[-1].routes, can_allow=False)  # it may be of an earlier start, on other prompts
    routes = [Route.parse("full", n_layers)]  # what several found is run once
    for size in sizes:
        routes += [route for family in families for route in family.routes if len(route) == size]
        routes += unsearched_routes(size, n_layers).values()
    routes = list(dict.fromkeys(routes))
    say(f"measuring {len(task.examples)} sequences x {len(routes)} routes")
    sweep(
        model,
        tokenizer,
        task=task,
        routes=routes,
        metrics=(*(("rouge_l",) if settings.rouge else ()), "nll", "kl", "agreement"),
        out=folder / "sweep",
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens if settings.rouge else settings.fidelity_tokens,
        fidelity_tokens=settings.fidelity_tokens,
        identity=identity,
        progress=progress,
    )
    comparison = read_comparison(folder)
    write_json(folder / "comparison.json", comparison.to_dict())
    return SearchStudyResult(write_search_report(folder), comparison)
