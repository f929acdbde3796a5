"""Names of weights in a checkpoint become those of a model of the route's layers."""

from __future__ import annotations

import pytest
import torch

from depthdial.errors import InputError
from depthdial.routes import Route
from depthdial.views.view import view
from depthdial.vllm.skeleton import Served
from depthdial.vllm.weights import of_route
from tests.tiny import tiny


@pytest.mark.parametrize(("kind", "name"), [("llama", "layers"), ("gpt2", "h"), ("mixtral", "layers")])
def test_the_weights_are_the_view_s(kind, name, tmp_path) -> None:
    from safetensors.torch import load_file

    model = tiny(kind)
    model.save_pretrained(tmp_path / "whole")
    view(model, "0,3,5").save_pretrained(tmp_path / "cut")
    whole, cut = (load_file(tmp_path / one / "model.safetensors") for one in ("whole", "cut"))
    found = dict(of_route(whole.items(), Served(Route((0, 3, 5), 6), "route", name)))
    assert found.keys() == cut.keys()
    assert all(torch.equal(found[key], cut[key]) for key in cut)


def test_a_checkpoint_with_other_names_is_refused() -> None:
    weights = [(f"stack.{i}.w", i) for i in range(3)]
    with pytest.raises(InputError, match=r"^The checkpoint has no weights of layer 0 under the name layers\.0: give"):
        list(of_route(weights, Served(Route((0, 2), 3), "route", "layers")))
