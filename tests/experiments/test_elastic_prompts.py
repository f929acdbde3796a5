"""Instructions that the model writes itself: each once, nothing that is none, and the same after a stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.scripts import loaded

FILE = Path(__file__).parents[2] / "experiments" / "elastic" / "prompts.py"


@pytest.fixture(scope="module")
def prompts():
    with loaded(FILE, "elastic_prompts") as module:
        yield module


def writing(seen):
    def write(begun, seed):
        seen.append((tuple(begun), seed))
        texts = [f"{text} thing {seed} {i % 100} " for i, text in enumerate(begun)]
        return [*texts, "Hi", "Say it. assistant\nIt.", "Où est-il ?"]

    return write


def test_instructions_are_different_and_what_a_person_could_ask(prompts, tmp_path):
    seen = []
    found = prompts.instructions(writing(seen), 300, 1, tmp_path)
    assert len(found) == len(set(found)) == 300
    assert all(prompts.is_instruction(text) and text == text.strip() for text in found)
    begun = [text for texts, _ in seen for text in texts]
    assert set(begun) <= {"", *prompts.OPENERS} and 0.5 < sum(map(bool, begun)) / len(begun) < 0.7
    assert [seed for _, seed in seen] == [1, 2]


def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(prompts, tmp_path):
    whole, first, second = [], [], []
    expected = prompts.instructions(writing(whole), 300, 1, tmp_path / "whole")
    prompts.instructions(writing(first), 100, 1, tmp_path / "stopped")
    assert prompts.instructions(writing(second), 300, 1, tmp_path / "stopped") == expected
    assert first + second == whole


def test_a_model_that_repeats_itself_is_told_of(prompts, tmp_path):
    with pytest.raises(SystemExit, match="The model repeats itself: 1 instructions of 20"):
        prompts.instructions(lambda begun, seed: ["Say hello."], 20, 1, tmp_path)


class Parrot:
    def __init__(self):
        self.asked = []

    def run(self, prompts, **_):
        self.asked += prompts
        return [type("Answer", (), {"text": "" if "nothing" in text else text.upper()}) for text in prompts]


def test_answers_are_kept_by_part_and_empty_ones_left_out(prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "AT_ONCE", 2)
    parrot = Parrot()
    rows = prompts.answered(parrot, ["say a", "say nothing", "say b"], tmp_path)
    assert rows == [{"instruction": "say a", "output": "SAY A"}, {"instruction": "say b", "output": "SAY B"}]
    assert prompts.answered(parrot, ["say a", "say nothing", "say b"], tmp_path) == rows and len(parrot.asked) == 3
    assert json.loads((tmp_path / "001.json").read_text()) == [{"instruction": "say b", "output": "SAY B"}]
