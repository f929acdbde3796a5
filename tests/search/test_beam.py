from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.search.beam import Beam
from depthdial.search.greedy import Greedy


def paired(weights, n):
    return lambda route: sum(weights[n * i + j] for i, j in itertools.product(route.skipped, repeat=2))


@pytest.mark.parametrize("screen", [None, 2])
def test_width_1_is_greedy(problem_of, find, screen):
    @given(st.lists(st.floats(0, 5), min_size=36, max_size=36))
    def check(weights):
        problem = problem_of(6, 2, paired(weights, 6))
        beam, done, expected = find(Beam("kl", screen, 1, True), problem)
        greedy = find(Greedy("kl", screen), problem)[0]
        assert (beam.dropped, beam.harm, beam.passes) == (greedy.dropped, greedy.harm, greedy.passes)
        assert done == expected

    check()


def test_a_wide_beam_is_the_best_of_each_size_and_never_worse_than_a_narrow_nested_one(problem_of, find):
    @given(st.lists(st.floats(-1, 5), min_size=25, max_size=25))
    def check(weights):
        harm = paired(weights, 5)
        problem = problem_of(5, 2, harm)
        best = find(Beam("kl", None, 99, False), problem)[0]
        for n, (dropped, value) in enumerate(zip(best.dropped, best.harm, strict=True), start=1):
            assert len(dropped) == n
            assert value == min(harm(problem.without(gone)) for gone in itertools.combinations(range(5), n))
        nested = find(Beam("kl", None, 99, True), problem)[0]
        assert nested.is_nested
        assert nested.harm[-1] == best.harm[-1]
        assert all(a >= b for a, b in zip(nested.harm, best.harm, strict=True))

    check()


def test_the_best_sets_need_not_be_nested_and_the_nested_ones_are_the_path_of_the_last(problem_of, find):
    # Layer 0 is the cheapest alone, but 1 and 2 go best together.
    harms = {(0,): 1.0, (1,): 2.0, (2,): 2.0, (3,): 8.0, (1, 2): 2.5}
    problem = problem_of(4, 2, lambda route: harms.get(route.skipped, 9.0))
    each, nested = (find(Beam("kl", None, 4, is_nested), problem)[0] for is_nested in (False, True))
    assert each.dropped == ((0,), (1, 2)) and not each.is_nested
    assert nested.dropped == ((1,), (1, 2)) and nested.harm == (2.0, 2.5)
    assert find(Greedy("kl", None), problem)[0].harm == (1.0, 9.0)


def test_two_paths_to_one_set_are_tried_once(problem_of, find):
    tried = []
    find(Beam("kl", None, 9, True), problem_of(4, 2, lambda route: tried.append(route.skipped) or sum(route.skipped)))
    assert len(tried) == len(set(tried)) == 4 + 6


def test_costs_decide_between_sets(problem_of, find):
    harm = {0: 1.0, 1: 1.5, 2: 9.0}
    problem = problem_of(3, 2, lambda route: sum(harm[i] for i in route.skipped), costs=(1.0, 2.0, 1.0))
    assert find(Beam("kl", None, 3, True), problem)[0].dropped == ((1,),)
