# pyright: reportMissingImports=false
"""Which tokens of the step that vLLM's runner has begun are of answers: by the lengths of prompts that the runner keeps."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from depthdial.vllm.wrap import wrap


@dataclass
class _Running:
    """The step of this process: a worker runs one at a time. `read` gives what `is_answer` takes."""

    read: Callable[[], tuple[Any, Any, Any]] | None = None


_RUNNING = _Running()


def answer_tokens() -> np.ndarray | None:
    """For each token of the step, in its order, whether it is of an answer; None outside a step of requests."""
    return None if _RUNNING.read is None else is_answer(*_RUNNING.read())


def is_answer(computed: Any, scheduled: Any, prompts: Any) -> np.ndarray:
    """Whether each token is of an answer, (n_tokens,) booleans.

    Args:
        computed, scheduled, prompts: for each request of a step, in its order, tokens that are computed already, tokens
            that this step computes, and tokens of the prompt.

    Example:
        >>> from depthdial.vllm.steps import is_answer
        >>> is_answer([4, 0, 2], [1, 2, 3], [4, 5, 3]).tolist()
        [True, False, False, False, True, True]
    """
    computed, scheduled, prompts = (np.asarray(one, dtype=np.int64) for one in (computed, scheduled, prompts))
    first = np.repeat(np.cumsum(scheduled) - scheduled, scheduled)
    position = np.arange(int(scheduled.sum())) - first + np.repeat(computed, scheduled)
    return position >= np.repeat(prompts, scheduled)


def watch() -> None:
    """Take note of each step that vLLM's runner begins, in whichever of its two runners this process has loaded."""
    runner = _runner_of("vllm.v1.worker.gpu_model_runner")
    if runner is not None:
        wrap(runner, "execute_model", _step_of_first_runner)
    runner = _runner_of("vllm.v1.worker.gpu.model_runner")
    if runner is not None:
        wrap(runner, "execute_model", _step_of_second_runner)
        wrap(runner, "prepare_inputs", _note_batch)


def _runner_of(module: str) -> type | None:
    return getattr(sys.modules.get(module), "GPUModelRunner", None)


def _step_of_first_runner(execute: Any, runner: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
    def read() -> tuple[Any, Any, Any]:
        batch = runner.input_batch
        n = batch.num_reqs
        scheduled = [scheduler_output.num_scheduled_tokens[request] for request in batch.req_ids[:n]]
        return batch.num_computed_tokens_cpu[:n], scheduled, batch.num_prompt_tokens[:n]

    _RUNNING.read = read
    try:
        return execute(runner, scheduler_output, *args, **kwargs)
    finally:
        _RUNNING.read = None


def _step_of_second_runner(execute: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return execute(runner, *args, **kwargs)
    finally:
        _RUNNING.read = None


def _note_batch(prepare: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    batch = prepare(runner, *args, **kwargs)
    prompts = runner.req_states.prompt_len.np[batch.idx_mapping_np]
    _RUNNING.read = lambda: (batch.num_computed_tokens_np, batch.num_scheduled_tokens, prompts)
    return batch
