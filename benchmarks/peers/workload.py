"""The prompts that peers answer, and the plain texts that they are scored on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import depthdial as dd
from benchmarks.peers.peer import Prompt, Subject
from depthdial.data.fields import Example
from depthdial.engine.requests import read_requests
from depthdial.engine.session import Session
from depthdial.errors import InputError
from depthdial.files import read_json, write_json

_BATCH = 16


@dataclass(frozen=True)
class Workload:
    """What is asked.

    Attributes:
        prompts: those that the full model answers at length come first.
        n_long: how many do: their answers are as long as is asked for, so that nothing is generated beyond an end.
        texts: plain texts to score, a word of context and the rest of each.
    """

    prompts: tuple[Prompt, ...]
    n_long: int
    texts: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, subject: Subject, task: str, n_prompts: int, new_tokens: int, file: Path) -> Workload:
        """Held-out prompts of a task or file, and their texts; which ones is kept in `file`.

        Raises:
            InputError: if there are fewer than asked for.
        """
        examples = [e for e in dd.task(task, split="test" if task == "builtin" else None).examples if e.instruction]
        asked = [f"{e.instruction}\n\n{e.document}" if e.document else e.instruction for e in examples]
        requests = read_requests(asked, None, "auto", subject.tokenizer)
        prompts = [Prompt(text, r.ids, e.reference) for text, r, e in zip(asked, requests, examples, strict=True)]
        if len(prompts) < n_prompts:
            raise InputError(f"The task {task} has {len(prompts)} prompts, and {n_prompts} are asked for: give fewer.")
        if not file.exists():
            write_json(file, {"long": _answered_at_length(subject, prompts, n_prompts, new_tokens)})
        long = read_json(file, "list of prompts")["long"]
        others = [i for i in range(len(prompts)) if i not in set(long)]
        chosen = tuple(prompts[i] for i in [*long, *others][:n_prompts])
        texts = [text.split(" ", 1) for e in examples if " " in (text := _plain(e))]
        return cls(chosen, min(len(long), n_prompts), tuple((first, f" {rest}") for first, rest in texts))

    def batch(self, rows: int, number: int) -> list[Prompt]:
        """The prompts of a round: other ones each time, as far as there are."""
        n = len(self.prompts)
        return [self.prompts[(number * rows + i) % n] for i in range(rows)]


def _plain(example: Example) -> str:
    return "\n".join(part for part in (example.instruction, example.document, example.reference) if part)


def _answered_at_length(subject: Subject, prompts: Sequence[Prompt], n_prompts: int, new_tokens: int) -> list[int]:
    """The places of the first prompts, at most so many, that the full model does not stop answering before."""
    ends = set(Session.of(subject.model, subject.tokenizer).eos_token_ids)
    found: list[int] = []
    for start in range(0, len(prompts), _BATCH):
        texts = [prompt.text for prompt in prompts[start : start + _BATCH]]
        answers = dd.generate(subject.model, subject.tokenizer, texts, max_new_tokens=new_tokens, batch_size=_BATCH)
        found += [start + i for i, a in enumerate(answers) if len(a.tokens) == new_tokens and a.tokens[-1] not in ends]
        if len(found) >= n_prompts:
            break
    return found[:n_prompts]
