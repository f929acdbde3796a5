"""Instructions that the model writes itself, with its own answers: data of every kind, and nobody else's text.

    python experiments/elastic/prompts.py --data INSTRUCTLAB_DIR --out runs/elastic/data [--own 1800 --given 700]

A chat model that is given its template up to the place of the user's message writes one (Magpie, Xu et al., arXiv
2406.08464). Half of them are begun for it, with one of OPENERS, for what people ask of an assistant in one sentence; to the
others, and to `--given` instructions of InstructLab, nothing is added. Answers are greedy, at full depth. Leaves
train.jsonl (instruction, output) and how each row was made; what is written already is not written again.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import depthdial as dd
from depthdial.files import read_json, write_json, write_text

MODEL = "smollm2-135m"
OPENERS = (
    *("Write a", "Write an", "Write", "Create a", "Generate a", "Describe", "Describe the", "Explain", "Explain how", "Explain the"),
    *("Give me", "Give an example of", "Name", "List", "List three", "Suggest a", "Suggest", "Summarize the following", "Rewrite"),
    *("Rewrite the following sentence", "Edit the following", "Classify the following", "Identify the", "Find the", "Convert"),
    *("Translate", "Compare", "Compare and contrast", "Design a", "Compose a", "Construct a", "Develop a", "Provide", "Provide a"),
    *("Tell me", "What is", "What are", "What is the", "What", "How", "How do", "How can", "How does", "Why", "Why do", "Who"),
    *("When", "Where", "Which", "Is", "Does", "Should", "Do", "Arrange the following", "Come up with", "Categorize", "Predict"),
    *("Calculate the", "Discuss", "Analyze", "Outline", "Propose", "Imagine", "Choose", "Make a list of", "Define", "State"),
)
ANSWER_TOKENS, PROMPT_TOKENS = 112, 72
AT_ONCE = 256
MARK = "HERE STANDS WHAT THE USER SAYS"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl of InstructLab")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--own", type=int, default=1800, help="instructions that the model writes")
    parser.add_argument("--given", type=int, default=700, help="instructions of InstructLab")
    parser.add_argument("--skip", type=int, default=3600, help="of InstructLab's rows, those that an earlier run has learned")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    model, tokenizer = dd.load(MODEL, dtype="bfloat16")
    with dd.Engine(model, tokenizer, max_rows=64) as engine:
        own = prompts(engine, tokenizer, options)
        given = dd.task(options.data, split="train", limit=options.skip + options.given, max_prompt_tokens=160).examples
        asked = [*own, *(one.instruction for one in given[options.skip :])]
        random.Random(options.seed).shuffle(asked)
        rows = answered(engine, asked, options.out)
    write_text(options.out / "train.jsonl", lines(rows))
    print(f"{len(rows)} rows, {len(own)} of them the model's own: {options.out / 'train.jsonl'}")


def prompts(engine: dd.Engine, tokenizer: Any, options: argparse.Namespace) -> list[str]:
    """Instructions that the model writes, each once, that end within PROMPT_TOKENS."""
    cue = tokenizer.apply_chat_template([{"role": "user", "content": MARK}], tokenize=False).split(MARK)[0]
    draw = random.Random(options.seed)
    found: dict[str, None] = {}
    for place in range(1_000):
        path = options.out / "own" / f"{place:03}.json"
        if not path.exists():
            begun = [draw_opener(draw) for _ in range(AT_ONCE)]
            chance: dict[str, Any] = {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "top_k": 0, "repetition_penalty": 1.0}
            written = engine.run(
                [cue + text for text in begun],
                template="plain",
                max_new_tokens=PROMPT_TOKENS,
                seed=options.seed + place,
                **chance,
            )
            pairs = zip(begun, written, strict=True)
            write_json(path, [begin + one.text for begin, one in pairs if one.finish_reason == "eos"])
        found.update(dict.fromkeys(text.strip() for text in read_json(path, "prompts") if is_instruction(text)))
        if len(found) >= options.own:
            return list(found)[: options.own]
        print(f"{len(found)} of {options.own} instructions")
    raise SystemExit("The model repeats itself.")


def draw_opener(draw: random.Random) -> str:
    return draw.choice(OPENERS) if draw.random() < 0.6 else ""


def is_instruction(text: str) -> bool:
    """Whether a text is what a person could ask: two words or more, plain letters, no turn of a conversation inside."""
    return len(text.split()) > 1 and text.isascii() and "assistant" not in text


def answered(engine: dd.Engine, asked: Sequence[str], folder: Path) -> list[dict[str, str]]:
    """Rows of the instructions with their greedy answers, `AT_ONCE` of them in a file."""
    rows: list[dict[str, str]] = []
    for place, some in enumerate(in_parts(asked)):
        path = folder / "answers" / f"{place:03}.json"
        if not path.exists():
            found = engine.run(list(some), max_new_tokens=ANSWER_TOKENS, do_sample=False)
            texts = [one.text for one in found]
            write_json(path, [{"instruction": prompt, "output": text} for prompt, text in zip(some, texts, strict=True)])
        rows += [row for row in read_json(path, "answers") if row["output"].strip()]
        print(f"{len(rows)} of {len(asked)} answers")
    return rows


def in_parts(asked: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(asked), AT_ONCE):
        yield asked[start : start + AT_ONCE]


def lines(rows: Sequence[dict[str, str]]) -> str:
    import json

    return "".join(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
