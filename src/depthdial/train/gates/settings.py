"""Settings of gate training, and the checks of their values."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Literal, get_args

from depthdial.checks import also_named, choice, number, share
from depthdial.errors import InputError
from depthdial.train.depth.settings import FinetuneSettings
from depthdial.views.tokens.cache import KeyValues
from depthdial.views.tokens.gates import GateConfig, GateInput, GateKind

Backbone = Literal["lora", "full", "frozen"]
Annealing = Literal["exponential", "linear"]

# Below the lowest a soft decision has no slope that float32 can hold, above the highest it has forgotten its logits.
TEMPERATURES = (0.05, 100.0)


@also_named(rank="run.r", **{one.name: f"run.{one.name}" for one in fields(FinetuneSettings) if one.name != "temperature"})
@dataclass(frozen=True)
class GateSettings:
    """How gates are trained, and what with them.

    Attributes:
        input: what gates look at: hidden, fixed, position, embedding or embedding+position.
        kind: linear or mlp.
        hidden_width: of an mlp.
        controlled: layers with a gate, such as 1-28; None for all but the first and the last.
        run_bias: log-odds of running at the start.
        alpha: weight of the mean fraction of all L layers that run on response tokens, beside the loss in nats.
        target: instead of alpha, a budget: the mean fraction of all L layers to reach and hold, such as 0.6.
        temperature: of the soft decision that gradients go through.
        temperature_end: what it is brought to at the last step; None leaves it.
        annealing: `exponential` (by equal factors) or `linear`.
        backbone: what trains with the gates: an adapter (`lora`), all weights (`full`) or nothing (`frozen`).
        gate_learning_rate: of the gates: about half of what one step may add to log-odds. Held from the warm-up to the end
            of the ramp, then brought down to a fifth.
        ramp: share of the steps over which a target comes down from where the gates start.
        key_values: what a token leaves in the cache of a layer that it skips: `project`, `drop` or `copy`.
        run: how the backbone is trained, and on what; its fields (but for `temperature`) may also be given here by name.

    Raises:
        InputError: for a value that cannot be, and unless exactly one of alpha and target is given.

    Example:
        >>> dd.GateSettings(target=0.6).config(n_layers=6, width=32).kind
        'linear'
    """

    input: GateInput = "hidden"
    kind: GateKind = "linear"
    hidden_width: int = 64
    controlled: tuple[int, ...] | None = None
    run_bias: float = 2.0
    alpha: float | None = None
    target: float | None = None
    temperature: float = 1.0
    temperature_end: float | None = None
    annealing: Annealing = "exponential"
    backbone: Backbone = "lora"
    gate_learning_rate: float = 0.2
    ramp: float = 0.4
    key_values: KeyValues = "project"
    run: FinetuneSettings = field(default_factory=FinetuneSettings)

    def __post_init__(self) -> None:
        for name, known in (("backbone", Backbone), ("annealing", Annealing), ("key_values", KeyValues)):
            choice(name, getattr(self, name), get_args(known))
        if (self.alpha is None) == (self.target is None):
            raise InputError("Say what skipping is worth: either target, a budget such as 0.6, or alpha, a weight.")
        if self.alpha is not None:
            number("alpha", self.alpha, 0)
        if self.target is not None:
            share("target", self.target)
        number("temperature", self.temperature, *TEMPERATURES)
        if self.temperature_end is not None:
            number("temperature_end", self.temperature_end, *TEMPERATURES)
        number("gate_learning_rate", self.gate_learning_rate, above=0)
        number("ramp", self.ramp, 0, 1)
        if self.run.counts_minutes:  # a budget of layers comes down by steps
            raise InputError("The settings max_minutes and save_minutes are for finetune: leave them out for gates.")
        object.__setattr__(self, "controlled", None if self.controlled is None else tuple(self.controlled))
        object.__setattr__(self, "run", replace(self.run, method="full" if self.backbone == "full" else "lora"))

    @property
    def resolved(self) -> GateSettings:
        """The same with the numbers that None stands for in `run`."""
        return replace(self, run=self.run.resolved)

    def config(self, n_layers: int, width: int) -> GateConfig:
        """The gates for a model; InputError if controlled layers lie outside it, or cannot bring it to the target."""
        config = GateConfig(
            n_layers, width, self.input, self.kind, self.hidden_width, self.controlled, self.run_bias, self.run.seed
        )
        # With a hair's room, for a target that was computed from the same numbers.
        if self.target is not None and self.target < config.lowest_fraction - 1e-9:
            raise InputError(
                f"A target of {self.target:g} cannot be reached: {len(config.layers)} of {n_layers} layers are controlled, "
                f"so that {config.lowest_fraction:.3g} runs always; raise the target or control more layers."
            )
        return config

    def temperature_at(self, done: float) -> float:
        """The temperature when a share `done` of the steps, from 0 to 1, is done."""
        end = self.temperature if self.temperature_end is None else self.temperature_end
        if self.annealing == "linear":
            return self.temperature + (end - self.temperature) * done
        return self.temperature * (end / self.temperature) ** done
