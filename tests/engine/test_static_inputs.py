"""What layers are called with, in tensors that stay where they are."""

from __future__ import annotations

import pytest
import torch

from depthdial.engine.static_inputs import MOST_ROWS, StaticInputs
from depthdial.engine.walk import Walk
from depthdial.views.snapshot import snapshot
from tests.tiny import tiny


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2"])
def test_further_passes_fill_the_same_tensors(name):
    walk = Walk(snapshot(tiny(name)))
    inputs = StaticInputs(1, torch.device("cpu"))

    def now():
        one = inputs.as_pass({}, 256)
        rotary = [part for call in one.calls.values() for part in call.kwargs.get("position_embeddings") or ()]
        return [inputs.states, *rotary, *one.sights.values()]

    with torch.no_grad():
        inputs.fill(torch.tensor([[4], [5]]), torch.tensor([[3], [9]]))
        inputs.make(walk, 256, 2)
        places, first = [tensor.data_ptr() for tensor in now()], [tensor[1:3].clone() for tensor in now()]
        assert all(len(tensor) == MOST_ROWS + 1 for tensor in now())
        inputs.fill(torch.tensor([[5], [4]]), torch.tensor([[9], [3]]))
        inputs.make(walk, 256, 2)
    assert [tensor.data_ptr() for tensor in now()] == places
    for tensor, before in zip(now(), first, strict=True):
        assert not torch.equal(tensor[1], tensor[2])
        torch.testing.assert_close(tensor[1:3].flip(0), before)
