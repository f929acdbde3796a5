from __future__ import annotations

import json

import torch

from depthdial.train.rows import TrainingRow
from depthdial.train.schedule import MicroBatch
from depthdial.train.trainer import ScheduledPasses, last_checkpoint, load_model, save_model


def test_passes_are_padded_towards_each_other():
    rows = [TrainingRow("a", (5, 6), (7, 8, 9)), TrainingRow("b", (4,), (3,))]
    one = ScheduledPasses([MicroBatch((0, 1), 2, 5, 4)], rows, 0)[0]
    assert one["prompt_ids"].tolist() == [[5, 6], [0, 4]] and one["prompt_mask"].tolist() == [[1, 1], [0, 1]]
    assert one["response_ids"].tolist() == [[7, 8, 9], [3, 0, 0]]
    assert one["response_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert (one["route"], one["group"]) == (2, 5)


def test_a_response_of_one_token_leaves_room_for_a_second():
    one = ScheduledPasses([MicroBatch((0,), 0, 0, 1)], [TrainingRow("a", (5,), (7,))], 0)[0]
    assert one["response_ids"].tolist() == [[7, 0]] and one["response_mask"].tolist() == [[1, 0]]


def test_the_newest_whole_checkpoint_is_found_and_halves_are_deleted(tmp_path):
    for step, state in ((9, {"global_step": 9}), (10, {"global_step": 10}), (11, None), (12, {})):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(json.dumps(state))
    (tmp_path / "checkpoint-13").mkdir()
    (tmp_path / "checkpoint-13" / "trainer_state.json").write_text('{"global_step": 1')
    assert last_checkpoint(tmp_path).name == "checkpoint-10"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]
    assert last_checkpoint(tmp_path / "none") is None


def test_weights_come_back_as_they_were_saved(model, tmp_path):
    save_model(model, tmp_path)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    load_model(model, tmp_path)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
