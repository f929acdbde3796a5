"""The sections of the study's page: what answers comes first and open, the rest folded, what has no file left out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
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
from depthdial.report.study.summary import RouteRows, full_of, headline_metric
from depthdial.report.study.time_plot import affine_fit, draw_quality_time, draw_time_layers

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


def build_sections(files: ResultFolder) -> list[Section]:
    """All sections of a page, in reading order."""
    is_open: tuple[Callable[[ResultFolder], Section | None], ...] = (_answer, _samples, _sure)
    folded = (_headline, _time, _oracle, _predictable, _controller, _similarity, _importance, _provenance)
    opened = [section for make in is_open if (section := make(files)) is not None]
    return opened + [replace(section, is_folded=True) for make in folded if (section := make(files)) is not None]


def _answer(files: ResultFolder) -> Section:
    verdict, pictures = files.verdict, []
    metric = (verdict.metric if verdict else None) or headline_metric(files.routes)
    if files.timed and metric is not None:
        told = "; ".join(f"{one.route.name} {1 / one.speed.ratio:.0%}" for one in files.timed)
        pictures.append(
            Picture(
                "quality-time",
                draw_quality_time(files.timed, metric, verdict),
                f"{_name(metric)} with its 95% interval over sequences, against the time of a decoding step, which is the "
                "full model's divided by the tables' speed, with a bar over repeats. Hollow: repeats differ by more than "
                "the route does from the full model.",
                f"Quality against measured time of a decoding step, in percent of the full model's: {told}.",
            )
        )
    title = "Quality against measured time, and the layers that run" if pictures else "The layers that run"
    routes = sorted(files.routes or files.compared, key=lambda route: -route.cost_layers)
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


def _sure(files: ResultFolder) -> Section | None:
    """What the verdict rests on."""
    full, verdict = full_of(files.routes), files.verdict
    if full is None or verdict is None:
        return None
    told = [
        f"Judged on {full.n_sequences} sequences. Brackets are 95% intervals over them, paired by sequence where they are "
        "of a share of the full model's quality. Routes are chosen and judged by the same rows, and of several the best "
        "looks better than it is: hold the chosen one against the full model on prompts that are not among these."
    ]
    n_searched = (files.made_by.get("calibration") or {}).get("n_sequences")
    told += [f"Layers were searched on {n_searched} other sequences."] if n_searched else []
    if files.timed:
        repeats = max(one.speed.repeats for one in files.timed)
        noisy = [one.route.name for one in files.timed if one.speed.is_noisy]
        told.append(
            f"Time: {repeats} {'batches of the sweep itself' if full.times is None else 'rounds in turns'} at "
            f"batch {full.batch}. A speed is against the full model, its range over these repeats."
            + (f" Too noisy to tell: {', '.join(noisy)}." if noisy else "")
        )
    timed = {one.route.name for one in files.timed}
    other = [route.name for route in files.routes if route.milliseconds() and route.name not in timed]
    told += [f"Not timed like the full model, and so left out: {', '.join(other)}."] if other else []
    if len(files.sweep.column("hardware").unique()) > 1:
        told.append("The rows were measured on more than one machine, so times may not be comparable.")
    return Section("sure", "Confidence and noise", told)


def _headline(files: ResultFolder) -> Section | None:
    if not files.routes:
        return None
    metric = headline_metric(files.routes)
    table = tables.headline(files.sweep, files.curves, files.predictable, files.timing)
    about = f"No sequence has a ROUGE score, so the headline is {_name(metric)}"
    if metric == "rouge_l":
        answer = "sampled answers (their mean)" if files.n_samples else "greedily generated answer"
        about = f"ROUGE-L: F-measure of the {answer} against the reference"
    layers, *others = (text for name, text in _DEFINITIONS.items() if name in table[0])
    notes = [f"{layers} {about}, with its 95% interval. {' '.join([*others, 'All are means over sequences.'])}"]
    if any(str(row["route"]).startswith("★") for row in table):
        notes.append(
            "The oracle knows every route's score on every sequence and chooses the best route for each within a total "
            "cost: a bound on what a controller could reach, not a method. ★ is the lowest cost at which it is as good as "
            "running the full model on every sequence."
        )
    sampled = f", {files.n_samples} sampled answers to each" if files.n_samples else ""
    caption = f"Sequences: {files.routes[0].n_sequences}{sampled}. Means over them, with 95% intervals in brackets"
    return Section("headline", "All routes: cost and quality", tables=[as_table(caption, table)], notes=notes)


def _name(metric: str | None) -> str:
    return METRIC_NAMES.get(metric or "", metric or "no metric")


def _oracle(files: ResultFolder) -> Section | None:
    pictures, held = [], []
    for name, curve in files.curves.items():
        caption = (
            f"Above: budget ({curve.cost_unit}) against {_name(curve.metric)}. Oracle: the best mean within the budget "
            f"with one route for each sequence; the band is its {curve.confidence:.0%} bootstrap interval. Points: one "
            "route for all. Best mixture: routes drawn at random in the best proportions. Shares at random: the oracle's "
            "proportions, handed out blindly. Shuffled scores: what luck alone gives. Below: the share of sequences on "
            "each route. ★: the lowest budget at which the oracle is as good as the full model, the bar its interval."
        )
        if pictures:
            caption = f"The same for {name}: budget against {_name(curve.metric)} above, shares of the routes below."
        if curve.metric == "agreement":
            caption += " The full model agrees with itself fully, so only routes that agree fully can equal it."
        rows = tables.oracle_table(curve)
        n_routes = len(curve.routes)
        alt = f"Two panels over the budget: quality of the oracle and of {n_routes} fixed routes; shares of routes. "
        if curve.matches_full_at is not None:
            star = {str(column): cell_text(column, value) for column, value in rows[0].items()}
            where = star.get("budget") or f"{star['cost_percent']}% of its layer-steps"
            alt += f"The oracle is as good as the full model at {where}."
        pictures.append(Picture(f"oracle-{file_name(name)}", draw_oracle(curve), caption, alt))
        held.append(as_table(f"Oracle by {name}: budgets and baselines", rows))
    told = (
        f"Scores are means over {files.n_samples} sampled answers, and this oracle is judged by the answers that it "
        "chose on: it overstates. The next section takes the luck out."
    )
    title = "Oracle: the best route for every sequence, under a global budget"
    return Section("oracle", title, [told] if files.n_samples else [], pictures, held) if pictures else None


def _predictable(files: ResultFolder) -> Section | None:
    pictures, held = [], []
    for name, curve in files.predictable.items():
        caption = (
            f"Above: budget ({curve.cost_unit}) against {_name(curve.metric)}, of {curve.n_samples} sampled answers to "
            f"each of {curve.n_sequences} sequences on each route. The paper's oracle is judged by the scores that it "
            "chose on: an upper bound. The predictable oracle chooses on some samples and is judged by the others: a "
            f"lower one; the band is its {curve.confidence:.0%} bootstrap interval. Shuffled cells: the same when a "
            "sequence's routes no longer belong together. Points: one route for all sequences. Below: both bounds at a "
            f"budget of {budget_text(curve, shown_budget(curve))}, by the number of samples chosen on."
        )
        rows = tables.oracle_table(curve)
        alt = "Two panels: quality of the predictable and the paper's oracle by budget; the two bounds by number of samples."
        pictures.append(Picture(f"predictable-{file_name(name)}", draw_predictable(curve), caption, alt))
        held.append(as_table(f"Predictable oracle by {name}: budgets and baselines", rows))
    title = "Predictable oracle: the oracle's gain without luck"
    return Section("predictable", title, pictures=pictures, tables=held) if pictures else None


def _controller(files: ResultFolder) -> Section | None:
    return None if files.controller is None else controller_section(files.controller)


def _similarity(files: ResultFolder) -> Section | None:
    if not files.compared:
        return None
    anchor, title = "similarity", "Similarity to the full model"
    if all(route.family == "full" for route in files.compared):
        return Section(anchor, title, ["The similarity run holds the full model alone: give it `--routes` to compare."])
    n = files.compared[0].n_sequences
    common = f"Mean over the response tokens of a sequence, then over {n} sequences; bands are 95% intervals over sequences."
    states = Picture(
        "similarity",
        draw_similarity(files.compared),
        "Cosine similarity between a route's hidden states and the full model's, teacher-forced on the response, with the "
        "prompt at full depth. Final: after the last norm. Intermediate: mean over the states after layers 1 to L-1, where "
        f"a skipped layer hands on its input. {common}",
        "Two panels, cosine similarity of final and of intermediate hidden states against cost, one line for each family.",
    )
    predictions = Picture(
        "fidelity",
        draw_fidelity(files.compared),
        "KL(full || route) of the next-token distributions at temperature 1, and the share of tokens on which both would "
        f"choose the same one, teacher-forced on the full model's own greedy answer. {common} The full model itself, whose "
        "KL is 0, has no place on the log scale.",
        "Two panels, KL divergence on a log scale and greedy agreement against cost, one line for each family.",
    )
    table = tables.similarity_table(files.similarity, tables.SIMILARITY_COSTS)
    held = [as_table("At 75%, 50% and 25% of the layers (the nearest measured cost), with 95% intervals", table)]
    return Section(anchor, title, pictures=[states, predictions], tables=held if table else [])


def _time(files: ResultFolder) -> Section | None:
    if not files.timed:
        return None
    fit = affine_fit(files.timed)
    line = ", and the least-squares line. What it leaves at zero layers (embeddings, head, overhead) no route can save."
    no_line = ". The times follow no straight line closely enough to draw one."
    caption = (
        "Time of a decoding step of a batch against the number of layers run, by the speeds above, with a bar over their "
        f"repeats where that tells more than noise{no_line if fit is None else line}"
    )
    alt = "Measured time per decoding step against layers run." + (f" {fit}." if fit is not None else "")
    picture = Picture("time-layers", draw_time_layers(files.timed), caption, alt)
    by_batch = tables.timing_table(files.timing)
    held = [as_table("Measured in turns: medians and the range over rounds, in ms", by_batch)] if by_batch else []
    return Section("time", "Time by layers run", pictures=[picture], tables=held)


def _importance(files: ResultFolder) -> Section | None:
    family, made_by, pictures = files.family, files.made_by, []
    importance, order, kl = (list(made_by.get(name) or []) for name in ("importance", "drop_order", "kl"))
    if any(value is not None for value in importance):
        caption = (
            "KL(full || route) in nats per token when one layer alone is dropped, on the calibration prompts (log scale). "
            "The number above a bar is the round in which the search dropped that layer; a question mark stands for a "
            "layer that was not tried."
        )
        alt = "Bars: KL when each layer alone is dropped. Drop order: " + (", ".join(map(str, order)) or "none") + "."
        pictures.append(Picture("importance", draw_importance(importance, order), caption, alt))
    if kl and family is not None:
        measured = [route for route in files.routes if route.family == family.name]
        caption = (
            "KL(full || route) in nats per token as layers are dropped one after the other, each time the one whose loss "
            "adds least. Calibration prompts are never among the evaluation sequences; answers compared may be shorter."
        )
        n_layers = family.n_layers
        alt = f"KL rises from {kl[0]:.3g} with {n_layers - 1} layers to {kl[-1]:.3g} with {n_layers - len(kl)}."
        pictures.append(Picture("search", draw_search(made_by, n_layers, measured), caption, alt))
    table = as_table("Layer by layer", tables.importance_table(made_by))
    return Section("importance", "Layer importance", pictures=pictures, tables=[table]) if pictures else None


def _samples(files: ResultFolder) -> Section | None:
    full, choices = full_of(files.routes), files.verdict.choices if files.verdict is not None else ()
    shown = [*([] if full is None else [full]), *(choice.route for choice in choices)]
    answered = [(route, texts) for route in shown if (texts := _texts(route, "answer"))]
    if not answered:
        return None
    (prompts, references), samples = (_texts(answered[0][0], name) for name in ("prompt", "reference")), []
    for sequence in list(answered[0][1])[:_SAMPLE_SEQUENCES]:
        answers = [("reference", "", references[sequence])] if sequence in references else []
        for route, texts in answered:
            if sequence in texts:
                score = route.by_sequence("rouge_l").get(sequence, math.nan)
                scored = "" if math.isnan(score) else f"{'mean ' if files.n_samples else ''}ROUGE-L {score:.2f}"
                name = f"{route.name} ({route.cost_layers:g} of {route.n_layers} layers)"
                answers.append((name, scored, texts[sequence]))
        samples.append(Sample(str(sequence), answers, prompts.get(sequence, "")))
    how = f"the first of {files.n_samples} samples" if files.n_samples else "greedy decoding"
    text = f"The first sequences of the rows, not picked ones; {how}, cut at the sweep's longest answer."
    return Section("answers", "Answers side by side", [text], samples=samples)


def _texts(route: RouteRows, column: str) -> dict[Any, str]:
    """By sequence, what a column of text holds, without empty lines and cut where it is long."""
    found = {sequence: text for sequence, text in route.by_sequence(column).items() if isinstance(text, str)}
    squeezed = {sequence: "\n".join(filter(str.strip, text.splitlines())) for sequence, text in found.items()}
    most = _SAMPLE_CHARACTERS
    return {sequence: text if len(text) <= most else f"{text[:most]}…" for sequence, text in squeezed.items()}


def _provenance(files: ResultFolder) -> Section:
    kinds = (("sweep", files.sweep, files.routes), ("similarity", files.similarity, files.compared))
    about = [
        (f"{kind} rows", f"{rows.num_rows} ({routes[0].n_sequences} sequences, {len(routes)} routes)")
        for kind, rows, routes in kinds
        if rows is not None
    ]
    about.append(("95% intervals of means", "Student's t over sequences"))
    for curve in list(files.curves.values())[:1]:
        how = f"percentile bootstrap over sequences, {curve.n_bootstrap} resamples, seed {curve.seed}"
        about.append(("intervals of the oracle", how if curve.n_bootstrap else "none"))
        about.append(("shuffles for the shuffled oracle", str(curve.n_permutations)))
    rows = files.sweep if files.sweep is not None else files.similarity
    held = [pairs_table("Provenance of the rows", [*provenance_table(rows), *about])]
    elsewhere = ("drop_order", "kl", "importance", "prompts", "cost")
    search = {name: value for name, value in files.made_by.items() if name not in elsewhere}
    for name, settings in {**files.settings, **({"search": search} if files.made_by else {})}.items():
        held.append(pairs_table(f"Settings: {name}", settings_table(settings)))
    could_be_added = (
        (files.routes, "sweep: `depthdial sweep` measures the quality of routes"),
        (files.timed, "measured decoding time: a sweep with a ROUGE metric measures it"),
        (any(_texts(route, "answer") for route in files.routes), "text of answers: `--keep-text` keeps it in the rows"),
        (files.curves, "oracle: `depthdial oracle` makes one from the sweep's rows"),
        (files.predictable, "predictable oracle: `depthdial sweep --samples 8` and `depthdial oracle` make one"),
        (files.compared, "similarity run: `depthdial similarity --out DIR/similarity` makes one"),
        (files.family, "route search: `depthdial search` finds which layers can go"),
        (files.controller, "controller: `depthdial study --controller-limit` fits and judges one"),
    )
    absent = [f"No {what}." for is_there, what in could_be_added if not is_there]
    return Section("provenance", "Settings and provenance", absent, tables=held)
