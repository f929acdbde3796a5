"""Settings of a training run, and the checks of their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from depthdial.checks import also_named, choice, number, whole
from depthdial.train.rows import ANSWERS
from depthdial.views.passes import PROMPT_DEPTHS

Method = Literal["lora", "full"]
METHODS: tuple[Method, ...] = get_args(Method)

# Adapters stand a far higher rate than whole models; the paper's for OPT-IML-1.3B on Alpaca is 2e-5 (section 5).
LEARNING_RATES: Mapping[str, float] = {"lora": 1e-3, "full": 2e-5}


@also_named(rank="r", alpha="lora_alpha")
@dataclass(frozen=True)
class FinetuneSettings:
    """How a route, or a family of them, is trained.

    Attributes:
        method: `lora` (an adapter on every linear layer that trains) or `full` (the weights themselves).
        r: rank of the adapter.
        lora_alpha: its product is scaled by lora_alpha / r; None for 2 r.
        learning_rate: peak rate; None for 1e-3 of an adapter, 2e-5 of all weights. Warm-up is linear, the decline a cosine.
        batch_size: sequences of one pass, on each process.
        accumulation: batches of one optimizer step, on each process.
        max_tokens: response tokens to train on, each counted once for every route that it runs; None for `epochs`.
        epochs: passes over the rows, where no `max_tokens` is given.
        warmup_fraction: share of the steps in which the rate rises.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm.
        prompt_depth: `full` (the paper's: the prompt runs every layer) or `route` (prompt and response run the route in one
            pass, as a saved folder of the route does). The card records it, and verbs warn where prompts run the other way.
        prompt_gradient: whether a full-depth prompt is differentiated through behind a shallower route. Without it the
            prompt costs one forward pass, which the routes of a step share.
        answers: what is learned: the `reference`, the `model`'s own greedy answers, or `both` in equal parts.
        distill: learn the untouched full model's predictions, KL(full || route), instead of the tokens alone.
        temperature: of both sides of the KL.
        cross_entropy: share of the tokens' own cross-entropy in the loss, where `distill` is on.
        routes_per_step: routes that one batch runs in an optimizer step, of a family: the deepest and the cheapest, and
            random ones between them (the sandwich of Yu and Huang, arXiv 1903.05134).
        ends_every: interval of sandwich steps; in the other steps all routes are drawn.
        emphasis: route name -> how often it is drawn, relative to the others (1).
        max_minutes: time budget of the whole command, loading and saving included; None for no limit. The learning rate
            anneals by the share of the steps or of the time, whichever is larger, and the run stops in time. `max_tokens`
            or `epochs` still end a run that is faster.
        save_every: optimizer steps between checkpoints, where minutes do not say when.
        save_minutes: minutes between checkpoints; None for a tenth of `max_minutes`, at most a minute (longer where writing
            one takes more than a twentieth of that), or for `save_every` steps without a budget.
        weights_dtype: what an adapter is saved in: float32, float16 or bfloat16.
        seed: of everything that is drawn.

    Raises:
        InputError: for a value that cannot be.

    Example:
        >>> dd.FinetuneSettings(r=8, epochs=2).rate
        0.001
    """

    method: Method = "lora"
    r: int = 16
    lora_alpha: float | None = None
    learning_rate: float | None = None
    batch_size: int = 8
    accumulation: int = 1
    max_tokens: int | None = None
    epochs: float = 1.0
    warmup_fraction: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    prompt_depth: str = "full"
    prompt_gradient: bool = False
    answers: str = "reference"
    distill: bool = False
    temperature: float = 1.0
    cross_entropy: float = 0.0
    routes_per_step: int = 3
    ends_every: int = 1
    emphasis: Mapping[str, float] = field(default_factory=dict)
    max_minutes: float | None = None
    save_every: int = 50
    save_minutes: float | None = None
    weights_dtype: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        choice("method", self.method, METHODS)
        choice("prompt depth", self.prompt_depth, PROMPT_DEPTHS)
        choice("weights_dtype", self.weights_dtype, ("float32", "float16", "bfloat16"))
        choice("answers", self.answers, ANSWERS)
        for name in ("r", "batch_size", "accumulation", "routes_per_step", "ends_every", "save_every"):
            whole(name, getattr(self, name), 1)
        if self.max_tokens is not None:
            whole("max_tokens", self.max_tokens, 1)
        minutes = ("max_minutes", "save_minutes")
        for name in ("lora_alpha", "epochs", "temperature", "max_grad_norm", "learning_rate", *minutes):
            value = getattr(self, name)
            if value is not None:
                number(name, value, above=0)
        for name in ("warmup_fraction", "cross_entropy"):
            number(name, getattr(self, name), 0, 1)
        number("weight_decay", self.weight_decay, 0)
        for name, weight in self.emphasis.items():
            number(f"emphasis of {name!r}", weight, 0)

    @property
    def rate(self) -> float:
        return LEARNING_RATES[self.method] if self.learning_rate is None else self.learning_rate

    @property
    def counts_minutes(self) -> bool:
        """Whether the clock says when the run ends, or when a checkpoint is written."""
        return self.max_minutes is not None or self.save_minutes is not None

    @property
    def resolved(self) -> FinetuneSettings:
        """The same with the numbers that None stands for."""
        lora_alpha = 2.0 * self.r if self.lora_alpha is None else self.lora_alpha
        return replace(self, learning_rate=self.rate, lora_alpha=lora_alpha)
