"""Training-free route search: a nested greedy drop order by KL, on calibration prompts.

From the full model down, drop at each round the layer without which the route's predictions stay closest to the full
model's: KL(full || route) in nats, teacher-forced on the full model's own greedy answers with the prompt at full depth. Of a
model with adapters the routes run with them, and the full model is the untouched one, without them.
Nested routes, one for each number of layers. In the manner of SLEB (Song et al., arXiv 2402.09025), which uses perplexity.

Every round tries only the layers that looked cheapest when they were last tried (after the accelerated greedy of Minoux,
1978): exact if dropping a layer never gets cheaper once others are gone, which holds nearly; `screen=None` tries them all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from depthdial.errors import InputError
from depthdial.families import RouteFamily
from depthdial.files import read_json, write_json
from depthdial.measure.answers import reference_prefill
from depthdial.measure.batches import Runner, batched
from depthdial.measure.forced import Predictions, forced_logits, right_padded
from depthdial.measure.plan import ModelIdentity, check_positive, make_plan
from depthdial.measure.provenance import environment
from depthdial.measure.tasks import Task
from depthdial.models.prompt import Prefill
from depthdial.models.untouched import has_adapters_on, untouched
from depthdial.progress import progress_bar
from depthdial.routes import Route

METHOD = "greedy-kl"


@dataclass
class GreedyState:
    """How far a search has come; JSON-ready, so that a stopped search goes on.

    Attributes:
        dropped: layers in the order in which they were dropped.
        kl: KL after each drop, in nats.
        importance: KL of dropping one layer alone, by layer: the first round.
        increments: by layer, what dropping it added to the KL when it was last tried.
        start_kl: KL of the full route; above 0 only with adapters on, as the full model is then the untouched one.
    """

    dropped: list[int] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    importance: dict[int, float] = field(default_factory=dict)
    increments: dict[int, float] = field(default_factory=dict)
    search_sec: float = 0.0
    start_kl: float = 0.0

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> GreedyState:
        names = ("importance", "increments")
        by_layer: dict[str, Any] = {name: {int(k): v for k, v in document[name].items()} for name in names}
        return cls(document["dropped"], document["kl"], **by_layer, search_sec=document["search_sec"])


def search_routes(
    model: Any,
    tokenizer: Any,
    *,
    task: Task,
    min_layers: int | None = None,
    screen: int | None = 8,
    answer_tokens: int = 16,
    batch_size: int = 16,
    out: Path | str | None = None,
    identity: ModelIdentity | None = None,
    progress: bool = False,
) -> RouteFamily:
    """Find nested routes from the full model down to `min_layers` layers.

    Args:
        task: calibration prompts; never those that routes are evaluated on. References are not used.
        min_layers: where to stop (default: half of the layers, rounded down).
        screen: layers tried in each round after the first; None tries all that are left.
        answer_tokens: length of the full model's answers that the KL is taken on.
        out: the family file to write. A stopped search goes on from a file beside it.

    Returns:
        A family of `full` and one route for each number of layers, with the drop order, the KL of each and the calibration's
        record in `made_by`.

    Raises:
        InputError: for bad arguments, or a model whose numbers are not finite.
    """
    for name, value in (("answer_tokens", answer_tokens), ("batch_size", batch_size), ("screen", screen or 1)):
        check_positive(value, name)
    settings = {"kind": "search", "method": METHOD, "screen": screen, "answer_tokens": answer_tokens}
    plan = make_plan(model, tokenizer, task, ["full"], prompt_depth="full", identity=identity, settings=settings)
    n_layers = plan.runner.n_layers
    stop = n_layers // 2 if min_layers is None else check_positive(min_layers, "min_layers")
    if stop >= n_layers:
        raise InputError(f"min_layers is {stop} but the model has {n_layers}: search down to fewer layers.")
    settings = {**plan.run.settings, "sequences": [e.id for e in plan.examples]}
    checkpoint = _Checkpoint(None if out is None else Path(f"{out}.unfinished"), settings)
    state = checkpoint.load()
    calibration = _Calibration.of(plan.runner, plan.examples, answer_tokens, batch_size)
    state.start_kl = calibration.kl(plan.runner.full) if has_adapters_on(model) else 0.0
    rounds = range(n_layers - len(state.dropped), stop, -1)
    trials = sum(_tried(n_left, n_layers, screen) for n_left in rounds)
    with progress_bar("search", trials, show=progress) as advance:
        while n_layers - len(state.dropped) > stop:
            started = time.perf_counter()
            greedy_round(state, n_layers, screen, calibration.kl, advance)
            state.search_sec += time.perf_counter() - started
            checkpoint.save(state)
    family = _family(state, n_layers, stop, plan.run.settings, calibration)
    if out is not None:
        family.save(out)
        checkpoint.clear()
    return family


def greedy_round(
    state: GreedyState, n_layers: int, screen: int | None, kl_of: Callable[[Route], float], advance: Any
) -> None:
    """Drop one more layer: the one whose absence `kl_of` finds cheapest among those tried."""
    kept = [layer for layer in range(n_layers) if layer not in state.dropped]
    now = state.kl[-1] if state.kl else state.start_kl
    order = sorted(kept, key=lambda layer: (state.increments.get(layer, 0.0), layer))
    tried: dict[int, float] = {}
    for layer in order[: _tried(len(kept), n_layers, screen)]:
        tried[layer] = kl_of(Route(tuple(i for i in kept if i != layer), n_layers))
        state.increments[layer] = tried[layer] - now
        advance(1)
    if not state.dropped:
        state.importance = dict(tried)
    best = min(tried, key=lambda layer: (tried[layer], layer))
    state.dropped.append(best)
    state.kl.append(tried[best])


def _tried(n_left: int, n_layers: int, screen: int | None) -> int:
    return n_left if screen is None or n_left == n_layers else min(n_left, screen)


@dataclass(frozen=True)
class _Calibration:
    """Prefilled calibration prompts with the full model's answers and logits."""

    runner: Runner
    batches: tuple[tuple[Prefill, torch.Tensor, torch.Tensor, tuple[Predictions, ...]], ...]
    n_sequences: int
    n_tokens: int

    @classmethod
    def of(cls, runner: Runner, examples: Sequence[Any], answer_tokens: int, batch_size: int) -> _Calibration:
        batches, n_tokens = [], 0
        for batch in batched(examples, batch_size):
            prefilled = runner.prefill(batch)
            reference = reference_prefill(runner, batch, prefilled)
            with untouched(runner.model):
                answers = runner.decode(runner.full, reference, answer_tokens).tokens
                tokens, mask = right_padded(answers, runner.pad_token_id, runner.device)
                logits = forced_logits(runner.model, runner.full, reference, tokens, mask)
            full = tuple(Predictions.of(row[: len(answer)]) for row, answer in zip(logits, answers, strict=True))
            batches.append((prefilled, tokens, mask, full))
            n_tokens += sum(map(len, answers))
        return cls(runner, tuple(batches), len(examples), n_tokens)

    def kl(self, route: Route) -> float:
        """Mean over sequences of the mean KL over their tokens."""
        total = 0.0
        for prefilled, tokens, mask, full in self.batches:
            logits = forced_logits(self.runner.model, route, prefilled, tokens, mask)
            total += sum(p.fidelity(row[: len(p.greedy)])[0] for p, row in zip(full, logits, strict=True))
        mean = total / self.n_sequences
        if mean != mean:
            raise InputError(
                f"The KL of route {route} is not a number: the model's logits are not finite, try --dtype float32."
            )
        return mean


@dataclass(frozen=True)
class _Checkpoint:
    path: Path | None
    settings: dict[str, Any]

    def load(self) -> GreedyState:
        if self.path is None or not self.path.exists():
            return GreedyState()
        document = read_json(self.path, "unfinished search")
        return GreedyState.from_json(document["state"]) if document.get("settings") == self.settings else GreedyState()

    def save(self, state: GreedyState) -> None:
        if self.path is not None:
            write_json(self.path, {"settings": self.settings, "state": vars(state)})

    def clear(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _family(state: GreedyState, n_layers: int, stop: int, settings: Any, calibration: _Calibration) -> RouteFamily:
    routes = [Route(tuple(range(n_layers)), n_layers, "full")]
    dropped = state.dropped[: n_layers - stop]
    for n_dropped in range(1, len(dropped) + 1):
        gone = set(dropped[:n_dropped])
        layers = tuple(i for i in range(n_layers) if i not in gone)
        routes.append(Route(layers, n_layers, f"{METHOD}:{len(layers)}"))
    made_by = {
        "method": METHOD,
        "source": "nested greedy by KL; after SLEB (arXiv 2402.09025) and Minoux (1978)",
        "metric": "KL(full || route), nats",
        "drop_order": dropped,
        "kl": state.kl[: len(dropped)],
        "importance": [state.importance.get(i) for i in range(n_layers)],
        "calibration": {"n_sequences": calibration.n_sequences, "n_tokens": calibration.n_tokens},
        "settings": dict(settings),
        "seconds": state.search_sec,
        **environment(),
    }
    return RouteFamily(METHOD, n_layers, tuple(reversed(routes)), made_by)
