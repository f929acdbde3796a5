"""Two dozen sequences to learn from, in the words of the tiny tokenizer; settings small enough for a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from transformers import TrainerCallback

from depthdial.data.tasks import Example, Task
from depthdial.engine.session import Session
from depthdial.hf.load import load
from depthdial.train.depth.settings import FinetuneSettings
from depthdial.train.rows import TrainingRow, training_rows

NOUNS = ("cat", "dog", "mat")
VERBS = ("sat", "ran")
NUMBERS = ("one", "two", "three", "four")


class _StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@contextmanager
def stopped_at(trainer: type, step: int) -> Iterator[None]:
    """A run that is stopped at a step, before that step's checkpoint is written."""
    start = trainer.train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "train", lambda self, **k: (self.add_callback(_StopAt(step)), start(self, **k)))
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.fixture
def base(model, tokenizer, tmp_path):
    """The tiny model saved and loaded again, as everybody's is."""
    folder = tmp_path / "base"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load(folder)


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
