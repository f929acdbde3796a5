"""Tasks of the words that the tiny models know, as files of the harness; and their scores by the harness's own model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHOICES = [
    {"question": "the cat", "choices": ["sat on the mat", "ran to it", "is"], "answer": 0},
    {"question": "a dog ran", "choices": ["to the cat and sat", "in one", "by two or three dog"], "answer": 1},
    {"question": "one two three", "choices": ["four five six", "cat cat", "the mat is for it"], "answer": 0},
    {"question": "it was on the mat and", "choices": ["it", "it is in", "the dog sat at six"], "answer": 2},
    {"question": "six", "choices": ["five four three", "a mat", "in the cat as two"], "answer": 1},
]
DOCUMENTS: dict[str, list[dict[str, Any]]] = {
    "choice": CHOICES,
    "letter": [{**row, "choices": ["cat", "dog", "mat"]} for row in CHOICES],
    "answer": [{"question": row["question"], "answer": "the"} for row in CHOICES],
    "text": [{"text": f"{row['question']} {choice}"} for row in CHOICES for choice in row["choices"]],
    "last": [{"question": row["question"], "answer": row["choices"][2]} for row in CHOICES],
}
_ONE = """
task: tiny_{name}
tag: tiny
custom_dataset: !function tests.evals.documents.dataset
dataset_kwargs: {{name: {name}}}
test_split: test
num_fewshot: 0
{more}
metadata: {{version: 1.0}}
"""
_ASKED = 'doc_to_text: "{{question}}"\n'
_CHOICES = _ASKED + 'output_type: multiple_choice\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer'
_TASKS = {
    "choice": _CHOICES,
    "letter": _CHOICES,
    "answer": _ASKED
    + "output_type: generate_until\ndoc_to_target: answer\n"
    + "generation_kwargs: {until: [dog, 'mat and'], do_sample: false, max_gen_toks: 9}\n"
    + "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]",
    "text": 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"',
    "last": _ASKED + "output_type: loglikelihood\ndoc_to_target: ' {{answer}}'",
}
_GROUP = """
group: tiny_group
task: [tiny_choice, tiny_letter]
aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]
metadata: {version: 1.0}
"""


def dataset(*, name: str, **_: Any) -> dict[str, Any]:
    from datasets import Dataset

    return {"test": Dataset.from_list(DOCUMENTS[name])}


def write_tasks(folder: Path) -> Path:
    """Task files in a folder, which the harness takes as `include_path`."""
    folder.mkdir(exist_ok=True)
    for name, more in _TASKS.items():
        (folder / f"{name}.yaml").write_text(_ONE.format(name=name, more=more))
    (folder / "group.yaml").write_text(_GROUP)
    return folder


def responses(lm: Any, folder: Path, *names: str) -> dict[str, list[Any]]:
    """What a model of the harness says to each document of some tasks, in the harness's own loop."""
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    from depthdial.evals.harness import quiet_harness

    with quiet_harness():
        loaded = TaskManager(include_path=str(folder), include_defaults=False).load([f"tiny_{name}" for name in names])
        results: Any = evaluate(lm=lm, task_dict=loaded, bootstrap_iters=0)
    return {name: [one["resps"] for one in results["samples"][f"tiny_{name}"]] for name in names}
