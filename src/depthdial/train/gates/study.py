"""Settings of a gates study, and the list of its runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from depthdial.checks import also_named, choice, share, whole
from depthdial.errors import InputError
from depthdial.rows.gates import TRAINED_CONTROLLERS
from depthdial.train.depth.settings import FinetuneSettings
from depthdial.train.gates.settings import GateSettings
from depthdial.views.tokens.cache import KeyValues

_POSITIVE = ("seeds", "tokens", "batch_size", "r", "exit_rows", "max_new_tokens", "eval_batch_size", "fidelity_tokens")


@also_named(rank="r")
@dataclass(frozen=True)
class GatesStudySettings:
    """How large a gates study is.

    Attributes:
        budgets: mean fractions of all layers that a response's tokens run.
        seeds: trainings of each kind at each budget.
        inputs: what gates see, compared at every budget.
        other_inputs: what gates see at `other_budget` alone.
        other_budget: the one budget of `other_inputs`.
        base_tokens: response tokens on which T is fine-tuned first, at full depth; 0 where the model is T already.
        tokens: response tokens of every training of gates.
        batch_size: sequences of a training batch.
        r: rank of the adapters.
        base_learning_rate: peak rate of T's adapter.
        learning_rate: peak rate of the adapters beside the gates.
        gate_learning_rate: of the gates.
        key_values: what skipping leaves in the cache: project, drop or copy.
        controls: also measure chance, static routes and confidence exits.
        exit_rows: training rows on which the exits' thresholds are found.
        max_new_tokens: longest answer, in tokens.
        eval_batch_size: sequences measured together.
        fidelity_tokens: tokens of the full answers for KL and agreement.
        map_sequences: test sequences of which pictures are made.
        seed: of the first training.

    Example:
        >>> dd.GatesStudySettings(budgets=(0.75,), seeds=2).seeds
        2
    """

    budgets: tuple[float, ...] = (0.9, 0.75, 0.6, 0.45)
    seeds: int = 5
    inputs: tuple[str, ...] = ("hidden", "fixed")
    other_inputs: tuple[str, ...] = ("position", "embedding", "embedding+position")
    other_budget: float = 0.75
    base_tokens: int = 20_000
    tokens: int = 20_000
    batch_size: int = 8
    r: int = 16
    base_learning_rate: float = 5e-4
    learning_rate: float = 1e-3
    gate_learning_rate: float = 0.2
    key_values: KeyValues = "project"
    controls: bool = True
    exit_rows: int = 16
    max_new_tokens: int = 64
    eval_batch_size: int = 32
    fidelity_tokens: int = 32
    map_sequences: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            whole(name, getattr(self, name), 1)
        for name in ("base_tokens", "map_sequences"):
            whole(name, getattr(self, name) or 1, 1)
        if self.seeds < 2:
            raise InputError("A study needs at least 2 seeds, better 5: one training says nothing about the next.")
        for budget in (*self.budgets, self.other_budget):
            share("budget", budget)
        for name in (*self.inputs, *self.other_inputs):
            choice("gate input", name, TRAINED_CONTROLLERS)
        if not self.budgets or not self.inputs:
            raise InputError("A study needs at least one budget and one gate input.")
        for name in ("budgets", "inputs", "other_inputs"):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
        _ = self.of_base, self.of_gates(Run(self.inputs[0], self.budgets[0], 0))  # their checks are the checks here

    @property
    def of_base(self) -> FinetuneSettings:
        """How T is fine-tuned."""
        return FinetuneSettings(
            r=self.r,
            learning_rate=self.base_learning_rate,
            batch_size=self.batch_size,
            max_tokens=self.base_tokens or None,
            seed=self.seed,
        )

    def of_gates(self, run: Run) -> GateSettings:
        """How a run's gates are trained."""
        return GateSettings(
            input=run.controller,  # type: ignore[arg-type]
            target=run.target,
            gate_learning_rate=self.gate_learning_rate,
            key_values=self.key_values,
            run=replace(
                self.of_base, learning_rate=self.learning_rate, max_tokens=self.tokens, seed=self.seed + (run.seed or 0)
            ),
        )

    @property
    def mapped_budget(self) -> float:
        """The budget at which pictures are made: that of all inputs, or the nearest one."""
        return min(self.budgets, key=lambda budget: abs(budget - self.other_budget))


@dataclass(frozen=True)
class Run:
    """One training with its measurements, or the measurements of what needs no training.

    Attributes:
        controller: a gate input, `exits` (both confidence measures) or `full`.
        target: None for `full`.
    """

    controller: str
    target: float | None = None
    seed: int | None = None

    @property
    def name(self) -> str:
        target, seed = "" if self.target is None else f"-{self.target:g}", "" if self.seed is None else f"-s{self.seed}"
        return f"{self.controller}{target}{seed}"


def runs_of(settings: GatesStudySettings) -> list[Run]:
    """All runs, seed by seed, so that a study that is cut short has whole seeds."""
    runs = [Run("full")]
    for seed in range(settings.seeds):
        runs += [Run(one, budget, seed) for budget in settings.budgets for one in settings.inputs]
        runs += [Run(one, settings.other_budget, seed) for one in settings.other_inputs]
    runs = list(dict.fromkeys(runs))  # an input may be named for every budget and for the one
    return [*runs, Run("exits")] if settings.controls else runs
