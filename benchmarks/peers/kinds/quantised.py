"""Full depth in fewer bits: bf16, and two kinds of 8-bit weights."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import nn

from benchmarks.peers.kinds.hf import HFPeer
from benchmarks.peers.peer import Subject, missing_package


class BF16(HFPeer):
    name = "bf16"
    what = "the full model in bfloat16, transformers generate"
    like = None
    scored_as = name

    def made(self, subject: Subject) -> Any:
        return copy.deepcopy(subject.model).to(torch.bfloat16)


class Int8Weights(HFPeer):
    name = "int8-torchao"
    what = "the full model with 8-bit weights (torchao, weight-only), transformers generate"
    like = None
    scored_as = name

    def why_absent(self, subject: Subject) -> str | None:
        return missing_package("torchao", "torchao")

    def made(self, subject: Subject) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchao.quantization import Int8WeightOnlyConfig, quantize_

            model = copy.deepcopy(subject.model)
            quantize_(model, Int8WeightOnlyConfig())
        return model


class Int8Dynamic(HFPeer):
    name = "int8-dynamic"
    what = "the full model with 8-bit weights and inputs (torch's dynamic quantization), transformers generate"
    like = None
    scored_as = name

    def why_absent(self, subject: Subject) -> str | None:
        if hasattr(torch.ao.quantization, "quantize_dynamic"):
            return None
        return "This torch has no dynamic quantization: install an older one."

    def made(self, subject: Subject) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated in favour of torchao, which has no kernel as fast on a processor
            return torch.ao.quantization.quantize_dynamic(copy.deepcopy(subject.model), {nn.Linear}, torch.qint8)
