"""The board as tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .entries import BOARD

LABELS = {family.name: family.label for family in BOARD}
DIGITS = {"agreement": 3, "kl": 2, "rouge_l": 3}


def pages(document: Mapping[str, Any]) -> str:
    """Every table of the board."""
    parts = []
    for batch in (1, 32):
        rows = f"{batch} row" + "s" * (batch > 1)
        for metric, name in (("agreement", "Agreement"), ("kl", "KL, nats"), ("rouge_l", "ROUGE-L")):
            parts.append(f"### {name} at equal time, {rows}\n\n{by_share(document, batch, metric)}")
    parts.append(f"### Every configuration\n\n{points(document)}")
    return "\n".join(parts)


def by_share(document: Mapping[str, Any], batch: int, metric: str) -> str:
    """A line for each family, a column for each share of the full model's time."""
    lines = [line for line in document["at_equal_time"] if line["batch"] == batch]
    shares = sorted({line["share"] for line in lines}, reverse=True)
    found = {(line["family"], line["share"]): line[metric] for line in lines}
    head = ["family", *(f"{share:g} of the time" for share in shares)]
    names = [name for name in LABELS if (name, shares[0]) in found]
    body = [[LABELS[name], *(cell(found[name, share], metric) for share in shares)] for name in names]
    return table(head, body)


def points(document: Mapping[str, Any]) -> str:
    head = ["configuration", "layers", "agreement", "KL, nats", "ROUGE-L", "ms, 1 row", "of full", "ms, 32 rows", "of full"]
    body = []
    for one in document["points"]:
        scores = [cell(one[metric], metric) for metric in ("agreement", "kl", "rouge_l")]
        times = [text for batch in (1, 32) for text in (f"{one[f'ms_{batch}']:.1f}", f"{one[f'time_{batch}']:.2f}")]
        body.append([one["config"], "" if one["layers"] is None else f"{one['layers']:g}", *scores, *times])
    return table(head, body)


def cell(value: Sequence[float] | None, metric: str) -> str:
    """A mean with its interval; a dash where there is none."""
    if value is None:
        return "–"
    mean, low, high = (f"{one + 0.0:.{DIGITS[metric]}f}" for one in value)
    return mean if low == high else f"{mean} [{low}, {high}]"


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
