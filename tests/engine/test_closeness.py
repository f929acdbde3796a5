"""The measure by which two ways of computing the same are held against each other."""

from __future__ import annotations

import math

import torch

from depthdial.engine.closeness import largest_difference


def test_it_is_a_share_of_the_largest_expected_number():
    assert largest_difference(torch.tensor([1.0, -4.5]), torch.tensor([1.0, -4.0])) == 0.125
    assert largest_difference(torch.zeros(3), torch.zeros(3)) == 0


def test_a_result_that_is_no_number_is_never_close():
    assert not largest_difference(torch.tensor([math.nan, 1.0]), torch.tensor([1.0, 1.0])) <= 1e9
    assert not largest_difference(torch.tensor([math.inf]), torch.tensor([1.0])) <= 1e9
