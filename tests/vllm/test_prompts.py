"""Layers that are skipped for answers: on layers that pass states on as vLLM's do, norms that write in place among them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from depthdial.errors import InputError
from depthdial.routes import Route
from depthdial.vllm import steps
from depthdial.vllm.prompts import run_for_prompts_alone


class PairLayer(nn.Module):
    """Takes and gives (hidden states, residual), and overwrites both, as vLLM's fused norms do."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale, self.calls = nn.Parameter(torch.tensor(scale)), 0

    def forward(self, positions, hidden_states, residual):
        self.calls += 1
        if residual is None:
            residual = hidden_states.clone()
        else:
            residual += hidden_states
        hidden_states.copy_(residual.tanh() * self.scale.detach())
        return hidden_states, residual


class PlainLayer(PairLayer):
    def forward(self, positions, hidden_states):
        hidden, residual = super().forward(positions, hidden_states, None)
        return hidden + residual


class Stack(nn.Module):
    def __init__(self, kind: type) -> None:
        super().__init__()
        self.layers = nn.ModuleList(kind(0.5 + i) for i in range(4))

    def forward(self, states):
        hidden, residual = states.clone(), None
        for layer in self.layers:
            if type(layer) is PairLayer:
                hidden, residual = layer(None, hidden, residual)
            else:
                hidden = layer(None, hidden)
        return hidden if residual is None else hidden + residual


@pytest.fixture
def running(monkeypatch):
    def run(model, states, flags):
        monkeypatch.setattr(steps, "answer_tokens", lambda: None if flags is None else np.array(flags))
        return model(states)

    return run


@pytest.mark.parametrize("kind", [PairLayer, PlainLayer])
@pytest.mark.parametrize("layers", [(0, 2), (1, 3), (3,)])
def test_tokens_of_prompts_run_all_layers_and_those_of_answers_the_route(kind, layers, running) -> None:
    whole, shallow, served = Stack(kind), Stack(kind), Stack(kind)
    shallow.layers = nn.ModuleList(shallow.layers[i] for i in layers)
    run_for_prompts_alone(served, Route(layers, 4), None)
    torch.manual_seed(0)
    states = torch.randn(5, 3)
    deep, short = whole(states), shallow(states)
    flags = [False, True, False, True, True]
    mixed = running(served, states, flags)
    assert torch.equal(mixed[~torch.tensor(flags)], deep[~torch.tensor(flags)])
    assert torch.equal(mixed[torch.tensor(flags)], short[torch.tensor(flags)])
    assert torch.equal(running(served, states, [False] * 5), deep)
    assert torch.equal(running(served, states, None), deep)
    calls = [layer.calls for layer in served.layers]
    assert torch.equal(running(served, states, [True] * 5), short)
    assert [layer.calls - before for layer, before in zip(served.layers, calls, strict=True)] == [
        int(i in layers) for i in range(4)
    ]


def test_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(InputError, match=r"^vLLM's Linear has no single list of 4 layers that pass hidden states on: set"):
        run_for_prompts_alone(nn.Linear(2, 2), Route((0,), 4), None)
