"""A certificate that a static depth of qwen2.5-coder-1.5b breaks few tasks: pass or fail, on the calibration tasks.

python -m experiments.qwen.certify DATA OUT      (the folder `code` of prepare.py; a stopped run goes on)
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import depthdial as dd
from experiments.qwen.passing import passes
from experiments.qwen.prepare import PROMPTS, read_rows

MODEL = "qwen2.5-coder-1.5b"
# From the safest to the cheapest; planned, as the losses are, before a row is run. 27 comes first as test tasks said.
LAYERS = (27, 25, 22, 20)
EPSILONS = (0.1, 0.15, 0.2)
MAX_NEW_TOKENS = 72
_TESTS = {row["id"]: row["tests"] for row in read_rows(PROMPTS)}


def passed(example: Any, answer: str) -> float:
    """1 if the code of an answer passes the tests of its task."""
    return float(passes(answer, _TESTS[example.id]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default=MODEL)
    options = parser.parse_args()
    model, tokenizer = dd.load(options.model)
    certificates = dd.certify_depths(
        model,
        tokenizer,
        task=dd.task(options.data, split="calibration", template="chat"),
        depths=[f"searched:{layers}" for layers in LAYERS],
        metric=passed,
        epsilon=EPSILONS,
        max_new_tokens=MAX_NEW_TOKENS,
        batch_size=24,
        out=options.out,
        progress=True,
    )
    for certificate in certificates:
        print(certificate.statement)


if __name__ == "__main__":
    main()
