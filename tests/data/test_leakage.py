from __future__ import annotations

from dataclasses import replace

import pytest

from depthdial.data.leakage import prompt_hashes, require_apart, require_no_test_split, require_unsearched
from depthdial.errors import InputError
from depthdial.hf.trained import note_training
from depthdial.routes import Route
from depthdial.routes.families import RouteFamily, read_routes
from depthdial.views.tokens.depth import TokenDepth
from depthdial.views.tokens.gates import GateConfig, TokenGates
from tests.conftest import make_task
from tests.tiny import tiny


def test_a_hash_is_of_the_prompt_alone(small_task):
    renamed = replace(small_task, examples=tuple(replace(e, id=f"x{e.id}", reference="other") for e in small_task.examples))
    assert prompt_hashes(renamed) == prompt_hashes(small_task)
    assert len(set(prompt_hashes(small_task))) == len(small_task.examples)
    moved = replace(small_task.examples[0], instruction="", document=small_task.examples[0].instruction)
    assert prompt_hashes(replace(small_task, examples=(moved,)))[0] != prompt_hashes(small_task)[0]


def test_shared_prompts_are_refused(small_task):
    first, rest = (replace(small_task, examples=small_task.examples[part]) for part in (slice(0, 3), slice(3, None)))
    require_apart(first, prompt_hashes(rest), "to search the routes")
    with pytest.raises(InputError, match=r"3 of the 7 sequences \(such as 'small-0'\) were used to search the routes"):
        require_apart(small_task, prompt_hashes(first), "to search the routes")


def test_the_test_split_is_for_evaluation(small_task):
    require_no_test_split(replace(small_task, split="train"), "fit a controller")
    with pytest.raises(InputError, match="small's test split is for evaluation alone: fit a controller on train"):
        require_no_test_split(small_task, "fit a controller")


def test_what_a_search_has_seen_is_known_of_its_routes_wherever_they_go(tmp_path):
    searched = make_task(["a b", "c d"], ["x", "y"], "searched")
    about = {"prompts": list(prompt_hashes(searched))}
    family = RouteFamily("greedy", 4, (Route((0, 1), 4, "greedy:2"), Route((0, 1, 2, 3), 4, "full")), about)
    read = read_routes(str(family.save(tmp_path / "routes.json")), 4)
    assert [bool(route.searched_on) for route in (*family.routes, *read)] == [True, False, True, False]
    seen = make_task(["e f", "a b"], ["x", "y"], "seen")
    for routes in (family.routes, read, [*read_routes("full,ee:2", 4), family.routes[0]]):
        with pytest.raises(InputError, match=r"^1 of the 2 sequences .* were used to search the routes: take rows"):
            require_unsearched(seen, routes)
    require_unsearched(seen, read_routes("full,0-1", 4))
    require_unsearched(make_task(["e f"], ["x"], "unseen"), read)


def test_gates_and_models_know_what_they_were_trained_on():
    task, other = make_task(["a b", "c d"], ["x", "y"], "seen"), make_task(["e f"], ["x"], "unseen")
    prompts = list(prompt_hashes(task))
    gates = TokenGates(GateConfig(6, 32), about={"data": {"prompts": prompts}})
    depth = TokenDepth(gates.policy("argmax"), 6)
    with pytest.raises(InputError, match=r"^2 of the 2 sequences .* were used to train the gates: take rows"):
        require_unsearched(task, ["uls:3", depth])
    model = tiny("llama")
    note_training(model, prompts[1:])
    with pytest.raises(InputError, match=r"^1 of the 2 .* 'seen-1'\) were used to train the model: .* \(--allow"):
        require_unsearched(task, model=model)
    with pytest.raises(InputError, match=r"were used to train the model: take rows that were not, from another split\.$"):
        require_unsearched(task, model=model, can_allow=False)
    require_unsearched(other, [depth], model)
