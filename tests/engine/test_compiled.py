"""Compiled layers: what transformers' layers give, found on disk, never made in a request, left alone where they do not fit.

One test compiles; the others run the traced module in the compiled function's place, but for those that are slow.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from torch._inductor.exc import InvalidCxxCompiler

from depthdial.engine import compiled, compiling
from depthdial.engine.batch import RowBatch
from depthdial.engine.compiled import CompiledLayer, CompiledLayers
from depthdial.engine.session import Session
from depthdial.engine.warmup import warm_up
from depthdial.errors import InputError
from depthdial.routes import Route
from tests.tiny import VOCAB, shared, tiny

LONG = 150  # tokens of a prompt; its window is 192
PROMPTS = ([5, 6, 7], [8, 9])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Iterator[None]:
    """A cache folder of the test's own."""
    monkeypatch.setenv("DEPTHDIAL_CACHE", str(tmp_path))
    compiled._loaded.clear()
    yield
    compiled._loaded.clear()


@pytest.fixture
def traced(monkeypatch) -> list[tuple[int, int]]:
    """The Python module in the compiled function's place; gives the shapes that were compiled."""
    runs: list[torch.nn.Module] = []
    shapes: list[tuple[int, int]] = []

    def compile_layer(model, index, call) -> bytes:
        runs.append(compiling.traceable(model, index, call)[0])
        shapes.append(tuple(call.hidden.shape[:2]))
        return json.dumps(len(runs) - 1).encode()

    def load(path):
        run = runs[json.loads(path.read_bytes())]
        return lambda tensors: [run(*tensors)]

    monkeypatch.setattr(compiling, "compile_layer", compile_layer)
    monkeypatch.setattr(compiled, "load", load)
    return shapes


def session_of(model, tokenizer) -> Session:
    return Session.of(model, tokenizer)


def logits_of(session, prompts, tokens, *, uncompiled: bool = False, route=None) -> tuple[torch.Tensor, int]:
    """Logits of `tokens` behind prompts, and how many layers were run by a compiled function."""
    calls = 0
    plain = CompiledLayer.__call__

    def counted(self, *args, **kwargs):
        nonlocal calls
        done = plain(self, *args, **kwargs)
        calls += done is not None
        return done

    batch = RowBatch(session.model)
    batch.join(session.prefill_ids(prompts), [route or session.full] * len(prompts), keys=range(len(prompts)))
    found = (
        mock.patch.object(CompiledLayers, "find", lambda *_: None)
        if uncompiled
        else mock.patch.object(CompiledLayer, "__call__", counted)
    )
    with found:
        return batch.run(tokens), calls


def assert_same_logits(session, shapes, *, tolerance: float = 1e-4, n_layers: int = 6) -> None:
    for rows, tokens in shapes:
        for length in (3, LONG):
            # Rows of unlike length; what they attend differs from test to test, the function does not.
            prompts = [[3 + (i * 7 + row) % (VOCAB - 3) for i in range(length - row)] for row in range(rows)]
            given = torch.arange(rows * tokens).reshape(rows, tokens) + 3
            found, calls = logits_of(session, prompts, given)
            expected, none = logits_of(session, prompts, given, uncompiled=True)
            assert (calls, none) == (n_layers, 0)
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_a_compiled_layer_is_transformers_layer(tokenizer):
    model = tiny("llama", max_position_embeddings=512)
    session = session_of(model, tokenizer)
    done = warm_up(session.model, [(2, 2)])
    assert (done.n_compiled, done.n_found, done.refused) == (1, 0, ())
    assert_same_logits(session_of(model, tokenizer), [(2, 2)])
    # Weights are read where they lie: a change of them is in the next step, and the same file serves another model.
    with torch.no_grad():
        model.get_submodule("model.layers.2.mlp.up_proj").weight.mul_(1.5)
    assert_same_logits(session_of(model, tokenizer), [(2, 2)])
    other = session_of(tiny("llama", seed=1, max_position_embeddings=512), tokenizer)
    assert_same_logits(other, [(2, 2)])
    assert warm_up(other.model, [(2, 2)]).n_found == 1
    # A file that is cut is not loaded, and is made anew by `warm_up` alone (which the traced module shows).
    (path,) = compiled.folder().glob("*.pt2")
    path.write_bytes(path.read_bytes()[:-100])
    compiled._loaded.clear()
    assert logits_of(session_of(model, tokenizer), PROMPTS, torch.tensor([[3, 4], [5, 6]]))[1] == 0


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "opt", "gpt2", "gpt_neox", "qwen3_moe"])
def test_the_call_that_is_compiled_is_the_one_of_a_step(name, traced, tokenizer):
    session = session_of(shared(name), tokenizer)
    done = warm_up(session.model, [(1, 1), (2, 2)])
    assert done.refused == ()
    assert done.n_compiled == len(traced) == 2 * (2 if name == "gemma3_text" else 1)
    for rows, tokens in ((1, 1), (2, 2)):
        given = torch.arange(rows * tokens).reshape(rows, tokens) + 3
        found, calls = logits_of(session, PROMPTS[:rows], given)
        expected, _ = logits_of(session, PROMPTS[:rows], given, uncompiled=True)
        assert calls == 6
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_route_runs_the_compiled_functions_of_its_layers(traced, tokenizer):
    session = session_of(shared("llama"), tokenizer)
    warm_up(session.model, [(2, 1)])
    route = Route((1, 4), 6)
    found, calls = logits_of(session, PROMPTS, torch.tensor([[3], [4]]), route=route)
    expected, _ = logits_of(session, PROMPTS, torch.tensor([[3], [4]]), route=route, uncompiled=True)
    assert calls == 2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_other_shapes_run_uncompiled(traced, tokenizer):
    session = session_of(shared("llama"), tokenizer)
    warm_up(session.model, [(2, 1)])
    for rows, tokens in ((1, 1), (2, 2), (2, 4)):
        given = torch.ones(rows, tokens, dtype=torch.long)
        assert logits_of(session, PROMPTS[:rows], given)[1] == 0
    assert traced == [(2, 1)]


def test_nothing_is_compiled_in_find(tokenizer):
    session = session_of(shared("llama"), tokenizer)
    with mock.patch.object(compiling, "compile_layer", side_effect=AssertionError):
        layers = CompiledLayers(session.model)
        assert [layers.find(i, 1, 1) for i in range(6)] == [None] * 6
        assert logits_of(session, PROMPTS, torch.tensor([[3], [4]]))[1] == 0
    assert not compiled.folder().exists()


def test_a_stopped_warm_up_goes_on(traced, tokenizer):
    session = session_of(shared("llama"), tokenizer)
    make = compiling.compile_layer

    def stopped(model, index, call):
        if call.hidden.shape[0] == 2:
            raise KeyboardInterrupt
        return make(model, index, call)

    with mock.patch.object(compiling, "compile_layer", stopped), pytest.raises(KeyboardInterrupt):
        warm_up(session.model, [(1, 1), (2, 1)])
    done = warm_up(session.model, [(1, 1), (2, 1)])
    assert (done.n_compiled, done.n_found, traced) == (1, 1, [(1, 1), (2, 1)])


@pytest.mark.parametrize("damage", ["cut", "gone", "no json"])
def test_a_damaged_file_is_made_anew_by_warm_up_alone(damage, traced, tokenizer):
    session = session_of(shared("llama"), tokenizer)
    warm_up(session.model, [(1, 1)])
    (path,) = compiled.folder().glob("*.pt2")
    if damage == "no json":
        path.with_suffix(".json").write_text("{")
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"")
    compiled._loaded.clear()
    assert CompiledLayers(session.model).find(0, 1, 1) is None
    assert traced == [(1, 1)]
    assert warm_up(session.model, [(1, 1)]).n_compiled == 1
    assert CompiledLayers(session.model).find(0, 1, 1) is not None


def test_a_function_that_differs_is_refused_and_that_is_remembered(traced, tokenizer, monkeypatch):
    session = session_of(shared("llama"), tokenizer)
    honest = compiled.load
    monkeypatch.setattr(compiled, "load", lambda path: lambda tensors: [honest(path)(tensors)[0] * 1.001])
    first = warm_up(session.model, [(1, 1)])
    (reason,) = first.refused
    assert reason.startswith("layers 0, 1, 2, 3, 4, 5: compiled, its states are off by ")
    assert first.n_compiled == 0
    assert not list(compiled.folder().glob("*.pt2"))
    assert warm_up(session.model, [(1, 1)]).refused == first.refused
    assert len(traced) == 1
    assert CompiledLayers(session.model).find(0, 1, 1) is None


def test_a_layer_that_cannot_be_traced_is_told_and_the_others_go_on(traced, tokenizer):
    session = session_of(shared("gemma3_text"), tokenizer)
    make = compiling.compile_layer

    def partly(model, index, call):
        if index == 1:
            raise compiling.CannotCompileError("it branches on data")
        return make(model, index, call)

    with mock.patch.object(compiling, "compile_layer", partly):
        done = warm_up(session.model, [(1, 1)])
    assert done.refused == ("layers 1, 4: it branches on data",)
    assert [CompiledLayers(session.model).find(i, 1, 1) is not None for i in (0, 1)] == [True, False]


def test_where_the_compiler_fails_the_next_warm_up_tries_again(traced, tokenizer):
    session = session_of(shared("llama"), tokenizer)
    failing = compiling.CannotCompileError("no space left", is_final=False)
    with mock.patch.object(compiling, "compile_layer", side_effect=failing):
        assert warm_up(session.model, [(1, 1)]).refused == ("layers 0, 1, 2, 3, 4, 5: no space left",)
    assert warm_up(session.model, [(1, 1)]).n_compiled == 1


def test_without_a_compiler_one_sentence(tokenizer):
    session = session_of(shared("llama"), tokenizer)
    none = mock.patch("torch._inductor.cpp_builder.get_cpp_compiler", side_effect=InvalidCxxCompiler)
    with none, pytest.raises(InputError, match=r"^Layers cannot be compiled without a C\+\+ compiler, .*: install g\+\+"):
        warm_up(session.model)
    assert logits_of(session, PROMPTS, torch.tensor([[3], [4]]))[1] == 0


def test_a_model_that_is_not_decoded_in_rows(traced, tokenizer):
    done = warm_up(session_of(shared("falcon_alibi"), tokenizer).model)
    assert (done.n_compiled, traced) == (0, [])
    assert done.refused[0].startswith("layers 0, 1, 2, 3, 4, 5: ")


def test_layers_with_hooks_run_uncompiled(traced, tokenizer):
    model = tiny("llama")
    model.get_submodule("model.layers.2").register_forward_hook(lambda *_: None)
    session = session_of(model, tokenizer)
    done = warm_up(session.model, [(1, 1)])
    assert done.refused == ("layer 2: hooks, quantized weights or another dtype than fp32 and bf16",)
    assert logits_of(session, PROMPTS[:1], torch.tensor([[3]]))[1] == 5


@pytest.mark.parametrize("shape", [(0, 1), (1, 0), (3, 2), (5, 1)])
def test_shapes_that_are_no_small_step(shape, tokenizer):
    with pytest.raises(InputError, match=f"^A step of {shape[0]} rows of {shape[1]} tokens cannot be compiled: at most 4"):
        warm_up(session_of(shared("llama"), tokenizer).model, [shape])


class TestCalls:
    """What a compiled function does not take: it says so and writes nothing."""

    @pytest.fixture
    def call(self, traced, tokenizer):
        session = session_of(shared("llama"), tokenizer)
        warm_up(session.model, [(1, 2)])
        function = CompiledLayers(session.model).find(3, 1, 2)
        assert function is not None
        cos = torch.randn(1, 2, 8)
        positions = torch.tensor([[4, 5]])
        told = json.loads(next(compiled.folder().glob("*.json")).read_text())
        kwargs = {leaf["path"][1]: leaf["value"] for leaf in told["leaves"]} | {
            "attention_mask": torch.zeros(1, 1, 2, 64),
            "position_embeddings": (cos, cos),
            "position_ids": positions,
        }
        slabs = torch.zeros(1, 2, 128, 8), torch.zeros(1, 2, 128, 8)
        return function, torch.randn(1, 2, 32), kwargs, slabs, positions

    def test_one_that_fits(self, call):
        function, hidden, kwargs, (keys, values), positions = call
        assert function(hidden, kwargs, keys, values, positions).shape == (1, 2, 32)
        assert keys.abs().sum((0, 1, 3)).nonzero().flatten().tolist() == [4, 5]
        assert function(hidden, dict(kwargs), keys, values, positions) is not None

    @pytest.mark.parametrize(
        "change",
        [
            {"attention_mask": torch.zeros(1, 1, 1, 64)},
            {"attention_mask": torch.zeros(1, 1, 2, 64, dtype=torch.bfloat16)},
            {"attention_mask": torch.zeros(1, 1, 2, 192)},  # more than the slab has
            {"attention_mask": None},
            {"position_embeddings": None},
            {"use_cache": "no"},
            {"unheard": 1},
        ],
        ids=str,
    )
    def test_other_arguments(self, call, change):
        function, hidden, kwargs, (keys, values), positions = call
        assert function(hidden, kwargs, keys, values, positions) is not None
        keys.zero_()
        assert function(hidden, {**kwargs, **change}, keys, values, positions) is None
        assert not keys.any()

    def test_other_states_and_slabs(self, call):
        function, hidden, kwargs, (keys, values), positions = call
        assert function(hidden.to(torch.bfloat16), kwargs, keys, values, positions) is None
        assert function(hidden[:, :1], kwargs, keys, values, positions) is None
        assert function(hidden, kwargs, keys[:, :, :100], values[:, :, :100], positions) is None  # not in one piece
        assert function(hidden, kwargs, keys[:, :, :64].contiguous(), values, positions) is None
        assert function(hidden, kwargs, keys, values, positions, args=(1,)) is None
        assert function(hidden.expand(1, 2, 32), kwargs, keys, values, positions) is not None


def test_the_users_model_is_not_touched(traced, tokenizer, weights_of, assert_same):
    model = tiny("llama")
    before = weights_of(model)
    session = session_of(model, tokenizer)
    warm_up(session.model, [(1, 1)])
    logits_of(session, PROMPTS[:1], torch.tensor([[3]]))
    assert_same(before, weights_of(model))


def test_layers_of_a_model_are_let_go_with_it(traced, tokenizer):
    session = session_of(tiny("llama"), tokenizer)
    warm_up(session.model, [(1, 1)])
    layers = CompiledLayers.of(session.model)
    assert layers.find(0, 1, 1) is not None
    assert CompiledLayers.of(session.model) is layers
    del session
    gc.collect()
    assert layers._model() is None


SLOW = ["qwen2", "qwen3", "gemma3_text", "phi3", "opt", "gpt2", "smollm3", "gpt_neox"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_every_architecture(name, tokenizer):
    model = tiny(name, max_position_embeddings=512)
    session = session_of(model, tokenizer)
    shapes = [(1, 1), (2, 2)]
    assert warm_up(session.model, shapes).refused == ()
    assert_same_logits(session, shapes)


@pytest.mark.slow
def test_adapters_inside_are_weights_too(tokenizer, with_lora):
    model = with_lora(tiny("llama", max_position_embeddings=512))
    session = session_of(model, tokenizer)
    shapes = [(1, 1), (3, 1), (4, 1)]
    assert warm_up(session.model, shapes).refused == ()
    assert_same_logits(session, shapes)
    untouched = session.untouched
    assert logits_of(untouched, PROMPTS[:1], torch.tensor([[3]]))[1] == 0  # another kind: its adapters are off


def test_half_precision_may_be_as_far_from_the_truth_as_transformers(traced, tokenizer, monkeypatch):
    session = session_of(tiny("llama").to(torch.bfloat16), tokenizer)
    assert warm_up(session.model, [(1, 2)]).refused == ()
    honest = compiled.load
    monkeypatch.setattr(compiled, "load", lambda path: lambda tensors: [honest(path)(tensors)[0] * 1.05])
    (reason,) = warm_up(session.model, [(1, 1)]).refused
    assert "compiled, its states are off by " in reason


@pytest.mark.slow
def test_half_precision(tokenizer):
    model = tiny("llama", max_position_embeddings=512).to(torch.bfloat16)
    session = session_of(model, tokenizer)
    assert warm_up(session.model, [(1, 1), (1, 4)]).refused == ()
    assert_same_logits(session, [(1, 1), (1, 4)], tolerance=0.1)


@pytest.mark.slow
def test_a_second_process_finds_what_the_first_has_made(tmp_path):
    script = textwrap.dedent("""
        import sys
        import torch
        torch.set_num_threads(1)
        from depthdial.engine.compiled import CompiledLayers
        from depthdial.engine.warmup import warm_up
        from depthdial.views.snapshot import snapshot
        from tests.tiny import tiny
        view = snapshot(tiny("llama"))
        if sys.argv[1] == "make":
            print(warm_up(view, [(1, 1)]).n_compiled)
        else:
            print(CompiledLayers(view).find(5, 1, 1) is not None, "torch._inductor.compile_fx" in sys.modules)
    """)
    said = [
        subprocess.run([sys.executable, "-c", script, word], capture_output=True, text=True, check=True).stdout.split()
        for word in ("make", "find")
    ]
    assert said == [["1"], ["True", "False"]]
