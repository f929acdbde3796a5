"""Figure 2 of "Dynamic layer selection in decoder-only transformers" (arXiv 2410.20022): ROUGE-L by cost, and the oracle.

    python experiments/figure2/run.py experiments/figure2/smollm2-alpaca-cpu.json --data FOLDER_OF_SPLITS --out runs/figure2

Fine-tunes the model (T), a specialist for every cost and elastic weights for all costs, lets them all answer the test rows,
and leaves rows, tables and figures in a folder. A run that was stopped goes on with the same command.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from reproduction.answers import evaluate_all, sample_all
from reproduction.experiment import Experiment, open_experiment, say
from reproduction.settings import read_settings
from reproduction.training import train_elastic, train_elastic_compute, train_full, train_specialists

from depthdial.errors import InputError
from depthdial.files import write_json, write_text


def publish(run: Experiment) -> None:
    """Write oracles, tables and figures from the rows."""
    from reproduction.figures import draw_all
    from reproduction.results import document, gather
    from reproduction.tables import page

    say("oracles, tables and figures")
    results = gather(run)
    for name, curves in (("oracle", results.oracles), ("predictable", results.predictable)):
        write_json(run.out / f"{name}.json", {kind: curve.to_dict() for kind, curve in curves.items()})
    write_json(run.out / "table.json", document(results))
    write_text(run.out / "table.md", page(results) + "\n")
    for path in (run.out / "table.md", *draw_all(results, run.out / "figures")):
        print(path)


STEPS: dict[str, Callable[[Experiment], None]] = {
    "full": train_full,
    "specialists": train_specialists,
    "elastic": train_elastic,
    "elastic_compute": train_elastic_compute,
    "evaluate": evaluate_all,
    "sample": sample_all,
    "results": publish,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path, help="a JSON file, such as those beside this script")
    parser.add_argument(
        "--data", type=Path, help="folder with train and test splits; default: the settings' task, from the Hub"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for rows, tables, figures and (in work/) weights")
    parser.add_argument("--only", choices=STEPS, help="one step alone; default: all of them, in this order")
    options = parser.parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        run = open_experiment(read_settings(options.settings), options.data, options.out)
        steps = [options.only] if options.only else list(STEPS)
        for number, name in enumerate(steps, 1):
            say(f"[{number}/{len(steps)}] {name}")
            STEPS[name](run)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
