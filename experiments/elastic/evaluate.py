"""What the elastic adapter that ships does at every depth, beside the untouched model, on rows that it was not trained on.

    python experiments/elastic/evaluate.py --data ALPACA_DIR [--adapter elastic] [--card README.md]

KL and agreement are taken against the untouched full model, on its own greedy answers, the prompt at full depth; NLL on the
references. Leaves rows (ids, hashes, scores; no text) and a table. A stopped run goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import depthdial as dd
from depthdial.files import write_json, write_text
from depthdial.rows.store import without_text
from depthdial.stats.intervals import mean_interval

MODEL = "smollm2-135m"
HEADING = "## Data, command, quality at each depth"
_SAID = """Trained on InstructLab's synthetic instructions (Apache-2.0 and MIT), on a base that is Apache-2.0; on nothing of
Alpaca. Made again by `experiments/elastic/run.sh DATA` in the repository.

The first {sequences} test rows of a 7,225-row random sample of Alpaca, prompt at full depth. KL (nats) and agreement are
against the untouched full model, on its own greedy answers of at most 128 tokens; NLL (nats) is on the references, with its
distance to the untouched full model's. Brackets: 95% intervals over sequences."""
METRICS = ("nll", "kl", "agreement")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with test.jsonl")
    parser.add_argument("--adapter", default="elastic")
    parser.add_argument("--limit", type=int, default=64, help="the first so many rows")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--card", type=Path, help="also put the table into this README.md, under its own heading")
    options = parser.parse_args()
    task = dd.task(options.data, split="test", limit=options.limit, max_prompt_tokens=256, max_response_tokens=256)
    adapted, tokenizer = dd.load(MODEL, adapter=options.adapter)
    card = dd.adapter_card(adapted)
    assert card is not None
    models = {"untouched": dd.load(MODEL)[0], "elastic": adapted}
    rows = {
        weights: dd.sweep(
            model,
            tokenizer,
            task=task,
            routes=card.routes,
            metrics=METRICS,
            out=options.out / weights,
            batch_size=32,
            progress=True,
        )
        for weights, model in models.items()
    }
    for weights, found in rows.items():
        pq.write_table(without_text(found), options.out / weights / "rows.parquet")
    table = summarise(rows)
    write_json(options.out / "table.json", table)
    print(write_text(options.out / "table.md", page(table)).read_text())
    if options.card is not None:
        write_text(options.card, with_quality(options.card.read_text(), table))


def summarise(rows: dict[str, Any]) -> list[dict[str, Any]]:
    """A line for each route, the deepest first: mean and 95% interval of every metric, on both weights."""
    frames = {weights: table.to_pandas() for weights, table in rows.items()}
    full = frames["untouched"][frames["untouched"].layers_run == frames["untouched"].n_layers].set_index("sequence_id").nll
    lines = []
    for layers in sorted(set(frames["elastic"].layers_run), reverse=True):
        line: dict[str, Any] = {"layers": int(layers)}
        for weights, frame in frames.items():
            chosen = frame[frame.layers_run == layers].set_index("sequence_id")
            for metric in METRICS:
                seen = mean_interval(chosen[metric].to_numpy())
                line[f"{weights}_{metric}"] = [seen.mean, seen.low, seen.high]
            line[f"{weights}_nll_over_full"] = float(chosen.nll.mean() / full.mean() - 1)
            line["sequences"] = len(chosen)
        lines.append(line)
    return lines


def with_quality(card: str, table: list[dict[str, Any]]) -> str:
    """A card with the table at its end, in the place of an older one."""
    said = _SAID.format(sequences=table[0]["sequences"])
    return f"{card.partition(HEADING)[0].rstrip()}\n\n{HEADING}\n\n{said}\n\n{page(table)}"


def page(table: list[dict[str, Any]]) -> str:
    head = [
        "layers",
        "KL untouched",
        "KL elastic",
        "agreement untouched",
        "agreement elastic",
        "NLL untouched",
        "NLL elastic",
    ]
    lines = [head, ["---:"] * len(head)]
    for line in table:
        cells = [str(line["layers"])]
        for metric in ("kl", "agreement", "nll"):
            for weights in ("untouched", "elastic"):
                mean, low, high = np.asarray(line[f"{weights}_{metric}"]) + 0.0  # no minus before a zero
                text = f"{mean:.3f}" if low == high else f"{mean:.3f} [{low:.3f}, {high:.3f}]"
                cells.append(f"{text} ({line[f'{weights}_nll_over_full']:+.1%})" if metric == "nll" else text)
        lines.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    main()
