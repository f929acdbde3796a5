from __future__ import annotations

from dataclasses import replace

import pytest

from depthdial.errors import InputError
from depthdial.train.depth.settings import LEARNING_RATES, FinetuneSettings
from depthdial.train.rows import ANSWERS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("method", "qlora"),
        ("prompt_depth", "half"),
        ("answers", "mine"),
        ("weights_dtype", "int8"),
        ("r", 0),
        ("lora_alpha", 0),
        ("batch_size", 2.5),
        ("accumulation", True),
        ("max_tokens", -1),
        ("epochs", 0),
        ("epochs", float("inf")),
        ("temperature", 0.0),
        ("temperature", float("nan")),
        ("learning_rate", -1e-3),
        ("cross_entropy", 1.5),
        ("warmup_fraction", -0.1),
        ("weight_decay", -1),
        ("routes_per_step", 0),
        ("ends_every", 0),
        ("save_every", 0),
        ("max_minutes", 0),
        ("max_minutes", float("inf")),
        ("max_minutes", "2"),
        ("save_minutes", float("nan")),
        ("emphasis", {"uls:3": -1}),
    ],
)
def test_what_cannot_be_is_refused(field, value):
    with pytest.raises(InputError, match=field if field not in ("method", "prompt_depth") else "Unknown"):
        replace(FinetuneSettings(), **{field: value})


def test_unknown_answers():
    assert [FinetuneSettings(answers=name).answers for name in ANSWERS] == list(ANSWERS)
    with pytest.raises(InputError, match=r"Unknown answers 'mine': use reference, model or both"):
        FinetuneSettings(answers="mine")


def test_the_learning_rate_follows_the_method():
    assert FinetuneSettings().rate == LEARNING_RATES["lora"]
    assert FinetuneSettings(method="full").rate == LEARNING_RATES["full"] == 2e-5  # the paper's
    assert FinetuneSettings(learning_rate=0.5).rate == 0.5


def test_r_and_lora_alpha_are_also_taken_by_the_words_of_before():
    assert FinetuneSettings(rank=4, alpha=2.0) == FinetuneSettings(r=4, lora_alpha=2.0)
    assert FinetuneSettings(rank=4).rank == FinetuneSettings(r=4).r == 4
    assert FinetuneSettings(r=4).resolved.lora_alpha == 8.0 and FinetuneSettings(r=4).resolved.learning_rate == 1e-3
    with pytest.raises(InputError, match=r"^rank=4 and r=8 are the same setting: give r\.$"):
        FinetuneSettings(rank=4, r=8)
