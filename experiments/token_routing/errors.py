"""How far token routing is from a dense reference that computes everything and masks, by architecture and mode.

    python experiments/token_routing/errors.py [--out DIR]

Writes errors.json and errors.md: the largest error of any logit, relative to the largest logit, in fp32, on random models
of six layers (5 sequences of 7 to 12 tokens, left-padded, half of all layers skipped at random), by attention, key values,
execution and chunks of a cached pass. The yardstick is the tests' own.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))  # the yardstick and the tiny models belong to the tests, and are no package of their own

from depthdial.errors import InputError  # noqa: E402
from depthdial.files import write_json  # noqa: E402
from depthdial.provenance import environment  # noqa: E402
from depthdial.views.tokens.view import token_view  # noqa: E402
from tests.tiny import ARCHITECTURES, tiny  # noqa: E402
from tests.views.tokens.dense import KEY_VALUES, MAIN, ONLY_EAGER, Dense, Table, batch, drawn, error, in_chunks  # noqa: E402

BATCH, RAN = batch(), drawn()
PASSES: dict[str, Any] = {"whole": None, "cached, one token at a time": range(1, 13), "cached, uneven": (7, 8, 9, 12)}


@torch.no_grad()
def errors_of(name: str, attention: str) -> list[dict[str, Any]]:
    model = tiny(name, attn_implementation=attention)
    rows: list[dict[str, Any]] = []
    for key_values in KEY_VALUES:
        row: dict[str, Any] = {"architecture": name, "attention": attention, "key_values": key_values}
        try:
            rows.append(row | {"errors": _measured(model, key_values), "refused": None})
        except InputError as refusal:
            rows.append(row | {"errors": {}, "refused": str(refusal)})
    return rows


def _measured(model: Any, key_values: Any) -> dict[str, float]:
    views = {
        execution: token_view(model, Table(RAN), key_values=key_values, prompt_depth="route", execution=execution)
        for execution in ("gather", "dense")
    }
    views["gather"](**BATCH.inputs(model))  # refusals first
    dense = Dense(model)
    expected = [dense(ids, ran[: len(ids)], key_values).logits[0] for ids, ran in zip(BATCH.rows(), RAN, strict=True)]
    found = {}
    for execution, view in views.items():
        for how, ends in PASSES.items():
            logits = in_chunks(view, BATCH, ends) if ends else view(**BATCH.inputs(model), use_cache=False).logits
            found[f"{execution}, {how}"] = error(BATCH.rows(logits), expected)
    return found


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line an architecture and attention: the largest error over executions and passes, by key values."""
    lines = [
        "| architecture | attention | " + " | ".join(KEY_VALUES) + " |",
        "| --- | --- |" + " ---: |" * len(KEY_VALUES),
    ]
    for name, attention in dict.fromkeys((row["architecture"], row["attention"]) for row in rows):
        mine = {r["key_values"]: r for r in rows if (r["architecture"], r["attention"]) == (name, attention)}
        cells = [f"{max(mine[k]['errors'].values()):.1e}" if mine[k]["errors"] else "refused" for k in KEY_VALUES]
        lines.append(f"| {name} | {attention} | " + " | ".join(cells) + " |")
    refused = dict.fromkeys(f"{row['architecture']}: {row['refused']}" for row in rows if row["refused"])
    return "\n".join([*lines, "", *(f"- {reason}" for reason in refused), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    names = [*MAIN, *(name for name in ARCHITECTURES if name not in MAIN)]
    rows = [
        row
        for name in names
        for attention in ("sdpa", "eager")
        if attention == "eager" or name not in ONLY_EAGER
        for row in errors_of(name, attention)
    ]
    about = {
        **environment(),
        "samples": len(BATCH.ids),
        "layers": RAN.shape[-1],
        "fraction_run": round(float(RAN.float().mean()), 4),
        "seeds": {"model": 0, "tokens": 1, "decisions": 2},
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "errors.json", {"about": about, "rows": rows})
    (out / "errors.md").write_text(markdown(rows), encoding="utf-8")
    print(markdown(rows))
    print(json.dumps(about))


if __name__ == "__main__":
    main()
