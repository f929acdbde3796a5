from __future__ import annotations

import math

import pytest
import torch

from depthdial.search.angular import Angular, angular_distance


def turning(*angles):
    at = torch.tensor([0.0, *angles]).cumsum(0)
    return torch.stack([at.cos(), at.sin()], dim=-1)[:, None].expand(-1, 2, -1)


def test_distance_is_the_angle_in_half_turns():
    distance = angular_distance(turning(math.pi / 2, math.pi / 4))[0]
    assert distance[0, 1].item() == pytest.approx(0.5) and distance[0, 2].item() == pytest.approx(0.75)
    assert distance[1, 1].item() == pytest.approx(0, abs=1e-3)


def test_the_best_block_of_each_size_goes_though_they_are_not_nested(problem_of, find):
    # Layer 0 turns least alone; 2 and 3 turn back and forth, so that together they do nearly nothing.
    found = find(Angular(), problem_of(5, 2, states=[turning(0.1, 0.9, 1.0, -1.05, 0.6)]))[0]
    assert found.dropped[:2] == ((0,), (2, 3))
    assert not found.is_nested
    assert found.importance == pytest.approx([abs(a) / math.pi for a in (0.1, 0.9, 1.0, 1.05, 0.6)], abs=1e-6)


def test_the_last_layer_may_go_too(problem_of, find):
    found = find(Angular(), problem_of(4, 1, states=[turning(0.9, 0.8, 0.1, 0.1)]))[0]
    assert found.dropped == ((2,), (2, 3), (1, 2, 3))


def test_distance_is_weighed_by_what_a_block_costs(problem_of, find):
    states = [turning(0.5, 0.4, 0.9)]
    assert find(Angular(), problem_of(3, 2, states=states))[0].dropped == ((1,),)
    assert find(Angular(), problem_of(3, 2, states=states, costs=(4.0, 1.0, 1.0)))[0].dropped == ((0,),)
