"""The leaderboard of methods: quality at equal measured time, for every family, in one command that can be stopped.

    python experiments/leaderboard/run.py --data DATA [--adapter elastic] [--only STEP]

DATA holds folders of splits: alpaca, dolly and cnn_dailymail. Steps: search, quality, policies, gates, time, board. Each
leaves files and does what is not there yet. Rows bear a hash of the weights that made them, so that another adapter makes
its own rows anew and no others. Time wants a machine that does nothing else: `--only time`, then `--only board`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from depthdial.errors import InputError

HERE = Path(__file__).resolve().parent
STEPS = ("search", "quality", "policies", "gates", "time", "board")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of data sets; the board alone needs none")
    parser.add_argument("--adapter", default="elastic", help="the elastic adapter: `elastic`, or a folder")
    parser.add_argument("--only", choices=STEPS, help="one step alone; default: all, in this order")
    parser.add_argument("--out", type=Path, default=HERE, help="where rows, times, tables and figure go")
    parser.add_argument("--work", type=Path, default=Path("runs/leaderboard"), help="where unfinished work is")
    parser.add_argument("--rows", type=int, default=48, help="number of test rows of Alpaca, the first ones")
    options = parser.parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        for step in [options.only] if options.only else STEPS:
            run_step(step, options)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def run_step(step: str, options: argparse.Namespace) -> None:
    if step == "board":
        from board.standing import publish

        publish(options.out)
        if options.out == HERE:
            from board.page import write_page

            print(write_page(HERE, HERE.parents[1] / "docs" / "leaderboard.md"))
        return
    if options.data is None:
        raise InputError(f"The step {step} reads data sets: give --data, a folder of alpaca, dolly and cnn_dailymail.")
    from board.bench import Bench

    getattr(Bench.of(options.data, options.adapter, options.out, options.work, options.rows), step)()


if __name__ == "__main__":
    sys.exit(main())
