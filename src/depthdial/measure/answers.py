"""The untouched full model's own greedy answers: what KL and agreement are measured on, made once a batch and kept.

Where a model has adapters, the reference is the model without them: its own pass over the prompts, its own answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from depthdial.data.tasks import EncodedExample
from depthdial.engine.decode import Decoded, DecodedPart
from depthdial.engine.prefill import Prefill
from depthdial.engine.session import Runner
from depthdial.errors import InputError
from depthdial.files import read_json, write_json
from depthdial.hf.facts import ModelFacts
from depthdial.rows.store import UnitStore, unit_name


def reference_prefill(runner: Runner, batch: Sequence[EncodedExample], prefilled: Prefill) -> Prefill:
    """The untouched full model's pass over a batch's prompts: `prefilled` itself where the model has no adapters on."""
    full = runner.untouched
    return prefilled if full is runner else full.prefill(batch)


def check_reference(model: Any, reference: Any) -> None:
    """InputError unless both models predict the same tokens."""
    own, other = (ModelFacts.of(one).vocabulary for one in (model, reference))
    if own != other:
        raise InputError(f"The reference model knows {other} tokens and this one {own}: compare models of one vocabulary.")


def full_answers(
    runner: Runner, store: UnitStore, batch: Sequence[EncodedExample], reference: Prefill, max_new_tokens: int
) -> Decoded:
    """The untouched full model's answers to a batch, from the store where a run that was stopped has left them.

    Args:
        reference: from `reference_prefill`.
    """
    path = store.note(unit_name([e.id for e in batch], f"answers of the full model, {max_new_tokens} tokens"))
    if path is not None and path.exists():
        return _restored(read_json(path, "answers"))
    answers = runner.untouched.decode(runner.full, reference, max_new_tokens)
    if path is not None:
        write_json(path, asdict(answers))
    return answers


def _restored(kept: dict[str, Any]) -> Decoded:
    parts = tuple(DecodedPart(tuple(one["rows"]), one["decode_sec"], one["steps"]) for one in kept.get("parts", ()))
    tokens = tuple(map(tuple, kept["tokens"]))
    return Decoded(tokens, tuple(kept["finish_reasons"]), kept["decode_sec"], kept["steps"], parts=parts)
