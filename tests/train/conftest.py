"""Two dozen sequences to learn from, in the words of the tiny tokenizer; settings small enough for a test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from depthdial.data.tasks import Example, Task
from depthdial.engine.session import Session
from depthdial.train.depth.settings import FinetuneSettings
from depthdial.train.rows import TrainingRow, training_rows

NOUNS = ("cat", "dog", "mat")
VERBS = ("sat", "ran")
NUMBERS = ("one", "two", "three", "four")


@pytest.fixture
def lessons() -> Task:
    """24 sequences: counts of animals that did something; answers of one to five tokens."""
    examples = [
        Example(
            f"lesson-{i}-{j}-{k}", f"{number} {noun} {verb}", "", " ".join([verb, "the", noun, number][: 1 + (i + k) % 4])
        )
        for i, number in enumerate(NUMBERS)
        for j, noun in enumerate(NOUNS)
        for k, verb in enumerate(VERBS)
    ]
    return Task("lessons", "train", "tests", "prompt", tuple(examples), "auto", None, None, 0, "1" * 64)


@pytest.fixture
def first(lessons) -> Callable[[int], Task]:
    """The first so many lessons."""
    return lambda n: replace(lessons, examples=lessons.examples[:n])


@pytest.fixture
def rows(lessons, model, tokenizer) -> list[TrainingRow]:
    return training_rows(lessons, tokenizer, Session.of(model, tokenizer))


@pytest.fixture
def quick() -> FinetuneSettings:
    """A few steps, with no checkpoint between them: where one is written costs more than a step does."""
    return FinetuneSettings(r=2, lora_alpha=4.0, batch_size=4, save_every=1000, learning_rate=1e-2)
