"""Lossless self-speculation against plain decoding of the same answers: ordinary prompts, and prompts whose answers copy.

In turns in one run; ratios are taken within a round, and the answers are compared token by token. Where drafts do not pay,
decoding is plain after a few probes: no cell may then take more than 2% longer. Prompts of the copying kind are made of the
built-in rows: a text to be repeated, and a list of numbered lines of which one is to be changed.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

from common import arguments, in_turns, long_answers, publish

import depthdial as dd


def main() -> None:
    options = arguments(
        __doc__, "speculation.json", model="smollm2-135m", rounds=3, tokens=96, rows="1,4", depths="lossless,lossless:lookup"
    )
    model, tokenizer = dd.load(options.model)
    table = []
    for kind, texts in _prompts(model, tokenizer, options.tokens).items():
        for n_rows in map(int, options.rows.split(",")):
            table += _cell(model, tokenizer, kind, texts[:n_rows], options)
    publish(f"Self-speculation of {options.model}, {options.tokens} tokens", table, options)


def _cell(model: Any, tokenizer: Any, kind: str, prompts: Sequence[str], options: Any) -> list[dict[str, Any]]:
    depths = ["full", *options.depths.split(",")]
    last: dict[str, list[Any]] = {}

    def decode_sec(depth: str) -> float:
        last[depth] = dd.generate(
            model, tokenizer, list(prompts), depth=depth, max_new_tokens=options.tokens, batch_size=len(prompts)
        )
        return last[depth][0].decode_sec

    # The round that is not counted measures what a pass costs.
    times = in_turns({depth: partial(decode_sec, depth) for depth in depths}, options.rounds)
    plain = [answer.tokens for answer in last["full"]]
    rows = []
    for depth in depths[1:]:
        told = last[depth][0].speculation
        ratios = [a / b for a, b in zip(times["full"], times[depth], strict=True)]
        rows.append(
            {
                "prompts": kind,
                "rows": len(prompts),
                "depth": depth,
                "tokens": max(map(len, plain)),
                "times plain": statistics.median(ratios),
                "least": min(ratios),
                "most": max(ratios),
                "accepted": "" if told is None or not told.drafted else told.acceptance,
                "equal": [answer.tokens for answer in last[depth]] == plain,
                "drafts": "none" if told is None else "on" if told.is_on else "off",
                "expected": "" if told is None or told.expected_speedup is None else told.expected_speedup,
            }
        )
    return rows


def _prompts(model: Any, tokenizer: Any, tokens: int) -> dict[str, list[str]]:
    examples = [example.instruction for example in dd.task("builtin").examples]
    text = " ".join(one for one in examples[:6])
    lists = ["\n".join(f"{i + 1}. {one}" for i, one in enumerate(examples[n : n + 6])) for n in range(0, 24, 6)]
    return {
        "ordinary": [one.instruction for one in long_answers(model, tokenizer, min(tokens, 64), 4).examples],
        "copying": [f"Repeat the following text word for word:\n{text[n * 40 :]}" for n in range(4)],
        "editing": [f"Here is a list.\n{one}\nWrite the same list again, with every number in brackets." for one in lists],
    }


if __name__ == "__main__":
    main()
