"""The sections of the study's page: what answers comes first and open, the rest folded, what has no file left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from depthdial.report.controller.section import controller_section
from depthdial.report.kit.curves import METRIC_NAMES
from depthdial.report.kit.parts import Picture, Sample, Section, as_table, file_name, pairs_table
from depthdial.report.kit.tables import cell_text, provenance_table, settings_table
from depthdial.report.search.plot import draw_importance, draw_search
from depthdial.report.study import tables
from depthdial.report.study.folder import ResultFolder
from depthdial.report.study.oracle_plot import draw_oracle
from depthdial.report.study.predictable_plot import budget_text, draw_predictable, shown_budget
from depthdial.report.study.routes_plot import draw_routes
from depthdial.report.study.similarity_plot import draw_fidelity, draw_similarity
from depthdial.report.study.summary import RouteRows, full_of, gather, headline_metric
from depthdial.report.study.time_plot import Timed, affine_fit, draw_quality_time, draw_time_layers, timed_routes
from depthdial.report.study.verdict import KEEP, Verdict, decide
from depthdial.rows.store import count_samples

# What the columns of the headline table mean, those that it has.
_DEFINITIONS = {
    "layers": "Layers run: layers that run for each response token. Cost: layer-steps, layers run times decoding steps, in "
    "percent of the full model's on the same sequences (layers alone where no answers were generated).",
    "agreement": "Agreement: share of the full model's own greedy tokens that the route would have chosen too.",
    "kl": "KL: divergence of the route's next-token predictions from the full model's on those tokens, in nats per token.",
    "nll": "NLL: of the reference answer, in nats per token.",
    "speed": "Speed: how many times faster a decoding step is than the full model's in the same run, and its range over "
    "repeats, left out where batches had other sizes; ms per step: the full model's median, divided by it.",
}
_SAMPLE_SEQUENCES, _SAMPLE_CHARACTERS = 6, 800
_MOST_BARS = 40


@dataclass(frozen=True)
class Contents:
    """A folder's results with its rows gathered by route, and the share of quality that the verdict is asked for."""

    files: ResultFolder
    keep: float = KEEP

    @cached_property
    def routes(self) -> list[RouteRows]:
        return gather(self.files.sweep, self.files.timing) if self.files.sweep is not None else []

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

    @cached_property
    def timed(self) -> list[Timed]:
        return timed_routes(self.routes)

    @cached_property
    def verdict(self) -> Verdict | None:
        """None without a sweep."""
        settings = self.files.settings.get("sweep", {})
        return decide(self.routes, self.keep, settings.get("prompt_depth")) if self.routes else None


def build_sections(contents: Contents) -> list[Section]:
    """All sections of a page, in reading order."""
    is_open: tuple[Callable[[Contents], Section | None], ...] = (_answer, _samples, _sure)
    folded = (_headline, _time, _oracle, _predictable, _controller, _similarity, _importance, _provenance)
    opened = [section for make in is_open if (section := make(contents)) is not None]
    return opened + [replace(section, is_folded=True) for make in folded if (section := make(contents)) is not None]


def _answer(contents: Contents) -> Section:
    """The one plot, and the map of layers."""
    verdict, metric, pictures = contents.verdict, contents.metric, []
    if verdict is not None and verdict.metric is not None:
        metric = verdict.metric
    if contents.timed and metric is not None:
        told = "; ".join(f"{one.route.name} {1 / one.speed.ratio:.0%}" for one in contents.timed)
        pictures.append(
            Picture(
                "quality-time",
                draw_quality_time(contents.timed, metric, verdict),
                f"{_name(metric)} with its 95% interval over sequences, against the time of a decoding step, which is the "
                "full model's divided by the tables' speed, with a bar over repeats. Hollow: repeats differ by more than "
                "the route does from the full model.",
                f"Quality against measured time of a decoding step, in percent of the full model's: {told}.",
            )
        )
    title = "Quality against measured time, and the layers that run" if pictures else "The layers that run"
    routes = sorted(contents.routes or contents.compared, key=lambda route: -route.cost_layers)
    shown, n_layers = routes[:_MOST_BARS], routes[0].n_layers
    roles = {choice.route.name: f" ({choice.role.lower()})" for choice in (verdict.choices if verdict else ())}
    names = [route.name + roles.get(route.name, "") for route in shown]
    caption = (
        "A row for each route, a column for each layer. A filled cell runs, a pale one is skipped; of a random rule the "
        "shade is the share of sequences on which the layer ran."
    )
    told = "; ".join(f"{name} runs {route.cost_layers:g}" for name, route in zip(names, shown, strict=True))
    figure = draw_routes(names, np.array([route.share_run for route in shown]), f"Layers that run, of {n_layers}")
    pictures.append(Picture("routes", figure, caption, f"Layers that run: {told}, of {n_layers}."))
    cut = [f"The first {len(shown)} of {len(routes)} routes."] if len(routes) > len(shown) else []
    return Section("answer", title, cut, pictures)


def _sure(contents: Contents) -> Section | None:
    """What the verdict rests on."""
    full, verdict = full_of(contents.routes), contents.verdict
    if full is None or verdict is None:
        return None
    told = [
        f"Judged on {full.n_sequences} sequences. Brackets are 95% intervals over them, paired by sequence where they are "
        "of a share of the full model's quality. Routes are chosen and judged by the same rows, and of several the best "
        "looks better than it is: hold the chosen one against the full model on prompts that are not among these."
    ]
    searched = (contents.files.family.made_by if contents.files.family is not None else {}).get("calibration") or {}
    if searched.get("n_sequences"):
        told.append(f"Layers were searched on {searched['n_sequences']} other sequences.")
    if contents.timed:
        repeats = max(one.speed.repeats for one in contents.timed)
        noisy = [one.route.name for one in contents.timed if one.speed.repeats > 1 and one.speed.is_noisy]
        told.append(
            f"Time: {repeats} {'batches of the sweep itself' if full.times is None else 'rounds in turns'} at "
            f"batch {full.batch}. A speed is against the full model, its range over these repeats."
            + (f" Too noisy to tell: {', '.join(noisy)}." if noisy else "")
        )
    timed = {one.route.name for one in contents.timed}
    other = [route.name for route in contents.routes if route.milliseconds() and route.name not in timed]
    told += [f"Not timed like the full model, and so left out: {', '.join(other)}."] if other else []
    if len(contents.files.sweep.column("hardware").unique()) > 1:
        told.append("The rows were measured on more than one machine, so times may not be comparable.")
    return Section("sure", "Confidence and noise", told)


def _headline(contents: Contents) -> Section | None:
    if not contents.routes:
        return None
    table = tables.headline(contents.files.sweep, contents.files.curves, contents.files.predictable, contents.files.timing)
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
    return Section("headline", "All routes: cost and quality", tables=[as_table(caption, table)], notes=notes)


def _metric_text(contents: Contents) -> str:
    if contents.metric == "rouge_l":
        answer = "sampled answers (their mean)" if contents.n_samples else "greedily generated answer"
        return f"ROUGE-L: F-measure of the {answer} against the reference, with its 95% interval."
    return f"No sequence has a ROUGE score, so the headline is {_name(contents.metric)}, with its 95% interval."


def _name(metric: str | None) -> str:
    return METRIC_NAMES.get(metric or "", metric or "no metric")


def _oracle(contents: Contents) -> Section | None:
    curves = contents.files.curves
    if not curves:
        return None
    pictures, held = [], []
    for i, (name, curve) in enumerate(curves.items()):
        caption = (
            f"Above: budget ({curve.cost_unit}) against {_name(curve.metric)}. Oracle: the best mean within the budget "
            f"with one route for each sequence; the band is its {curve.confidence:.0%} bootstrap interval. Points: one "
            "route for all. Best mixture: routes drawn at random in the best proportions. Shares at random: the oracle's "
            "proportions, handed out blindly. Shuffled scores: what luck alone gives. Below: the share of sequences on "
            "each route. ★: the lowest budget at which the oracle is as good as the full model, the bar its interval."
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
        held.append(as_table(f"Oracle by {name}: budgets and baselines", rows))
    told = (
        f"Scores are means over {contents.n_samples} sampled answers, and this oracle is judged by the answers that it "
        "chose on: it overstates. The next section takes the luck out."
    )
    title = "Oracle: the best route for every sequence, under a global budget"
    return Section("oracle", title, [told] if contents.n_samples else [], pictures, held)


def _told_budget(cells: Mapping[str, Any]) -> str:
    told = {name: cell_text(name, value) for name, value in cells.items()}
    return told["budget"] if cells.get("budget") is not None else f"{told['cost_percent']}% of its layer-steps"


def _predictable(contents: Contents) -> Section | None:
    curves = contents.files.predictable
    if not curves:
        return None
    pictures, held = [], []
    for name, curve in curves.items():
        caption = (
            f"Above: budget ({curve.cost_unit}) against {_name(curve.metric)}, of {curve.n_samples} sampled answers to "
            f"each of {curve.n_sequences} sequences on each route. The paper's oracle is judged by the scores that it "
            "chose on: an upper bound. The predictable oracle chooses on some samples and is judged by the others: a "
            f"lower one; the band is its {curve.confidence:.0%} bootstrap interval. Shuffled cells: the same when a "
            "sequence's routes no longer belong together. Points: one route for all sequences. Below: both bounds at a "
            f"budget of {budget_text(curve, shown_budget(curve))}, by the number of samples chosen on."
        )
        rows = tables.predictable_table(curve)
        alt = "Two panels: quality of the predictable and the paper's oracle by budget; the two bounds by number of samples."
        pictures.append(Picture(f"predictable-{file_name(name)}", draw_predictable(curve), caption, alt))
        held.append(as_table(f"Predictable oracle by {name}: budgets and baselines", rows))
    return Section("predictable", "Predictable oracle: the oracle's gain without luck", pictures=pictures, tables=held)


def _controller(contents: Contents) -> Section | None:
    return None if contents.files.controller is None else controller_section(contents.files.controller)


def _similarity(contents: Contents) -> Section | None:
    if not contents.compared:
        return None
    anchor, title = "similarity", "Similarity to the full model"
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


def _time(contents: Contents) -> Section | None:
    if not contents.timed:
        return None
    fit = affine_fit(contents.timed)
    caption = (
        "Time of a decoding step of a batch against the number of layers run, by the speeds above, with a bar over their "
        "repeats where that tells more than noise"
    )
    if fit is None:
        caption += ". The times follow no straight line closely enough to draw one."
    else:
        caption += (
            ", and the least-squares line. What it leaves at zero layers (embeddings, head, overhead) no route can save."
        )
    alt = "Measured time per decoding step against layers run." + (f" {fit}." if fit is not None else "")
    picture = Picture("time-layers", draw_time_layers(contents.timed), caption, alt)
    by_batch = tables.timing_table(contents.files.timing)
    held = [as_table("Measured in turns: medians and the range over rounds, in ms", by_batch)] if by_batch else []
    return Section("time", "Time by layers run", pictures=[picture], tables=held)


def _importance(contents: Contents) -> Section | None:
    family = contents.files.family
    made_by = family.made_by if family is not None else {}
    importance, order, kl = (list(made_by.get(name) or []) for name in ("importance", "drop_order", "kl"))
    if family is None or not (any(value is not None for value in importance) or kl):
        return None
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
    return Section("importance", "Layer importance", pictures=pictures, tables=[table])


def _samples(contents: Contents) -> Section | None:
    choices = contents.verdict.choices if contents.verdict is not None else ()
    full, known = full_of(contents.routes), [choice.route for choice in choices]
    answered = [route for route in [*([] if full is None else [full]), *known] if _answers(route)]
    if not answered:
        return None
    (prompts, references), samples = (_texts(answered[0], name) for name in ("prompt", "reference")), []
    for sequence in list(_answers(answered[0]))[:_SAMPLE_SEQUENCES]:
        answers = [("reference", "", _cut(references[sequence]))] if sequence in references else []
        for route in answered:
            text, score = _answers(route).get(sequence, (None, None))
            if text is not None:
                scored = "" if score is None else f"{'mean ' if contents.n_samples else ''}ROUGE-L {score:.2f}"
                answers.append((f"{route.name} ({route.cost_layers:g} of {route.n_layers} layers)", scored, _cut(text)))
        samples.append(Sample(str(sequence), answers, _cut(prompts.get(sequence, ""))))
    how = f"the first of {contents.n_samples} samples" if contents.n_samples else "greedy decoding"
    text = f"The first sequences of the rows, not picked ones; {how}, cut at the sweep's longest answer."
    return Section("answers", "Answers side by side", [text], samples=samples)


def _cut(text: str) -> str:
    squeezed = "\n".join(line for line in text.splitlines() if line.strip())
    return squeezed if len(squeezed) <= _SAMPLE_CHARACTERS else f"{squeezed[:_SAMPLE_CHARACTERS]}…"


def _texts(route: RouteRows, column: str) -> dict[Any, str]:
    """By sequence, what a column of text holds."""
    texts = route.columns.get(column)
    pairs = [] if texts is None else zip(route.columns["sequence_id"].tolist(), texts.tolist(), strict=True)
    return {sequence: text for sequence, text in pairs if isinstance(text, str)}


def _answers(route: RouteRows) -> dict[Any, tuple[str, float | None]]:
    scores = route.columns.get("rouge_l")
    by_sequence = {} if scores is None else dict(zip(route.columns["sequence_id"].tolist(), scores.tolist(), strict=True))
    found = {sequence: (text, by_sequence.get(sequence)) for sequence, text in _texts(route, "answer").items()}
    return {sequence: (text, None if score != score else score) for sequence, (text, score) in found.items()}


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
    held = [pairs_table("Provenance of the rows", [*provenance_table(rows), *counts, *intervals])]
    named: dict[str, Mapping[str, Any]] = dict(files.settings)
    if files.family is not None and files.family.made_by:
        made_by = files.family.made_by
        elsewhere = ("drop_order", "kl", "importance", "prompts", "cost")
        named["search"] = {k: v for k, v in made_by.items() if k not in elsewhere}
    held += [pairs_table(f"Settings: {name}", settings_table(settings)) for name, settings in named.items()]
    absent = [f"No {what}: {remedy}." for is_there, what, remedy in _could_be_added(contents) if not is_there]
    return Section("provenance", "Settings and provenance", absent, tables=held)


def _could_be_added(contents: Contents) -> list[tuple[bool, str, str]]:
    """(whether it is there, what, how it is made)"""
    files = contents.files
    return [
        (bool(contents.routes), "sweep", "`depthdial sweep` measures the quality of routes"),
        (bool(contents.timed), "measured decoding time", "a sweep with a ROUGE metric measures it"),
        (any(map(_answers, contents.routes)), "text of answers", "`--keep-text` keeps it in the rows"),
        (bool(files.curves), "oracle", "`depthdial oracle` makes one from the sweep's rows"),
        (bool(files.predictable), "predictable oracle", "`depthdial sweep --samples 8` and `depthdial oracle` make one"),
        (bool(contents.compared), "similarity run", "`depthdial similarity --out DIR/similarity` makes one"),
        (files.family is not None, "route search", "`depthdial search` finds which layers can go"),
        (files.controller is not None, "controller", "`depthdial study --controller-limit` fits and judges one"),
    ]
