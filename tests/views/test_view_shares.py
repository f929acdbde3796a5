"""A view shares every weight with its base and changes nothing else of it, whatever is done with it."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from depthdial.views.view import route_of, view
from tests.tiny import ARCHITECTURES, VOCAB, cover, cut_by_hand, shared, tiny
from tests.views.test_view import FULL, assert_same, padded_prompts, states, written

ROUTE = (1, 2, 4)


def everything(model: nn.Module) -> dict[str, dict[str, Any]]:
    """All that the modules of a model hold, attribute by attribute, its tables and lists copied one level deep."""
    return {
        name: {key: copy.copy(value) if isinstance(value, dict | list | set) else value for key, value in vars(m).items()}
        for name, m in model.named_modules()
    }


def assert_untouched(before: dict[str, dict[str, Any]], model: nn.Module) -> None:
    after = everything(model)
    assert before.keys() == after.keys()
    for name, attributes in before.items():
        assert attributes.keys() == after[name].keys(), name
        for key, old in attributes.items():
            new = after[name][key]
            if isinstance(old, dict):
                assert list(old) == list(new), (name, key)
                assert all(old[k] is new[k] for k in old), (name, key)
            else:
                assert old is new or old == new, (name, key)


def copies(model: PreTrainedModel) -> tuple[Any, ...]:
    """Values that could change in place."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return weights, copy.deepcopy(model.config).to_dict(), copy.deepcopy(model.generation_config).to_dict()


def assert_same_copies(before: tuple[Any, ...], model: PreTrainedModel) -> None:
    weights, *configs = before
    now, *configs_now = copies(model)
    assert configs == configs_now
    assert weights.keys() == now.keys()
    assert all(torch.equal(weights[name], now[name]) for name in weights)


@pytest.mark.parametrize(("name", "used_before"), cover([False, True]))
def test_making_and_running_views_leaves_the_base_as_it_was(name: str, used_before: bool) -> None:
    base = tiny(name)
    if used_before:  # transformers hooks a model at its first use with hidden states
        states(base)
    before, values = everything(base), copies(base)
    for layers in (FULL, ROUTE):
        shallow = view(base, layers)
        states(shallow)
        written(shallow)
    assert_untouched(before, base)
    assert_same_copies(values, base)


def test_the_check_of_the_base_can_fail() -> None:
    base = tiny("llama")
    before = everything(base)
    base.model.layers[2].self_attn.layer_idx = 1
    with pytest.raises(AssertionError):
        assert_untouched(before, base)
    base = tiny("llama")
    before = everything(base)
    handle = base.model.layers[2].register_forward_hook(lambda *_: None)
    with pytest.raises(AssertionError):
        assert_untouched(before, base)
    handle.remove()


def checkpoint_gradients(model: PreTrainedModel) -> None:
    # The older name gives a warning from transformers 5.23 on, and the newer is not there before.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()


def use_hooks(shallow: PreTrainedModel, folder: Path) -> None:
    calls: list[int] = []
    shallow.get_submodule("model.layers.1").register_forward_hook(lambda *_: calls.append(1))
    states(shallow)
    assert calls == [1]


def use_training(shallow: PreTrainedModel, folder: Path) -> None:
    shallow.train()
    assert all(m.training for m in shallow.modules())
    checkpoint_gradients(shallow)
    ids = padded_prompts()["input_ids"]
    shallow(ids, labels=ids).loss.backward()
    shallow.zero_grad()


def use_settings(shallow: PreTrainedModel, folder: Path) -> None:
    shallow.set_attn_implementation("eager")
    shallow.config.vocab_size = 3
    shallow.config.rope_parameters["rope_theta"] = 5.0
    shallow.generation_config.max_new_tokens = 1
    shallow.get_submodule("model.layers.0.self_attn").scaling = 3.0  # type: ignore[assignment]


def use_compile(shallow: PreTrainedModel, folder: Path) -> None:
    shallow.compile(backend="eager")
    states(shallow)


def use_folder(shallow: PreTrainedModel, folder: Path) -> None:
    shallow.save_pretrained(folder)


def use_new_modules(shallow: PreTrainedModel, folder: Path) -> None:
    shallow.get_submodule("model.layers.1").mlp = nn.Identity()
    shallow.set_input_embeddings(nn.Embedding(VOCAB, 32))
    shallow.resize_token_embeddings(VOCAB + 8)
    states(shallow)


@pytest.mark.parametrize("use", [use_hooks, use_training, use_settings, use_compile, use_folder, use_new_modules])
def test_nothing_done_to_a_view_reaches_its_base(use: Any, tmp_path: Path) -> None:
    base = tiny("llama")
    results = states(base)
    before, values = everything(base), copies(base)
    shallow = view(base, ROUTE)
    use(shallow, tmp_path)
    assert_untouched(before, base)
    assert_same_copies(values, base)
    assert_same(states(base), results)


def test_nothing_done_to_the_base_later_reaches_the_view() -> None:
    base = tiny("llama")
    shallow = view(base, ROUTE)
    results = states(shallow)
    base.train()
    base.model.layers[2].register_forward_hook(lambda *_: pytest.fail("the base's hook ran"))
    base.config.num_hidden_layers = 1
    base.model.layers[4].mlp = nn.Identity()
    assert not any(m.training for m in shallow.modules())
    assert_same(states(shallow), results)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_tensor_of_a_view_is_the_bases_own(name: str) -> None:
    base = shared(name)
    shallow = view(base, ROUTE)
    theirs = dict(base.named_parameters(remove_duplicate=False))
    kept = {id(p) for p in theirs.values()}
    assert all(id(p) in kept for p in shallow.parameters())
    assert {b.data_ptr() for b in shallow.buffers()} <= {b.data_ptr() for b in base.buffers()}
    assert 0 < shallow.num_parameters() < base.num_parameters()
    # Tied weights stay tied.
    tied = base.get_output_embeddings().weight is base.get_input_embeddings().weight
    assert (shallow.get_output_embeddings().weight is shallow.get_input_embeddings().weight) == tied


def test_a_view_is_freed_and_takes_nothing_with_it() -> None:
    base = tiny("llama")
    gone = weakref.ref(view(base, ROUTE))
    gc.collect()
    assert gone() is None
    assert torch.isfinite(states(base)[0]).all()


def test_gradients_of_a_view_fill_the_bases_weights() -> None:
    base = tiny("llama")
    cut = cut_by_hand(base, "llama", ROUTE)
    ids = padded_prompts()["input_ids"]
    for model in (view(base, ROUTE), cut):
        model(ids, labels=ids).loss.backward()
    for new, old in enumerate(ROUTE):
        for ours, theirs in zip(base.model.layers[old].parameters(), cut.model.layers[new].parameters(), strict=True):
            assert ours.grad is not None
            assert torch.equal(ours.grad, theirs.grad)
    assert all(p.grad is None for p in base.model.layers[0].parameters())


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    base = tiny("llama")
    shallow = view(base, ROUTE)
    ids = padded_prompts()["input_ids"]
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            checkpoint_gradients(shallow)
        shallow.train()
        shallow(ids, labels=ids, use_cache=False).loss.backward()
        gradients.append([p.grad.clone() for p in shallow.parameters() if p.grad is not None])
        shallow.zero_grad()
    assert shallow.model.layers[0].gradient_checkpointing
    assert not base.model.layers[0].gradient_checkpointing
    assert len(gradients[0]) == len(list(shallow.parameters()))
    assert_same(*gradients)


@pytest.mark.parametrize(
    "copies_itself", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2_scaled"])
def test_a_copy_of_a_view_stands_alone(name: str, copies_itself: Any, tmp_path: Path) -> None:
    base = tiny(name)
    shallow = view(base, ROUTE)
    results = states(view(base, ROUTE))
    twin = copies_itself(shallow)
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in base.parameters()}
    with torch.no_grad():
        for p in base.parameters():
            p.zero_()
    assert_same(states(twin), results)
    assert route_of(twin) == route_of(shallow)
    if name != "gpt2_scaled":
        twin.save_pretrained(tmp_path)
        for ours, theirs in zip(states(AutoModelForCausalLM.from_pretrained(tmp_path)), results, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_threads_with_different_routes_do_not_meet() -> None:
    base = tiny("qwen3")
    routes = [(0, 1, 2), (3,), (1, 4), (0, 2, 3, 5), FULL, (2, 5)]
    alone = [written(view(base, layers)) for layers in routes]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            together = list(pool.map(lambda layers: written(view(base, layers)), routes))
            for ours, theirs in zip(together, alone, strict=True):
                assert_same(ours, theirs)


def test_only_a_view_has_a_route() -> None:
    base = tiny("llama")
    assert route_of(base) is None
    assert route_of(view(base, ROUTE)).layers == ROUTE
