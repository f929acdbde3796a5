"""Run all peers that are there, in turns: `python -m benchmarks.peers --out DIR`.

Writes `peers.json` (rows with provenance), `peers.md` (tables) and two figures into DIR. A run that was stopped goes on
from DIR. A peer whose packages stand in another environment runs there: `--python llama.cpp-f16=/path/to/python`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.peers import tables
from benchmarks.peers.figures import draw_quality, draw_speed
from benchmarks.peers.merging import check_fits, with_scores
from benchmarks.peers.results import speed_rows
from benchmarks.peers.roster import chosen, roster
from benchmarks.peers.rounds import Cells
from benchmarks.peers.run import Run, Settings
from depthdial.errors import InputError
from depthdial.files import read_json, write_json, write_text
from depthdial.provenance import environment


def run(settings: Settings, given: tuple[Any, Any] | None = None) -> dict[str, Any]:
    """Measure, write and show everything; what `peers.json` holds."""
    now = Run.begin(settings, given)
    try:
        layers = now.count_layers()
        cells = Cells(settings.out / "cells")
        now.time(cells)
        scores = now.scores() if settings.with_quality else {}
    finally:
        now.close()
    peers = roster(settings.all_depths)
    rows = speed_rows(cells.samples(), peers)
    told = [f"- {key}: {value}" for key, value in {**vars(replace(settings, out=Path())), **environment()}.items()]
    speed, quality = tables.speed_cells(rows, layers), tables.quality_cells(rows, scores)
    sheets = {"Speed": tables.markdown(tables.SPEED, speed), "Quality": tables.markdown(tables.QUALITY, quality)}
    shown = {name: peers[name] for name in now.names() if name not in now.absent}
    write_text(settings.out / "peers.md", tables.page("Peers side by side", told, sheets, shown, now.absent))
    about = {**{k: v for k, v in vars(settings).items() if k != "out"}, "n_long": now.workload.n_long}
    when = datetime.now(UTC).isoformat(timespec="seconds")
    document = {"when": when, "settings": about, **environment(), "absent": now.absent, "layers_per_token": layers}
    document |= {"rows": rows, "quality": scores}
    write_json(settings.out / "peers.json", document)
    draw_speed(rows, settings.out / "throughput.png")
    draw_quality(
        rows, scores, {n: p.scored_as for n, p in peers.items()}, settings.all_depths, settings.out / "time-quality.png"
    )
    _show(tables.SPEED, speed)
    if scores:
        _show(tables.QUALITY, quality)
    for name, why in now.absent.items():
        print(f"{name}: {why}")
    print(f"written: {settings.out}")
    return document


def _show(head: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    table = Table()
    for i, column in enumerate(head):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in cells:
        table.add_row(*row)
    console = Console()
    console.width = max(console.width, 110)  # a pipe has 80 columns
    console.print(table)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _count(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _counts(text: str) -> tuple[int, ...]:
    if not _names(text):
        raise argparse.ArgumentTypeError("no number is given: give such as 1,8,32")
    return tuple(map(_count, _names(text)))


def _elsewhere(text: str) -> tuple[str, str]:
    peer, equals, python = text.partition("=")
    if not (peer and equals and python):
        raise argparse.ArgumentTypeError(f"{text!r} is not a peer and its Python: give such as tide=/path/to/python")
    return peer, python


def read_arguments(arguments: Sequence[str] | None = None) -> tuple[Settings, Path | None]:
    """The settings of a run, and the `peers.json` that its scores go into as well."""
    known = Settings(Path())
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder; a run in it goes on")
    parser.add_argument("--model", default=known.model, help="what dd.load takes")
    parser.add_argument("--task", default=known.task, help="prompts: what dd.task takes, its test split")
    parser.add_argument("--peers", type=_names, default=(), help="names or patterns, with commas; default: all")
    parser.add_argument("--depth", default=known.depth, help="of the peers on a route")
    parser.add_argument("--depths", type=_names, default=known.depths, help="further ones for time against quality")
    for name in ("prompts", "scored_prompts", "new_tokens", "rounds", "threads"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=_count, default=getattr(known, name))
    parser.add_argument("--rows", type=_counts, default=known.rows, help="sizes of batches")
    python = {"metavar": "PEER=PATH", "help": "run a peer under this Python"}
    parser.add_argument("--python", action="append", type=_elsewhere, default=[], **python)
    parser.add_argument("--no-quality", dest="with_quality", action="store_false", help="measure speed alone")
    parser.add_argument("--scores-into", type=Path, help="a peers.json, whose scores of these peers are replaced")
    given = vars(parser.parse_args(arguments))
    given["python"] = tuple(given["python"])
    into = given.pop("scores_into")
    return Settings(**given), into


def _run_again(settings: Settings, into: Path) -> None:
    """Run some peers, and put their scores into a run of more."""
    document = read_json(into, "run of peers")
    names = chosen(settings.peers, list(roster(settings.all_depths)))
    check_fits(document, vars(settings), names)  # before anything runs
    run(settings)
    write_json(into, with_scores(document, read_json(settings.out / "peers.json", "run of peers"), names))


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        settings, into = read_arguments(arguments)
        if into is None:
            run(settings)
        else:
            _run_again(settings, into)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
