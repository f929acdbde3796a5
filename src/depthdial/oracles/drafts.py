"""Result rows as drafts of self-speculation: which layers each route runs, and how often its tokens are accepted.

A drafted token is accepted where it is the full model's own greedy choice (greedy verification: Leviathan et al., arXiv
2211.17192, section 2.2), so the column `agreement` of a sweep is the acceptance. It is measured with the
route's own keys and values behind the prompt, and speculation drafts behind the full model's: rather too low than too high.
The first token of an answer comes out of the prompt's pass and is never drafted: it is taken out of the mean.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from depthdial.errors import InputError
from depthdial.oracles.costs import DEPTH_COLUMN, TOKENS_COLUMN
from depthdial.oracles.modelled import LAYERS_TEXT
from depthdial.oracles.score_table import Rows, column_names, column_of
from depthdial.routes import Route, stored_route

ACCEPTANCE, AGREED = "agreement", "agreed"


@dataclass(frozen=True, eq=False)
class Drafts:
    """Routes as drafts, on the same sequences.

    Attributes:
        routes: what could draft: every fixed route of the rows but the full one.
        acceptance: (n_sequences, n_routes) shares of drafted tokens that are accepted.
        agreed: for each sequence and route which tokens were, as a text of 1 and 0 whose first is the prompt's own; None
            where the rows do not tell.
        tokens: (n_sequences,) decoding steps of the full model's answers; ones where the rows do not tell.
        context_tokens: in sight of a token in the mean; None where the rows do not tell.
        head_flops: of the head for a token; None where the rows do not tell.
        has_adapters: by route, whether it runs with adapters, which the full model does without.
    """

    routes: tuple[Route, ...]
    acceptance: np.ndarray
    agreed: tuple[tuple[str, ...], ...] | None
    tokens: np.ndarray
    context_tokens: float | None
    head_flops: float | None
    has_adapters: tuple[bool, ...]

    def rounds(self, draft_tokens: int) -> np.ndarray:
        """(n_sequences, n_routes) rounds of drafting and checking that the answers take, by `rounds_of` or `rounds_for`."""
        if self.agreed is None:
            return rounds_for(self.acceptance, self.tokens[:, None], draft_tokens)
        return np.array([[rounds_of(text, draft_tokens) for text in row] for row in self.agreed], dtype=float)

    def by_position(self, most: int) -> np.ndarray:
        """(n_routes, most) share of the tokens drafted at each place that are accepted, of those whose forerunners were.

        Where the rows do not tell of tokens every place has the mean acceptance; NaN for a place that is never reached.
        """
        if self.agreed is None:
            means = np.average(self.acceptance, axis=0, weights=self.tokens)
            return np.repeat(means[:, None], most, axis=1)
        accepted, drafted = (np.zeros((len(self.routes), most)) for _ in range(2))
        for row in self.agreed:
            for route, text in enumerate(row):
                for run, is_cut in _runs(text, most):
                    accepted[route, :run] += 1
                    drafted[route, : run + (not is_cut)] += 1
        with np.errstate(invalid="ignore"):
            return accepted / drafted


def expected_accepted(acceptance: Any, draft_tokens: int) -> Any:
    """Drafted tokens that are accepted in a round in the mean, each with the same chance, whatever came before.

    Of k drafts the first i are accepted with probability a^i: the sum of these, so that with the token that the check adds
    a round gives (1 - a^(k+1)) / (1 - a) tokens (equation 1 of arXiv 2211.17192).

    >>> round(float(expected_accepted(0.5, 2)), 6)
    0.75
    """
    chances = np.asarray(acceptance, dtype=float)
    return sum((chances**place for place in range(1, draft_tokens + 1)), start=np.zeros_like(chances))


def rounds_for(acceptance: Any, tokens: Any, draft_tokens: int) -> Any:
    """Rounds that answers of so many decoding steps take, in the mean, for independent acceptance."""
    return np.asarray(tokens, dtype=float) / (1 + expected_accepted(acceptance, draft_tokens))


def rounds_of(agreed: str, draft_tokens: int) -> int:
    """Rounds that one answer takes, whose accepted tokens are known: 1 and 0 by token, the first one the prompt's own.

    >>> rounds_of("1" + "111010", 2)
    3
    """
    return sum(1 for _ in _runs(agreed, draft_tokens))


def _runs(agreed: str, draft_tokens: int) -> Any:
    """(accepted tokens, whether the answer ended with them) of round after round."""
    place, n = 1, len(agreed)
    while place < n:
        most = min(draft_tokens, n - place)
        run = (agreed + "0").index("0", place) - place
        accepted = min(run, most)
        yield accepted, accepted == most
        place += accepted + 1


def read_drafts(rows: Rows, *, routes: Sequence[str] | None = None, full_route: str = "full") -> Drafts:
    """Read rows of a sweep, one for each sequence and route; of several samples their means.

    Args:
        routes: names of those to read (default: all that run the same layers for every sequence).

    Raises:
        InputError: for rows without agreement or with gaps, an unknown route, or one whose layers are not fixed.
    """
    names = column_names(rows)
    if ACCEPTANCE not in names:
        raise InputError(
            f"The rows have no column {ACCEPTANCE!r}, which stands for acceptance: sweep with --metrics {ACCEPTANCE}."
        )
    sequence_ids, labels = (np.asarray(column_of(rows, name)).astype(str) for name in ("sequence_id", "route"))
    if not len(labels):
        raise InputError("The table has no rows: sweep at least one sequence over one route.")
    n_layers = _the_one(rows, names, DEPTH_COLUMN)
    known = _fixed_routes(rows, names, labels, n_layers)
    wanted = _wanted(routes, known, labels, full_route)
    sequences = list(dict.fromkeys(sequence_ids.tolist()))
    place = {name: i for i, name in enumerate(sequences)}

    def table(column: str, route: str) -> np.ndarray:
        """(n_sequences,) means over the rows of a route; NaN where there is none."""
        chosen = labels == route
        at = np.array([place[one] for one in sequence_ids[chosen]], dtype=int)
        values = _numbers(rows, column)[chosen]
        counts = np.bincount(at, minlength=len(sequences))
        with np.errstate(invalid="ignore"):
            return np.bincount(at, weights=values, minlength=len(sequences)) / np.where(counts, counts, np.nan)

    acceptance = np.stack([table(ACCEPTANCE, name) for name in wanted], axis=1)
    gap = np.argwhere(~((acceptance >= 0) & (acceptance <= 1)))
    if len(gap):
        sequence, route = gap[0]
        raise InputError(
            f"The agreement of route {wanted[route]!r} on sequence {sequences[sequence]!r} is missing or not a share: sweep "
            f"it with --metrics {ACCEPTANCE}."
        )
    tokens = table(TOKENS_COLUMN, full_route) if TOKENS_COLUMN in names and full_route in labels else np.array([np.nan])
    has_tokens = bool(np.isfinite(tokens).all())
    agreed = _agreed(rows, names, sequence_ids, labels, sequences, wanted)
    if agreed is not None:  # all routes were compared on the same answers
        steps = np.array([len(row[0]) - 1 for row in agreed], dtype=float)
    else:
        steps = np.maximum(tokens - 1, 0.0) if has_tokens else np.ones(len(sequences))
    if agreed is not None:
        acceptance = np.array([[_mean(text[1:]) for text in row] for row in agreed])
    elif has_tokens:
        drafted = np.maximum(steps, 1.0)[:, None]
        acceptance = np.clip((acceptance * (drafted + 1) - 1) / drafted, 0.0, 1.0)
    if not steps.sum() > 0:
        raise InputError("The full model's answers are of one token each, so nothing is decoded: sweep with longer answers.")
    context = head = None
    if "prompt_tokens" in names and len(prompts := _numbers(rows, "prompt_tokens")):
        context = float(np.nanmean(prompts)) + float(np.average((steps + 1) / 2, weights=np.maximum(steps, 1e-9)))
        context = context if np.isfinite(context) else None
    if has_tokens and "head_flops" in names:
        found = table("head_flops", full_route) / tokens
        head = float(found[0]) if np.isfinite(found[0]) else None
    return Drafts(
        tuple(known[name] for name in wanted),
        acceptance,
        agreed,
        steps,
        context,
        head,
        tuple(_has_adapters(rows, names, labels == name) for name in wanted),
    )


def _has_adapters(rows: Rows, names: Sequence[str], chosen: np.ndarray) -> bool:
    """Whether some rows are of a model with adapters on, by its name (see `ModelIdentity`)."""
    return "model" in names and any(" + " in str(one) for one in np.asarray(column_of(rows, "model"))[chosen].tolist())


def _numbers(rows: Rows, column: str) -> np.ndarray:
    """(n_rows,) numbers of a column."""
    try:
        found = np.asarray(column_of(rows, column)).astype(float)
    except (TypeError, ValueError):
        raise InputError(f"The column {column!r} does not hold numbers: sweep again, or repair it.") from None
    if len(found) != len(column_of(rows, "route")):
        raise InputError(f"The columns {column!r} and 'route' differ in length: give one table.")
    return found


def _mean(agreed: str) -> float:
    return agreed.count("1") / len(agreed) if agreed else 0.0


def _the_one(rows: Rows, names: Sequence[str], column: str) -> int:
    if column not in names:
        raise InputError(f"The rows have no column {column!r}, the number of the model's layers: sweep again, or add it.")
    found = np.unique(_numbers(rows, column))
    if len(found) != 1 or not found[0] >= 1:
        raise InputError(f"The rows are of models with {', '.join(f'{n:g}' for n in found)} layers: keep those of one.")
    return int(found[0])


def _fixed_routes(rows: Rows, names: Sequence[str], labels: np.ndarray, n_layers: int) -> dict[str, Route]:
    """By name, the routes that run the same layers in all of their rows."""
    texts = np.asarray(column_of(rows, LAYERS_TEXT)).astype(str) if LAYERS_TEXT in names else labels
    found = {}
    for name in dict.fromkeys(labels.tolist()):
        written = set(texts[labels == name].tolist())
        text = written.pop()
        if written or not (text == "full" or LAYERS_TEXT not in names or re.fullmatch(r"[\d,\s-]+", text)):
            continue
        try:
            route = stored_route(text, n_layers)
        except InputError:
            continue
        if isinstance(route, Route):
            found[name] = Route(route.layers, n_layers, name)
    return found


def _wanted(
    routes: Sequence[str] | None, known: Mapping[str, Route], labels: np.ndarray, full_route: str
) -> tuple[str, ...]:
    there = list(dict.fromkeys(labels.tolist()))
    for name in routes or ():
        if name not in there:
            raise InputError(f"No row has the route {name!r}: the table has {', '.join(there)}.")
        if name not in known:
            raise InputError(f"The route {name!r} does not run the same layers for every sequence: forecast fixed routes.")
    found = tuple(name for name in (routes or known) if name != full_route and not known[name].is_full)
    if not found:
        raise InputError(
            f"The rows hold no route that could draft, only {', '.join(there)}: sweep some that run fewer layers, such as "
            "--routes full,uls:80%,uls:60%."
        )
    return found


def _agreed(
    rows: Rows,
    names: Sequence[str],
    sequence_ids: np.ndarray,
    labels: np.ndarray,
    sequences: Sequence[str],
    wanted: Sequence[str],
) -> tuple[tuple[str, ...], ...] | None:
    """Token by token, where every row has it and each (sequence, route) one row."""
    if AGREED not in names:
        return None
    found: dict[tuple[str, str], str] = {}
    for key, text in zip(
        zip(sequence_ids.tolist(), labels.tolist(), strict=True), column_of(rows, AGREED).tolist(), strict=True
    ):
        if key[1] in wanted and (key in found or not isinstance(text, str) or not text):
            return None
        found[key] = str(text)
    table = tuple(tuple(found.get((one, route), "") for route in wanted) for one in sequences)
    is_whole = all(len({len(text) for text in row}) == 1 and row[0] for row in table)
    return table if is_whole else None
