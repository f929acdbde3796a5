"""Rows as tables: on a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.peers.peer import Peer

SPEED = ("peer", "rows", "tokens/s", "p20..p80", "x HF eager", "p20..p80", "equal answers", "layers a token")
QUALITY = ("peer", "ms a token, 1 row", "KL (nats)", "agreement", "bits a byte", "ROUGE-L")
_FORMS = {"kl": ".4f", "agreement": ".3f", "bits_per_byte": ".3f", "rouge_l": ".3f"}


def speed_cells(rows: Sequence[Mapping[str, Any]], layers: Mapping[str, float]) -> list[list[str]]:
    found = []
    for row in rows:
        speed, ratio = row["tokens_per_sec"], row["over_reference"]
        found.append(
            [
                row["peer"],
                str(row["rows"]),
                f"{speed['p50']:.1f}",
                f"{speed['p20']:.1f}..{speed['p80']:.1f}",
                "" if ratio is None else f"{ratio['p50']:.2f}",
                "" if ratio is None else f"{ratio['p20']:.2f}..{ratio['p80']:.2f}",
                _equal(row),
                f"{layers[row['peer']]:.1f}" if row["peer"] in layers else "",
            ]
        )
    return found


def quality_cells(rows: Sequence[Mapping[str, Any]], scores: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    alone = {row["peer"]: row["ms_in_turns"] for row in rows if row["rows"] == 1 and row["ms_in_turns"] is not None}
    return [
        [
            name,
            f"{alone[name]:.1f}" if name in alone else "",
            *(_interval(found[metric], form) for metric, form in _FORMS.items()),
        ]
        for name, found in scores.items()
    ]


def markdown(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---' if i == 0 else '---:' for i in range(len(head)))} |"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in cells)]) + "\n"


def page(
    title: str, about: Sequence[str], tables: Mapping[str, str], peers: Mapping[str, Peer], absent: Mapping[str, str]
) -> str:
    """The whole result as Markdown."""
    parts = [f"# {title}\n", "\n".join(about) + "\n"]
    parts += [f"## {heading}\n\n{table}" for heading, table in tables.items()]
    parts.append("## Peers\n\n" + "\n".join(f"- `{name}`: {peer.what}" for name, peer in peers.items()) + "\n")
    if absent:
        parts.append("## Absent\n\n" + "\n".join(f"- `{name}`: {why}" for name, why in absent.items()) + "\n")
    return "\n".join(parts)


def _equal(row: Mapping[str, Any]) -> str:
    """Of lossless peers those that must be equal; of others how many happen to be the full model's, in brackets."""
    if row["equal_answers"] is not None:
        return f"{row['equal_answers']:.0%}"
    return "" if row["equal_to_full"] is None else f"({row['equal_to_full']:.0%})"


def _interval(found: Mapping[str, float] | None, form: str) -> str:
    """A mean with its 95% interval over prompts."""
    if found is None:
        return ""
    return f"{found['mean']:{form}} [{found['low']:{form}}, {found['high']:{form}}]"
