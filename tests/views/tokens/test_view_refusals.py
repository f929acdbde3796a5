"""What token routing cannot do is refused in one clear sentence, before anything is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import StaticCache

from depthdial.engine.prefill import continuing, prefill
from depthdial.errors import InputError
from depthdial.hf.cache_name import cache_name, cache_of
from depthdial.routes import Route
from depthdial.views.prompted import prompted_view
from depthdial.views.tokens.depth import TokenDepth
from depthdial.views.tokens.policy import Bernoulli, ConfidenceExit
from depthdial.views.tokens.view import token_view
from depthdial.views.view import view
from tests.tiny import tiny
from tests.views.tokens.dense import N_LAYERS, Table, batch, drawn

BATCH, RAN = batch((5, 3)), drawn(2, 20)
HALF = Bernoulli((0.5,) * N_LAYERS)


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny("llama")


@pytest.fixture
def routed(llama: Any) -> Any:
    return token_view(llama, Table(RAN))


def prompt() -> dict[str, torch.Tensor]:
    return {"input_ids": BATCH.ids, "attention_mask": BATCH.mask}


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3", "flex_attention"])
def test_attention_without_masks_of_our_own_is_refused(attention: str) -> None:
    model = tiny("llama")
    model.config._attn_implementation = attention
    with pytest.raises(InputError, match=rf"{attention} attention does not take: .*attn_implementation='sdpa' or 'eager'"):
        token_view(model, HALF)


def test_architectures_that_mask_by_place_are_refused() -> None:
    with pytest.raises(InputError, match=r"GPTNeoForCausalLM masks by a token's place in the pass.*dd\.view"):
        token_view(tiny("gpt_neo"), HALF)


def test_views_of_token_views_are_refused(llama: Any, routed: Any) -> None:
    for make in (lambda: token_view(routed, HALF), lambda: view(routed, "ee:3"), lambda: prompted_view(routed, "ee:3")):
        with pytest.raises(InputError, match="routes token by token, so it cannot be cut again"):
            make()
    with pytest.raises(InputError, match="cannot be cut again"):
        token_view(prompted_view(llama, "ee:3"), HALF)


def test_static_caches_are_refused(llama: Any, routed: Any) -> None:
    with pytest.raises(InputError, match="needs a cache that grows, not a static one"):
        routed(**prompt(), **{cache_name(): StaticCache(config=llama.config, max_cache_len=32)})
    with pytest.raises(InputError, match="needs a cache that grows, not a static one"):
        routed.generate(**prompt(), max_new_tokens=3, do_sample=False, cache_implementation="static")


def test_beam_search_is_refused(llama: Any, routed: Any) -> None:
    with pytest.raises(InputError, match=r"Beam search is not supported .*\(num_beams=1\)"):
        routed.generate(**prompt(), num_beams=2, max_new_tokens=3, do_sample=False)


@pytest.mark.parametrize("how", ["torch.compile", "compile"])
def test_compiled_views_are_refused(llama: Any, how: str) -> None:
    torch.compiler.reset()
    routed = token_view(llama, HALF)
    if how == "compile":
        routed.compile(backend="eager")
    compiled = torch.compile(routed, backend="eager") if how == "torch.compile" else routed
    for _ in range(2):
        with torch.no_grad(), pytest.raises(InputError, match="cannot be compiled, since how many tokens run is known only"):
            compiled(**prompt())
    torch.compiler.reset()


def test_whole_masks_and_attention_matrices_are_refused(llama: Any, routed: Any) -> None:
    with pytest.raises(InputError, match=r"pass attention_mask as \(n_sequences, n_tokens\)"):
        routed(input_ids=BATCH.ids, attention_mask=torch.ones(2, 1, 5, 5, dtype=torch.bool))
    eager = token_view(tiny("llama", attn_implementation="eager"), HALF)
    with pytest.raises(InputError, match="leave output_attentions off"):
        eager(**prompt(), output_attentions=True)


def test_router_logits_are_there_only_where_every_layer_runs_for_every_token() -> None:
    model = tiny("mixtral")
    with pytest.raises(InputError, match="leave output_router_logits off, or use execution='dense'"):
        token_view(model, HALF, prompt_depth="route")(**prompt(), output_router_logits=True)
    dense = token_view(model, HALF, prompt_depth="route", execution="dense")
    with torch.no_grad():
        assert len(dense(**prompt(), output_router_logits=True).router_logits) == N_LAYERS


def test_gradient_checkpointing_is_refused_in_training_alone() -> None:
    model = tiny("llama")
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True  # type: ignore[assignment]
    routed = token_view(model, Table(RAN), prompt_depth="route")
    with torch.no_grad():
        routed(**prompt())
    routed.train()
    with pytest.raises(InputError, match=r"call model\.gradient_checkpointing_disable\(\)"):
        routed(**prompt())


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        (torch.ones(2), r"shape \(2,\) for layer 0, where the tokens have \(2, 5\): give one value for each token"),
        (torch.ones(2, 5, 1, dtype=torch.bool), r"shape \(2, 5, 1\)"),
        (torch.ones(5, 2, dtype=torch.bool), r"shape \(5, 2\)"),
        (True, "gave True for layer 0: give a tensor"),
        (np.ones((2, 5), bool), "for layer 0: give a tensor"),
    ],
)
def test_decisions_of_another_form_are_refused(llama: Any, decision: Any, message: str) -> None:
    for execution in ("gather", "dense"):
        some = token_view(llama, lambda layer, hidden: decision, prompt_depth="route", execution=execution)  # type: ignore[arg-type]
        with torch.no_grad(), pytest.raises(InputError, match=message):
            some(**prompt())


@pytest.mark.parametrize(
    ("policy", "options", "message"),
    [
        ("half", {}, "'half' is no token policy"),
        (Bernoulli((0.5,)), {}, "1 rates for a model of 6 layers"),
        (Route((0,), 5), {}, "for a model of 5 layers, and this one has 6"),
        (ConfidenceExit("margin", 0.5, first_layer=6), {}, "outside a model of 6 layers"),
        (HALF, {"key_values": "keep"}, "Unknown key_values 'keep': use project, drop or copy"),
        (HALF, {"prompt_depth": "half"}, "Unknown prompt depth 'half': use full or route"),
        (HALF, {"execution": "sparse"}, "Unknown execution 'sparse': use gather or dense"),
        (HALF, {"keys": ["a", "b"]}, "keys are whole numbers of 64 bits"),
        (HALF, {"keys": [2**63]}, "keys are whole numbers of 64 bits"),
    ],
)
def test_a_view_checks_what_it_is_made_of(llama: Any, policy: Any, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        token_view(llama, policy, **options)


def test_a_pass_checks_what_it_is_called_with(llama: Any, routed: Any) -> None:
    with torch.no_grad():
        with pytest.raises(InputError, match="There are 3 keys for a batch of 2: give one a sequence"):
            token_view(llama, HALF, keys=[1, 2, 3], prompt_depth="route")(**prompt())
        with pytest.raises(InputError, match="3 routes for a batch of 2"):
            token_view(llama, [Route((0,), 6)] * 3, prompt_depth="route")(**prompt())
        for wrong in (-1, 2.0, True):
            with pytest.raises(InputError, match="Invalid prompt_columns"):
                routed(**prompt(), prompt_columns=wrong)
        with pytest.raises(InputError, match="pass input_ids or inputs_embeds"):
            routed(attention_mask=BATCH.mask)
        cache = cache_of(view(llama, "ee:3")(**prompt(), use_cache=True))
        with pytest.raises(InputError, match="KV cache is of 3 layers, and this view has 6"):
            routed(input_ids=BATCH.ids[:, :1], **{cache_name(): cache})
        shallow = prefill(llama, BATCH.ids, BATCH.mask, Route((0, 1), 6))
        with pytest.raises(InputError, match="continues on a prompt that ran every layer, not on one of route"):
            continuing(llama, TokenDepth(HALF, 6), shallow)


def test_layers_do_not_run_by_themselves(routed: Any) -> None:
    with pytest.raises(InputError, match="run only inside its own forward"):
        routed.model.layers[0](torch.zeros(1, 1, 32))


def test_confidence_needs_a_head() -> None:
    model = tiny("llama").model
    some = token_view(model, ConfidenceExit("margin", 0.5), prompt_depth="route")
    with torch.no_grad(), pytest.raises(InputError, match="has no output head, so a token's confidence cannot be known"):
        some(**prompt())
