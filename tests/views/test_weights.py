"""What is done to a view's weights changes the view and not its base; weights are shared for as long as nothing is done."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from depthdial.engine.decode import decode
from depthdial.engine.prefill import prefill
from depthdial.errors import InputError
from depthdial.routes import Route
from depthdial.views.prompted import prompted_view
from depthdial.views.tokens.policy import Bernoulli
from depthdial.views.tokens.view import token_view
from depthdial.views.view import quiet_view, view
from depthdial.views.weights import SHARED_ATTRIBUTE
from tests.tiny import VOCAB, add_adapter, tiny
from tests.views.test_view import padded_prompts, states
from tests.views.test_view_shares import assert_same_copies, assert_untouched, checkpoint_gradients, copies, everything

# PEFT asks transformers for what a later transformers calls deprecated, and PyTorch's own quantization is.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:fan_in_fan_out", "ignore:.*quantize"
)

ROUTE = (1, 2, 4)
NAMES = ("llama", "gpt2", "gemma3_text", "mpt")  # the last three tie embeddings and head


def flags(model: nn.Module) -> list[tuple[bool, torch.dtype, torch.device, tuple[int, ...], int]]:
    return [(p.requires_grad, p.dtype, p.device, tuple(p.shape), p.data_ptr()) for p in model.parameters()]


def lora(name: str = "llama") -> Any:
    targets = {"gpt2": ["c_attn"], "mpt": ["Wqkv"]}.get(name, ["q_proj", "v_proj"])
    return peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")


def is_cast(shallow: PreTrainedModel) -> bool:
    return all(p.dtype == torch.bfloat16 for p in shallow.parameters())


def changed_weights(shallow: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: tensor + 1 for name, tensor in shallow.state_dict().items()}


def do_load(shallow: Any, assign: bool) -> bool:
    wanted = changed_weights(shallow)
    shallow.load_state_dict(wanted, assign=assign)
    now = shallow.state_dict()
    return all(torch.equal(now[name], wanted[name]) for name in wanted)


def do_load_part(shallow: Any) -> bool:
    head = shallow.get_input_embeddings()
    wanted = {"weight": head.weight.detach() + 1}
    head.load_state_dict(wanted)
    return torch.equal(head.weight, wanted["weight"])


def do_reset(shallow: Any) -> bool:
    before = shallow.get_input_embeddings().weight.clone()
    shallow.get_input_embeddings().reset_parameters()
    return not torch.equal(before, shallow.get_input_embeddings().weight)


def do_init_weights(shallow: Any) -> bool:
    for parameter in shallow.parameters():
        parameter.__dict__.pop("_is_hf_initialized", None)
    shallow._init_weights(shallow.get_input_embeddings())
    shallow.init_weights()
    shallow.post_init()
    return True


def do_merge(shallow: Any) -> bool:
    name = {"gpt2": "gpt2", "mpt": "mpt"}.get(shallow.config.model_type, "llama")
    wrapped = peft.get_peft_model(shallow, lora(name))
    adapted = states(wrapped)[0]
    wrapped.merge_adapter()
    torch.testing.assert_close(states(wrapped)[0], adapted, atol=1e-3, rtol=1e-3)
    wrapped.unmerge_adapter()
    wrapped.merge_and_unload()
    return True


def do_adapters(shallow: Any) -> bool:
    name = {"gpt2": "gpt2", "mpt": "mpt"}.get(shallow.config.model_type, "llama")
    add_adapter(shallow, lora(name), "mine")
    shallow.disable_adapters()
    shallow.enable_adapters()
    shallow.set_adapter("mine")
    return any(p.requires_grad for p in shallow.parameters()) and not all(p.requires_grad for p in shallow.parameters())


def do_resize(shallow: Any) -> bool:
    shallow.resize_token_embeddings(VOCAB + 8)
    return shallow.get_input_embeddings().weight.shape[0] == VOCAB + 8 == shallow.config.vocab_size


def do_quantize(shallow: Any) -> bool:
    torch.ao.quantization.quantize_dynamic(shallow, {nn.Linear}, inplace=True)
    return True


def do_new_tensors(shallow: Any) -> bool:
    shallow.set_output_embeddings(nn.Linear(32, VOCAB, bias=False))
    shallow.set_input_embeddings(nn.Embedding(VOCAB, 32))
    shallow.tie_weights()
    layer = shallow.get_submodule(next(name for name, m in shallow.named_modules() if isinstance(m, nn.ModuleList)))[0]
    layer.register_buffer("spare", torch.zeros(2))
    layer.register_parameter("other", nn.Parameter(torch.zeros(2)))
    return True


def do_settings(shallow: Any) -> bool:
    shallow.train().eval()
    shallow.set_attn_implementation("eager")
    checkpoint_gradients(shallow)
    shallow.config.vocab_size = 3
    shallow.generation_config.max_new_tokens = 1
    return True


def first_layer(shallow: Any) -> Any:
    return next(m for m in shallow.modules() if isinstance(m, nn.ModuleList))[0]


CHANGES: dict[str, Callable[[Any], bool]] = {
    "to": lambda v: is_cast(v.to(torch.bfloat16)),
    "bfloat16": lambda v: is_cast(v.bfloat16()),
    "half": lambda v: v.half().dtype == torch.float16,
    "double": lambda v: v.double().dtype == torch.float64,
    "to device": lambda v: v.to("meta").device.type == "meta",
    "to_empty": lambda v: v.to_empty(device="cpu") is v,
    "share_memory": lambda v: all(p.is_shared() for p in v.share_memory().parameters()),
    "requires_grad_": lambda v: not any(p.requires_grad for p in v.requires_grad_(False).parameters()),
    "part to": lambda v: is_cast(first_layer(v).to(torch.bfloat16)) and not is_cast(v),
    "part half": lambda v: v.get_output_embeddings().half().weight.dtype == torch.float16,
    "part requires_grad_": lambda v: not any(p.requires_grad for p in first_layer(v).requires_grad_(False).parameters()),
    "load_state_dict": lambda v: do_load(v, False),
    "load_state_dict, assign": lambda v: do_load(v, True),
    "part load_state_dict": do_load_part,
    "reset_parameters": do_reset,
    "init_weights": do_init_weights,
    "resize_token_embeddings": do_resize,
    "add_adapter": do_adapters,
    "merge_adapter": do_merge,
    "quantize_dynamic": do_quantize,
    "new modules and tensors": do_new_tensors,
    "settings": do_settings,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_a_view_leaves_its_base(change: str, name: str) -> None:
    base = tiny(name)
    results = states(base)
    before, values, before_flags = everything(base), copies(base), flags(base)
    shallow = view(view(base, (0, 1, 2, 4)), (1, 2, 3)) if change == "half" else view(base, ROUTE)
    assert CHANGES[change](shallow)
    assert flags(base) == before_flags
    assert_untouched(before, base)
    assert_same_copies(values, base)
    assert all(torch.equal(a, b) for a, b in zip(states(base), results, strict=True))
    ids = padded_prompts()["input_ids"]
    base(ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in base.parameters())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_view_that_is_cast_is_the_cast_model(name: str) -> None:
    base = tiny(name)
    expected = states(view(copy.deepcopy(base).to(torch.bfloat16), ROUTE))
    shallow = view(base, ROUTE).to(torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(states(shallow), expected, strict=True))
    tied = base.get_output_embeddings().weight is base.get_input_embeddings().weight
    assert (shallow.get_output_embeddings().weight is shallow.get_input_embeddings().weight) == tied == (name == "gpt2")
    parts = view(base, ROUTE)
    parts.get_output_embeddings().half()
    assert (parts.get_input_embeddings().weight.dtype == torch.float16) == tied


def test_what_changes_nothing_keeps_the_weights_shared() -> None:
    base = tiny("llama")
    shallow = view(base, ROUTE)
    shallow.to("cpu").to(torch.float32).float().train().eval()
    shallow.zero_grad()
    theirs = {id(p) for p in base.parameters()}
    assert all(id(p) in theirs for p in shallow.parameters())
    ids = padded_prompts()["input_ids"]
    shallow(ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in base.model.layers[1].parameters())


def test_only_what_is_written_to_takes_memory() -> None:
    base = tiny("llama")
    theirs = {p.data_ptr() for p in base.parameters()}
    frozen = view(base, ROUTE).requires_grad_(False)
    assert all(p.data_ptr() in theirs for p in frozen.parameters())
    wrapped = peft.get_peft_model(view(base, ROUTE), lora())
    assert all(p.data_ptr() in theirs for name, p in wrapped.named_parameters() if "lora" not in name)
    loaded = view(base, ROUTE)
    loaded.lm_head.load_state_dict(loaded.lm_head.state_dict())
    assert loaded.lm_head.weight.data_ptr() not in theirs
    assert loaded.model.embed_tokens.weight.data_ptr() in theirs


def test_views_of_a_changed_view_share_what_it_has() -> None:
    """Training on views makes one for every pass: gradients reach the adapter, and never the base."""
    base = tiny("llama")
    wrapped = peft.get_peft_model(view(base, (0, 1, 2, 4)), lora())
    ids = padded_prompts()["input_ids"]
    inner = quiet_view(wrapped, (1, 2, 3))
    inner(ids, labels=ids).loss.backward()
    trained = {name: p.grad for name, p in wrapped.named_parameters() if "lora" in name}
    assert sum(gradient is not None for gradient in trained.values()) == 3 * 2 * 2
    assert all(p.grad is None and p.requires_grad for p in base.parameters())
    inner.requires_grad_(False)
    assert any(p.requires_grad for p in wrapped.parameters())
    inner.half()
    assert {p.dtype for p in wrapped.parameters()} == {torch.float32}


def test_merging_in_the_view_of_an_adapted_model_stays_there() -> None:
    wrapped = peft.get_peft_model(tiny("llama"), lora())
    weights = {name: p.clone() for name, p in wrapped.named_parameters()}
    shallow = view(wrapped, ROUTE)
    expected = states(shallow)[0]
    for module in shallow.modules():
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
            module.merge()
    torch.testing.assert_close(states(shallow)[0], expected, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(weights[name], p) for name, p in wrapped.named_parameters())
    shallow.get_submodule("model.layers.0.self_attn.q_proj").set_adapter([])
    assert all(p.requires_grad for name, p in wrapped.named_parameters() if "lora" in name)


@pytest.mark.parametrize(
    "change", ["to", "half", "resize_token_embeddings", "add_adapter", "load_state_dict", "init_weights"]
)
def test_a_prompted_view_has_no_weights_of_its_own(change: str) -> None:
    base = tiny("llama")
    before, before_flags = copies(base), flags(base)
    with pytest.raises(InputError, match=r"A prompted view runs its prompt through the whole model.*make the view after"):
        CHANGES[change](prompted_view(base, ROUTE))
    shallow = prompted_view(base, ROUTE)
    shallow.to("cpu").float().requires_grad_(False)
    assert flags(base) == before_flags
    assert_same_copies(before, base)


def test_a_token_view_has_weights_of_its_own() -> None:
    base = tiny("llama")
    before, before_flags = copies(base), flags(base)
    routed = token_view(base, Bernoulli((0.5,) * 6)).to(torch.bfloat16)
    with torch.no_grad():
        assert routed(**padded_prompts()).logits.dtype == torch.bfloat16
    assert flags(base) == before_flags
    assert_same_copies(before, base)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"])
def test_a_copy_of_a_view_changes_in_place(copied: Any) -> None:
    """It shares nothing, so that its parameters stay the ones that an optimizer knows."""
    twin = copied(view(tiny("llama"), ROUTE))
    assert twin.__dict__[SHARED_ATTRIBUTE].top is None
    known = list(twin.parameters())
    twin.half().requires_grad_(False)
    twin.lm_head.reset_parameters()
    assert all(a is b for a, b in zip(known, twin.parameters(), strict=True))
    twin.model.layers[0] = nn.Identity()


def test_decoding_needs_no_weights_of_its_own(tmp_path: Path, weights_of: Any, assert_same: Any) -> None:
    base = tiny("llama")
    before = weights_of(base)
    prefilled = prefill(base, torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.long))
    decode(base, Route(ROUTE, 6), prefilled, max_new_tokens=3, eos_token_ids=(), pad_token_id=0)
    view(base, ROUTE).save_pretrained(tmp_path)
    assert_same(before, weights_of(base))
