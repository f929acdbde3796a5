"""The switch to the untouched full model: the bare base to the bit, and everything put back afterwards."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch

from depthdial.errors import InputError
from depthdial.hf.untouched import adapter_modules, has_adapters_on, untouched
from depthdial.routes import Route
from depthdial.views.prompted import prompted_view
from depthdial.views.view import view
from tests.tiny import add_adapter, tiny
from tests.views.test_view import FULL, assert_same, states, written
from tests.views.test_view_adapters import adapted, lora
from tests.views.test_view_shares import ROUTE, assert_same_copies, assert_untouched, copies, everything

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning"),
]
NAMES = ["llama", "qwen3_moe", "gpt2", "opt"]


def added(name: str) -> Any:
    """The base with an adapter that transformers itself added."""
    torch.manual_seed(5)
    base = tiny(name)
    add_adapter(base, lora(name))
    return base


def frozen(name: str) -> Any:
    """The bare base, its weights frozen as PEFT freezes them: PyTorch's matrix products round by that."""
    return tiny(name).requires_grad_(False)


def results(model: Any) -> tuple[torch.Tensor, ...]:
    return (*states(model), *written(model))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [adapted, lambda name: adapted(name).get_base_model(), added], ids=["peft", "inner", "hf"])
def test_inside_it_is_the_bare_base_and_afterwards_as_before(name: str, make: Any) -> None:
    model, bare = make(name), frozen(name)
    gradients = [p.requires_grad for p in model.parameters()]
    with_adapter, expected = results(model), results(bare)
    assert (with_adapter[0] - expected[0]).abs().max() > 0.05
    before, values = everything(model), copies(model)
    with untouched(model):
        assert not has_adapters_on(model)
        assert_same(results(model), expected)
        assert_same(results(view(model, ROUTE)), results(view(bare, ROUTE)))
    assert has_adapters_on(model)
    assert_untouched(before, model)
    assert_same_copies(values, model)
    assert [p.requires_grad for p in model.parameters()] == gradients
    assert_same(results(model), with_adapter)


def test_nested_and_after_an_exception() -> None:
    model, bare = adapted("llama"), tiny("llama")
    with_adapter, expected = states(model), states(bare)
    before = everything(model)
    with untouched(model):
        with untouched(model.get_base_model()):
            assert_same(states(model), expected)
        assert_same(states(model), expected)
        with pytest.raises(ZeroDivisionError), untouched(model):
            _ = 1 / 0
        assert_same(states(model), expected)
    with pytest.raises(ZeroDivisionError), untouched(model):
        _ = 1 / 0
    assert_untouched(before, model)
    assert_same(states(model), with_adapter)


def test_adapters_that_were_off_stay_off() -> None:
    model = adapted("llama")
    with model.disable_adapter():
        assert not has_adapters_on(model)
        with untouched(model):
            pass
        assert not has_adapters_on(model)
        assert_same(states(model), states(tiny("llama")))
    assert has_adapters_on(model)


def test_views_are_snapshots_of_either_side() -> None:
    model, bare = adapted("llama"), tiny("llama")
    on = view(model, ROUTE)
    with_adapter = states(on)
    with untouched(model):
        off = view(model, ROUTE)
        assert_same(states(on), with_adapter)
    assert_same(states(off), states(view(bare, ROUTE)))
    with untouched(on):
        assert_same(states(on), states(off))
    assert_same(states(on), with_adapter)


def test_a_prompted_view_keeps_the_side_that_it_was_made_on() -> None:
    model = adapted("llama")
    with untouched(model):
        off = prompted_view(model, Route(ROUTE, 6))
    on = prompted_view(model, Route(ROUTE, 6))
    assert_same(written(off), written(prompted_view(frozen("llama"), Route(ROUTE, 6))))
    with_adapter = written(on)
    with untouched(model):
        assert_same(written(on), with_adapter)
    assert (with_adapter[1] - written(off)[1]).abs().max() > 0.05


def test_modules_and_tokens_trained_beside_the_adapter_are_off_too() -> None:
    for settings in (
        {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
        {"trainable_token_indices": [3, 4, 5], "target_modules": ["q_proj"]},
    ):
        model = adapted("llama", **settings)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(torch.randn_like(p), alpha=0.05)
        with untouched(model):
            assert_same(states(model), states(tiny("llama")))


def test_a_model_without_adapters_is_left_alone() -> None:
    model = tiny("llama")
    expected, before = states(model), everything(model)
    with untouched(model):
        assert_same(states(model), expected)
    assert_untouched(before, model)
    assert not adapter_modules(model) and not has_adapters_on(model)
    assert_same(states(view(model, FULL)), expected)


def test_a_merged_adapter_is_refused() -> None:
    model = adapted("llama")
    model.merge_adapter()
    with pytest.raises(InputError, match="merged into the model's weights"), untouched(model):
        pass


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: lora("gpt2", bias="all", target_modules=["c_attn"]), "trains the model's own biases"),
        (lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "outside the decoder layers"),
    ],
)
def test_what_cannot_be_switched_off_is_refused(config: Any, message: str) -> None:
    model = peft.get_peft_model(tiny("gpt2"), config())
    with pytest.raises(InputError, match=message), untouched(model):
        pass


def test_adaption_prompts_are_refused() -> None:
    config = peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=2, adapter_layers=2, target_modules="self_attn")
    model = peft.get_peft_model(tiny("llama"), config)
    assert has_adapters_on(model)
    with pytest.raises(InputError, match="Adaption prompts cannot be switched off"), untouched(model):
        pass


def test_unknown_things_are_no_models() -> None:
    with pytest.raises(InputError, match="is not a Hugging Face model"), untouched(torch.nn.Linear(2, 2)):
        pass
