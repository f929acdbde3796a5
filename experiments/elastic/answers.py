"""Answers of the elastic adapter that ships to twenty prompts of our own, at every depth, to be read.

    python experiments/elastic/answers.py [--adapter elastic]

Greedy, at most 64 tokens, the prompt at full depth. Leaves answers.json and answers.md.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import depthdial as dd
from depthdial.files import write_json, write_text
from depthdial.provenance import environment

MODEL = "smollm2-135m"
NEW_TOKENS = 64
PROMPTS = (
    "Explain in two sentences why the sky is blue.",
    "Give three tips for falling asleep faster.",
    "Write a short thank-you note to a neighbour who watered my plants.",
    "What is the difference between weather and climate?",
    "List five vegetables that are green.",
    "Turn this into a question: The train leaves at noon.",
    "Suggest a name for a small bakery by the sea.",
    "Summarise in one sentence: The bridge was closed for two weeks because its cables had rusted and had to be replaced.",
    "How do I boil an egg?",
    "Why should I drink water every day?",
    "Write two lines of a poem about autumn.",
    "What does a librarian do?",
    "Name three things to pack for a hike.",
    "Explain what a prime number is to a child.",
    "Correct the grammar: She don't likes apples.",
    "Describe a cat in one sentence.",
    "What is the capital of France, and what is it known for?",
    "Give one reason to learn a second language.",
    "How can I save electricity at home?",
    "Write a polite e-mail that asks to move a meeting to Friday.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", default="elastic")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    model, tokenizer = dd.load(MODEL, adapter=options.adapter)
    card = dd.adapter_card(model)
    assert card is not None
    found: dict[str, dict[str, Any]] = {prompt: {} for prompt in PROMPTS}
    for route in sorted(card.routes, key=len, reverse=True):
        for prompt, answer in zip(PROMPTS, answers_at(model, tokenizer, route), strict=True):
            found[prompt][str(len(route))] = answer.text
    rows = [{"prompt": prompt, "answers": answers} for prompt, answers in found.items()]
    about = {"model": MODEL, "adapter": options.adapter, "max_new_tokens": NEW_TOKENS, **environment()}
    write_json(options.out / "answers.json", {**about, "rows": rows})
    print(write_text(options.out / "answers.md", page(rows)))


def answers_at(model: Any, tokenizer: Any, route: dd.Route) -> Any:
    """The answers to all prompts at one depth."""
    return dd.generate(model, tokenizer, list(PROMPTS), depth=route, max_new_tokens=NEW_TOKENS, prompt_depth="full")


def page(rows: list[dict[str, Any]]) -> str:
    """Markdown: each prompt with its answers, deepest first."""
    counts = {layers: sum(loops(row["answers"][layers]) for row in rows) for layers in rows[0]["answers"]}
    told = ", ".join(f"{n} with {layers} layers" for layers, n in counts.items())
    parts = [
        f"Answers of the elastic adapter to prompts of our own, greedy, at most {NEW_TOKENS} tokens "
        "(`experiments/elastic/answers.py`).",
        f"Of {len(rows)} answers fall into a loop (four words in a row stand there three times or more): {told}.",
    ]
    for row in rows:
        told = [f"- {layers} layers: {' '.join(text.split())}" for layers, text in row["answers"].items()]
        parts.append("\n".join([f"**{row['prompt']}**", "", *told]))
    return "\n\n".join(parts) + "\n"


def loops(answer: str) -> bool:
    """Whether some four words in a row stand in an answer three times or more.

    >>> loops("the sea and the sea and the sea and the sea and the sea"), loops("The sea, and the sea again.")
    (True, False)
    """
    words = answer.lower().split()
    found = Counter(tuple(words[i : i + 4]) for i in range(len(words) - 3))
    return max(found.values(), default=0) >= 3


if __name__ == "__main__":
    main()
