"""Instructions that the model writes itself, with its own answers: data of every kind, and nobody else's text.

    python experiments/elastic/prompts.py --data INSTRUCTLAB_DIR --out runs/elastic/data

A chat model that is given its template up to the place of the user's message writes one (Magpie, Xu et al., arXiv
2406.08464). Six of ten are begun for it, with a line of openers.txt, as people begin who ask an assistant in one sentence.
Instructions of InstructLab (`--given`) are mixed in. Answers are greedy, at full depth. Leaves train.jsonl (instruction,
output). A stopped run goes on; what is written is not written again.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import depthdial as dd
from depthdial.errors import InputError
from depthdial.files import claim, read_json, write_json, write_text

MODEL = "smollm2-135m"
OPENERS = tuple((Path(__file__).parent / "openers.txt").read_text(encoding="utf-8").splitlines())
BEGUN = 0.6
PROMPT_TOKENS, ANSWER_TOKENS = 72, 112
AT_ONCE = 256
SAMPLING = {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "top_k": 0, "repetition_penalty": 1.0}
USER = "HERE STANDS WHAT THE USER SAYS"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl of InstructLab")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--own", type=int, default=1900, help="instructions that the model writes")
    parser.add_argument("--given", type=int, default=700, help="instructions of InstructLab")
    parser.add_argument("--skip", type=int, default=3600, help="InstructLab's rows that an earlier run has learned")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    given = dd.task(options.data, split="train", limit=options.skip + options.given, max_prompt_tokens=160)
    if len(given.examples) < options.skip + options.given:
        raise InputError(f"{options.data} has {len(given.examples)} rows, too few for --skip and --given: ask for fewer.")
    about = {name: getattr(options, name) for name in ("own", "given", "skip", "seed")}
    claim(options.out / "prompts.json", {**about, "data": given.fingerprint}, "set of instructions")
    model, tokenizer = dd.load(MODEL, dtype="bfloat16")
    cue = tokenizer.apply_chat_template([{"role": "user", "content": USER}], tokenize=False).split(USER)[0]
    with dd.Engine(model, tokenizer, max_rows=64) as engine:

        def write(begun: Sequence[str], seed: int) -> list[str]:
            texts = [cue + text for text in begun]
            found = engine.run(texts, template="plain", max_new_tokens=PROMPT_TOKENS, seed=seed, **SAMPLING)
            return [text + one.text for text, one in zip(begun, found, strict=True) if one.finish_reason == "eos"]

        own = instructions(write, options.own, options.seed, options.out / "own")
        asked = [*own, *(one.instruction for one in given.examples[options.skip :])]
        random.Random(options.seed).shuffle(asked)
        rows = answered(engine, asked, options.out / "answers")
    write_text(options.out / "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} rows, of {len(own)} instructions of the model's own and {len(asked) - len(own)} others")


def instructions(write: Callable[[Sequence[str], int], list[str]], wanted: int, seed: int, folder: Path) -> list[str]:
    """So many different instructions: `write` gets beginnings and a seed, and gives those that it brought to an end."""
    draw = random.Random(seed)
    found: dict[str, None] = {}
    for place in range(max(8, wanted // 16)):
        path = folder / f"{place:03}.json"
        begun = [draw.choice(OPENERS) if draw.random() < BEGUN else "" for _ in range(AT_ONCE)]
        if not path.exists():
            write_json(path, write(begun, seed + place))
        texts = (text.strip() for text in read_json(path, "instructions"))
        found.update(dict.fromkeys(text for text in texts if is_instruction(text)))
        print(f"{len(found)} of {wanted} instructions")
        if len(found) >= wanted:
            return list(found)[:wanted]
    raise SystemExit(f"The model repeats itself: {len(found)} instructions of {wanted}. Ask for fewer.")


def is_instruction(text: str) -> bool:
    """Whether a person could ask it: two words or more, plain letters, no other turn of a conversation inside."""
    return len(text.split()) > 1 and text.isascii() and "assistant" not in text


def answered(engine: dd.Engine, asked: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """Rows of instructions and the model's greedy answers, those without an answer left out; AT_ONCE of them a file."""
    rows: list[dict[str, Any]] = []
    for start in range(0, len(asked), AT_ONCE):
        path, some = folder / f"{start // AT_ONCE:03}.json", asked[start : start + AT_ONCE]
        if not path.exists():
            texts = [one.text for one in engine.run(list(some), max_new_tokens=ANSWER_TOKENS, do_sample=False)]
            write_json(path, [{"instruction": one, "output": text} for one, text in zip(some, texts, strict=True)])
        rows += [row for row in read_json(path, "answers") if row["output"].strip()]
        print(f"{len(rows)} of {len(asked)} answers")
    return rows


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
