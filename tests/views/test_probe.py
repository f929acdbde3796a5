"""The check at `dd.view`: what depends on a layer's place outside the layers is found, whatever the architecture."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaModel

import depthdial as dd
from depthdial.hf.architectures import decoder_stack
from depthdial.views import probe
from depthdial.views.probe import canonical_layers
from depthdial.views.view import quiet_view, view
from tests.tiny import ARCHITECTURES, tiny

REFUSED = "would not be right, since it keeps something by a layer's place outside its layers"


class PlacedModel(LlamaModel):
    """A Llama's decoder without masks and caches, that does something of its own around each layer."""

    def around(self, place: int, hidden: torch.Tensor) -> torch.Tensor:
        return hidden

    def forward(self, input_ids: Any = None, **kwargs: Any) -> BaseModelOutputWithPast:
        hidden = self.embed_tokens(input_ids)
        places = torch.arange(hidden.shape[1])[None]
        for place, layer in enumerate(self.layers[: self.config.num_hidden_layers]):
            hidden = self.around(place, hidden)
            hidden = layer(hidden, position_ids=places, position_embeddings=self.rotary_emb(hidden, places))
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden))


class ByList(PlacedModel):
    def around(self, place: int, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * self.scales[place]  # type: ignore[index]


class ByParity(PlacedModel):
    def around(self, place: int, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * (1.5 if place % 2 else 1.0)


class AtTheLast(PlacedModel):
    def around(self, place: int, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * 2 if place == len(self.layers) - 1 else hidden


class ByModules(PlacedModel):
    def around(self, place: int, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.beside[place](hidden)  # type: ignore[index, operator]


class ByFailing(PlacedModel):
    def around(self, place: int, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * {6: 1.0}[len(self.layers)]


def placed(kind: type[PlacedModel], **attributes: Any) -> LlamaForCausalLM:
    model: Any = tiny("llama")
    decoder = kind(model.config)
    decoder.load_state_dict(model.model.state_dict())
    for name, value in attributes.items():
        setattr(decoder, name, value)
    model.model = decoder
    return model.eval()


def silent_modules() -> nn.ModuleList:
    beside = nn.ModuleList(nn.Linear(32, 32) for _ in range(6))
    for parameter in beside.parameters():
        nn.init.zeros_(parameter)
    return beside


WRONG = {
    "a list": lambda: placed(ByList, scales=[1.0, 2.0, 1.0, 1.0, 2.0, 1.0]),
    "a parameter of a fresh model, all ones": lambda: placed(ByList, scales=nn.Parameter(torch.ones(6))),
    "parity": lambda: placed(ByParity),
    "the last layer": lambda: placed(AtTheLast),
    "modules beside the layers, all zeros": lambda: placed(ByModules, beside=silent_modules()),
    "a failure": lambda: placed(ByFailing),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_depends_on_a_place_is_refused_unless_nothing_moves(name: str) -> None:
    model = WRONG[name]()
    for layers in ((1, 2, 4), (1, 2, 3)):
        with pytest.raises(dd.InputError, match=REFUSED):
            view(model, layers)
        with pytest.raises(dd.InputError, match=REFUSED):
            dd.prompted_view(model, dd.Route(layers, 6))
    assert len(decoder_stack(view(model, (1, 2, 4), check=False)).layers) == 3
    view(model, "full")
    if name in ("a list", "parity"):
        view(model, "ee:4")


def test_a_decoder_without_places_passes() -> None:
    assert len(decoder_stack(view(placed(PlacedModel), (1, 2, 4))).layers) == 3


def test_a_mask_by_a_list_that_is_not_cut_is_seen_through_short_windows() -> None:
    """Windows are far longer than the check's few tokens."""
    model: Any = tiny("gemma2", sliding_window=32)
    probe._passed.discard(model)
    kinds = list(model.config.layer_types)
    wrong = quiet_view(model, (1, 2, 4), check=False)
    wrong.config.layer_types = kinds[:3]

    def uncut(base: Any, layers: Any) -> Any:
        cut = quiet_view(base, layers, check=False)
        cut.config.layer_types = kinds[: len(layers)]
        return cut

    assert probe._compare(model, (1, 2, 4), uncut) is not None
    assert probe._compare(model, (1, 2, 4), lambda base, layers: quiet_view(base, layers, check=False)) is None


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_listed_architecture_passes(name: str) -> None:
    model = tiny(name)
    assert probe._compare(model, canonical_layers(6), lambda b, layers: quiet_view(b, layers, check=False)) is None


def test_a_layer_that_keeps_its_slot_of_the_cache_is_found() -> None:
    def misnumbered(base: Any, layers: Any) -> Any:
        cut = quiet_view(base, layers, check=False)
        for old, layer in zip(layers, decoder_stack(cut).layers, strict=True):
            layer.self_attn.layer_idx = old  # type: ignore[union-attr]
        return cut

    reason = probe._compare(tiny("llama"), (1, 2, 4), misnumbered)
    assert reason is not None and "KV cache" in reason


def test_the_model_its_modes_and_the_random_state_stay(weights_of: Any, assert_same: Any) -> None:
    model = tiny("qwen3_moe", attention_dropout=0.5).train()
    model.model.layers[2].eval()
    calls: list[int] = []
    model.model.layers[1].register_forward_hook(lambda *_: calls.append(1))
    before, state = weights_of(copy.deepcopy(model)), torch.get_rng_state()
    probe._seen.clear()
    view(model, (1, 2, 4))
    assert_same(before, weights_of(model))
    assert torch.equal(state, torch.get_rng_state()) and not calls
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_kind_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []
    compare = probe._compare
    monkeypatch.setattr(probe, "_compare", lambda *args: tried.append(args) or compare(*args))
    monkeypatch.setattr(probe, "_seen", {})
    for layers in ((1, 2), (0, 3), (2, 5)):
        view(tiny("llama"), layers)
    assert len(tried) == 1
    view(tiny("llama", rope_parameters={"rope_type": "default", "rope_theta": 5e4}), (1, 2))
    assert len(tried) == 2


def test_later_views_cost_nothing() -> None:
    model = tiny("llama")
    view(model, (1, 2))

    def quickest(check: bool) -> float:
        times = []
        for _ in range(7):
            start = time.perf_counter()
            view(model, (1, 2), check=check)
            times.append(time.perf_counter() - start)
        return min(times)

    assert quickest(True) < 2 * quickest(False)


def test_models_that_cannot_run_here_pass() -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(tiny("llama").config)
    assert len(decoder_stack(view(model, (1, 2))).layers) == 2


@pytest.mark.parametrize("n_layers", range(1, 40))
def test_the_canonical_route_moves_layers(n_layers: int) -> None:
    layers = canonical_layers(n_layers)
    assert layers == tuple(sorted(set(layers))) and set(layers) <= set(range(n_layers))
    assert n_layers == 1 or 0 not in layers
