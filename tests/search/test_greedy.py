from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from depthdial.search.greedy import Greedy, n_tried
from depthdial.search.method import Memory


def squares(route):
    return sum((layer + 1) ** 2 for layer in route.skipped)


def test_screening_tries_fewer_routes(problem_of, find):
    # With additive costs stale increments stay true, so that screening finds the same order.
    for screen, passes in ((None, 8 + 7 + 6 + 5), (2, 8 + 2 + 2 + 2)):
        found, done, expected = find(Greedy("kl", screen), problem_of(8, 4, squares))
        assert found.dropped[-1] == (0, 1, 2, 3)
        assert found.passes == done == expected == passes


def test_the_first_drop_adds_to_what_the_adapter_costs_at_full_depth(problem_of, find):
    memory, problem = Memory(None, {}), problem_of(3, 2, lambda route: 1.0 + sum(route.skipped), start=1.0)
    find(Greedy("kl", None), problem, memory)
    assert memory.state["beam"][0]["increments"] == [0.0, 1.0, 2.0]


def test_a_dear_layer_goes_before_a_cheap_one_that_harms_a_little_less(problem_of, find):
    harm = {0: 1.0, 1: 1.5, 2: 9.0}
    free = problem_of(3, 1, lambda route: sum(harm[i] for i in route.skipped))
    assert find(Greedy("kl", None), free)[0].dropped[-1] == (0, 1)
    counted = problem_of(3, 1, lambda route: sum(harm[i] for i in route.skipped), costs=(1.0, 2.0, 1.0))
    assert find(Greedy("kl", None), counted)[0].dropped[-1] == (1, 0)


def test_each_drop_is_the_best_of_all_by_brute_force(problem_of, find):
    @given(st.lists(st.floats(0, 5), min_size=25, max_size=25))
    def check(weights):
        def harm(route):  # with interactions, so that the order of single drops is not the order
            pairs = itertools.product(route.skipped, repeat=2)
            return sum(weights[5 * i + j] for i, j in pairs)

        dropped = find(Greedy("kl", None), problem_of(5, 2, harm))[0].dropped[-1]
        problem = problem_of(5, 2, harm)
        for n in range(3):
            before = list(dropped[:n])
            rest = [i for i in range(5) if i not in before]
            assert dropped[n] == min(rest, key=lambda i: (harm(problem.without([*before, i])), i))

    check()


def test_a_file_of_a_stopped_search_reads_as_it_was(tmp_path, problem_of, find):
    path = tmp_path / "routes.json.unfinished"
    problem = problem_of(8, 4, squares)
    find(Greedy("kl", 3), problem, Memory(path, {}))
    again = Memory.open(path, {})
    assert Greedy("kl", 3).pieces(problem, again) == 0
    assert find(Greedy("kl", 3), problem, again)[0] == find(Greedy("kl", 3), problem)[0]


def test_the_first_round_tries_every_layer():
    assert [n_tried(n, 6, 2) for n in (6, 5, 1)] == [6, 2, 1]
    assert n_tried(5, 6, None) == 5
