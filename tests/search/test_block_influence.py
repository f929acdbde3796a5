from __future__ import annotations

import pytest
import torch

from depthdial.search.block_influence import BlockInfluence


def turning(*angles, n_tokens=3):
    """States in a plane that each layer turns by its angle, the same for every token."""
    at = torch.tensor([0.0, *angles]).cumsum(0)
    return torch.stack([at.cos(), at.sin()], dim=-1)[:, None].expand(-1, n_tokens, -1)


def test_the_layers_that_turn_least_go_first(problem_of, find):
    states = [turning(0.5, 0.1, 0.9, 0.2), turning(0.7, 0.1, 0.9, 0.2, n_tokens=1)]
    found, done, expected = find(BlockInfluence(), problem_of(4, 1, states=states))
    assert found.dropped == ((1,), (1, 3), (1, 3, 0))
    mean_over_tokens = 1 - (3 * torch.tensor(0.5).cos() + torch.tensor(0.7).cos()) / 4
    assert found.importance[0] == pytest.approx(mean_over_tokens.item(), abs=1e-6)
    assert done == expected == 2 and found.passes == 1


def test_influence_is_weighed_by_cost(problem_of, find):
    states = [turning(0.5, 0.4, 0.9)]
    assert find(BlockInfluence(), problem_of(3, 2, states=states))[0].dropped == ((1,),)
    assert find(BlockInfluence(), problem_of(3, 2, states=states, costs=(4.0, 1.0, 1.0)))[0].dropped == ((0,),)
