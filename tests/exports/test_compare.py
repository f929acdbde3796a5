"""What was written is held against the model: equal, rounded, or something else."""

from __future__ import annotations

import pytest
import torch

import depthdial as dd
from depthdial.errors import InputError
from depthdial.exports.compare import Comparison, check_tokenizer, compare, probe_ids
from tests.conftest import make_llama, make_tokenizer
from tests.hf.checkpoints import tiny_tokenizer


def test_the_same_model_is_equal(model, tokenizer) -> None:
    found = compare(model, make_llama(), tokenizer, "The folder", exact=True)
    assert found == Comparison(48, True, 1.0, 0.0)
    assert str(found) == "logits equal bit for bit on 48 tokens"
    assert Comparison.of_record(found.record()) == found


def test_weights_elsewhere_in_memory_are_the_same_weights(model, tokenizer) -> None:
    other = make_llama()
    for parameter in other.parameters():  # as a file's are that is mapped into memory: not where kernels like them
        room = torch.empty(parameter.numel() + 1)
        room[1:] = parameter.detach().reshape(-1)
        parameter.data = room[1:].view(parameter.shape)
    assert compare(model, other, tokenizer, "The folder", exact=True).is_equal


def test_a_rounded_model_is_told_from_another(model, tokenizer) -> None:
    rounded = make_llama()
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.mul_(1 + 1e-3)
    found = compare(model, rounded, tokenizer, "The file", exact=False)
    assert not found.is_equal and found.agreement > 0.9 and 0 < found.largest_difference < 1
    with pytest.raises(InputError, match="The folder computes something else than the model it was made of"):
        compare(model, rounded, tokenizer, "The folder", exact=True)
    with pytest.raises(InputError, match="The file computes something else"):
        compare(model, make_llama(seed=1), tokenizer, "The file", exact=False)


def test_wrong_layers_are_told(model, tokenizer) -> None:
    with pytest.raises(InputError, match="computes something else"):
        compare(dd.view(model, "0,1,3"), dd.view(model, "0,1,4"), tokenizer, "The file", exact=False)


def test_probes_are_words(model, tokenizer) -> None:
    ids = probe_ids(model, tokenizer)
    assert ids.shape == (2, 24) and torch.equal(ids, probe_ids(model, tokenizer))
    assert not set(ids.flatten().tolist()) & set(tokenizer.all_special_ids)


def test_another_tokenizer_is_told() -> None:
    check_tokenizer(make_tokenizer(), make_tokenizer(), "The file")
    with pytest.raises(InputError, match=r"The file has a tokenizer that reads .Hello"):
        check_tokenizer(make_tokenizer(), tiny_tokenizer(), "The file")
