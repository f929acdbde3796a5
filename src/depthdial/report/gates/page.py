"""The page of a gates study: does the hidden state help, at which cost, and what ran. Never runs a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from depthdial.files import read_json
from depthdial.report.gates.map import draw_gate_map, map_title
from depthdial.report.gates.plot import draw_differences, draw_gates, draw_inputs, most_compared_target
from depthdial.report.gates.summary import MARGIN_POINTS, METRICS, A, B, GateCell, gather_gates, metrics_of
from depthdial.report.gates.tables import answer_sentences, controllers_table, controls_table, differences_table
from depthdial.report.kit.page import about_rows, page_title, write_page
from depthdial.report.kit.parts import Picture, Section, as_table, file_name, pairs_table
from depthdial.report.kit.table_files import write_table
from depthdial.report.kit.tables import Cells, provenance_table, settings_table
from depthdial.rows.gates import GateMap, load_gate_maps, load_gate_rows
from depthdial.stats import equivalence

_MOST_MAPS = 12
# The wide table of differences in two that fit a page.
_NUMBERS = (
    *("target", "mode", "seeds", "sequences", "cost_a", "cost_b", "difference", "over_sequences", "two_way"),
    *("effect_size", "p_above", "p_below"),
)
_VERDICTS = (
    *("target", "mode", "verdict", "verdict_sequences", "verdict_two_way"),
    *("equal_cost", "at_equal_cost", "verdict_equal_cost"),
)


def write_gates_report(folder: Path | str) -> Path:
    """Write `report.html`, `figures/` and `tables/` (Markdown and CSV) of a gates study's folder.

    Reads rows.parquet, maps/*.json and study.json; the last two may be missing. The same files give the same bytes.

    Raises:
        InputError: if there are no rows of a gates study, a file is damaged, or the folder cannot be written.
    """
    folder = Path(folder)
    rows, maps = load_gate_rows(folder), load_gate_maps(folder)
    study = read_json(folder / "study.json", "study") if (folder / "study.json").exists() else {}
    cells = gather_gates(rows)
    metrics = metrics_of(cells)
    tables = {
        "controllers": controllers_table(cells),
        "controls": controls_table(cells, metrics[0]) if metrics else [],
        **{f"differences-{metric}": differences_table(cells, metric) for metric in metrics},
    }
    tables = {name: table for name, table in tables.items() if table}
    for name, table in tables.items():
        write_table(table, folder / "tables", name)
    shown = [_answer(cells, metrics, tables), _curves(cells, metrics, tables), _controls(metrics, tables), _maps(maps)]
    sections = [*shown, _provenance(rows, cells, study)]
    about = about_rows(rows)
    return write_page(folder, "gates", sections, page_title(about, "gates"), n_layers=about["n_layers"])


def _answer(cells: Sequence[GateCell], metrics: Sequence[str], tables: dict[str, list[Cells]]) -> Section:
    anchor, title = "answer", "Does the hidden state help?"
    found = [metric for metric in metrics if f"differences-{metric}" in tables]
    if not found:
        return Section(anchor, title, [f"The rows hold no target at which both {A} and {B} were measured."])
    told = [f"{METRICS[found[0]]}. {line}" for line in answer_sentences(cells, found[0])]
    pictures, shown = [], []
    for metric in found:
        table, name = tables[f"differences-{metric}"], METRICS[metric]
        caption = (
            f"{A} minus {B} in {name}, with 95% intervals. Over seeds: Student's t on the seeds' paired differences, "
            "for these sequences. Over sequences: percentile bootstrap, for these trainings. Over both: bootstrap of "
            "seeds and sequences together. At equal cost: each seed's curve read at one cost, by straight lines "
            "between its targets."
        )
        alt = f"Differences between {A} and {B} gates in {name}, {len(table)} rows of intervals around zero."
        caption = caption if metric == found[0] else f"The same: {name}."
        pictures.append(Picture(f"differences-{metric}", draw_differences(table, metric), caption, alt))
        shown.append(as_table(f"{name}: {A} (the first) minus {B} (the second)", _part(table, _NUMBERS)))
        shown.append(as_table(f"{name}: what that decides, for {A}", _part(table, _VERDICTS)))
    notes = [
        f"Equivalent: both one-sided tests (the difference lies above −{MARGIN_POINTS:g} and below +{MARGIN_POINTS:g} "
        "point of ROUGE-L) reject at 5%, which is the 90% interval inside the margin. For other metrics no margin was "
        "stated, and nothing is called equivalent. An interval that holds 0 and is not inside the margin decides "
        "nothing: absence of evidence is not evidence of absence. d_z: mean over standard deviation of the seeds' "
        "differences. Two gates of one target differ a little in what they really run; equal cost is the measured cost "
        "nearest to both that every seed's curve reaches. With five seeds or so the bootstrap over both is somewhat "
        "too narrow; the t interval over seeds allows for their number. The rows are not corrected for their number; "
        "the row of all targets takes the mean over targets first."
    ]
    return Section(anchor, title, told, pictures, shown, notes=notes)


def _curves(cells: Sequence[GateCell], metrics: Sequence[str], tables: dict[str, list[Cells]]) -> Section:
    pictures = []
    if metrics:
        caption = (
            "Mean share of the layers that run for a response token against quality. Bands and bars are 95% intervals "
            "over seeds; of controllers that were not trained (static route, exits, full model) over sequences, which "
            "are far wider because they hold the difference between easy and hard sequences, and may leave the "
            "picture. Controllers without chance stand in both columns."
        )
        n_lines = len({cell.controller for cell in cells})
        alt = f"Cost against {', '.join(METRICS[metric] for metric in metrics)}, a line for each of {n_lines} controllers."
        pictures.append(Picture("cost-performance", draw_gates(cells), caption, alt))
    target = most_compared_target(cells)
    if metrics and target is not None:
        caption = "The controllers at the target at which most of them were measured, whose points cover each other above."
        alt = f"Quality of each controller at {100 * target:g}% of the layers, sampled and argmax, with intervals."
        pictures.append(Picture("inputs", draw_inputs(cells, target), caption, alt))
    notes = [
        "Layers run: mean over response tokens; cost: their share of the model's. FLOPs: of a decoding step, in % of "
        "the full model's, counted: of layers that ran, of keys and values of tokens that skipped, and of deciding. "
        "ROUGE-L in points (of 100), NLL of the reference, agreement with the full model's own greedy tokens: means "
        "with 95% intervals, over seeds where there are several, else over sequences. Measured s per step: seconds of "
        "a decoding step in % of the full model's on the same sequences in batches of the same size, the median; left "
        "out where sizes differ. A rule that cannot choose its cost exactly is named after what was asked for."
    ]
    controllers = as_table("Every controller", tables["controllers"])
    return Section("curves", "Cost and quality of each controller", pictures=pictures, tables=[controllers], notes=notes)


def _controls(metrics: Sequence[str], tables: dict[str, list[Cells]]) -> Section:
    anchor, title = "controls", "The hidden state against every other controller"
    if "controls" not in tables:
        return Section(anchor, title, [f"The rows hold no other controller at a target of {A}."])
    caption = f"{METRICS[metrics[0]]}: {A} (the first) minus the controller of the row (the second)"
    notes = [
        "Over all targets that both have, or at the one. Bernoulli skips at the gates' rates without looking at "
        "anything; the static route skips the same layers for every token; exits stop at a layer. Untrained "
        "controllers stand against every seed, so that their intervals over seeds hold the chance of the gates' "
        "training only."
    ]
    return Section(anchor, title, tables=[as_table(caption, tables["controls"])], notes=notes)


def _maps(maps: Sequence[GateMap]) -> Section:
    told = [] if maps else ["No gate maps are in this folder."]
    told += [f"The first {_MOST_MAPS} of {len(maps)} maps."] if len(maps) > _MOST_MAPS else []
    pictures = []
    for number, found in enumerate(maps[:_MOST_MAPS]):
        caption = f"Sequence {found.sequence_id}. Each column is a token, as wide as its text; layer 0 is at the bottom."
        name = file_name(f"map-{number + 1}-{found.controller}-{found.mode}")
        alt = f"Token by layer map of {map_title(found)}, {len(found.tokens)} tokens."
        pictures.append(Picture(name, draw_gate_map(found), caption, alt))
    return Section("maps", "Layers run, token by token", told, pictures)


def _provenance(rows: Any, cells: Sequence[GateCell], study: dict[str, Any]) -> Section:
    counts = [
        ("rows", str(rows.num_rows)),
        ("controllers", ", ".join(dict.fromkeys(cell.controller for cell in cells))),
        ("sequences", str(len(cells[0].sequence_ids))),
        ("seeds", str(len({seed for cell in cells for seed in cell.seeds if seed is not None}))),
        ("bootstrap", f"percentile, {equivalence.N_DRAWS} draws, seed 0"),
    ]
    held = [pairs_table("Provenance of the rows", [*provenance_table(rows), *counts])]
    held += [pairs_table("Settings of the study", settings_table(study))] if study else []
    return Section("provenance", "Settings and provenance", tables=held, is_folded=True)


def _part(table: Sequence[Cells], names: Sequence[str]) -> list[Cells]:
    return [{name: value for name, value in row.items() if name in names} for row in table]
