"""The verbs and options of token-wise skipping, but for its training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from depthdial.cli.options import (
    DataOptions,
    Limit,
    ModelName,
    ModelOptions,
    OutFolder,
    fractions_of,
    parts_of,
    print_rows,
    with_bundles,
)
from depthdial.cli.rows import made_on, tell_rows

if TYPE_CHECKING:
    from depthdial.views.tokens.depth import TokenDepth


def _study(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Study")


@dataclass(frozen=True)
class GatesStudyOptions:
    """How large a gates study is: the fields of `GatesStudySettings`."""

    budgets: Annotated[str, _study("Fractions of the layers.")] = "0.9,0.75,0.6,0.45"
    seeds: Annotated[int, _study("Trainings of each kind at each budget.")] = 5
    inputs: Annotated[str, _study("What gates see, at every budget.")] = "hidden,fixed"
    other_inputs: Annotated[str, _study("And at one budget only.", "--other-inputs")] = (
        "position,embedding,embedding+position"
    )
    other_budget: Annotated[float, _study("That budget.", "--other-budget")] = 0.75
    base_tokens: Annotated[int, _study("Response tokens to fine-tune T on first; 0: MODEL is T.", "--base-tokens")] = 20_000
    tokens: Annotated[int, _study("Response tokens of each training.")] = 20_000
    batch_size: Annotated[int, _study("Sequences of a training batch.", "--batch-size")] = 8
    rank: Annotated[int, _study("Of the adapters.")] = 16
    base_learning_rate: Annotated[float, _study("T's peak rate.", "--base-learning-rate")] = 5e-4
    learning_rate: Annotated[float, _study("The adapters' peak rate.", "--learning-rate")] = 1e-3
    gate_learning_rate: Annotated[float, _study("The gates' rate.", "--gate-learning-rate")] = 0.2
    key_values: Annotated[str, _study("What skipping leaves in the cache: project, drop, copy.", "--key-values")] = "project"
    controls: Annotated[bool, _study("Chance, static routes and exits too.", "--controls/--no-controls")] = True
    exit_rows: Annotated[int, _study("Training rows for the exits' thresholds.", "--exit-rows")] = 16
    max_new_tokens: Annotated[int, _study("Longest answer, in tokens.", "--max-new-tokens")] = 64
    eval_batch_size: Annotated[int, _study("Sequences measured together.", "--eval-batch-size")] = 32
    fidelity_tokens: Annotated[int, _study("Tokens for KL and agreement.", "--fidelity-tokens")] = 32
    map_sequences: Annotated[int, _study("Sequences to draw.", "--map-sequences")] = 2

    def settings(self, seed: int) -> Any:
        """The GatesStudySettings that these options mean."""
        from depthdial.train.gates.study import GatesStudySettings

        given = {name: value for name, value in vars(self).items() if name not in ("budgets", "inputs", "other_inputs")}
        return GatesStudySettings(
            budgets=fractions_of(self.budgets, "--budgets"),
            inputs=parts_of(self.inputs),
            other_inputs=parts_of(self.other_inputs),
            seed=seed,
            **given,
        )


@with_bundles
def gates_study(
    model: ModelName,
    out: OutFolder,
    source: DataOptions,
    loading: ModelOptions,
    options: GatesStudyOptions,
    training_split: Annotated[str | None, typer.Option(help="Default: train, or calibration of the built-in task.")] = None,
    limit: Limit = None,
    training_limit: Annotated[int | None, typer.Option(help="Train on the first so many sequences.")] = None,
) -> None:
    """Does the hidden state help per-token gates? Trains, measures and tests it (Figure 1b).

    Started again, it goes on; started a second time beside the first, on the same folder, it shares the work.
    """
    from dataclasses import replace

    from depthdial.hf.adapter import merged
    from depthdial.report.gates.tables import controllers_table, differences_table
    from depthdial.studies.gates import gates_study as run

    settings = options.settings(source.seed)
    sequences = source.read(limit, split="test")
    training = replace(source, split=training_split or source.held_out_split or "train").read(training_limit)
    loaded, tokenizer = loading.load(model)
    tell_rows(source, [*made_on(model=loaded), ("to train on", training), ("to judge", sequences)], "test")
    result = run(
        merged(loaded),
        tokenizer,
        task=sequences,
        training=training,
        out=out,
        settings=settings,
        name=model if loading.adapter is None else f"{model} + {loading.adapter}",
        say=lambda line: typer.echo(line, err=True),
        progress=True,
    )
    print_rows(f"{model} on {sequences.name}: {len(sequences.examples)} sequences", controllers_table(result.rows))
    print_rows("ROUGE-L, hidden minus fixed", differences_table(result.rows, "rouge_l", a="hidden", b="fixed", margin=1.0))
    typer.echo(f"report: {result.report}")


def gate_depths(folder: Path, model: Any, seed: int) -> tuple[Any, list[TokenDepth]]:
    """The model that gates were trained with, and their two ways of deciding, ready for a sweep."""
    from depthdial.hf.adapter import merged
    from depthdial.views.tokens.depth import TokenDepth
    from depthdial.views.tokens.gate_folder import load_gates
    from depthdial.views.tokens.gates import GATE_MODES

    loaded, gates = load_gates(folder, merged(model))  # gates are trained on T as a whole model
    key_values = gates.about.get("settings", {}).get("key_values", "project")
    policies = [gates.policy(mode, seed) for mode in GATE_MODES]
    return loaded, [TokenDepth(policy, gates.config.n_layers, key_values, policy.name) for policy in policies]
