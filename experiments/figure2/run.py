"""Figure 2 of "Dynamic layer selection in decoder-only transformers" (arXiv 2410.20022): ROUGE-L by cost, and the oracle.

    python experiments/figure2/run.py experiments/figure2/smollm2-alpaca-cpu.json --data FOLDER_OF_SPLITS --out runs/figure2
    python experiments/figure2/run.py --from-rows experiments/figure2/alpaca-h200

The first fine-tunes the model (T), a specialist for every cost and elastic weights for all costs, lets them all answer the
test rows, and leaves rows, tables and figures in a folder. A run that was stopped goes on with the same command. The second
makes tables and figures again from the rows of a folder, and needs neither model nor data.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from reproduction.folder import RunFolder, read_folder
from reproduction.settings import read_settings

from depthdial.errors import InputError
from depthdial.files import check_out_folder, write_json, write_text

RESULTS = "results"
STEPS = ("full", "specialists", "elastic", "elastic_compute", "evaluate", "sample", RESULTS)


def publish(run: RunFolder, out: Path) -> None:
    """Write oracles, tables and figures from the rows and records of a run into a folder."""
    from reproduction.figures import draw_all
    from reproduction.results import document, gather
    from reproduction.tables import page

    results = gather(run)
    for name, curves in (("oracle", results.oracles), ("predictable", results.predictable)):
        write_json(out / f"{name}.json", {kind: curve.to_dict() for kind, curve in curves.items()})
    write_json(out / "table.json", document(results))
    write_text(out / "table.md", page(results) + "\n")
    for path in (out / "table.md", *draw_all(results, out / "figures")):
        print(path)


def run_steps(options: argparse.Namespace) -> None:
    """Train, answer and publish, or the one step that was asked for."""
    from reproduction.answers import evaluate_all, sample_all
    from reproduction.experiment import open_experiment, say
    from reproduction.training import train_elastic, train_elastic_compute, train_full, train_specialists

    working = dict(
        zip(
            STEPS,
            (train_full, train_specialists, train_elastic, train_elastic_compute, evaluate_all, sample_all),
            strict=False,
        )
    )
    run = open_experiment(read_settings(options.settings), options.data, options.out)
    steps = [options.only] if options.only else STEPS
    for number, name in enumerate(steps, 1):
        say(f"[{number}/{len(steps)}] {name}")
        if name == RESULTS:
            publish(run, run.out)
        else:
            working[name](run)


def check_together(options: argparse.Namespace) -> None:
    """InputError for options that do not go together."""
    if options.from_rows is None:
        if options.settings is None or options.out is None:
            raise InputError("A run needs settings and --out: give both, or --from-rows with the folder of a run.")
    elif options.settings or options.data or options.only not in (None, RESULTS):
        raise InputError(f"--from-rows {options.from_rows} takes --out alone: settings and rows are those of that folder.")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path, nargs="?", help="a JSON file, such as those beside this script")
    parser.add_argument(
        "--data", type=Path, help="folder with train and test splits; default: the settings' task, from the Hub"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for rows, tables, figures and (in work/) weights; with --from-rows its own by default",
    )
    parser.add_argument("--only", choices=STEPS, help="one step alone; default: all of them, in this order")
    parser.add_argument("--from-rows", type=Path, metavar="FOLDER", help="tables and figures of the rows in a run's folder")
    options = parser.parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        check_together(options)
        if options.from_rows is None:
            run_steps(options)
        else:
            publish(read_folder(options.from_rows), check_out_folder(options.out or options.from_rows))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
