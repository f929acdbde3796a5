"""Training rows: tokens of a prompt and a response, which is the reference or the full model's own answer.

Distilling on what the full model itself says (sequence-level distillation, Kim and Rush, arXiv 1606.07947) trains a route
where it will run: behind the text that such a model writes, not behind somebody else's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depthdial.data.tasks import EncodedExample, Task, encode
from depthdial.data.templates import resolve_template
from depthdial.engine.session import Session
from depthdial.errors import InputError
from depthdial.files import read_json, write_json
from depthdial.hf.ends import turn_end
from depthdial.progress import progress_bar
from depthdial.rows.store import unit_name

ANSWERS = ("reference", "model", "both")

# Fewer rows than this teach a model nothing but themselves.
MIN_ROWS = 8
_ANSWER_BATCH = 32


@dataclass(frozen=True)
class TrainingRow:
    """One sequence to train on: an example's prompt, which ends with the cue for the response, and what is learned."""

    id: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]  # at least one token; with the end token unless the text was cut

    @property
    def n_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


def training_rows(
    task: Task,
    tokenizer: Any,
    session: Session,
    *,
    answers: str = "reference",
    folder: Path | None = None,
    progress: bool = False,
    check: Callable[[], None] = lambda: None,
) -> list[TrainingRow]:
    """The rows of a task, ready to train on; `both` takes every other row's answer from the model.

    Args:
        session: the untouched full model, which writes its own answers where they are asked for: greedy ones, of at most
            the task's `max_response_tokens` (128 without one).
        folder: where its answers are kept, so that a run that was stopped does not write them again.
        check: called before each batch of answers is written; an error that it raises stops the run.

    Raises:
        InputError: if rows lack the references asked for, or fewer than MIN_ROWS are left.
    """
    examples = encode(task, tokenizer, context_tokens=session.context_tokens)
    own = [e for e in examples if answers == "model" or (answers == "both" and _is_drawn(e.id))]
    written = _own_answers(own, session, task.max_response_tokens or 128, folder, progress, check)
    end = _end_token(task, tokenizer, session)
    rows = [written.get(e.id) or _reference_row(e, task.max_response_tokens, session.context_tokens, end) for e in examples]
    missing = next((row.id for row in rows if not row.response_ids), None)
    if missing is not None:
        raise InputError(
            f"Row {missing!r} has no answer to learn from: leave it out, or train on the model's own (answers='model')."
        )
    if len(rows) < MIN_ROWS:
        raise InputError(f"{len(rows)} rows are too few to train on: give at least {MIN_ROWS}, better some thousands.")
    return rows


def _is_drawn(row_id: str) -> bool:
    # By the row's id and not by its place, so that another limit does not change which rows are answered.
    return hashlib.sha256(row_id.encode()).digest()[0] % 2 == 0


def _end_token(task: Task, tokenizer: Any, session: Session) -> tuple[int, ...]:
    """What a response is taught to end with: the chat template's end of turn behind chat prompts, else the end token."""
    end = turn_end(tokenizer) if resolve_template(task.template, tokenizer) == "chat" else None
    end = tokenizer.eos_token_id if end is None else end
    return session.eos_token_ids[:1] if end is None else (end,)


def _reference_row(example: EncodedExample, most: int | None, context: int | None, end: Sequence[int]) -> TrainingRow:
    # A text that fills the budget or the context was cut, as far as can be told, and must not teach the model to stop there.
    rooms = [most, None if context is None else context - len(example.prompt_ids)]
    is_cut = any(room is not None and len(example.reference_ids) >= room for room in rooms)
    response = example.reference_ids if is_cut or not example.reference_ids else (*example.reference_ids, *end)
    return TrainingRow(example.id, example.prompt_ids, response)


def _own_answers(
    examples: Sequence[EncodedExample],
    session: Session,
    most: int,
    folder: Path | None,
    progress: bool,
    check: Callable[[], None],
) -> dict[str, TrainingRow]:
    """The full model's greedy answers, by row id; batches of like length, each kept as one file."""
    ordered = sorted(examples, key=lambda e: (len(e.prompt_ids), e.id))
    batches = session.batches(ordered, _ANSWER_BATCH)
    found: dict[str, TrainingRow] = {}
    with progress_bar("answers", len(batches), show=progress and bool(batches)) as advance:
        for batch in batches:
            path = None if folder is None else folder / f"{unit_name([e.id for e in batch], f'own answers {most}')}.json"
            if path is not None and path.exists():
                tokens = read_json(path, "answers")["tokens"]
            else:
                check()
                tokens = session.decode(session.full, session.prefill(batch), most).tokens
                if path is not None:
                    write_json(path, {"tokens": tokens})
            for example, response in zip(batch, tokens, strict=True):
                found[example.id] = TrainingRow(example.id, example.prompt_ids, tuple(response))
            advance()
    return found
