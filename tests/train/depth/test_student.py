from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from depthdial.errors import InputError
from depthdial.routes import Route
from depthdial.train.depth.student import student
from depthdial.views.view import view

ROUTE = Route((0, 2, 5), 6)
FULL = Route(tuple(range(6)), 6)


def layers_that_train(model) -> set[int]:
    names = [name.split(".layers.")[1] for name, p in model.named_parameters() if p.requires_grad and ".layers." in name]
    return {int(name.split(".")[0]) for name in names}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_only_layers_that_run_are_trained_and_the_base_stays_as_it_is(model, quick, weights_of, assert_same, method):
    model.requires_grad_(True)
    model.model.layers[1].requires_grad_(False)
    before = weights_of(model)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    with student(model, [ROUTE], replace(quick, method=method), in_place=False) as trained:
        assert layers_that_train(trained) == {0, 2, 5}
        optimizer = torch.optim.SGD([p for p in trained.parameters() if p.requires_grad], lr=0.1)
        for _ in range(2):  # an adapter's first step moves only one of its two matrices
            optimizer.zero_grad()
            trained.train()(input_ids=torch.tensor([[1, 5, 9]])).logits.square().sum().backward()
            optimizer.step()
        assert not torch.equal(trained.eval()(torch.tensor([[1, 5]])).logits, model(torch.tensor([[1, 5]])).logits)
    assert_same(weights_of(model), before)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert not hasattr(model, "peft_config")


def test_a_new_adapter_changes_nothing_yet(model, quick):
    ids = torch.tensor([[1, 5, 9, 4]])
    expected = model(ids).logits
    with student(model, [FULL, ROUTE], quick, in_place=False) as trained:
        assert torch.equal(trained.eval()(input_ids=ids).logits, expected)
        assert torch.equal(view(trained, ROUTE)(ids).logits, view(model, ROUTE)(ids).logits)
        assert layers_that_train(trained) == set(range(6))
        # Short names, which a reader of adapter_config.json can follow.
        assert all(".layers." not in name for name in trained.peft_config["default"].target_modules)


def test_halves_train_in_full_precision(model, quick):
    half = model.bfloat16()
    with student(half, [FULL], replace(quick, method="full"), in_place=False) as trained:
        assert trained.dtype == torch.float32
        assert half.dtype == torch.bfloat16


def test_in_place_means_the_model_itself(model, quick):
    with student(model, [ROUTE], replace(quick, method="full"), in_place=True) as trained:
        assert trained is model
        assert layers_that_train(model) == {0, 2, 5}
    assert layers_that_train(model) == set(range(6))


def test_a_model_with_an_adapter_is_refused(model, quick):
    with student(model, [FULL], quick, in_place=False) as trained, pytest.raises(InputError, match="has an adapter already"):
        student(trained, [FULL], quick, in_place=False).__enter__()
