from __future__ import annotations

from dataclasses import replace

import pytest

from depthdial.errors import InputError
from depthdial.measure.apart import prompt_hashes, require_apart, require_no_test_split


def test_a_hash_is_of_the_prompt_alone(small_task):
    renamed = replace(small_task, examples=tuple(replace(e, id=f"x{e.id}", reference="other") for e in small_task.examples))
    assert prompt_hashes(renamed) == prompt_hashes(small_task)
    assert len(set(prompt_hashes(small_task))) == len(small_task.examples)
    moved = replace(small_task.examples[0], instruction="", document=small_task.examples[0].instruction)
    assert prompt_hashes(replace(small_task, examples=(moved,)))[0] != prompt_hashes(small_task)[0]


def test_shared_prompts_are_refused(small_task):
    first, rest = (replace(small_task, examples=small_task.examples[part]) for part in (slice(0, 3), slice(3, None)))
    require_apart(first, prompt_hashes(rest), "to search the routes")
    with pytest.raises(InputError, match=r"3 of the 7 sequences \(such as 'small-0'\) were used to search the routes"):
        require_apart(small_task, prompt_hashes(first), "to search the routes")


def test_the_test_split_is_for_evaluation(small_task):
    require_no_test_split(replace(small_task, split="train"), "fit a controller")
    with pytest.raises(InputError, match="small's test split is for evaluation alone: fit a controller on train"):
        require_no_test_split(small_task, "fit a controller")
