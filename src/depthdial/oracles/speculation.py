"""Can self-speculation pay here? From a sweep's agreement and measured times, before anything is drafted.

A round drafts k tokens on a route and checks them in one pass of the full model, which adds a token of its own. With
acceptance a of each drafted token (Leviathan et al., arXiv 2211.17192, equation 1 and theorem 3.8)

    speed-up = E[accepted + 1] * step(full) / (k * step(route) + check(k + 1)),

where LayerSkip (arXiv 2404.16710, section 4.3) does not run again in the check the layers before the first that the route
skips: their states of all checked tokens but the last one are known from drafting. Sequences differ in acceptance, and slow
ones count by the rounds that they take: the speed-up of a set is the time of all its tokens over the time of all its rounds.
All rows of a batch are taken to go on by themselves, each accepting what it can, with a new one where one ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from depthdial.checks import number, whole
from depthdial.errors import InputError
from depthdial.latency.model import LatencyModel
from depthdial.oracles.drafts import Drafts, read_drafts
from depthdial.oracles.score_table import Rows
from depthdial.routes import Route, leading_layers
from depthdial.stats.bootstrap import percentiles, resamples

DRAFT_TOKENS = (0, 1, 2, 4, 8)
_SHOWN = 8  # settings in the printed table


@dataclass(frozen=True)
class DraftSetting:
    """What drafting on one route, by so many tokens, is expected to give at one batch size.

    Attributes:
        route: by name; `layers` of it run, and the first `reused_layers` are those before the first that it skips.
        rows: sequences that run together.
        draft_tokens: k; 0 is speculation off.
        acceptance: the share of the route's tokens that are the full model's own.
        accepted_tokens: drafted tokens that are accepted in a round, in the mean.
        draft_sec, check_sec, step_sec: of a drafting step, of the check of k + 1 tokens, of a step of the full model.
        speedup: tokens per second over those of the full model, with `low` and `high` of its interval over sequences.
        speedup_without_reuse: the same with every layer in the check.
    """

    route: str
    layers: int
    reused_layers: int
    rows: int
    draft_tokens: int
    acceptance: float
    accepted_tokens: float
    draft_sec: float
    check_sec: float
    step_sec: float
    speedup: float
    low: float
    high: float
    speedup_without_reuse: float

    @property
    def verdict(self) -> str:
        """`on` where the interval lies above 1, `off` where the expectation does not, else `undecided`; with the numbers."""
        interval = f" [{self.low:.2f}, {self.high:.2f}]" if self.low < self.high else ""
        how = f"{self.route}, {self.draft_tokens} draft token{'s' * (self.draft_tokens != 1)}, batch {self.rows}"
        if self.speedup <= 1:
            return f"off: expected {self.speedup:.2f}x{interval} at best ({how})"
        word = "on" if self.low > 1 else "undecided"
        return f"{word}: expected {self.speedup:.2f}x{interval} ({how})"


@dataclass(frozen=True)
class SpeculationForecast:
    """What self-speculation is expected to give, for every route, draft length and batch; made by `speculation_forecast`.

    Attributes:
        settings: in order of batch, route and draft length.
        model: of the latency model; `n_sequences` of the rows.
        context_tokens: in sight of each row.
        by_position: for each route the acceptance at each place of a draft, given that its forerunners were accepted.
        from_tokens: whether rounds were counted token by token; otherwise each token has its sequence's mean chance.
        confidence: of the intervals, which are over sequences alone and not over repeats of the times. The best of many
            settings is chosen on the sequences that it is judged by: its own speed-up is a little too high.

    Example:
        >>> forecast = dd.speculation_forecast(rows, folder / "bench.json", n_bootstrap=0)
        >>> forecast.at(rows=1).draft_tokens in (1, 2, 4, 8)
        True
    """

    settings: tuple[DraftSetting, ...]
    model: str
    n_sequences: int
    context_tokens: float
    by_position: tuple[tuple[str, tuple[float, ...]], ...]
    from_tokens: bool
    confidence: float

    @property
    def best(self) -> DraftSetting:
        """The setting with drafts that is expected to be fastest, whether or not it pays."""
        return max((one for one in self.settings if one.draft_tokens), key=lambda one: one.speedup)

    def at(self, rows: int, route: str | None = None) -> DraftSetting:
        """The best setting with drafts at one batch size, of one route where it is named.

        Raises:
            InputError: if there is none.
        """
        found = [
            one for one in self.settings if one.draft_tokens and one.rows == rows and (route is None or one.route == route)
        ]
        if not found:
            known = sorted({one.rows for one in self.settings})
            names = ", ".join(dict.fromkeys(one.route for one in self.settings))
            raise InputError(
                f"There is no forecast for {rows} rows{f' of {route!r}' * (route is not None)}: it is for "
                f"{', '.join(map(str, known))} rows of {names}."
            )
        return max(found, key=lambda one: one.speedup)

    @property
    def verdict(self) -> str:
        """Of the best setting, in a line: `off: expected 0.96x [0.95, 0.97] at best (uls:24, 1 draft token, batch 1)`."""
        return self.best.verdict

    def rows(self) -> list[dict[str, Any]]:
        """The settings as plain rows."""
        return [{field.name: getattr(one, field.name) for field in fields(one)} for one in self.settings]

    def to_pandas(self) -> Any:
        """A pandas.DataFrame, one row a setting; InputError without pandas."""
        try:
            import pandas
        except ImportError:
            raise InputError("The package pandas is not installed: pip install pandas, or use rows().") from None
        return pandas.DataFrame(self.rows())

    def __str__(self) -> str:
        """The verdict of every batch size, then the best settings."""
        sizes = sorted({one.rows for one in self.settings})
        ranked = sorted((one for one in self.settings if one.draft_tokens), key=lambda one: -one.speedup)[:_SHOWN]
        lines = [f"self-speculation on {self.model}, {self.n_sequences} sequences"]
        lines += [f"  batch {rows}: {self.at(rows).verdict}" for rows in sizes]
        lines += ["  route  layers  reused  batch  k  acceptance  accepted  speed-up  without reuse"]
        lines += [
            f"  {one.route}  {one.layers}  {one.reused_layers}  {one.rows}  {one.draft_tokens}  {one.acceptance:.3f}  "
            f"{one.accepted_tokens:.2f}  {one.speedup:.3f} [{one.low:.3f}, {one.high:.3f}]  {one.speedup_without_reuse:.3f}"
            for one in ranked
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class RoundTimes:
    """Seconds of the passes of a round, at one batch size.

    Attributes:
        check_sec: of the check where prefixes are reused; `whole_check_sec` of every layer over all of its tokens.
    """

    step_sec: float
    draft_sec: float
    check_sec: float
    whole_check_sec: float

    @classmethod
    def of(
        cls,
        latency: LatencyModel,
        route: Route,
        rows: int,
        draft_tokens: int,
        context_tokens: float | None = None,
        *,
        reuse_prefix: bool = True,
    ) -> RoundTimes:
        """Read off a latency model; without drafts the check is the full model's own step."""
        step = latency.route_sec(None, rows, context_tokens)
        draft = latency.route_sec(route, rows, context_tokens)
        if not draft_tokens:
            return cls(step, draft, step, step)
        whole_check = latency.verify_sec(rows, draft_tokens + 1, None, context_tokens)
        reused = leading_layers(route) if reuse_prefix else 0
        check = latency.verify_sec(rows, draft_tokens + 1, None, context_tokens, reused_layers=reused)
        return cls(step, draft, check, whole_check)

    def speedup(self, tokens_a_round: Any, draft_tokens: int, *, reuse_prefix: bool = True) -> Any:
        """Of rounds that give so many tokens in the mean, accepted ones and the check's own."""
        check = self.check_sec if reuse_prefix else self.whole_check_sec
        return tokens_a_round * self.step_sec / (draft_tokens * self.draft_sec + check)


def speculation_forecast(
    rows: Rows,
    latency: LatencyModel | Any,
    *,
    routes: Sequence[str] | None = None,
    draft_tokens: Sequence[int] = DRAFT_TOKENS,
    batch_rows: Sequence[int] | None = None,
    context_tokens: float | None = None,
    reuse_prefix: bool | None = None,
    full_route: str = "full",
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> SpeculationForecast:
    """Say from a sweep's rows and a latency model whether drafting on a route and checking with the full model can pay.

    Greedy decoding. Acceptance is the rows' `agreement`, token by token where they have the column `agreed`.

    Args:
        rows: of a sweep with the metric `agreement`; a pyarrow.Table, a pandas.DataFrame or a dict of arrays.
        latency: a `LatencyModel`, its file, or the folder of a bench; of any machine.
        routes: names of routes that could draft (default: all that run the same layers for every sequence).
        draft_tokens: lengths to try; 0 is speculation off.
        batch_rows: batch sizes (default: those that the latency model measured).
        context_tokens: in sight of each row (default: as in the rows, or else as measured).
        reuse_prefix: whether the check leaves out what drafting has computed (default: for routes that ran without adapters,
            as the full model does).
        full_route: the name of the full route, which is not a draft.
        n_bootstrap: resamples of the sequences, for intervals at `confidence`; 0 for none.
        seed: of the bootstrap.

    Raises:
        InputError: for rows without agreement, an unknown route, a latency model of another model, or a number out of range.

    Example:
        >>> forecast = dd.speculation_forecast(rows, folder / "bench.json", n_bootstrap=100)
        >>> forecast.best.route, forecast.verdict.split(":")[0] in ("on", "off", "undecided")
        ('uls:3', True)
    """
    if not isinstance(latency, LatencyModel):
        latency = LatencyModel.load(latency)
    lengths = _whole_numbers("draft_tokens", draft_tokens, 0)
    sizes = _whole_numbers("batch_rows", batch_rows if batch_rows is not None else latency.measured_rows(), 1)
    number("confidence", confidence, above=0, below=1)
    whole("n_bootstrap", n_bootstrap, 0)
    if not any(lengths):
        raise InputError("Drafts of 0 tokens alone are speculation off: give at least one other length, such as 1.")
    drafts = read_drafts(rows, routes=routes, full_route=full_route)
    latency.require_fits(drafts.routes[0].n_layers, drafts.head_flops)
    reuse = [not adapted if reuse_prefix is None else reuse_prefix for adapted in drafts.has_adapters]
    context = latency.context(drafts.context_tokens if context_tokens is None else context_tokens)
    gains = {length: _tokens_a_round(drafts, length, n_bootstrap, seed) for length in lengths}
    settings = [
        _setting(drafts, place, latency, n_rows, length, gains[length], context, reuse[place], confidence)
        for n_rows in sizes
        for place in range(len(drafts.routes))
        for length in lengths
    ]
    by_position = drafts.by_position(max(lengths))
    return SpeculationForecast(
        tuple(settings),
        latency.model,
        len(drafts.acceptance),
        context,
        tuple((route.name, tuple(row)) for route, row in zip(drafts.routes, by_position.tolist(), strict=True)),
        drafts.agreed is not None,
        confidence,
    )


def _tokens_a_round(drafts: Drafts, draft_tokens: int, n_bootstrap: int, seed: int) -> np.ndarray:
    """(1 + n_bootstrap, n_routes) of all sequences, then of resamples of them, the same ones for every length."""
    rounds = drafts.rounds(draft_tokens)
    draws = [np.ones((1, len(rounds)))]
    if n_bootstrap:
        draws += list(resamples(np.random.default_rng(seed), n_bootstrap, len(rounds), drafts.tokens))
    return np.concatenate([(counts @ drafts.tokens)[:, None] / (counts @ rounds) for counts in draws])


def _setting(
    drafts: Drafts,
    place: int,
    latency: LatencyModel,
    n_rows: int,
    length: int,
    gains: np.ndarray,
    context: float,
    reuse: bool,
    confidence: float,
) -> DraftSetting:
    route, gain = drafts.routes[place], gains[:, place]
    times = RoundTimes.of(latency, route, n_rows, length, context, reuse_prefix=reuse)
    speedups = times.speedup(gain, length)
    low, high = percentiles(speedups[1:], confidence).tolist() if len(speedups) > 1 else (speedups[0], speedups[0])
    return DraftSetting(
        route=route.name,
        layers=len(route),
        reused_layers=leading_layers(route) if reuse else 0,
        rows=n_rows,
        draft_tokens=length,
        acceptance=float(np.average(drafts.acceptance[:, place], weights=drafts.tokens)),
        accepted_tokens=float(gain[0]) - 1,
        draft_sec=times.draft_sec,
        check_sec=times.check_sec,
        step_sec=times.step_sec,
        speedup=float(speedups[0]),
        low=float(low),
        high=float(high),
        speedup_without_reuse=float(times.speedup(gain[0], length, reuse_prefix=False)),
    )


def _whole_numbers(name: str, given: Sequence[int], least: int) -> tuple[int, ...]:
    values = [given] if isinstance(given, int) else list(given)
    if not values:
        raise InputError(f"The argument {name} is empty: give at least one number.")
    return tuple(sorted({whole(name, value, least) for value in values}))
