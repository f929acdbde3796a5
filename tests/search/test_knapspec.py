from __future__ import annotations

import itertools

import pytest
import torch

from depthdial.engine.teacher_forcing import forced_states
from depthdial.errors import InputError
from depthdial.routes import Route
from depthdial.search.knapspec import KnapSpec
from depthdial.search.method import Memory


def turned(*angles):
    """Answer states of a model whose layers turn one token's state by angles, whatever ran before."""

    def states(layers):
        at = torch.tensor(sum(angles[i] for i in layers))
        return torch.stack([at.cos(), at.sin()])[None]

    return states


def distance(angles, dropped):
    return 1 - torch.tensor(sum(angles[i] for i in dropped)).cos().item()


def test_the_set_that_leaves_the_state_nearest_goes_though_it_is_not_nested(problem_of, find):
    angles = (0.3, 0.9, 0.7, -0.65, 0.1, 0.5)  # two great turns undo each other
    found, done, expected = find(KnapSpec(), problem_of(6, 3, answer_states=turned(*angles)))
    assert found.dropped == ((4,), (2, 3), (2, 3, 4))
    for n, dropped in enumerate(found.dropped, start=1):
        others = itertools.combinations(range(1, 5), n)
        assert distance(angles, dropped) == pytest.approx(min(distance(angles, one) for one in others), abs=1e-6)
    assert done == expected == 5 and not found.is_nested and found.harm is None
    assert found.importance[1:] == pytest.approx([distance(angles, [i]) for i in range(1, 6)], abs=1e-6)


def test_one_branch_is_kept_for_each_number_as_in_the_paper(problem_of, find):
    angles = (0.3, 0.2, 0.7, -0.65, 0.1, 0.5)  # after layer 2, its drop alone looks worse than that of 1
    found = find(KnapSpec(), problem_of(6, 4, answer_states=turned(*angles)))[0]
    assert found.dropped[1] == (1, 4) and distance(angles, (1, 4)) > distance(angles, (2, 3))


def test_first_and_last_layer_stay_even_if_they_do_nothing(problem_of, find):
    found = find(KnapSpec(), problem_of(4, 2, answer_states=turned(0.0, 0.4, 0.5, 0.0)))[0]
    assert found.dropped == ((1,), (1, 2))
    with pytest.raises(InputError, match="min_layers is 1: knapspec always runs"):
        find(KnapSpec(), problem_of(4, 1, answer_states=turned(0.0, 0.4, 0.5, 0.0)))


def test_distance_is_weighed_by_what_is_saved(problem_of, find):
    states = turned(0.1, 0.5, 0.4, 0.1)
    assert find(KnapSpec(), problem_of(4, 3, answer_states=states))[0].dropped == ((2,),)
    assert find(KnapSpec(), problem_of(4, 3, answer_states=states, costs=(1.0, 4.0, 1.0, 1.0)))[0].dropped == ((1,),)


def test_a_stopped_search_goes_on_with_its_branches(problem_of, find):
    angles = (0.3, 0.2, 0.7, -0.65, 0.1, 0.5)
    whole, stopped = find(KnapSpec(), problem_of(6, 3, answer_states=turned(*angles)))[0], Memory(None, {})

    def fails(layers):
        if 4 in layers:
            raise KeyboardInterrupt
        return turned(*angles)(layers)

    with pytest.raises(KeyboardInterrupt):
        find(KnapSpec(), problem_of(6, 3, answer_states=fails), stopped)
    assert stopped.state["layers"] == 4
    found, done, expected = find(KnapSpec(), problem_of(6, 3, answer_states=turned(*angles)), stopped)
    assert found == whole and done == expected == 2


def test_answer_states_are_those_of_a_route_whatever_was_asked_before(calibrated):
    calibration = calibrated(None, 2)
    calibration.answer_states((0, 1))
    found, expected = calibration.answer_states((0, 1, 3)), []
    for batch in calibration.batches:
        own = forced_states(calibration.session.model, Route((0, 1, 3), 6), batch.prefilled, batch.tokens, batch.mask)
        expected.append(own.states[-1][batch.mask.bool()])
    expected = torch.cat(expected)
    assert found.shape[0] == calibration.n_tokens
    assert torch.equal(found, torch.nn.functional.normalize(expected, dim=-1))
