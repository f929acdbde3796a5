"""Which tokens of a step are of answers."""

from __future__ import annotations

from depthdial.vllm.steps import answer_tokens, is_answer


def test_outside_a_step_nothing_is_known() -> None:
    assert answer_tokens() is None


def test_a_step_of_answers_alone() -> None:
    assert is_answer([5, 9], [1, 1], [5, 3]).tolist() == [True, True]


def test_parts_of_prompts_are_no_answers() -> None:
    # the last part of a prompt may be one token, as a step of decoding is
    assert is_answer([0, 4, 8], [2, 1, 1], [9, 5, 8]).tolist() == [False, False, False, True]


def test_a_request_that_is_computed_again_has_prompt_and_answer_in_one_step() -> None:
    assert is_answer([0], [5], [3]).tolist() == [False, False, False, True, True]
