"""Linear layers as models of transformers have them: PyTorch's, and GPT-2's, whose weight lies the other way round."""

from __future__ import annotations

import torch
from torch import nn


def plain_weight(module: nn.Module) -> tuple[nn.Parameter, bool] | None:
    """The weight of a linear layer, and whether it is (inputs, outputs); None for another kind of module.

    Also None where the weight is no parameter of its own that lies in memory as it is: subclasses of layers and tensors
    (quantised, sharded, parametrised), tensors that are made anew for each pass, and what is not in memory at all.
    """
    from transformers.pytorch_utils import Conv1D

    kind = type(module)
    weight = module._parameters.get("weight") if kind in (nn.Linear, Conv1D) else None
    is_plain = type(weight) is nn.Parameter and weight.layout == torch.strided and not weight.is_inference()
    return (weight, kind is Conv1D) if weight is not None and is_plain else None
