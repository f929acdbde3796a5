"""The sections of the page, each from what the result files hold: text, tables and figures, or a sentence why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from depthdial.report.controller.section import controller_section
from depthdial.report.kit import tables
from depthdial.report.kit.parts import Picture, Sample, Section, as_table, file_name, pairs_table
from depthdial.report.search.plot import draw_importance, draw_search
from depthdial.report.study.folder import ResultFolder
from depthdial.report.study.oracle_plot import METRIC_NAMES, draw_oracle
from depthdial.report.study.predictable_plot import budget_text, draw_predictable, shown_budget
from depthdial.report.study.routes_plot import RouteBar, draw_routes
from depthdial.report.study.similarity_plot import draw_fidelity, draw_similarity
from depthdial.report.study.summary import RouteRows, gather, headline_metric
from depthdial.report.study.time_plot import affine_fit, describe_fit, draw_quality_time, draw_time_layers, timed_routes
from depthdial.rows.store import count_samples

# What the columns of the headline table mean, those that it has.
_DEFINITIONS = {
    "layers": "Layers run: layers that run for each response token. Cost: layer-steps, layers run times decoding steps, in "
    "percent of the full model's on the same sequences (layers alone where no answers were generated).",
    "agreement": "Agreement: share of the full model's own greedy tokens that the route would have chosen too.",
    "kl": "KL: divergence of the route's next-token predictions from the full model's on those tokens, in nats per token.",
    "nll": "NLL: of the reference answer, in nats per token.",
    "step_ms": "ms per step: measured milliseconds per decoding step in the median batch.",
    "speed": "Speed: ratio to the full model's in the same run, left out where batches had other sizes.",
}
_SAMPLE_SEQUENCES, _SAMPLE_ROUTES, _SAMPLE_CHARACTERS = 4, 5, 1200


@dataclass(frozen=True)
class Contents:
    """A folder's results with its rows gathered by route."""

    files: ResultFolder

    @cached_property
    def routes(self) -> list[RouteRows]:
        return gather(self.files.sweep) if self.files.sweep is not None else []

    @cached_property
    def compared(self) -> list[RouteRows]:
        return gather(self.files.similarity) if self.files.similarity is not None else []

    @property
    def metric(self) -> str | None:
        return headline_metric(self.routes)

    @cached_property
    def n_samples(self) -> int:
        """Sampled answers of each (sequence, route); 0 for greedy ones."""
        return count_samples(self.files.sweep) if self.files.sweep is not None else 0


def build_sections(files: ResultFolder) -> list[Section]:
    """All sections of a page, in reading order."""
    contents = Contents(files)
    makers: tuple[Callable[[Contents], Section], ...] = (
        _headline,
        _oracle,
        _predictable,
        _controller,
        _route_pictures,
        _similarity,
        _time,
        _importance,
        _samples,
        _provenance,
    )
    return [make(contents) for make in makers]


def _headline(contents: Contents) -> Section:
    anchor, title = "headline", "What each route costs and keeps"
    if not contents.routes:
        return Section(anchor, title, ["No sweep is in this folder: `depthdial sweep` measures the quality of routes."])
    table = tables.headline(contents.files.sweep, contents.files.curves, contents.files.predictable)
    told = [text for name, text in _DEFINITIONS.items() if name in table[0]]
    notes = [" ".join([told[0], _metric_text(contents), *told[1:], "All are means over sequences."])]
    if any(str(row["route"]).startswith("★") for row in table):
        notes.append(
            "The oracle knows every route's score on every sequence and chooses the best route for each within a total "
            "cost: a bound on what a controller could reach, not a method. ★ is the lowest cost at which it is as good as "
            "running the full model on every sequence."
        )
    sampled = f", {contents.n_samples} sampled answers to each" if contents.n_samples else ""
    caption = f"Sequences: {contents.routes[0].n_sequences}{sampled}. Means over them, with 95% intervals in brackets"
    return Section(anchor, title, tables=[as_table(caption, table)], notes=notes)


def _metric_text(contents: Contents) -> str:
    if contents.metric == "rouge_l":
        answer = "sampled answers (their mean)" if contents.n_samples else "greedily generated answer"
        return f"ROUGE-L: F-measure of the {answer} against the reference, with its 95% interval."
    return f"No sequence has a ROUGE score, so the headline is {_name(contents.metric)}, with its 95% interval."


def _name(metric: str | None) -> str:
    return METRIC_NAMES.get(metric or "", metric or "no metric")


def _oracle(contents: Contents) -> Section:
    anchor, title = "oracle", "The best route for every sequence, under a global budget"
    curves = contents.files.curves
    if not curves:
        return Section(anchor, title, ["No oracle is in this folder: `depthdial oracle` makes one from the sweep's rows."])
    pictures, held = [], []
    for i, (name, curve) in enumerate(curves.items()):
        caption = (
            f"Above: budget ({curve.cost_unit}) against {_name(curve.metric)}. Oracle: the best mean with one route "
            f"for each sequence and the cost within the budget; the band is its {curve.confidence:.0%} bootstrap "
            "interval over sequences. Points: one route for all sequences, with intervals. Best mixture: routes drawn at "
            "random in the best proportions. Shares at random: the oracle's proportions, handed out blindly. Shuffled "
            "scores: an oracle over scores that no longer belong together, which is what luck alone gives. Below: the share "
            "of sequences that the oracle sends to each route. ★: the lowest budget at which the oracle is as good as the "
            "full model, the bar its interval."
        )
        if i > 0:
            caption = f"The same for {name}: budget against {_name(curve.metric)} above, shares of the routes below."
        if curve.metric == "agreement":
            caption += " The full model agrees with itself fully, so only routes that agree fully can equal it."
        rows = tables.oracle_table(curve)
        alt = (
            f"Two panels over the budget: quality of the oracle and of {len(curve.routes)} fixed routes; shares of routes. "
        )
        if curve.matches_full_at is not None:
            alt += f"The oracle is as good as the full model at {_told_budget(rows[0])}."
        pictures.append(Picture(f"oracle-{file_name(name)}", draw_oracle(curve), caption, alt))
        held.append(as_table(f"Oracle by {name}: budgets and what it is held against", rows))
    told = (
        f"Scores are means over {contents.n_samples} sampled answers, and this oracle is judged by the answers that it "
        "chose on: it overstates. The next section takes the luck out."
    )
    return Section(anchor, title, [told] if contents.n_samples else [], pictures, held)


def _told_budget(cells: Mapping[str, Any]) -> str:
    if cells.get("budget") is not None:
        return tables.cell_text("budget", cells["budget"])
    return f"{tables.cell_text('cost_percent', cells['cost_percent'])}% of its layer-steps"


def _predictable(contents: Contents) -> Section:
    anchor, title = "predictable", "How much of the oracle's gain is luck"
    curves = contents.files.predictable
    if not curves:
        told = (
            "No predictable oracle is in this folder. With one answer to each sequence on each route, luck cannot be told "
            "from knowledge: `depthdial sweep --samples 8` and `depthdial oracle` measure how much can be predicted."
        )
        return Section(anchor, title, [told])
    pictures, held = [], []
    for name, curve in curves.items():
        caption = (
            f"Above: budget ({curve.cost_unit}) against {_name(curve.metric)}, of {curve.n_samples} sampled answers to each "
            f"of {curve.n_sequences} sequences on each route. The paper's oracle picks the best of many noisy scores and is "
            "judged by the same scores. The predictable oracle chooses on some samples and is judged by the others: in "
            "expectation a lower bound of the oracle that knows every expected score, as the paper's is an upper one; the "
            f"band is its {curve.confidence:.0%} bootstrap interval over sequences. Shuffled cells: the same when a "
            "sequence's routes no longer belong together; at the mixture where sequences differ by luck alone, and above "
            "it where they differ in difficulty. Points: one route for all sequences. Below: both bounds at a budget of "
            f"{budget_text(curve, shown_budget(curve))}, by the number of samples chosen on; the truth lies between them."
        )
        rows = tables.predictable_table(curve)
        alt = "Two panels: quality of the predictable and the paper's oracle by budget; the two bounds by number of samples."
        pictures.append(Picture(f"predictable-{file_name(name)}", draw_predictable(curve), caption, alt))
        held.append(as_table(f"Predictable oracle by {name}, and what it is held against", rows))
    return Section(anchor, title, pictures=pictures, tables=held)


def _controller(contents: Contents) -> Section:
    return controller_section(contents.files.controller)


def _route_pictures(contents: Contents) -> Section:
    anchor, title = "routes", "Which layers the routes run"
    routes = contents.routes or contents.compared
    n_layers = routes[0].n_layers
    bars = [RouteBar(route.name, tuple(route.share_run.tolist())) for route in routes]
    is_long = len(bars) > 40
    bars = bars[:40]
    caption = (
        "A row for each route, a column for each layer. A filled cell runs; a pale one is skipped, which leaves the hidden "
        "state as it is. A random rule draws layers for each sequence: its shade is the share of sequences on which the "
        "layer ran."
    )
    alt = "Layers that run: " + "; ".join(f"{bar.name} runs {bar.cost_layers:g}" for bar in bars) + f", of {n_layers}."
    picture = Picture("routes", draw_routes(bars, f"Layers that run, of {n_layers}"), caption, alt)
    return Section(anchor, title, [f"The first 40 of {len(routes)} routes."] if is_long else [], [picture])


def _similarity(contents: Contents) -> Section:
    anchor, title = "similarity", "How close routes stay to the full model"
    if not contents.compared:
        return Section(anchor, title, ["No similarity run is in this folder: `depthdial similarity` makes one."])
    if all(route.family == "full" for route in contents.compared):
        return Section(anchor, title, ["The similarity run holds the full model alone: give it `--routes` to compare."])
    n = contents.compared[0].n_sequences
    common = f"Mean over the response tokens of a sequence, then over {n} sequences; bands are 95% intervals over sequences."
    states = Picture(
        "similarity",
        draw_similarity(contents.compared),
        "Cosine similarity between a route's hidden states and the full model's, teacher-forced on the response, with the "
        "prompt at full depth. Final: after the last norm. Intermediate: mean over the states after layers 1 to L-1, where "
        f"a skipped layer hands on its input. {common}",
        "Two panels, cosine similarity of final and of intermediate hidden states against cost, one line for each family.",
    )
    predictions = Picture(
        "fidelity",
        draw_fidelity(contents.compared),
        "KL(full || route) of the next-token distributions at temperature 1, and the share of tokens on which both would "
        f"choose the same one, teacher-forced on the full model's own greedy answer. {common} The full model itself, whose "
        "KL is 0, has no place on the log scale.",
        "Two panels, KL divergence on a log scale and greedy agreement against cost, one line for each family.",
    )
    table = tables.similarity_table(contents.files.similarity, tables.SIMILARITY_COSTS)
    held = [as_table("At 75%, 50% and 25% of the layers (the nearest measured cost), with 95% intervals", table)]
    return Section(anchor, title, pictures=[states, predictions], tables=held if table else [])


def _time(contents: Contents) -> Section:
    anchor, title = "time", "Quality and measured time"
    routes = timed_routes(contents.routes)
    if not routes:
        return Section(
            anchor, title, ["No measured decoding time is in this folder: a sweep with a ROUGE metric measures it."]
        )
    left_out = [route.name for route in contents.routes if route.step_ms and route not in routes]
    paragraphs = [f"Timed in batches of other sizes, and so left out here: {', '.join(left_out)}."] if left_out else []
    machines = contents.files.sweep.column("hardware").unique().to_pylist()
    if len(machines) > 1:
        paragraphs.append("The rows were measured on more than one machine, so times may not be comparable.")
    pictures = []
    if contents.metric is not None:
        pictures.append(
            Picture(
                "quality-time",
                draw_quality_time(routes, contents.metric),
                f"{_name(contents.metric)} (95% interval over sequences) against measured milliseconds per decoding step: "
                "the median batch, with a bar from the fastest to the slowest batch. Upper and "
                "right axes: the same, divided by the full model's in the same run.",
                "Quality against measured time: "
                + "; ".join(f"{r.name} {r.step_ms:.2f} ms" for r in routes if r.step_ms)
                + ".",
            )
        )
    fit = affine_fit(routes)
    caption = (
        "Measured time of a decoding step of a batch against the number of layers run, with a bar from the fastest to the "
        "slowest batch"
    )
    if fit is None:
        caption += ". The times follow no straight line closely enough to draw one."
    else:
        caption += (
            ", and the least-squares line. What it leaves at zero layers (embeddings, head, overhead) no route can save."
        )
    alt = "Measured time per decoding step against layers run." + (f" {describe_fit(fit)}." if fit is not None else "")
    pictures.append(Picture("time-layers", draw_time_layers(routes), caption, alt))
    return Section(anchor, title, paragraphs, pictures)


def _importance(contents: Contents) -> Section:
    anchor, title = "importance", "Which layers matter"
    family = contents.files.family
    made_by = family.made_by if family is not None else {}
    importance, order, kl = (list(made_by.get(name) or []) for name in ("importance", "drop_order", "kl"))
    if family is None or not (any(value is not None for value in importance) or kl):
        return Section(anchor, title, ["No route search is in this folder: `depthdial search` finds which layers can go."])
    pictures = []
    if any(value is not None for value in importance):
        caption = (
            "KL(full || route) in nats per token when one layer alone is dropped, on the calibration prompts (log scale). "
            "The number above a bar is the round in which the search dropped that layer; a question mark stands for a "
            "layer that was not tried."
        )
        alt = "Bars: KL when each layer alone is dropped. Drop order: " + (", ".join(map(str, order)) or "none") + "."
        pictures.append(Picture("importance", draw_importance(importance, order), caption, alt))
    if kl:
        measured = [route for route in contents.routes if route.family == family.name]
        caption = (
            "KL(full || route) in nats per token as layers are dropped one after the other, each time the one whose loss "
            "adds least. Calibration prompts are never among the evaluation sequences; answers compared may be shorter."
        )
        alt = (
            f"KL rises from {kl[0]:.3g} with {family.n_layers - 1} layers to {kl[-1]:.3g} with {family.n_layers - len(kl)}."
        )
        pictures.append(Picture("search", draw_search(made_by, family.n_layers, measured), caption, alt))
    table = as_table("Layer by layer", tables.importance_table(made_by))
    return Section(anchor, title, pictures=pictures, tables=[table])


def _samples(contents: Contents) -> Section:
    anchor, title = "answers", "Sample answers"
    answered = [route for route in contents.routes if _answers(route)]
    if not answered:
        return Section(anchor, title, ["The rows hold no text: `--keep-text` keeps the answers."])
    shown = _spread(answered, _SAMPLE_ROUTES)
    first = list(_answers(answered[0]))[:_SAMPLE_SEQUENCES]
    samples = []
    for sequence in first:
        answers = []
        for route in shown:
            text, score = _answers(route).get(sequence, (None, None))
            if text is not None:
                scored = "" if score is None else f"{'mean ' if contents.n_samples else ''}ROUGE-L {score:.2f}"
                cut = text if len(text) <= _SAMPLE_CHARACTERS else f"{text[:_SAMPLE_CHARACTERS]}…"
                answers.append((f"{route.name} ({route.cost_layers:g} of {route.n_layers} layers)", scored, cut))
        samples.append(Sample(str(sequence), answers))
    how = f"the first of {contents.n_samples} samples" if contents.n_samples else "greedy decoding"
    text = f"The first sequences of the rows, not picked ones; {how}, cut at the sweep's longest answer."
    return Section(anchor, title, [text], samples=samples)


def _answers(route: RouteRows) -> dict[Any, tuple[str, float | None]]:
    texts, scores = route.columns.get("answer"), route.columns.get("rouge_l")
    if texts is None:
        return {}
    found: dict[Any, tuple[str, float | None]] = {}
    for i, (sequence, text) in enumerate(zip(route.columns["sequence_id"].tolist(), texts.tolist(), strict=True)):
        if isinstance(text, str):
            score = None if scores is None or scores[i] != scores[i] else float(scores[i])
            found[sequence] = (text, score)
    return found


def _spread(routes: Sequence[RouteRows], most: int) -> list[RouteRows]:
    """The full model and the costliest route of each family, then further ones from the costly end."""
    first_of_family = {route.family: route for route in reversed(routes)}
    chosen = [route for route in routes if first_of_family[route.family] is route][:most]
    rest = sorted((route for route in routes if route not in chosen), key=lambda route: -route.cost_layers)
    wanted = [*chosen, *rest[: most - len(chosen)]]
    return [route for route in routes if route in wanted]


def _provenance(contents: Contents) -> Section:
    files = contents.files
    counts = [
        (f"{kind} rows", f"{rows.num_rows} ({routes[0].n_sequences} sequences, {len(routes)} routes)")
        for kind, rows, routes in (
            ("sweep", files.sweep, contents.routes),
            ("similarity", files.similarity, contents.compared),
        )
        if rows is not None
    ]
    intervals = [("95% intervals of means", "Student's t over sequences")]
    if files.curves:
        curve = next(iter(files.curves.values()))
        how = f"percentile bootstrap over sequences, {curve.n_bootstrap} resamples, seed {curve.seed}"
        intervals += [("intervals of the oracle", how if curve.n_bootstrap else "none")]
        intervals += [("shuffles for the shuffled oracle", str(curve.n_permutations))]
    rows = files.sweep if files.sweep is not None else files.similarity
    held = [pairs_table("Provenance of the rows", [*tables.provenance_table(rows), *counts, *intervals])]
    named: dict[str, Mapping[str, Any]] = dict(files.settings)
    if files.family is not None and files.family.made_by:
        made_by = files.family.made_by
        elsewhere = ("drop_order", "kl", "importance", "prompts", "cost")
        named["search"] = {k: v for k, v in made_by.items() if k not in elsewhere}
    held += [pairs_table(f"Settings: {name}", tables.settings_table(settings)) for name, settings in named.items()]
    return Section("provenance", "Settings and provenance", tables=held)
