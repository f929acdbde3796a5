"""`warmup` from the command line, with the traced module in the compiled function's place."""

from __future__ import annotations

from unittest import mock

import pytest
from torch._inductor.exc import InvalidCxxCompiler

from depthdial.engine import compiled, compiling


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPTHDIAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiled, "_loaded", {})


@pytest.fixture
def traced(monkeypatch):
    runs = {}

    def compile_layer(model, index, call):
        name = str(len(runs)).encode()
        runs[name] = compiling.traceable(model, index, call)[0]
        return name

    monkeypatch.setattr(compiling, "compile_layer", compile_layer)
    monkeypatch.setattr(compiled, "load", lambda path: lambda tensors: [runs[path.read_bytes()](*tensors)])
    return runs


def test_once_compiled_they_are_found(traced, paths, command_line):
    status, out, err = command_line("warmup", paths / "base")
    assert status == 0, err
    assert "compiled: 6, found: 0" in out and f"cache: {compiled.folder()} (for 1 threads" in out
    assert f"Next: depthdial generate {paths / 'base'} PROMPT" in out
    assert "compiling: 100%" in err
    assert "compiled: 0, found: 6" in command_line("warmup", paths / "base")[1]
    assert len(traced) == 6
    with mock.patch.object(
        compiled.CompiledLayer, "__call__", autospec=True, side_effect=compiled.CompiledLayer.__call__
    ) as call:
        assert command_line("generate", paths / "base", "the cat", "--max-new-tokens", "4")[0] == 0
    assert call.call_count


def test_why_layers_stay_uncompiled(traced, paths, command_line):
    failing = compiling.CannotCompileError("it branches on data")
    with mock.patch.object(compiling, "compile_layer", side_effect=failing):
        status, out, _ = command_line("warmup", paths / "base")
    assert (status, "Next:" in out) == (0, False)
    assert "uncompiled: layers 0, 1, 2, 3, 4, 5: it branches on data\ncompiled: 0, found: 0" in out


def test_without_a_compiler(paths, command_line):
    with mock.patch("torch._inductor.cpp_builder.get_cpp_compiler", side_effect=InvalidCxxCompiler):
        status, _, err = command_line("warmup", paths / "base")
    assert status == 2
    assert err.startswith("depthdial: Layers cannot be compiled without a C++ compiler, so everything runs uncompiled: ")
    assert err.count("\n") == 1


def test_a_model_that_is_not_there(command_line):
    status, _, err = command_line("warmup", "/nowhere/at/all")
    assert status == 2 and err.startswith("depthdial: ") and err.count("\n") == 1
