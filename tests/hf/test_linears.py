from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import prune
from transformers.pytorch_utils import Conv1D

from depthdial.hf.linears import plain_weight


def test_both_kinds_of_linear_layers_are_told_apart():
    rows, columns = nn.Linear(3, 5), Conv1D(5, 3)
    weight, is_transposed = plain_weight(rows)
    assert weight is rows.weight and not is_transposed
    weight, is_transposed = plain_weight(columns)
    assert weight is columns.weight and is_transposed


def test_what_is_no_plain_parameter_has_none():
    class Own(nn.Linear):
        pass

    class Quantised(nn.Parameter):
        pass

    with torch.inference_mode():
        inference = nn.Linear(3, 5)
    quantised = nn.Linear(3, 5)
    quantised.weight = Quantised(torch.zeros(5, 3))
    others = (
        *(nn.LayerNorm(3), nn.Embedding(3, 5), Own(3, 5), inference, quantised),
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 5)),
        prune.identity(nn.Linear(3, 5), "weight"),
    )
    assert [plain_weight(module) for module in others] == [None] * 7
