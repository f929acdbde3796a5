"""The page of a search study: which method finds the better routes, and which layers it keeps. Never runs a model."""

from __future__ import annotations

from pathlib import Path

from depthdial.report.kit.page import about_rows, page_title, write_page
from depthdial.report.kit.parts import Picture, Section, as_table, pairs_table
from depthdial.report.kit.style import shortened
from depthdial.report.kit.table_files import write_table
from depthdial.report.kit.tables import provenance_table, settings_table
from depthdial.report.search.compare_plot import draw_importance_by_method, draw_kept_layers, draw_kl_by_method
from depthdial.report.search.comparison import Comparison, read_comparison

_NOT_SETTINGS = ("drop_order", "kl", "nll", "importance", "prompts", "cost", "settings", "versions", "hardware", "commit")


def write_search_report(folder: Path | str) -> Path:
    """Write `report.html`, `figures/` and `tables/` (Markdown and CSV) of a search study's folder.

    Reads study.json, families/*.json and sweep/rows.parquet. The same files give the same bytes.

    Raises:
        InputError: if the folder holds no search study, a file is damaged, or the folder cannot be written.
    """
    folder = Path(folder)
    comparison = read_comparison(folder)
    write_table(comparison.rows(), folder / "tables", "search")
    sections = [_answer(comparison), _layers(comparison), _provenance(comparison)]
    about = about_rows(comparison.table)
    return write_page(folder, "search", sections, page_title(about, "search"), n_layers=about["n_layers"])


def answer_sentences(comparison: Comparison) -> list[str]:
    """For each number of layers: the least KL, and what that is beside ULS."""
    told = []
    for size in comparison.sizes:
        known = comparison.known_kl(size)
        if not known:
            continue
        best = min(known, key=lambda name: known[name].mean)
        share = known[best].mean / known["uls"].mean if known.get("uls") and known["uls"].mean else None
        beside = "" if share is None or best == "uls" else f", {100 * share:.0f}% of ULS's"
        told.append(f"{size} of {comparison.n_layers} layers: the least KL is {known[best]} nats ({best}){beside}.")
    return told


def _answer(comparison: Comparison) -> Section:
    first = next(iter(comparison.families))
    n_sequences = comparison.at[comparison.sizes[0]][first].n_sequences
    notes = [
        "KL: divergence of the route's next-token predictions from the full model's, in nats per token, on the full model's "
        "own greedy answers. Agreement: share of those tokens that the route would have chosen too. NLL: of the reference "
        f"answer, in nats per token. All are means over sequences with 95% intervals (Student's t). KL above {first}'s: the "
        "difference on the same sequences, so that its interval is that of the comparison. Search: seconds and passes over "
        "the calibration texts for all sizes together, prompts and answers of the calibration included; what else the "
        "machine did at the time is in the seconds too. A route that several methods found was run once.",
        "KL, agreement and NLL compare single tokens behind the full model's own text, or the reference. They do not say "
        "how far a route's own answers drift.",
    ]
    caption = (
        "KL to the full model against layers run (log scale), with 95% intervals over sequences. Methods stand beside each "
        "other at one number of layers so that intervals can be told apart."
    )
    alt = f"KL against layers run, a line for each of {len(comparison.methods)} methods."
    return Section(
        "answer",
        "Searches compared: KL at each number of layers",
        answer_sentences(comparison),
        [Picture("kl-by-method", draw_kl_by_method(comparison), caption, alt)],
        [as_table(f"Every method at every number of layers, on {n_sequences} sequences", comparison.rows())],
        notes=notes,
    )


def _layers(comparison: Comparison) -> Section:
    caption = (
        "The darker, the longer a method keeps the layer. A number says how many layers the first route without it drops: "
        "of nested routes that is the round in which it went."
    )
    not_nested = [shortened(name) for name, family in comparison.families.items() if not family.made_by.get("nested", True)]
    if not_nested:
        caption += f" Not nested, so that a layer may come back in a cheaper route: {', '.join(not_nested)}."
    alt = f"Heat map of {len(comparison.families)} searches by {comparison.n_layers} layers: the order of drops."
    importance = Picture("importance-by-method", draw_importance_by_method(comparison), caption, alt)
    caption = "The layers that run, at each number of layers."
    alt = f"Layers that run, by method, with {', '.join(map(str, comparison.sizes))} layers."
    kept = Picture("kept-layers", draw_kept_layers(comparison), caption, alt)
    return Section("layers", "Layers that each search drops", pictures=[importance, kept])


def _provenance(comparison: Comparison) -> Section:
    held = [pairs_table("Provenance of the rows", provenance_table(comparison.table))]
    held.append(pairs_table("Settings of the study", settings_table(comparison.study)))
    for name, family in comparison.families.items():
        record = {key: value for key, value in family.made_by.items() if key not in _NOT_SETTINGS}
        held.append(pairs_table(f"Search: {name}", settings_table(record)))
    return Section("provenance", "Settings and provenance", tables=held, is_folded=True)
