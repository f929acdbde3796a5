"""Tasks: sequences to measure on, each a prompt and, where there is one, a reference answer; and their token ids.

Where the rows come from is in `sources`, which of their fields are read in `fields`, and how a prompt is made of them and
cut to its budget in `templates`. Without references quality means fidelity to the full model.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from depthdial.checks import whole
from depthdial.data.fields import Columns, Example, check_roles, find_columns, mended
from depthdial.data.sources import Source, held_out_split, open_source
from depthdial.data.templates import Form, Prompter, Template, check_template, resolve_template
from depthdial.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """Sequences of one split of a data set and how to prompt for them.

    Attributes:
        name, split: of the data set; the split of a file used whole is "all".
        origin: a Hub id, the file's or folder's name, or "builtin".
        form: what the examples are.
        examples: in the order of the file, of which a limit keeps the first ones.
        template: "auto", "chat", "paper" or "plain"; "auto" is decided by the tokenizer.
        max_prompt_tokens, max_response_tokens: budgets to cut to; None for no cutting.
        seed: the one that divided a file into splits.
        source_fingerprint: sha256 of the texts of the whole split, the same whatever the limit.

    Example:
        >>> task = dd.task(data, limit=2)
        >>> task.examples[0].instruction
        'the cat'
    """

    name: str
    split: str
    origin: str
    form: Form
    examples: tuple[Example, ...]
    template: Template
    max_prompt_tokens: int | None
    max_response_tokens: int | None
    seed: int
    source_fingerprint: str

    @property
    def has_references(self) -> bool:
        """Whether every example has one."""
        return all(example.reference is not None for example in self.examples)

    @property
    def any_reference(self) -> bool:
        """Whether some example has one."""
        return any(example.reference is not None for example in self.examples)

    @property
    def fingerprint(self) -> str:
        """sha256 of all that decides the prompts and references of these examples, except the tokenizer."""
        settings = [self.form, self.template, self.max_prompt_tokens, self.max_response_tokens]
        texts = [[e.id, *e.texts()] for e in self.examples]
        return hashlib.sha256(json.dumps([settings, texts]).encode()).hexdigest()


@dataclass(frozen=True)
class EncodedExample:
    """One sequence as token ids.

    Attributes:
        prompt_ids: ends with the cue for the response, which follows directly.
        reference_ids: tokenised apart from the prompt, without special tokens, within the budget; empty if there is none.
        reference: its whole text, for ROUGE; None if there is none.
        references: all of them, the one above first.
    """

    id: str
    prompt_ids: tuple[int, ...]
    reference_ids: tuple[int, ...]
    reference: str | None
    references: tuple[str, ...] = ()


def task(
    name_or_path: str | os.PathLike[str],
    *,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    template: str | None = None,
    fields: Mapping[str, str] | None = None,
    max_prompt_tokens: int | None = None,
    max_response_tokens: int | None = None,
) -> Task:
    """The sequences that a name or a file stands for.

    Args:
        name_or_path: "builtin" (nothing to download; splits "calibration", 24 examples, and "test", 96), "alpaca",
            "cnn_dailymail", "samsum", "dolly" (from the Hub; needs `datasets`), a .jsonl, .json, .csv, .tsv, .parquet or
            .arrow file (text also compressed: .jsonl.gz), "-" for JSON Lines on standard input, or a folder of such files,
            one a split (test.jsonl) or laid out as the Hub does (data/test-00000-of-00002.parquet).
        split: default "test"; of a file, default the whole of it, and for "train", "validation" or "test" it is divided
            70/15/15. Alpaca and Dolly have one split on the Hub and are divided so too, always with the paper's seed, 42.
        limit: number of examples to keep, from the first; a higher limit only adds examples.
        seed: divides a file into splits.
        template: "auto" (default: the tokenizer's chat template, else the paper's), "chat", "paper" or "plain".
        fields: from roles to names of fields, where these are not known ones; see `depthdial.data.fields`.
        max_prompt_tokens, max_response_tokens: budgets to cut to; default those of the set (`sources.HUB_SETS`), none
            for "builtin" and for files.

    Raises:
        InputError: (a ValueError) if the name, split, template or a role is unknown, a number below 1, a file missing,
            empty or malformed, a row without the field or with anything but text in it, or the Hub out of reach.

    Example:
        >>> task = dd.task(data, limit=2)
        >>> len(task.examples)
        2
    """
    checked_template = check_template("auto" if template is None else template)
    counts = {"limit": limit, "max_prompt_tokens": max_prompt_tokens, "max_response_tokens": max_response_tokens}
    for name, count in counts.items():
        if count is not None:
            whole(name, count, 1)
    whole("seed", seed)
    if fields is not None:
        check_roles(fields)  # before anything is downloaded
    source = open_source(name_or_path, split, seed)
    columns = find_columns(source.columns, fields, source.origin)
    examples, source_fingerprint = _collect(source, columns, limit)
    return Task(
        name=source.name,
        split=source.split,
        origin=source.origin,
        form=columns.form,
        examples=examples,
        template=checked_template,
        max_prompt_tokens=source.max_prompt_tokens if max_prompt_tokens is None else max_prompt_tokens,
        max_response_tokens=source.max_response_tokens if max_response_tokens is None else max_response_tokens,
        seed=source.seed,
        source_fingerprint=source_fingerprint,
    )


def as_task(given: Task | str | os.PathLike[str], *, held_out: bool = False) -> Task:
    """A task, or the one that a name or a path stands for, as it is by default.

    Args:
        held_out: it is for searching, fitting or training: of what has splits, take one that is not for evaluation.

    Raises:
        InputError: as `task`, or for any other type.
    """
    if isinstance(given, Task):
        return given
    if not isinstance(given, str | os.PathLike):
        raise InputError(f"The argument task is {given!r}: give dd.task(..), the name of a task, or a path.")
    return task(given, split=held_out_split(given) if held_out else None)


def encode(task: Task, tokenizer: PreTrainedTokenizerBase, *, context_tokens: int | None = None) -> list[EncodedExample]:
    """Token ids of every example, cut to the task's budgets: the end of the document, and the end of the reference.

    Args:
        context_tokens: what the model can attend to, prompt and response together; None for no such bound. A reference is
            cut to what the prompt leaves of it, a prompt never.

    Raises:
        InputError: if a prompt leaves no room for a new token in the context, the template alone exceeds the budget, or
            a chat template is asked for that the tokenizer does not have.
    """
    prompter = Prompter(resolve_template(task.template, tokenizer), task.form, tokenizer)
    return [_encode_example(example, task, prompter, context_tokens) for example in task.examples]


def _encode_example(example: Example, task: Task, prompter: Prompter, context_tokens: int | None) -> EncodedExample:
    prompt_ids = prompter.fitted_ids(example.instruction, example.document, task.max_prompt_tokens, example.messages)
    if context_tokens is not None and len(prompt_ids) >= context_tokens:
        raise InputError(
            f"The prompt of example {example.id!r} is {len(prompt_ids)} tokens long and the model's context "
            f"{context_tokens}, which leaves no room for an answer: set max_prompt_tokens to cut long prompts."
        )
    reference_ids: list[int] = []
    if example.reference is not None:
        reference_ids = prompter.tokenizer(example.reference, add_special_tokens=False, verbose=False)["input_ids"]
    rooms = [task.max_response_tokens, None if context_tokens is None else context_tokens - len(prompt_ids)]
    kept = reference_ids[: min((room for room in rooms if room is not None), default=None)]
    return EncodedExample(example.id, tuple(prompt_ids), tuple(kept), example.reference, example.references)


def _collect(source: Source, columns: Columns, limit: int | None) -> tuple[tuple[Example, ...], str]:
    """The first `limit` examples and the fingerprint of all, in one pass that keeps only the texts asked for."""
    digest = hashlib.sha256(json.dumps(columns.form).encode())
    kept: list[tuple[int, Example]] = []
    own_ids: list[str] = []
    is_warned = False
    for number, row in source.read(columns.names):
        where = f"Row {number} of '{source.origin}'"
        given = columns.read(row, where)
        example = mended(given)
        if example is not given and not is_warned:
            _LOG.warning("%s holds half of a character: it is read as U+FFFD.", where)
            is_warned = True
        is_incomplete = example.is_blank or (columns.reference is not None and example.reference is None)
        if is_incomplete and source.skips_incomplete:
            continue
        if example.is_blank:
            raise InputError(f"{where} has an empty {columns.main!r}: fill it in, or leave the row out.")
        own_ids.append(example.id)
        digest.update(json.dumps([number, example.id or None, *example.texts()]).encode())
        if limit is None or len(kept) < limit:
            kept.append((number, example))
    if not kept:
        raise InputError(f"'{source.origin}' holds no rows to use in its {source.split} split: choose another.")
    # The rows' own ids if the whole split has unique ones, else numbered ones; so they do not depend on the limit.
    if all(own_ids) and len(set(own_ids)) == len(own_ids):
        return tuple(example for _, example in kept), digest.hexdigest()
    if columns.is_mapped and columns.id is not None:
        raise InputError(
            f"Field {columns.id!r} of '{source.origin}' is not a different number or text in every row: "
            "name another as id, or none."
        )
    stem = f"{source.name}-{source.split}"
    return tuple(replace(example, id=f"{stem}-{number:05d}") for number, example in kept), digest.hexdigest()
