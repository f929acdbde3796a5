from __future__ import annotations

import copy
import functools
import gc
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from depthdial.engine.session import Session
from depthdial.errors import InputError
from depthdial.views import packed
from depthdial.views.packed import LEAST_ELEMENTS, pack_linears, packed_bytes
from depthdial.views.snapshot import snapshot
from depthdial.views.view import quiet_view, view
from tests.tiny import tiny

WIDTH = 260  # 260 x 260 elements are just enough to be packed
IDS = torch.tensor([[5, 9, 2, 7], [1, 3, 3, 8]])

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")


def large(kind: type = LlamaConfig, **fields) -> nn.Module:
    """A model of 2 layers whose weights are large enough to be packed."""
    sizes = {"vocab_size": WIDTH, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind is LlamaConfig:
        sizes |= {"intermediate_size": WIDTH, "num_key_value_heads": 2}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(kind(**sizes, bos_token_id=1, eos_token_id=2, pad_token_id=0, **fields)).eval()


def private(model: nn.Module) -> nn.Module:
    pack_linears(found := snapshot(model))
    return found


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def assert_close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def is_packed(module: nn.Module) -> bool:
    return "forward" in module.__dict__


def layer_of(
    weight_shape: tuple[int, int] = (300, 400), *, bias: bool = True, dtype: torch.dtype = torch.float32
) -> nn.Linear:
    torch.manual_seed(1)
    layer = nn.Linear(weight_shape[1], weight_shape[0], bias=bias, dtype=dtype).eval()
    pack_linears(layer)
    return layer


@pytest.fixture
def counted(monkeypatch) -> list[nn.Parameter]:
    """The weights that were packed, one entry each time."""
    made: list[nn.Parameter] = []
    make = packed._Packed._make
    monkeypatch.setattr(packed._Packed, "_make", lambda self, weight: (made.append(weight), make(self, weight))[1])
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(400,), (1, 400), (7, 400), (2, 3, 400), (2, 1, 3, 400)])
def test_a_packed_layer_gives_the_same_products(shape, bias, dtype):
    if dtype is torch.bfloat16 and not packed._has_bfloat16():
        pytest.skip("a CPU without bfloat16")
    layer, x = layer_of(bias=bias, dtype=dtype), torch.randn(shape).to(dtype)
    with torch.no_grad():
        found, expected = layer(x), nn.functional.linear(x, layer.weight, layer.bias)
    assert is_packed(layer) and packed_bytes(layer) == layer.weight.nbytes
    assert found.shape == expected.shape and found.dtype is dtype
    torch.testing.assert_close(found, expected, atol=1e-2 if dtype is torch.bfloat16 else 1e-5, rtol=1e-2)


def test_inputs_in_any_order_of_memory_give_the_same_products():
    layer, base = layer_of(), torch.randn(3, 5, 800)
    with torch.no_grad():
        for x in (base[..., ::2], base[:, -1:, :400], base[..., :400].transpose(0, 1), base[:1, :1, :400].expand(4, 2, 400)):
            assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
        assert layer(torch.empty(0, 400)).shape == (0, 300)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            layer(torch.randn(2, 401))


@pytest.mark.parametrize(("kind", "tied"), [(LlamaConfig, True), (LlamaConfig, False), (GPT2Config, True)])
def test_the_model_of_a_session_runs_packed_and_the_users_stays_as_it_was(kind, tied, tokenizer):
    model = large(kind, tie_word_embeddings=tied)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = logits(model)
    session = Session.of(model, tokenizer)
    assert packed_bytes(model) == 0  # nothing has run
    assert_close(logits(session.model), expected)
    two_dimensional = {id(p): p.nbytes for m in session.model.modules() if is_packed(m) for p in [m.weight]}
    assert packed_bytes(model) == packed_bytes(session.model) == sum(two_dimensional.values())
    assert is_packed(session.model.lm_head) and id(model.lm_head.weight) in two_dimensional
    assert len(two_dimensional) == 1 + 2 * (7 if kind is LlamaConfig else 4)
    assert not any(is_packed(module) for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(logits(model), expected)


def test_small_weights_stay_with_the_class():
    model = tiny("llama")
    running = private(model)
    assert max(p.numel() for p in model.parameters()) < LEAST_ELEMENTS and not any(map(is_packed, running.modules()))
    assert torch.equal(logits(running), logits(model))


def test_views_and_sessions_share_what_is_packed(tokenizer, counted):
    model = large()
    expected = logits(view(model, (1,)))
    session = Session.of(model, tokenizer)
    for _ in range(2):
        shallow = quiet_view(session.model, (1,))
        own = shallow.model.layers[0].mlp.up_proj.forward
        assert own.args[0] is shallow.model.layers[0].mlp.up_proj
        assert_close(logits(shallow), expected)
    first = len(counted)
    assert first == 8  # the layer that ran, and the head
    logits(session.model), logits(Session.of(model, tokenizer).model), logits(snapshot(session.model))
    assert len(counted) == first + 7 == len({id(weight) for weight in counted})


def test_copies_go_with_the_parameters():
    model = large()
    logits(private(model))
    held = len(packed._PACKED)
    del model
    gc.collect()
    assert len(packed._PACKED) <= held - 15


@pytest.mark.parametrize(
    "way", ["in place", "optimizer", "fused optimizer", "data", "new data", "load_state_dict", "assign"]
)
def test_a_changed_weight_never_runs_stale_in_a_new_session(way, tokenizer):
    model = large()
    weight = model.model.layers[0].mlp.up_proj.weight
    session = Session.of(model, tokenizer)
    before = logits(session.model)
    other = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    if way == "in place":
        with torch.no_grad():
            weight.add_(other)
    elif "optimizer" in way:
        weight.grad = other
        torch.optim.AdamW([weight], lr=0.1, fused=way == "fused optimizer").step()
        weight.grad = None
    elif way == "data":
        weight.data.add_(other)
    elif way == "new data":
        weight.data = other
    else:
        changed = {**model.state_dict(), "model.layers.0.mlp.up_proj.weight": other}
        model.load_state_dict(changed, assign=way == "assign")
    expected = logits(model)
    assert (expected - before).abs().max() > 1e-3
    assert_close(logits(Session.of(model, tokenizer).model), expected)
    if way in ("in place", "optimizer", "load_state_dict"):  # counted by PyTorch: noticed at once
        assert_close(logits(session.model), expected)


@pytest.mark.parametrize("change", ["one element", "two rows", "two columns", "sign of zero"])
def test_the_hash_sees_small_changes_and_exchanges(change):
    weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
    weight.data[3, 4] = 0.0
    before = packed._hash(weight)
    assert packed._hash(nn.Parameter(weight.data.clone())) == before
    if change == "one element":
        weight.data[7, 11] = torch.nextafter(weight.data[7, 11], torch.tensor(9.0))
    elif change == "two rows":
        weight.data[[3, 8]] = weight.data[[8, 3]]
    elif change == "two columns":
        weight.data[:, [3, 8]] = weight.data[:, [8, 3]]
    else:
        weight.data[3, 4] = -0.0
    assert packed._hash(weight) != before


def test_the_hash_leaves_the_random_numbers_alone():
    weight = nn.Parameter(torch.randn(WIDTH, 2 * WIDTH))
    packed._odd_numbers.cache_clear()
    before = torch.get_rng_state()
    packed._hash(weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_adapters_run_on_packed_base_layers(with_lora, tokenizer):
    base = large()
    bare = logits(base)
    model = with_lora(base)
    expected = logits(model)
    session = Session.of(model, tokenizer)
    assert_close(logits(session.model), expected)
    layer = session.model.model.layers[0].mlp.up_proj
    assert is_packed(layer.base_layer) and not is_packed(layer) and not is_packed(layer.lora_A["default"])
    assert_close(logits(session.untouched.model), bare)
    assert (expected - bare).abs().max() > 1e-3
    assert is_packed(session.untouched.model.model.layers[0].mlp.up_proj.base_layer)


def test_gradients_and_autocast_take_the_plain_way(counted, monkeypatch):
    model = large()
    running = private(model)
    running(IDS).logits.sum().backward()
    expected = model.model.layers[0].mlp.up_proj.weight.grad.clone()
    model.zero_grad()
    model(IDS).logits.sum().backward()
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight.grad, expected)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(running(IDS).logits, model(IDS).logits)
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(torch.backends.mkldnn, "enabled", False)
        assert torch.equal(running(IDS).logits, model(IDS).logits)
    assert counted == [] and packed_bytes(model) == 0
    frozen = model.requires_grad_(False)
    with torch.enable_grad():  # nothing needs a gradient
        assert_close(running(IDS).logits, frozen(IDS).logits)
    assert counted


def test_training_the_head_alone_gives_its_gradient(tokenizer):
    model = large(tie_word_embeddings=False).requires_grad_(False)
    running = private(model)
    model.lm_head.weight.requires_grad_(True)
    running(IDS).logits.sum().backward()
    assert model.lm_head.weight.grad.abs().sum() > 0


def test_what_watches_operations_sees_plain_ones():
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for model in (large(), private(large())):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(IDS)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_compiling_and_exporting_trace_the_weights_themselves(counted):
    layer = layer_of()
    x = torch.randn(2, 400)
    with torch.no_grad():
        program = torch.export.export(layer, (x,))
        compiled = torch.compile(layer, backend="eager", fullgraph=True)
        for found in (program.module()(x), compiled(x)):
            assert_close(found, nn.functional.linear(x, layer.weight, layer.bias))
        assert "weight" in dict(program.named_parameters())
        assert "mkldnn" not in str(program.graph)
    assert counted == []


def test_layers_with_a_forward_of_their_own_and_other_kinds_of_weights_stay(tokenizer):
    class Own(nn.Linear):
        pass

    own, hooked = Own(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    hooked.forward = mine = functools.partial(nn.Linear.forward, hooked)
    half, double = nn.Linear(WIDTH, WIDTH, dtype=torch.float16), nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
    meta = nn.Linear(WIDTH, WIDTH, device="meta")
    parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))
    pruned = prune.identity(nn.Linear(WIDTH, WIDTH), "weight")
    with torch.inference_mode():
        inference = nn.Linear(WIDTH, WIDTH)
    lying = nn.Linear(WIDTH, WIDTH)
    lying.weight = nn.Parameter(torch.randn(WIDTH, WIDTH).t())
    odd = nn.Linear(WIDTH + 1, WIDTH)
    kept = (own, half, double, meta, parametrized, pruned, inference, lying, odd)
    for module in kept:
        pack_linears(module)
        assert not is_packed(module), module
    pack_linears(hooked)
    assert hooked.forward is mine


def test_a_weight_that_is_replaced_runs_the_plain_way():
    model = large()
    running = private(model)
    logits(running)
    shallow = quiet_view(running, (0, 1))
    shallow.requires_grad_(False)  # gives the view parameters of its own
    for other in (shallow, copy.deepcopy(running), pickle.loads(pickle.dumps(running.model.layers[0].mlp.up_proj))):
        up = other if isinstance(other, nn.Linear) else other.model.layers[0].mlp.up_proj
        with torch.no_grad():
            up.weight.data = up.weight.data + 1
            x = torch.randn(3, WIDTH)
            assert torch.equal(up(x), nn.functional.linear(x, up.weight, up.bias))
    assert_close(logits(running), logits(model))


def test_only_as_much_is_packed_as_memory_allows(monkeypatch):
    model = large(tie_word_embeddings=True)
    n_bytes = 4 * WIDTH * WIDTH
    monkeypatch.setattr(packed, "available_bytes", lambda: 10 * n_bytes)
    running = private(model)
    assert_close(logits(running), logits(model))
    assert packed_bytes(model) == 5 * n_bytes
    monkeypatch.setattr(packed, "available_bytes", lambda: 0)
    again = private(model)  # what is packed already takes nothing more
    assert sum(map(is_packed, again.modules())) == 5
    monkeypatch.setattr(packed, "available_bytes", lambda: None)
    assert sum(map(is_packed, private(model).modules())) == 15


def test_packing_can_be_switched_off(monkeypatch, tokenizer):
    model = large()
    session = Session.of(model, tokenizer, pack=False)
    assert not any(map(is_packed, session.model.modules()))
    assert not any(map(is_packed, session.beside(model).model.modules()))
    assert any(map(is_packed, Session.of(model, tokenizer).beside(model).model.modules()))
    monkeypatch.setenv(packed.SWITCH, "0")
    assert not any(map(is_packed, Session.of(model, tokenizer).model.modules()))
    monkeypatch.setenv(packed.SWITCH, "no")
    with pytest.raises(InputError, match="DEPTHDIAL_PACK is 'no': set it to 1"):
        Session.of(model, tokenizer)


def test_threads_pack_each_weight_once(monkeypatch):
    model = large()
    running, expected = private(model), logits(model)
    made: list[int] = []
    monkeypatch.setattr(packed, "_hash", lambda weight: made.append(id(weight)) or 0)
    start, found = threading.Barrier(4), []

    def run() -> None:
        start.wait()
        found.append(logits(running))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(torch.equal(one, found[0]) for one in found)
    assert_close(found[0], expected)
    assert len(made) == len(set(made)) == 15
