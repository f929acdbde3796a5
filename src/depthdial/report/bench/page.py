"""The page of a bench: how long passes of a model take here, beside what the machine can do. Never runs a model."""

from __future__ import annotations

from pathlib import Path

from depthdial.latency.model import LatencyModel
from depthdial.report.bench.plot import draw_latency
from depthdial.report.bench.tables import answer_sentences, ceilings_sentence, checks_table, prompts_table, steps_table
from depthdial.report.kit.page import write_page
from depthdial.report.kit.parts import Picture, Section, as_table, pairs_table
from depthdial.report.kit.table_files import write_table

FIGURE = "latency"


def write_bench_report(folder: Path | str) -> Path:
    """Write `report.html`, `figures/` and `tables/` (Markdown and CSV) of a bench's folder, from its bench.json.

    Raises:
        InputError: if the folder holds no latency model, it is damaged, or the folder cannot be written.
    """
    folder = Path(folder)
    latency = LatencyModel.load(folder)
    steps, prompts, checks = steps_table(latency), prompts_table(latency), checks_table(latency)
    for name, table in (("steps", steps), ("prompts", prompts), ("checks", checks)):
        write_table(table, folder / "tables", name)
    caption = (
        "Left: medians with bars from p20 to p80, and the fitted line; dashed, the time that reading the weights of these "
        "layers and of the head takes at the measured bandwidth. Right: tokens per second of all rows together; dashed, "
        "what the measured ceilings allow with every layer."
    )
    alt = (
        f"Time of a decoding step against layers run, and tokens per second against rows, for {len(latency.routes)} routes."
    )
    answer = Section(
        "answer",
        "Decoding steps",
        answer_sentences(latency),
        [Picture(FIGURE, draw_latency(latency), caption, alt)],
        [as_table("Decoding steps", steps)],
        notes=[
            ceilings_sentence(latency),
            "TPOT: time of a step, which gives each row a token. GB/s: weights of the layers and of the head, and keys and "
            "values, over the time. HF generate: transformers' own, greedy, on the untouched model with every layer, in "
            "turns with the rest.",
        ],
    )
    others = [as_table("Prompts: time to the first token (TTFT)", prompts)] if prompts else []
    others += [as_table("Checks: passes over several tokens of each row behind a context", checks)] if checks else []
    about = {
        "model": latency.model,
        "weights hash": latency.weights_hash,
        "dtype": latency.dtype,
        "device": latency.device,
        "threads": str(latency.threads),
        "hardware": latency.hardware,
        "versions": latency.versions,
        "commit": latency.commit,
        "seed": str(latency.seed),
        "date": latency.date,
    }
    sections = [
        answer,
        Section("passes", "Prompts and checks", tables=others),
        Section("provenance", "Provenance", tables=[pairs_table("Provenance", list(about.items()))], is_folded=True),
    ]
    return write_page(folder, "bench", sections, f"Depthdial bench: {latency.model}", n_layers=latency.n_layers)
