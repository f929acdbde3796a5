"""A view is the model with its layers cut out, and the whole model with the other layers undone, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from depthdial.errors import InputError
from depthdial.hf.architectures import why_not_saved
from depthdial.routes import Route
from depthdial.views.view import route_of, view
from tests.tiny import ARCHITECTURES, N_LAYERS, REPRESENTATIVES, VOCAB, cover, cut_by_hand
from tests.tiny import shared as base

FULL = tuple(range(N_LAYERS))
ROUTES = {
    "early exit": (0, 1, 2),
    "without layer 0": (1, 2, 4, 5),
    "without the last": (0, 2, 3, 4),
    "one layer": (3,),
    "uneven": (1, 4),
    "full": FULL,
}
# What a saved configuration could not say of layers 1, 2 and 4.
NOT_SAVED = {
    "gpt2_scaled": "attn.scaling of its layer 0",
    "ernie4_5_moe": "mlp",
    "modernbert-decoder": "attn_norm.weight of its layer 0",
    "gemma4_unified_text": "layer_types",
    "diffllama": "self_attn.lambda_init of its layer 0",
}
# With a static cache transformers' own forward of these fails, on any model (Llama 4: before 5.23).
NO_STATIC_CACHE = {"falcon_alibi", "llama4_text"}


def padded_prompts() -> dict[str, torch.Tensor]:
    """Three prompts of unequal length, padded on the left: input ids and attention mask, (3, 9)."""
    ids = torch.randint(3, VOCAB, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :4] = mask[2, :1] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


@torch.no_grad()
def states(model: PreTrainedModel, **kwargs: Any) -> tuple[torch.Tensor, ...]:
    """Logits and all hidden states of the padded prompts."""
    out = model(**padded_prompts(), output_hidden_states=True, **kwargs)
    return (out.logits, *out.hidden_states)


def written(model: PreTrainedModel, **kwargs: Any) -> tuple[torch.Tensor, ...]:
    """What `generate` writes after the padded prompts: token ids, then the logits of every step."""
    out = model.generate(
        **padded_prompts(),
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
        **kwargs,
    )
    return (out.sequences, *out.logits)


def assert_same(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> None:
    assert len(ours) == len(theirs)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.equal(a, b), f"tensor {i} differs"


def assert_loads_as(shallow: PreTrainedModel, folder: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.state_dict().keys() == shallow.state_dict().keys()
    assert_same([*loaded.state_dict().values()], [*shallow.state_dict().values()])
    # Loaded weights may lie in memory so that a kernel rounds in another way.
    for ours, theirs in zip((*states(loaded), *written(loaded)), (*states(shallow), *written(shallow)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@contextmanager
def undone(model: PreTrainedModel, skipped: Sequence[int]) -> Iterator[None]:
    """The whole model, its skipped layers' forwards replaced by the identity."""
    (stack,) = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == N_LAYERS]
    outputs: list[Any] = []
    hook = stack[0].register_forward_hook(lambda _, __, output: outputs.append(output))
    with torch.no_grad():
        model(**padded_prompts())
    hook.remove()
    rest = (None,) * (len(outputs[0]) - 1) if isinstance(outputs[0], tuple) else None

    def identity(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return hidden_states if rest is None else (hidden_states, *rest)

    for i in skipped:
        stack[i].forward = identity  # type: ignore[method-assign]
    try:
        yield
    finally:
        for i in skipped:
            del stack[i].forward


@pytest.mark.parametrize(("name", "route"), cover(list(ROUTES)))
def test_a_view_is_the_model_with_its_layers_cut_out(name: str, route: str) -> None:
    layers = ROUTES[route]
    cut = cut_by_hand(base(name), name, layers)
    shallow = view(base(name), layers)
    assert len(states(shallow)) == len(layers) + 2
    assert_same(states(shallow), states(cut))


@pytest.mark.parametrize(("name", "route"), cover(["without layer 0", "early exit"], all_of=()))
def test_a_view_writes_what_the_cut_model_writes(name: str, route: str) -> None:
    cut = cut_by_hand(base(name), name, ROUTES[route])
    shallow = view(base(name), ROUTES[route])
    greedy = written(shallow)
    assert_same(greedy, written(cut))
    uncached = written(shallow, use_cache=False)
    assert_same(uncached, written(cut, use_cache=False))
    assert torch.equal(greedy[0], uncached[0])
    for with_cache, without in zip(greedy[1:], uncached[1:], strict=True):
        torch.testing.assert_close(with_cache, without, atol=1e-5, rtol=1e-5)


WRITTEN = [
    pytest.param(name, route, marks=() if name in REPRESENTATIVES and route == "without layer 0" else pytest.mark.matrix)
    for name in ARCHITECTURES
    for route in ("without layer 0", "early exit")
]


@pytest.mark.parametrize(("name", "route"), WRITTEN)
def test_beams_write_what_those_of_the_cut_model_write(name: str, route: str) -> None:
    cut, shallow = cut_by_hand(base(name), name, ROUTES[route]), view(base(name), ROUTES[route])
    assert_same(written(shallow, num_beams=3), written(cut, num_beams=3))


@pytest.mark.parametrize(("name", "route"), [pair for pair in WRITTEN if pair.values[0] not in NO_STATIC_CACHE])
def test_with_a_static_cache_the_same_is_written(name: str, route: str) -> None:
    cut, shallow = cut_by_hand(base(name), name, ROUTES[route]), view(base(name), ROUTES[route])
    assert_same(written(shallow, cache_implementation="static"), written(cut, cache_implementation="static"))


@pytest.mark.parametrize(("name", "route"), cover(list(ROUTES)))
def test_a_view_is_the_whole_model_with_the_other_layers_undone(name: str, route: str) -> None:
    layers = ROUTES[route]
    ours = states(view(base(name), layers), use_cache=False)
    with undone(base(name), sorted(set(FULL) - set(layers))):
        logits, *hidden = states(base(name), use_cache=False)
    # Hidden state i + 1 is what layer i gives; the last one has been through the final norm.
    assert_same(ours, (logits, hidden[0], *(hidden[i + 1] for i in layers[:-1]), hidden[-1]))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_another_route_is_another_model(name: str) -> None:
    # The meta-test of all the above: they would see a layer too many, too few, or in another's place.
    results = [states(view(base(name), layers))[0] for layers in (FULL, (0, 1, 2, 3, 4), (1, 2, 3, 4, 5), (1, 2, 4, 5))]
    for i, a in enumerate(results):
        for b in results[:i]:
            assert (a - b).abs().max() > 0.05
    wrong = cut_by_hand(base(name), name, (0, 2, 4, 5))
    with pytest.raises(AssertionError, match="differs"):
        assert_same(states(view(base(name), (1, 2, 4, 5))), states(wrong))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_full_route_is_the_base(name: str) -> None:
    full = view(base(name), "full")
    assert full is not base(name)
    assert_same(states(full), states(base(name)))
    assert_same(written(full), written(base(name)))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_view_of_a_view_is_the_view_of_the_layers_that_remain(name: str) -> None:
    outer = view(view(base(name), (0, 2, 3, 5)), (1, 3))
    assert_same(states(outer), states(view(base(name), (2, 5))))
    assert_same(written(outer), written(view(base(name), (2, 5))))
    assert route_of(outer) == Route((1, 3), 4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_saved_view_loads_as_the_same_model(name: str, tmp_path: Path) -> None:
    shallow = view(base(name), (1, 2, 4))
    if name in NOT_SAVED:
        with pytest.raises(InputError, match=f"cannot be saved: .*{NOT_SAVED[name]}"):
            shallow.save_pretrained(tmp_path)
        assert not list(tmp_path.iterdir())
        return
    assert why_not_saved(shallow) is None
    shallow.save_pretrained(tmp_path)
    assert_loads_as(shallow, tmp_path)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("gpt2_scaled", (0, 1, 2)),
        ("ernie4_5_moe", (0, 1, 2, 3)),
        ("modernbert-decoder", (0, 1, 5)),
        ("gemma4_unified_text", (0, 4, 5)),
        ("diffllama", (0, 1)),
    ],
)
def test_layers_that_keep_what_their_place_gives_can_be_saved(name: str, layers: tuple[int, ...], tmp_path: Path) -> None:
    shallow = view(base(name), layers)
    assert why_not_saved(shallow) is None
    shallow.save_pretrained(tmp_path)
    assert_loads_as(shallow, tmp_path)


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "gemma3_text", "smollm3", "cohere2", "gpt_oss", "modernbert-decoder"])
def test_a_view_of_one_kind_of_attention_is_saved_or_refused(name: str, tmp_path: Path) -> None:
    # Some configurations speak of both kinds; transformers 5.10 does not read one back that has layers of one alone.
    shallow = view(base(name), (0, 2, 3))
    assert set(shallow.config.layer_types) == {"sliding_attention"}
    if (reason := why_not_saved(shallow)) is None:
        shallow.save_pretrained(tmp_path)
        assert_loads_as(shallow, tmp_path)
    else:
        assert "cannot read its configuration back" in reason
        with pytest.raises(InputError, match="cannot be saved: transformers cannot read"):
            shallow.save_pretrained(tmp_path)


@pytest.mark.parametrize("number", ["4", 4, 0.5, "50%"])
def test_a_bare_number_is_no_view_of_one_layer(number: Any) -> None:
    with pytest.raises(InputError, match=rf"Route '{number}' is a bare number, .*: write uls:\d+%? or ee:"):
        view(base("llama"), number)
    assert route_of(view(base("llama"), "4-4")).layers == (4,)
