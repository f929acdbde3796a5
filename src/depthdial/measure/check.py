"""What ships against what was studied: greedy answers of a folder, a GGUF file or a server beside the full model's.

Logits are not compared, for a server has none to show: answers are, as a user gets them. Their prompts run as the target
runs them, which for an exported route is the route.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from depthdial.checks import choice, share, whole
from depthdial.data.leakage import require_unsearched
from depthdial.data.tasks import EncodedExample, Task, as_task
from depthdial.errors import InputError
from depthdial.files import write_json
from depthdial.measure.endpoint import Completion
from depthdial.measure.plan import ModelIdentity, make_plan
from depthdial.measure.quality import ROUGE_TOKENIZERS, rouge
from depthdial.measure.references import Reference
from depthdial.measure.targets import LoadedTarget, Target, TargetLike, open_target
from depthdial.progress import progress_bar
from depthdial.rows.store import CHECK_COLUMNS, CHECK_FILE, RunSettings, UnitStore, unit_name
from depthdial.stats.intervals import Interval, known_interval, ratio_interval
from depthdial.stats.keeping import Answer, Keeping
from depthdial.stats.serialize import dump

# What a verdict is about, and how its sentence says so; in the order in which it is chosen.
METRICS: Mapping[str, str] = {
    "rouge_l": "the full model's ROUGE-L against the references",
    "rouge_l_answers": "the full model's answers (ROUGE-L between them)",
    "agreement": "the full model's answers up to their first difference",
}
SCORES = ("same", "agreement", "rouge_l_answers", "rouge_l", "rouge_l_full")
_END = -1  # in the place of a token: the model ended its answer


@dataclass(frozen=True)
class CheckResult:
    """A checked target.

    Attributes:
        rows: one for each sequence; the columns are `CHECK_COLUMNS` and the provenance.
        metric: what the verdict is about; see METRICS.
        scores: means with 95% intervals over sequences, by column; those without a number are left out.
    """

    target: str
    rows: pa.Table
    metric: str
    keeping: Keeping
    scores: Mapping[str, Interval]

    @property
    def answer(self) -> Answer:
        return self.keeping.answer

    @property
    def sentence(self) -> str:
        """The verdict in one line."""
        return self.keeping.sentence(METRICS[self.metric])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        told = {"target": self.target, "metric": self.metric, "answer": self.answer, "sentence": self.sentence}
        return {**told, **dump(self.keeping), "scores": dump(self.scores)}


def check(
    target: TargetLike,
    model: Any,
    tokenizer: Any,
    *,
    task: Task | str,
    keep: float = 0.95,
    metric: str | None = None,
    max_new_tokens: int = 64,
    batch_size: int = 8,
    served_model: str | None = None,
    api_key: str | None = None,
    send: str = "ids",
    rouge_tokenizer: str = "default",
    keep_text: bool = False,
    allow_searched_rows: bool = False,
    out: Path | str | None = None,
    identity: ModelIdentity | None = None,
    progress: bool = False,
) -> CheckResult:
    """Check something that ships against the full model, on rows that nothing was made on.

    Args:
        target: a folder or a .gguf file, which is loaded (of a GGUF file the weights as they are stored; to check llama.cpp
            itself, give its server's URL); the URL of an OpenAI-style server; or a (model, tokenizer).
        model: the full model. Adapters that are on it are off for its answers.
        keep: the share of the full model's quality to keep, for the verdict.
        metric: what the verdict is about: `rouge_l` (against the references, as a share of the full model's),
            `rouge_l_answers` (between both answers) or `agreement` (the share of the full answer's tokens before the first
            difference); None for the first that the rows have.
        max_new_tokens: longest answer, in tokens.
        batch_size: rows answered together, or asked of a server at once.
        served_model: which of a server's models; None for its only one.
        api_key: of a server.
        send: how prompts go to a server: `ids` (the very tokens) or `text`.
        rouge_tokenizer: `default` or `unicode`; see `sweep`.
        keep_text: put answers, prompts and references in the rows.
        allow_searched_rows: also check on rows that one of the models was trained on: it flatters them.
        out: a folder for the rows and the verdict. A stopped check goes on there.
        identity: which model this is, where the caller knows; found out otherwise.

    Raises:
        InputError: for bad arguments, a target that cannot be loaded or reached, and rows without what the metric needs.

    Example:
        >>> shallow = dd.view(model, "uls:50%")
        >>> dd.check((shallow, tokenizer), model, tokenizer, task=task, max_new_tokens=4).answer
        'no'
    """
    share("keep", keep)
    if metric is not None:
        choice("metric", metric, tuple(METRICS))
    choice("ROUGE tokenizer", rouge_tokenizer, ROUGE_TOKENIZERS)
    max_new_tokens = whole("max_new_tokens", max_new_tokens, 1)
    batch_size, task = whole("batch_size", batch_size, 1), as_task(task)
    reference = Reference.of(model, tokenizer)
    options = {"rouge_tokenizer": rouge_tokenizer, "keep_text": keep_text}
    settings = {"kind": "check", "max_new_tokens": max_new_tokens, "batch_size": batch_size, **options}
    about: dict[str, Any] = {"prompt_depth": "full", "identity": identity, "session": reference.session}
    plan = make_plan(model, tokenizer, task, ["full"], settings=settings, answer_tokens=max_new_tokens, **about)
    how = {"served_model": served_model, "api_key": api_key, "send": send}
    opened = open_target(target, task, plan.examples, tokenizer, **how)
    if not allow_searched_rows:
        for one in (model, opened.given) if isinstance(opened, LoadedTarget) else (model,):
            require_unsearched(task, model=one)
    run = RunSettings({**plan.run.settings, **opened.settings})
    store = UnitStore(run, CHECK_COLUMNS, None if out is None else Path(out))
    job = _Check(reference, tokenizer, opened, store, max_new_tokens, rouge_tokenizer, keep_text)
    places = reference.session.batches(range(len(plan.examples)), opened.batch_size(batch_size))
    units = []
    with progress_bar("check", len(plan.examples), show=progress) as advance:
        for batch in places:
            units.append(job.run(plan.examples, batch))
            advance(len(batch))
    result = judge(store.collect(units), keep, metric, opened.label)
    if out is not None:
        write_json(Path(out) / CHECK_FILE, result.to_dict())
    return result


@dataclass(frozen=True)
class _Check:
    """One check, as units of a few rows."""

    reference: Reference
    tokenizer: Any
    target: Target
    store: UnitStore
    max_new_tokens: int
    rouge_tokenizer: str
    keep_text: bool

    def run(self, examples: Sequence[EncodedExample], places: Sequence[int]) -> str:
        """Answer the rows at some places, if that has not been done; the unit that holds them."""
        batch = [examples[place] for place in places]
        unit = unit_name([example.id for example in batch], "check")
        if not self.store.has(unit):
            own = self._own(batch)
            theirs = self.target.answers(places, self.max_new_tokens)
            self.store.write(unit, map(self._row, batch, own, theirs))
        return unit

    def _own(self, batch: Sequence[EncodedExample]) -> list[Completion]:
        started = time.perf_counter()
        prefilled = self.reference.prefill(batch)
        decoded = self.reference.answers(batch, prefilled, self.max_new_tokens, self.store)
        each_sec = (time.perf_counter() - started) / len(batch)
        texts = [self.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in decoded.tokens]
        ended = [reason == "eos" for reason in decoded.finish_reasons]
        return [Completion(text, is_ended, each_sec) for text, is_ended in zip(texts, ended, strict=True)]

    def _row(self, example: EncodedExample, own: Completion, other: Completion) -> dict[str, Any]:
        mine, theirs = self._tokens(own), self._tokens(other)
        agreed = agreement(mine, theirs)
        texts = {
            "full_answer": own.text,
            "target_answer": other.text,
            "prompt": self.tokenizer.decode(example.prompt_ids, skip_special_tokens=True),
            "reference": example.reference,
        }
        return {
            "sequence_id": example.id,
            "prompt_tokens": len(example.prompt_ids),
            "full_tokens": len(mine) - own.is_ended,
            "target_tokens": len(theirs) - other.is_ended,
            "full_finish": "stop" if own.is_ended else "length",
            "target_finish": "stop" if other.is_ended else "length",
            "same": float(own.text == other.text),
            "agreement": agreed,
            "rouge_l_answers": self._rouge(other.text, own.text),
            "rouge_l": self._rouge(other.text, example.references),
            "rouge_l_full": self._rouge(own.text, example.references),
            "target_sec": other.seconds,
            **(texts if self.keep_text else {}),
        }

    def _tokens(self, answer: Completion) -> list[int]:
        """Of both answers by the full model's tokenizer, whatever made them."""
        ids = self.tokenizer(answer.text, add_special_tokens=False, verbose=False)["input_ids"]
        return [*ids, *([_END] if answer.is_ended else [])]

    def _rouge(self, answer: str, references: Any) -> float | None:
        return rouge(answer, references, tokenizer=self.rouge_tokenizer)["rouge_l"]


def agreement(own: Sequence[int], other: Sequence[int]) -> float:
    """The share of an answer's tokens that another one has too, up to the first difference.

    >>> agreement([5, 6, 7, 8], [5, 6, 9])
    0.5
    """
    n = next((i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), min(len(own), len(other)))
    return n / len(own) if own else float(not other)


def judge(rows: pa.Table, keep: float, metric: str | None = None, target: str = "") -> CheckResult:
    """The verdict of a check's rows.

    Raises:
        InputError: if no row has what the metric needs.
    """
    columns = {name: rows[name].to_numpy().astype(float) for name in SCORES}
    found = {name: known_interval(values) for name, values in columns.items()}
    kept = {name: found.get(name) for name in METRICS} | {
        "rouge_l": ratio_interval(columns["rouge_l"], columns["rouge_l_full"])
    }
    chosen = metric or next(name for name in METRICS if kept[name] is not None)
    interval = kept[chosen]
    if interval is None:
        raise InputError(
            f"No row can be judged by {chosen}: give rows with references that ROUGE sees, or leave the metric out."
        )
    scores = {name: one for name, one in found.items() if one is not None}
    return CheckResult(target, rows, chosen, Keeping(interval, keep), scores)
