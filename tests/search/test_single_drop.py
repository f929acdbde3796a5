from __future__ import annotations

from depthdial.search.single_drop import SingleDrop


def test_layers_go_in_the_order_of_what_each_does_alone(problem_of, find):
    alone = [3.0, 1.0, 2.0, 5.0]
    problem = problem_of(4, 1, lambda route: 7.0 + sum(alone[i] for i in route.skipped), start=7.0)
    found, done, expected = find(SingleDrop("nll"), problem)
    assert found.dropped == ((1,), (1, 2), (1, 2, 0))
    assert found.importance == (10.0, 8.0, 9.0, 12.0)
    assert found.passes == done == expected == 4


def test_what_a_drop_adds_is_weighed_by_what_it_saves(problem_of, find):
    alone = [3.0, 1.0, 2.0]
    # By harm as such (start and all) layer 0 would not come first; by what it adds for its cost it does.
    problem = problem_of(3, 1, lambda route: 7.0 + sum(alone[i] for i in route.skipped), costs=(6.0, 1.0, 1.0), start=7.0)
    assert find(SingleDrop("nll"), problem)[0].dropped[-1] == (0, 1)
