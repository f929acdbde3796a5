from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical
from torch.distributions import kl_divergence as kl_by_torch

from depthdial.train.depth.settings import FinetuneSettings
from depthdial.train.objective import kl_divergence, response_loss

GENERATOR = torch.Generator().manual_seed(0)
TEACHER = torch.randn(7, 11, generator=GENERATOR)
STUDENT = torch.randn(7, 11, generator=GENERATOR)
TOKENS = torch.randint(0, 11, (7,), generator=GENERATOR)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_kl_is_that_of_torch_and_so_is_its_gradient(temperature):
    ours, theirs = (STUDENT.clone().requires_grad_() for _ in range(2))
    loss = kl_divergence(TEACHER, ours, temperature)
    expected = kl_by_torch(Categorical(logits=TEACHER / temperature), Categorical(logits=theirs / temperature)).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_model_is_at_no_distance_from_itself():
    assert kl_divergence(TEACHER, TEACHER).item() == pytest.approx(0, abs=1e-6)


def test_the_parts_of_the_loss():
    cross_entropy = torch.nn.functional.cross_entropy(STUDENT, TOKENS)
    kl = kl_divergence(TEACHER, STUDENT, 2.0)
    plain, warm, mixed = (
        FinetuneSettings(**fields) for fields in ({}, {"temperature": 2.0}, {"temperature": 2.0, "cross_entropy": 0.25})
    )
    torch.testing.assert_close(response_loss(plain, STUDENT, TOKENS, None), cross_entropy)
    torch.testing.assert_close(response_loss(warm, STUDENT, TOKENS, TEACHER), 4 * kl)
    torch.testing.assert_close(response_loss(mixed, STUDENT, TOKENS, TEACHER), 3 * kl + 0.25 * cross_entropy)


def test_halves_are_compared_in_full_precision():
    loss = response_loss(FinetuneSettings(), STUDENT.bfloat16(), TOKENS, TEACHER.bfloat16())
    assert loss.dtype == torch.float32
