"""The verbs and options of token-wise skipping, but for its training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from depthdial.cli.console import print_rows, say_next
from depthdial.cli.options import DataOptions, Limit, ModelOptions, OutFolder, with_bundles
from depthdial.cli.rows import made_on, tell_rows
from depthdial.cli.settings import Given, options_of

if TYPE_CHECKING:
    from depthdial.views.tokens.depth import TokenDepth


GatesStudyOptions = options_of(
    "train.gates.study:GatesStudySettings", "Study", common=("budgets", "seeds", "tokens"), names={"r": ("--r", "--rank")}
)


@with_bundles
def gates_study(
    loading: ModelOptions,
    out: OutFolder,
    source: DataOptions,
    options: Annotated[Given, GatesStudyOptions],
    training_split: Annotated[str | None, typer.Option(help="Default: train, or calibration of the built-in task.")] = None,
    limit: Limit = None,
    training_limit: Annotated[int | None, typer.Option(help="Train on the first so many sequences.")] = None,
) -> None:
    """Does the hidden state help per-token gates? Trains, measures and tests it (Figure 1b).

    Started again, it goes on; started a second time beside the first, on the same folder, it shares the work.
    """
    from dataclasses import replace

    from depthdial.hf.adapter import merged
    from depthdial.report.gates.summary import gather_gates
    from depthdial.report.gates.tables import controllers_table, differences_table
    from depthdial.studies.gates import gates_study as run

    settings = options.settings(seed=source.seed)
    sequences = source.read(limit, split="test")
    training = replace(source, split=training_split or source.held_out_split or "train").read(training_limit)
    loaded, tokenizer = loading.load()
    tell_rows(source, [*made_on(model=loaded), ("to train on", training), ("to judge", sequences)], "test")
    studying = loading.studying(out)
    result = run(merged(loaded), tokenizer, task=sequences, training=training, settings=settings, **studying)
    cells = gather_gates(result.rows)
    print_rows(f"{loading.model} on {sequences.name}: {len(sequences.examples)} sequences", controllers_table(cells))
    print_rows("ROUGE-L, hidden minus fixed", differences_table(cells))
    typer.echo(f"report: {result.report}")
    say_next("report", out)


def gate_depths(folder: Path, model: Any, seed: int) -> tuple[Any, list[TokenDepth]]:
    """The model that gates were trained with, and their two ways of deciding, ready for a sweep."""
    from depthdial.hf.adapter import merged
    from depthdial.views.tokens.gate_folder import gates_depth, load_gates
    from depthdial.views.tokens.gates import GATE_MODES

    loaded, gates = load_gates(folder, merged(model))  # gates are trained on T as a whole model
    return loaded, [gates_depth(gates, mode, seed) for mode in GATE_MODES]
