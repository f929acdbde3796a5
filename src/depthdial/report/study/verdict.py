"""The answer first: how many layers a model can drop on these prompts, at which loss, what time that saves. From rows alone.

The terminal prints the sentence and the page opens with it, so that both say the same.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from depthdial.checks import share
from depthdial.errors import InputError
from depthdial.report.study.summary import RouteRows, Speed, full_of, gather
from depthdial.routes import Route
from depthdial.stats.intervals import Interval, ratio_interval

KEEP = 0.95
_NAMES = {"rouge_l": "ROUGE-L", "agreement": "agreement"}
# A route that keeps less than this is no choice, however fast.
_FLOOR = 0.5
_SHIPPED = ("smollm2-135m", "elastic")  # of other adapters the rows do not know the folder


@dataclass(frozen=True)
class Choice:
    """A route that could run in the full model's place.

    Attributes:
        kept: its quality as a share of the full model's on the same sequences, with a 95% interval.
        speed: of a decoding step; `first_token`: of the prompt's pass. None where they were not timed alike.
        command: that runs it.
    """

    role: str
    route: RouteRows
    kept: Interval
    speed: Speed | None
    first_token: Speed | None
    command: str

    @property
    def agreement(self) -> Interval | None:
        """Share of the full model's own next tokens that it would choose too."""
        return self.route.interval("agreement")

    @property
    def layers(self) -> str:
        return f"{self.route.cost_layers:g} of {self.route.n_layers} layers"

    @property
    def speed_text(self) -> str:
        if self.speed is None:
            return "not timed"
        if self.speed.is_noisy:
            return f"too noisy to tell ({self.speed.low:.2f}–{self.speed.high:.2f}×)"
        return f"{self.speed.ratio:.2f}× ({self.speed.range_text})"

    @property
    def first_token_text(self) -> str:
        first_token_ms = self.route.milliseconds("batch_prefill_sec")
        if self.first_token is None or first_token_ms is None:
            return "not timed"
        same = self.first_token.low == self.first_token.high == 1
        beside = "as full" if same else "within noise" if self.first_token.is_noisy else f"{self.first_token.ratio:.2f}×"
        return f"{first_token_ms:,.0f} ms at batch {self.route.batch} ({beside})"


@dataclass(frozen=True)
class Verdict:
    """What the rows say about dropping layers, as a sentence and by route.

    Attributes:
        metric: `rouge_l` or `agreement`, None where rows hold neither.
        keep: share of the full model's quality that was asked for.
        choices: safest, balanced and fastest, as many of them as differ; the most layers first.
        chosen: the route that keeps enough, by its mean at least; None where no route does.
        is_sure: whether its whole interval lies at `keep` or above.
    """

    sentence: str
    metric: str | None = None
    keep: float = KEEP
    choices: tuple[Choice, ...] = ()
    chosen: Choice | None = None
    is_sure: bool = False

    @property
    def next_line(self) -> str:
        """What to run next; empty where there is no route to run."""
        best = self.chosen or next(iter(self.choices), None)
        return f"Next: {best.command}" if best is not None else ""


def decide(
    rows: Any, keep: float = KEEP, prompt_depth: str | None = None, timing: Mapping[str, Any] | None = None
) -> Verdict:
    """The verdict of a sweep's rows.

    Routes are held against the full model on the same sequences, by ROUGE-L where there are references, else by agreement.
    The one with the fewest layers whose whole interval keeps enough is chosen, else the one whose mean does. Measured
    time is told and never chooses, for it is noisier than a count of layers.

    Args:
        rows: what `sweep` returned, or `gather` of it.
        keep: share of the full model's quality to keep, above 0 and at most 1.
        prompt_depth: of the sweep, for the command.
        timing: a study's `timing.json`, in place of the rows' own times.
    """
    share("keep", keep)
    routes = rows if isinstance(rows, list) else gather(rows, timing)
    full = full_of(routes)
    if full is None:
        return Verdict("No verdict: the full model is not among the routes, so sweep `full` beside them.")
    metric = next((name for name in _NAMES if (full.mean(name) or 0.0) > 0), None)
    if metric is None:
        return Verdict("No verdict: the rows score no answer, so sweep with the metrics rouge_l or agreement.")
    dropping = [route for route in routes if not route.is_full]
    known = [choice for route in dropping if (choice := _choice(route, full, metric, prompt_depth)) is not None]
    where = f"On these {full.n_sequences} prompts" if full.n_sequences > 1 else "On this one prompt"
    if not known:
        return Verdict(f"{where} no route that drops layers was measured.", metric, keep)
    sure = [choice for choice in known if choice.kept.low >= keep]
    chosen = _cheapest(sure or [choice for choice in known if choice.kept.mean >= keep])
    model, what = _loaded(full)[0] or "the model", f"the full model's {_NAMES[metric]}"
    if chosen is None:
        best = max(known, key=lambda choice: choice.kept.mean)
        closest = f"{best.route.name} with {best.layers}, keeps {_told(best, metric)}"
        sentence = f"{where} no route keeps {100 * keep:g}% of {what}: the closest, {closest}."
    else:
        dropped = chosen.route.n_layers - chosen.route.cost_layers
        sentence = f"{where} {model} {'can' if sure else 'may be able to'} drop {dropped:g} of its {chosen.route.n_layers} "
        sentence += f"layers: {chosen.route.name} keeps {_told(chosen, metric, what)}."
        why = "One prompt has no interval" if math.isnan(chosen.kept.low) else f"The interval reaches below {100 * keep:g}%"
        sentence += "" if sure else f" {why}: to be sure, judge it on more prompts."
    return Verdict(sentence, metric, keep, _cards(known, chosen), chosen, bool(sure))


def _choice(route: RouteRows, full: RouteRows, metric: str, prompt_depth: str | None) -> Choice | None:
    model, adapter = _loaded(route)
    kept, depth = _kept(route, full, metric), _depth(route, bool(adapter))
    if kept is None or depth is None:
        return None
    parts = ["depthdial generate", shlex.quote(model or "MODEL"), '"your prompt"', f"--depth {depth}"]
    parts += [f"--adapter {adapter if (model, adapter) == _SHIPPED else 'ADAPTER'}"] if adapter else []
    parts += ["--prompt-depth route"] if prompt_depth == "route" else []
    speed, first_token = route.speed_against(full), route.speed_against(full, "batch_prefill_sec")
    return Choice("", route, kept, speed, first_token, " ".join(parts))


def _kept(route: RouteRows, full: RouteRows, metric: str) -> Interval | None:
    """The ratio of the means over the sequences that both scored."""
    theirs = full.by_sequence(metric)
    pairs = np.array([(mine, theirs.get(sequence, math.nan)) for sequence, mine in route.by_sequence(metric).items()])
    return ratio_interval(*pairs.T)


def _cards(known: Sequence[Choice], chosen: Choice | None) -> tuple[Choice, ...]:
    """Safest: agrees most. Fastest: the fewest layers that keep half. Balanced: the verdict's, or the middle of the rest."""
    worth = [choice for choice in known if choice.kept.mean >= _FLOOR] or list(known)

    def safety(choice: Choice) -> tuple[float, float]:
        return (choice.kept if choice.agreement is None else choice.agreement).mean, choice.kept.mean

    safest, fastest = max(worth, key=safety), _cheapest(worth)
    assert fastest is not None
    low, high = fastest.route.cost_layers, safest.route.cost_layers
    inner = [choice for choice in worth if low < choice.route.cost_layers < high]
    # None that another route beats in quality with as few layers.
    between = [one for one in inner if _cheapest([other for other in inner if other.kept.mean >= one.kept.mean]) is one]
    between.sort(key=lambda choice: -choice.route.cost_layers)
    balanced = chosen if chosen is not None else between[len(between) // 2] if between else fastest
    roles: dict[str, tuple[str, Choice]] = {}
    for role, choice in (("Balanced", balanced), ("Safest", safest), ("Fastest", fastest)):
        roles.setdefault(choice.route.name, (role, choice))
    cards = [replace(choice, role=role) for role, choice in roles.values()]
    return tuple(sorted(cards, key=lambda choice: -choice.route.cost_layers))


def _cheapest(choices: Sequence[Choice]) -> Choice | None:
    """The fewest layers; of equally many the best quality."""
    return min(choices, key=lambda choice: (choice.route.cost_layers, -choice.kept.mean), default=None)


def _told(choice: Choice, metric: str, what: str = "") -> str:
    """Quality and time of a choice, behind the word "keeps"."""
    told = percent(choice.kept) + (f" of {what}" if what else "")
    if metric != "agreement" and choice.agreement is not None:
        told += f" and {percent(choice.agreement)} of its next tokens"
    if choice.speed is None:
        return f"{told}; its time was not measured beside the full model's"
    if choice.speed.is_noisy:
        return f"{told}; measured times are {choice.speed_text}"
    return f"{told}, and decodes {choice.speed_text} as fast"


def percent(interval: Interval) -> str:
    """An interval of a share: 76% [73%, 79%]."""
    ends = "" if math.isnan(interval.low) else f" [{interval.low:.0%}, {interval.high:.0%}]"
    return f"{interval.mean:.0%}{ends}"


def _depth(route: RouteRows, is_adapted: bool) -> str | None:
    """The depth as `generate` takes it: the route's name where the grammar knows it, else its layers.

    A route that an adapter was trained for goes by its number of layers in the adapter's family: `elastic:24`.
    """
    try:
        Route.parse(route.name, route.n_layers)
        return route.name
    except InputError:
        layers = route.fixed_layers
        if not layers:
            return None
        if is_adapted and route.name == f"elastic:{len(layers)}":  # as a study calls its adapter's own routes
            return f"searched:{len(layers)}"
        return f"{layers[0]}-{layers[0]}" if len(layers) == 1 else str(Route(layers, route.n_layers))


def _loaded(route: RouteRows) -> tuple[str, str]:
    """(model, adapter) by the column `model`, which holds both as "model + adapter"."""
    model, _, adapter = str(route.columns.get("model", ("",))[0] or "").partition(" + ")
    return model, adapter
