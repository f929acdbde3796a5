"""A depth in every way that people write it, and one sentence for what is none."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import depthdial as dd
from depthdial.engine.depth import read_depths
from depthdial.errors import InputError
from depthdial.routes import Route

pytestmark = pytest.mark.filterwarnings("ignore::depthdial.errors.RouteWarning")


def taken(model, tokenizer, depth, prompt="the cat", **options):
    return dd.generate(model, tokenizer, prompt, depth=depth, max_new_tokens=3, **options)[0].route


@pytest.mark.parametrize(
    ("depth", "layers"),
    [
        ("full", range(6)),
        ("uls:3", (0, 2, 4)),
        ("uls:50%", (0, 2, 4)),
        ("drop:1", (0, 2, 3, 4, 5)),
        ("0-1,5", (0, 1, 5)),
        ((0, 1, 5), (0, 1, 5)),
        (range(4), range(4)),
        ("1.0", range(6)),
        ("100%", range(6)),
        (6, range(6)),
        ("6", range(6)),
        (np.int64(6), range(6)),
    ],
)
def test_a_route_in_every_way(model, tokenizer, depth, layers):
    assert taken(model, tokenizer, depth).layers == tuple(layers)


def test_a_number_is_a_share_or_a_count_of_layers_and_never_an_index(model, tokenizer):
    family = dd.RouteFamily("own", 6, tuple(Route.parse(text, 6) for text in ("ee:2", "0,2,4,5", "full")))
    for depth in (0.7, "0.7", "70%", " 67 %", np.float32(0.7), 4, "4", " 5 ", np.int64(4)):
        assert taken(model, tokenizer, depth, routes=family).layers == (0, 2, 4, 5)
    listed = dd.generate(model, tokenizer, ["a"] * 3, depth=["70%", "uls:2", 3], routes=family, max_new_tokens=2)
    assert [len(answer.route) for answer in listed] == [4, 2, 2]
    with pytest.raises(InputError, match="routes= says what a depth in numbers"):
        dd.generate(model, tokenizer, ["a"], depth=["uls:2"], routes=family)
    for depth in (2, "3", 0.5, "50%"):
        assert taken(model, tokenizer, depth, routes=family).layers == (0, 1)


@pytest.mark.parametrize(
    ("depth", "told"),
    [
        (1, "The depth 1 may mean one layer or the whole model: write 1.0 or 'full'"),
        ("1", "The depth 1 may mean one layer or the whole model"),
        (24, "The depth 24 asks for 24 of 6 layers: give at most 6"),
        ("24", "The depth 24 asks for 24 of 6 layers"),
        ("9" * 5000, "layers: give at most 6"),
        (0, "share of the layers above 0 and at most 1"),
        ("-3", "share of the layers above 0 and at most 1"),
        ("0.0", "share of the layers above 0 and at most 1"),
        ("150%", "share of the layers above 0 and at most 1"),
        (2.5, "share of the layers above 0 and at most 1"),
        (float("nan"), "share of the layers above 0 and at most 1"),
        (True, "depth is a route"),
        (None, "depth is a route"),
        (b"full", "depth is a route"),
        ({"uls": 3}, "depth is a route"),
        ((0, 9), "Layer 9 does not exist"),
        ((), "The route is empty"),
        ("runs/nothing", "Unknown route 'runs/nothing'"),
        (Path("runs/nothing"), "runs/nothing"),
        ("losless", "Unknown route 'losless'"),
        ("lossless:", "The depth 'lossless:' names no draft: give a route"),
        (
            "lossless:full",
            "The draft 'full' runs all 6 layers, as the check of its tokens does: give a route that skips some",
        ),
        ("lossless:rls:3@1", "The draft 'rls:3@1' is no one route: give one"),
        ("lossless:ee:9", "ee:9"),
        (dd.Lossless(dd.Bernoulli((0.5,) * 6)), "is no one route"),
        (["full", "uls:3"], "depth is a list of 2 for 1 prompts: give one for each prompt"),
        ([0, 1, 5], "depth is a list of 3 for 1 prompts"),
        (Route((0,), 3), "for a model of 3 layers"),
        (dd.Bernoulli((0.5,) * 3), "There are 3 rates for a model of 6 layers"),
        (dd.StaticRoutes((Route((0,), 6), Route((1,), 6))), "has one route per row and cannot be swept"),
    ],
)
def test_what_is_no_depth_is_one_short_sentence(model, tokenizer, depth, told):
    with pytest.raises(InputError, match=told) as refused:
        taken(model, tokenizer, depth)
    assert len(str(refused.value)) < 400 and "\n" not in str(refused.value)


def test_a_model_or_a_view_is_a_short_sentence_with_its_route(model, tokenizer):
    with pytest.raises(InputError, match=r"not a view \(LlamaForCausalLM\): give the view's own route, depth='0-2'"):
        taken(model, tokenizer, dd.view(model, "ee:3"))
    with pytest.raises(InputError, match=r"not a model \(LlamaForCausalLM\)\.$"):
        taken(model, tokenizer, model)


def test_a_controller_may_be_given_by_its_folder(model, tokenizer, many, tmp_path):
    controller = dd.SequenceController.fit(
        model, tokenizer, task=many, routes=["full", "ee:3"], budget=5, response_tokens=3, n_folds=3
    )
    controller.save_pretrained(tmp_path)
    expected = dd.generate(model, tokenizer, ["the cat", "six"], depth=controller, max_new_tokens=3)
    for folder in (tmp_path, str(tmp_path)):
        found = dd.generate(model, tokenizer, ["the cat", "six"], depth=folder, max_new_tokens=3)
        assert [(a.tokens, a.route, a.predicted) for a in found] == [(a.tokens, a.route, a.predicted) for a in expected]
    with pytest.raises(InputError, match="chooses among other routes"):
        taken(model, tokenizer, controller, routes=["full", "ee:2"])


def test_each_prompt_may_have_its_own_depth(model, tokenizer, many):
    controller = dd.SequenceController.fit(
        model, tokenizer, task=many, routes=["full", "ee:3"], budget=5, response_tokens=3, n_folds=3
    )
    depths = ["full", (0, 1, 5), "uls:3", controller, 0.5, "full", dd.Bernoulli((0.5,) * 6, seed=1), 4]
    prompts = ["the cat", "a dog sat", "one", "it was", "six", "the mat", "two dog", "to and of"]
    together = dd.generate(model, tokenizer, prompts, depth=depths, max_new_tokens=6)
    for prompt, depth, answer in zip(prompts, depths, together, strict=True):
        (alone,) = dd.generate(model, tokenizer, prompt, depth=depth, max_new_tokens=6)
        assert (answer.prompt, answer.tokens, answer.route) == (prompt, alone.tokens, alone.route)
    assert together[3].predicted is not None and together[0].predicted is None
    with pytest.raises(InputError, match="depth is a list of 1 for 2 prompts"):
        dd.generate(model, tokenizer, prompts[:2], depth=["full"])


def test_token_by_token(model, tokenizer):
    policy = dd.Bernoulli((1.0, 0.0, 1.0, 0.0, 1.0, 0.0))
    (answer,) = dd.generate(model, tokenizer, "the cat sat", depth=policy, max_new_tokens=6, eos_token_id=None)
    (route,) = dd.generate(model, tokenizer, "the cat sat", depth=(0, 2, 4), max_new_tokens=6, eos_token_id=None)
    assert answer.layers_run == route.layers_run == 3.0
    again = dd.generate(model, tokenizer, "the cat sat", depth=dd.TokenDepth(policy, 6), max_new_tokens=6, eos_token_id=None)
    assert again[0].tokens == answer.tokens and answer.route == again[0].route
    assert dd.generate(model, tokenizer, "the cat", depth=lambda layer, hidden: None, max_new_tokens=4)[0].layers_run == 6
    with pytest.raises(InputError, match="runs prompts at full depth, not prompt_depth='route'"):
        dd.generate(model, tokenizer, "the cat", depth=policy, prompt_depth="route")


def test_a_count_or_share_of_a_family_by_its_file_or_as_searched(model, tokenizer, tmp_path):
    family = dd.RouteFamily(
        "own", 6, (Route((0, 1), 6, "own:2"), Route((0, 2, 4, 5), 6, "own:4"), Route(range(6), 6, "full"))
    )
    path = family.save(tmp_path / "my routes,1.json")
    for depth in (f"{path}:4", f"{path}:70%", f" {path}:5 "):
        assert taken(model, tokenizer, depth).layers == (0, 2, 4, 5)
    for depth, told in (
        (f"{path}:nonsense", "names no depth of"),
        (f"{path}:7", "asks for 7 of 6 layers"),
        (f"{tmp_path}/none.json:4", "There is no route family file"),
        ("searched:4", "asks for a search that nobody made of this model: run depthdial search MODEL --out FILE"),
    ):
        with pytest.raises(InputError, match=told):
            taken(model, tokenizer, depth)
    shipped = "depthdial.engine.depth_numbers.searched_routes"
    with mock.patch(shipped, return_value=family.routes):
        assert taken(model, tokenizer, "searched:4").layers == taken(model, tokenizer, "searched:80%").layers == (0, 2, 4, 5)
        assert taken(model, tokenizer, "own:2") == family.routes[0]  # the name that tables give it
        with pytest.raises(InputError, match="Unknown route 'own:3'"):
            taken(model, tokenizer, "own:3")
    # The same texts in a list of routes that are measured, where a model gives numbers a meaning.
    with mock.patch(shipped, return_value=family.routes):
        found = read_depths(["full", f"{path}:2", "searched:4,uls:3,own:2"], model, 6)
    assert [len(route) for route in found] == [6, 2, 4, 3, 2]
    assert read_depths(f"{path}:4", model, 6) == read_depths(f"{path}", model, 6)[1:2]
    assert [len(route) for route in read_depths("full,50%,4", model, 6)] == [6, 3, 4]


def test_a_controllers_folder_is_a_depth_to_measure(model, tokenizer, tmp_path):
    (tmp_path / "controller.json").write_text("{}")
    with mock.patch("depthdial.control.controller.SequenceController.from_pretrained") as load:
        assert read_depths(["full", str(tmp_path)], model, 6)[1] is load.return_value
