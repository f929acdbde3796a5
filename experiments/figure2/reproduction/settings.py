"""What decides about a run of the reproduction, in one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from depthdial.checks import number, whole
from depthdial.errors import InputError
from depthdial.files import read_json

ALL = "all"


@dataclass(frozen=True)
class SampledAnswers:
    """Sampled answers for the predictable oracle.

    Attributes:
        sequences: the first so many test rows.
        samples: answers of each (sequence, route); an even number, for one half is chosen on and the other paid.
        temperature: what they are drawn with.
        elastic: whether elastic weights are sampled too, and not only T and the specialists.

    Raises:
        InputError: for a value that cannot be.
    """

    sequences: int = 64
    samples: int = 8
    temperature: float = 0.7
    elastic: bool = True

    def __post_init__(self) -> None:
        whole("samples.sequences", self.sequences, 1)
        if whole("samples.samples", self.samples, 1) % 2:
            raise InputError(f"samples.samples must be even, for one half is held out, not {self.samples}.")
        number("samples.temperature", self.temperature, above=0)


@dataclass(frozen=True)
class Settings:
    """A whole run; see arXiv 2410.20022, section 4.

    Attributes:
        model: what `dd.load` takes.
        task: a set of the Hub, read where no folder of data is given.
        costs: layers of the routes `uls:c`, or `all` from 1 on; the full model is always there besides.
        tokens_per_route: response tokens that every route is trained on; None for `epochs`.
        epochs: passes over the training rows, where `tokens_per_route` is None.
        batch_size: sequences of one training pass.
        full_learning_rate: peak rate of T, the whole model that everything else starts from.
        learning_rate: peak rate of specialists and of elastic weights.
        elastic_cross_entropy: share of the references' cross-entropy in the elastic loss; the rest is KL to T.
        train_rows, test_rows: the first so many rows of each split; None for all.
        max_prompt_tokens, max_response_tokens: budgets that prompts and references are cut to.
        max_new_tokens: of a greedy or sampled answer.
        eval_batch_size: sequences that decode together, each sample counted as one.
        template: `auto` (the tokenizer's chat template, else the paper's), `chat`, `paper` or `plain`.
        dtype: what weights are held in.
        save_every: optimizer steps between checkpoints.
        keep_weights: whether specialists stay on the disk once they have answered. T and elastic weights always do.

    Raises:
        InputError: for a value that cannot be.
    """

    model: str
    task: str
    costs: tuple[int, ...] | str
    max_prompt_tokens: int
    max_response_tokens: int
    max_new_tokens: int
    full_learning_rate: float
    learning_rate: float
    tokens_per_route: int | None = None
    epochs: float | None = None
    batch_size: int = 8
    warmup_fraction: float = 0.05
    elastic_cross_entropy: float = 0.5
    train_rows: int | None = None
    test_rows: int | None = None
    eval_batch_size: int = 32
    samples: SampledAnswers = field(default_factory=SampledAnswers)
    template: str = "auto"
    dtype: str = "float32"
    save_every: int = 50
    keep_weights: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("model", "task", "template", "dtype"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"{name} must be a text, not {getattr(self, name)!r}.")
        for name in (
            *("max_prompt_tokens", "max_response_tokens", "max_new_tokens", "batch_size", "eval_batch_size", "save_every"),
            *(n for n in ("tokens_per_route", "train_rows", "test_rows") if getattr(self, n) is not None),
        ):
            whole(name, getattr(self, name), 1)
        for name in ("full_learning_rate", "learning_rate", *(() if self.epochs is None else ("epochs",))):
            number(name, getattr(self, name), above=0)
        for name in ("warmup_fraction", "elastic_cross_entropy"):
            number(name, getattr(self, name), 0, 1)
        if (self.tokens_per_route is None) == (self.epochs is None):
            raise InputError("Say how long to train with tokens_per_route or with epochs: give one of them.")
        whole("seed", self.seed, 0)
        if not isinstance(self.keep_weights, bool):
            raise InputError(f"keep_weights must be true or false, not {self.keep_weights!r}.")
        _check_costs(self.costs)

    def costs_below(self, n_layers: int) -> tuple[int, ...]:
        """The costs of the routes that skip something, cheapest first.

        Raises:
            InputError: if one is above `n_layers`, or none is below.
        """
        costs = range(1, n_layers) if isinstance(self.costs, str) else sorted(self.costs)
        deep = next((cost for cost in costs if cost > n_layers), None)
        if deep is not None:
            raise InputError(f"costs names {deep} layers, but {self.model} has {n_layers}: give costs from 1 to {n_layers}.")
        below = tuple(cost for cost in costs if cost < n_layers)
        if not below:
            raise InputError(f"costs names no cost below the {n_layers} layers of {self.model}: give at least one.")
        return below


def read_settings(path: Path) -> Settings:
    """The settings in a JSON file.

    Raises:
        InputError: for a file that is not one, unknown or missing names, or a value that cannot be.
    """
    return settings_of(read_json(path, "settings"), str(path))


def settings_of(given: Any, where: str) -> Settings:
    """The settings in a JSON document that was read from `where`.

    Raises:
        InputError: as of `read_settings`.
    """
    document = dict(_known(given, Settings, where))
    if isinstance(document["costs"], list):
        document["costs"] = tuple(document["costs"])
    if "samples" in document:
        document["samples"] = SampledAnswers(**_known(document["samples"], SampledAnswers, f"samples in {where}"))
    return Settings(**document)


def _known(document: Any, kind: type, where: str) -> Mapping[str, Any]:
    """The document itself, if it has all the names that it must have and no other."""
    if not isinstance(document, Mapping):
        raise InputError(f"{where} must hold a JSON object of settings, not {document!r}.")
    names = {one.name for one in fields(kind)}
    unknown = next((name for name in document if name not in names), None)
    if unknown is not None:
        raise InputError(f"{where} has an unknown setting {unknown!r}: known are {', '.join(sorted(names))}.")
    needed = [one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING]
    missing = [name for name in needed if name not in document]
    if missing:
        raise InputError(f"{where} lacks the setting{'s' if len(missing) > 1 else ''} {', '.join(missing)}: add them.")
    return document


def _check_costs(costs: Any) -> None:
    if costs == ALL:
        return
    if not isinstance(costs, tuple) or not costs:
        raise InputError(f"costs must be a list of layers, such as [4, 8, 12], or {ALL!r}, not {costs!r}.")
    bad = next((cost for cost in costs if not isinstance(cost, int) or isinstance(cost, bool) or cost < 1), None)
    if bad is not None:
        raise InputError(f"costs names {bad!r}: a cost is a whole number of layers from 1 on.")
    if len(set(costs)) < len(costs):
        raise InputError(f"costs names a cost twice: {', '.join(map(str, costs))}.")
