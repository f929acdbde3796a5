"""How near an answer's model is to the full one, and how well it knows plain text and the task."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.peer import Peer, Prompt, Subject
from benchmarks.peers.workload import Workload
from depthdial.engine.teacher_forcing import Predictions
from depthdial.files import write_atomically, write_json
from depthdial.measure.quality import rouge
from depthdial.stats.intervals import ratio_interval

_ROWS = 8  # answers that are generated together


@dataclass(frozen=True)
class Exam:
    """What quality is measured on, as a folder that other processes read too.

    Attributes:
        prompts, answers: held-out prompts and the full model's own greedy answers to them, up to their ends.
        texts: a word of context and the rest of each.
        new_tokens: of generated answers.
        folder: holds the full model's logits on its answers, (n_tokens, vocabulary) each.
    """

    prompts: tuple[Prompt, ...]
    answers: tuple[tuple[int, ...], ...]
    texts: tuple[tuple[str, str], ...]
    new_tokens: int
    folder: Path

    @classmethod
    def of(cls, full: Peer, subject: Subject, workload: Workload, new_tokens: int, n_prompts: int, folder: Path) -> Exam:
        """The exam that the full model sets; read where it is there already."""
        if (folder / "exam.json").exists():
            return cls.read(folder)
        prompts, answers = workload.prompts[:n_prompts], []
        ends = {subject.tokenizer.eos_token_id}
        for i, prompt in enumerate(prompts):
            tokens = full.generate([prompt], new_tokens).tokens[0]
            end = next((place + 1 for place, token in enumerate(tokens) if token in ends), len(tokens))
            answers.append(tuple(tokens[:end]))
            logits = full.logits(prompt, answers[-1])
            assert logits is not None
            write_atomically(folder / f"{i:03d}.npy", functools.partial(_save, logits.numpy()))
        about = {
            "prompts": [[p.text, p.ids, p.reference] for p in prompts],
            "answers": answers,
            "texts": workload.texts[:n_prompts],
            "new_tokens": new_tokens,
        }
        write_json(folder / "exam.json", about)
        return cls.read(folder)

    @classmethod
    def read(cls, folder: Path) -> Exam:
        about = json.loads((folder / "exam.json").read_text(encoding="utf-8"))
        prompts = tuple(Prompt(text, tuple(ids), reference) for text, ids, reference in about["prompts"])
        answers, texts = tuple(map(tuple, about["answers"])), tuple(map(tuple, about["texts"]))
        return cls(prompts, answers, texts, about["new_tokens"], folder)

    def full(self, place: int) -> Predictions:
        return Predictions.of(torch.from_numpy(np.load(self.folder / f"{place:03d}.npy")))


def score(peer: Peer, exam: Exam) -> dict[str, Any]:
    """Scores of a prepared peer, each with its 95% interval over prompts or texts."""
    return {**_fidelity(peer, exam), **_on_texts(peer, exam), **_on_task(peer, exam)}


def _fidelity(peer: Peer, exam: Exam) -> dict[str, Any]:
    """Teacher-forced on the full model's answers: mean KL(full || peer) in nats and greedy agreement, over tokens.

    The first token of an answer, which a full prompt gives at any depth, counts with the others.
    """
    found = []
    for i, (prompt, answer) in enumerate(zip(exam.prompts, exam.answers, strict=True)):
        logits = peer.logits(prompt, answer)
        if logits is None:  # another tokenizer
            return {"kl": None, "agreement": None}
        found.append((*exam.full(i).fidelity(logits), len(answer)))
    kl, agreement, n_tokens = np.array(found, dtype=float).T
    means = {"kl": _per(kl * n_tokens, n_tokens), "agreement": _per(agreement * n_tokens, n_tokens)}
    return {**means, "n_tokens": int(n_tokens.sum())}


def _on_texts(peer: Peer, exam: Exam) -> dict[str, Any]:
    """Bits a byte of plain text behind its first word: the same bytes for every tokenizer."""
    found = []
    for context, rest in exam.texts:
        logits, tokens = peer.text_logits(context, rest)
        nats = torch.nn.functional.cross_entropy(logits, torch.tensor(tokens), reduction="sum").item()
        found.append((nats / float(np.log(2)), len(rest.encode())))
    bits, n_bytes = np.array(found, dtype=float).T
    return {"bits_per_byte": _per(bits, n_bytes), "n_bytes": int(n_bytes.sum())}


def _on_task(peer: Peer, exam: Exam) -> dict[str, Any]:
    scored = [prompt for prompt in exam.prompts if prompt.reference]
    values: list[float] = []
    rows = min(_ROWS, peer.most_rows or _ROWS)
    for start in range(0, len(scored), rows):
        part: Sequence[Prompt] = scored[start : start + rows]
        for prompt, tokens in zip(part, peer.generate(part, exam.new_tokens).tokens, strict=True):
            value = rouge(peer.text_of(tokens), str(prompt.reference))["rouge_l"]
            values += [] if value is None else [value]
    return {"rouge_l": _per(np.array(values), np.ones(len(values))) if values else None}


def _per(values: np.ndarray, bases: np.ndarray) -> dict[str, float] | None:
    """The sum of values over that of bases, as a mean with its interval."""
    found = ratio_interval(values, bases)
    return None if found is None else vars(found)


def _save(array: np.ndarray, part: Path) -> None:
    with part.open("wb") as file:  # numpy adds .npy to a path
        np.save(file, array)
