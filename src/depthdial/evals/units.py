"""One task at one depth, run by the harness, as a unit of results."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from lm_eval.evaluator import evaluate as run_harness

from depthdial.errors import InputError
from depthdial.evals.harness import quiet_harness
from depthdial.evals.lm_eval import DepthdialLM, Tally
from depthdial.evals.spread import parts, pooled, standard_error
from depthdial.provenance import environment
from depthdial.rows.evals import EvalScore, EvalUnit

_NOT_METRICS = ("alias", "name", "sample_len", "samples")


def run_unit(lm: DepthdialLM, name: str, loaded: Mapping[str, Any], *, limit: int | None, chat: bool) -> EvalUnit:
    """Evaluate a task, or a group with a score of its own.

    Args:
        loaded: of `Catalogue.load`.

    Raises:
        InputError: if the task wants what is not done here (several modalities, or to run code that the model writes), or a
            score is not finite.
    """
    _check(loaded["tasks"])
    lm.tally = Tally()
    started = time.perf_counter()
    try:
        with quiet_harness():
            results: Any = run_harness(
                lm=lm,
                task_dict=cast(Any, loaded),
                limit=limit,
                bootstrap_iters=0,  # standard errors are taken of the documents' own scores
                log_samples=True,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
            )
    except OverflowError:  # of a perplexity
        raise _not_finite(name, lm.depth.name, "a score") from None
    tasks, tally = loaded["tasks"], lm.tally
    by_task = {one: _scores(tasks[one], results, one) for one in tasks}
    group = (loaded.get("groups") or {}).get(name)
    scores = by_task[name] if group is None else _group_scores(group, results, by_task)
    bad = next((one for one in scores if not math.isfinite(one.value)), None)
    if bad is not None:
        raise _not_finite(name, lm.depth.name, bad.name)
    return EvalUnit(
        task=name,
        depth=lm.depth.name,
        route=str(lm.depth),
        layers=float(np.mean(tally.layers)),
        n_layers=lm.session.n_layers,
        prompt_depth=",".join(sorted(tally.prompts)),
        n_documents=sum(results["n-samples"][one]["effective"] for one in tasks),
        n_shot=_only([results["n-shot"][one] for one in tasks]),
        task_version=str(results["versions"].get(name, "")),
        scores=scores,
        chance=_chance(tasks, limit),
        one_token_share=tally.single / tally.continuations if tally.continuations else None,
        sec=time.perf_counter() - started,
        provenance=environment(),
    )


def _not_finite(task: str, depth: str, what: str) -> InputError:
    return InputError(
        f"On the task {task!r} at the depth {depth!r} {what} is not finite: try --dtype float32, or a deeper one; what was "
        "finished before is kept."
    )


def _check(tasks: Mapping[str, Any]) -> None:
    for name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise InputError(
                f"The task {name!r} runs code that the model writes: use `python -m depthdial.evals` with "
                "--confirm_run_unsafe_code."
            )
        if getattr(task, "MULTIMODAL", False):
            raise InputError(f"The task {name!r} has images or sound, and only text is evaluated: take another one.")


def _scores(task: Any, results: Mapping[str, Any], name: str) -> tuple[EvalScore, ...]:
    return tuple(
        _score(
            key,
            value,
            [one[metric] for one in results["samples"][name] if one["filter"] == filter_ and metric in one],
            task.aggregation().get(metric, np.mean),
            results["higher_is_better"][name].get(metric),
        )
        for key, value in results["results"][name].items()
        for metric, _, filter_ in [key.partition(",")]
        if _is_metric(key, value)
    )


def _score(key: str, value: float, items: Sequence[Any], metric: Any, higher_is_better: bool | None) -> EvalScore:
    name, _, filter_ = key.partition(",")
    each = parts(items, float(value)) if items else None
    stderr = standard_error(each, items, metric)
    return EvalScore(name, filter_, float(value), stderr, higher_is_better, () if each is None else tuple(each.tolist()))


def _group_scores(
    group: Any, results: Mapping[str, Any], by_task: Mapping[str, tuple[EvalScore, ...]]
) -> tuple[EvalScore, ...]:
    """Of a group: means over its tasks, as its file asks for them."""
    found = []
    sizes = {one.metric: one.weight_by_size for one in group.aggregate_metric_list or ()}
    for key, value in results["results"][group.name].items():
        if not _is_metric(key, value):
            continue
        metric, _, filter_ = key.partition(",")
        own = [one for scores in by_task.values() for one in scores if (one.metric, one.filter) == (metric, filter_)]
        each = None
        if own and all(one.each for one in own):
            each = pooled([np.array(one.each) for one in own], float(value), sizes.get(metric, True))
        stderr = None if each is None else standard_error(each, list(each), np.mean)
        higher = _only([one.higher_is_better for one in own])
        found.append(EvalScore(metric, filter_, float(value), stderr, higher, () if each is None else tuple(each.tolist())))
    return tuple(found)


def _is_metric(key: str, value: Any) -> bool:
    named = key not in _NOT_METRICS and "_stderr" not in key
    return named and isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _chance(tasks: Mapping[str, Any], limit: int | None) -> float | None:
    """Accuracy of guessing among the choices; None unless all tasks have choices."""
    shares: list[float] = []
    for task in tasks.values():
        if task.OUTPUT_TYPE != "multiple_choice" or getattr(task, "multiple_input", 0):
            return None
        docs = task.eval_docs if limit is None else [task.eval_docs[i] for i in range(min(limit, len(task.eval_docs)))]
        shares += [1 / len(task.doc_to_choice(doc)) for doc in docs]
    return float(np.mean(shares)) if shares else None


def _only(values: Sequence[Any]) -> Any:
    """The one value of all; None where they differ."""
    return values[0] if values and all(one == values[0] for one in values) else None
