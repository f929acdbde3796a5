"""`dd.export`: folders that compute what the view computes, measured as they run; the model stays as it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import depthdial as dd
from depthdial.errors import InputError
from depthdial.exports.export import exported_route
from depthdial.exports.folder import EXPORT_FILE
from depthdial.exports.quality import FULL, SHIPPED, STUDIED
from depthdial.hf.architectures import why_not_saved
from depthdial.hf.trained import prompts_of_folder
from depthdial.routes.route_file import RouteFile
from tests.conftest import make_llama, make_task, make_tokenizer
from tests.tiny import ARCHITECTURES, REPRESENTATIVES, shared
from tests.tiny_controllers import fit_tiny

IDS = torch.tensor([[1, 5, 9, 4, 7, 11, 6]])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture
def few() -> Any:
    return make_task(["the cat", "a dog sat", "six"], ["sat on the mat", "and ran", None])


def all_architectures() -> list[Any]:
    return [pytest.param(n, marks=() if n in REPRESENTATIVES else pytest.mark.matrix) for n in ARCHITECTURES]


@pytest.mark.parametrize("name", all_architectures())
def test_every_architecture_comes_back_as_the_view(name: str, tokenizer: Any, tmp_path: Path) -> None:
    model = shared(name)
    shallow = dd.view(model, (1, 2, 4))
    if why_not_saved(shallow) is not None:
        with pytest.raises(InputError, match=r"cannot be saved"):
            dd.export(model, tokenizer, depth=(1, 2, 4), out=tmp_path / "out", measured=False)
        assert not list(tmp_path.iterdir())
        return
    done = dd.export(model, tokenizer, depth=(1, 2, 4), out=tmp_path / "out", measured=False)
    assert done.comparison.is_equal
    again, _ = dd.load(tmp_path / "out")
    ours, theirs = shallow.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    torch.testing.assert_close(logits(again), logits(shallow), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("to", ["hf", "draft", "vllm"])
def test_the_model_stays_bit_identical(model, tokenizer, weights_of, assert_same, tmp_path: Path, to: str) -> None:
    before = weights_of(model)
    dd.export(model, tokenizer, depth="uls:3", to=to, out=tmp_path / "out", measured=False)
    assert_same(before, weights_of(model))


def test_an_adapter_is_merged(model, tokenizer, with_lora, weights_of, assert_same, tmp_path: Path) -> None:
    adapted = with_lora(model)
    before = weights_of(adapted)
    done = dd.export(adapted, tokenizer, depth="0,1,3,5", out=tmp_path / "out", measured=False)
    assert done.comparison.is_equal
    assert_same(before, weights_of(adapted))
    again, _ = dd.load(tmp_path / "out")
    assert not any("lora" in name for name in again.state_dict())
    torch.testing.assert_close(logits(again), logits(dd.view(adapted, "0,1,3,5")), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(again), logits(dd.view(make_llama(), "0,1,3,5")), atol=1e-2)
    assert "with the adapter" in (tmp_path / "out" / "README.md").read_text()


def test_tokenizer_settings_and_template_go_with_it(model, tokenizer, tmp_path: Path) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    model.generation_config.temperature, model.generation_config.do_sample = 0.5, True
    dd.export(model, tokenizer, depth="ee:3", out=tmp_path / "out", measured=False)
    again, its = dd.load(tmp_path / "out")
    assert (its.chat_template, its.get_vocab()) == (tokenizer.chat_template, tokenizer.get_vocab())
    assert (again.generation_config.temperature, again.generation_config.do_sample) == (0.5, True)
    assert again.config.num_hidden_layers == 3


@pytest.mark.slow
def test_what_is_measured_is_what_ships(model, tokenizer, small_task, tmp_path: Path) -> None:
    done = dd.export(model, tokenizer, depth="0,2,3,5", out=tmp_path / "out", task=small_task, max_new_tokens=6)
    quality = done.quality
    assert [one.what for one in quality.scores] == [FULL, STUDIED, SHIPPED]
    # The same as a sweep of the written folder, and of the route, against the full model.
    again, _ = dd.load(tmp_path / "out")
    metrics = ["rouge_l", "agreement", "kl"]
    common = {"task": small_task, "metrics": metrics, "max_new_tokens": 6}
    rows = {
        SHIPPED: dd.sweep(again, tokenizer, routes="full", reference=model, **common),
        STUDIED: dd.sweep(model, tokenizer, routes="0,2,3,5", **common),
        FULL: dd.sweep(model, tokenizer, routes="full", **common),
    }
    for what, table in rows.items():
        for name in metrics:
            known = [value for value in table[name].to_pylist() if value is not None]
            assert quality.of(what).values[name].mean == pytest.approx(sum(known) / len(known), abs=1e-6), (what, name)
    assert quality.of(STUDIED).values["kl"].mean != pytest.approx(quality.of(SHIPPED).values["kl"].mean, abs=1e-4)
    assert quality.of(FULL).values["agreement"].mean == 1
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{quality.of(SHIPPED).values['kl'].mean:.3f}" in card and f"{quality.of(STUDIED).values['kl'].mean:.3f}" in card
    assert "Prompts run on these layers alone, too" in card


def test_the_same_call_again_measures_what_is_missing(model, tokenizer, few, tmp_path: Path) -> None:
    how: dict[str, Any] = {"depth": "uls:3", "out": tmp_path / "out"}
    assert dd.export(model, tokenizer, **how, measured=False).is_new
    stamp = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    second = dd.export(model, tokenizer, **how, task=few, max_new_tokens=4)
    assert not second.is_new and second.quality is not None
    third = dd.export(model, tokenizer, **how, measured=False)
    assert third.quality == second.quality and third.comparison == second.comparison
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_numbers_of_a_study_stand_beside(model, tokenizer, small_task, tmp_path: Path) -> None:
    dd.sweep(model, tokenizer, task=small_task, routes=["full", "uls:3"], metrics=["agreement"], out=tmp_path / "study")
    done = dd.export(
        model, tokenizer, depth="uls:3", out=tmp_path / "out", task=small_task, max_new_tokens=4, study=tmp_path / "study"
    )
    study, studied = done.quality.scores[-1], done.quality.of(STUDIED)
    assert study.what.startswith("study") and study.values["agreement"].mean == studied.values["agreement"].mean
    with pytest.raises(InputError, match=r"no rows of route 'uls:2'"):
        dd.export(model, tokenizer, depth="uls:2", out=tmp_path / "o", task=small_task, study=tmp_path / "study")


def test_rows_that_the_route_was_searched_on_do_not_judge_it(model, tokenizer, small_task, tmp_path: Path) -> None:
    from depthdial.data.leakage import prompt_hashes

    route = dd.Route((0, 2, 4), 6, "found", frozenset(prompt_hashes(small_task)[:2]))
    with pytest.raises(InputError, match=r"2 of the 7 sequences .* to search the routes"):
        dd.export(model, tokenizer, depth=route, out=tmp_path / "out", task=small_task)
    assert prompts_of_folder(tmp_path / "out") == route.searched_on
    again, _ = dd.load(tmp_path / "out")
    with pytest.raises(InputError, match=r"2 of the 7 sequences"):
        dd.sweep(again, tokenizer, task=small_task, routes="full", metrics=["agreement"])


def test_the_route_of_an_unmodified_checkpoint(model, tokenizer, few, tmp_path: Path) -> None:
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "base")
    loaded, its = dd.load(tmp_path / "base")
    how: dict[str, Any] = {"depth": "0,1,4", "to": "vllm", "task": few, "max_new_tokens": 4}
    done = dd.export(loaded, its, **how, out=tmp_path / "out", name=str(tmp_path / "base"))
    file = RouteFile.load(tmp_path / "out")
    assert (file.route.layers, file.checkpoint) == ((0, 1, 4), str(tmp_path / "base"))
    assert not list((tmp_path / "out").glob("*.safetensors"))
    assert done.quality.of(STUDIED).layers == 3 and done.quality.of(SHIPPED) is None and done.comparison is None
    # A model that nobody can load by a name, or that has an adapter, is written with all of its layers.
    whole = dd.export(loaded, its, **{**how, "measured": False}, out=tmp_path / "whole")
    assert RouteFile.load(tmp_path / "whole").folder(tmp_path / "whole") == str(tmp_path / "whole")
    assert dd.load(tmp_path / "whole")[0].config.num_hidden_layers == 6 and whole.comparison.is_equal


def test_a_draft_has_command_lines(model, tokenizer, tmp_path: Path) -> None:
    done = dd.export(model, tokenizer, depth="uls:2", to="draft", out=tmp_path / "out", name="org/llama", measured=False)
    line = done.commands[0]
    asked = json.loads(line.split("'")[1])
    assert line.startswith("vllm serve org/llama --speculative-config")
    assert asked == {"method": "draft_model", "model": str(tmp_path / "out"), "num_speculative_tokens": 3}
    # The words of this tokenizer are none that llama.cpp knows.
    assert len(done.commands) == 1 and done.notes[0].startswith(
        "No draft.gguf for llama.cpp: A tokenizer of the kind WordLevel"
    )
    assert not (tmp_path / "out" / "draft.gguf").exists()
    with pytest.raises(InputError, match=r"The full route drafts no faster"):
        dd.export(model, tokenizer, depth="full", to="draft", out=tmp_path / "full", measured=False)


@pytest.mark.parametrize(
    ("depth", "told"),
    [
        ("rls:3@0", r"'rls:3@0' draws other layers for every sequence.*\.for_sequence\(id\)"),
        ("lossless", r"The depth 'lossless.*' runs every layer .*--to draft"),
        (dd.ConfidenceExit("margin", 0.5), "decides for every token, .*depthdial serve"),
        ("nonsense", "Unknown route|not a route|is no"),
        ("9-9", "Layer 9 does not exist"),
    ],
)
def test_what_is_no_route_is_refused(model, tokenizer, tmp_path: Path, depth: Any, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        dd.export(model, tokenizer, depth=depth, out=tmp_path / "out", measured=False)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_controller_is_refused(model, tokenizer) -> None:
    controller = fit_tiny(model, tokenizer)
    with pytest.raises(InputError, match=r"chooses a route for every prompt, and a folder has one set of layers"):
        exported_route(controller, model)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"to": "onnx"}, "Unknown way out 'onnx': use hf, gguf, vllm or draft"),
        ({"gguf_type": "q8_0"}, "gguf_type is for GGUF files"),
        ({"to": "gguf", "gguf_type": "q2_k"}, "Unknown GGUF type 'q2_k'"),
        ({"to": "gguf", "source": "nothing.gguf"}, "nothing.gguf is no GGUF file"),
        ({"max_new_tokens": 0}, "Invalid max_new_tokens 0"),
    ],
)
def test_wrong_options_are_refused(model, tokenizer, tmp_path: Path, given: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        dd.export(model, tokenizer, depth="uls:3", out=tmp_path / "out", **given)
    assert not list(tmp_path.iterdir())


def test_unknown_keywords_are_refused(model, tokenizer, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"no_such_option"):
        dd.export(model, tokenizer, depth="uls:3", out=tmp_path / "out", no_such_option=1)  # type: ignore[call-arg]


KILLED = """
import os, signal, sys
from pathlib import Path
from depthdial.exports import ways
import depthdial as dd
from tests.conftest import make_llama, make_tokenizer

save = ways._save
def half(model, tokenizer, folder):
    save(model, tokenizer, folder)
    os.kill(os.getpid(), signal.SIGKILL)
ways._save = half
dd.export(make_llama(), make_tokenizer(), depth="uls:3", out=sys.argv[1], measured=False)
"""


@pytest.mark.slow
def test_a_killed_export_leaves_nothing_that_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    child = subprocess.run([sys.executable, "-c", KILLED, str(out)], env={**os.environ}, check=False)
    assert child.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.") and not out.exists()
    dd.export(make_llama(), make_tokenizer(), depth="uls:3", out=out, measured=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / EXPORT_FILE).exists()


@pytest.mark.slow
def test_a_killed_measurement_goes_on(model, tokenizer, few, tmp_path: Path, monkeypatch) -> None:
    from depthdial.measure.sweep import Sweep

    run, seen = Sweep.run, []

    def stop(self: Sweep, item: int, *args: Any) -> None:
        seen.append(item)
        if len(seen) == 3:
            raise KeyboardInterrupt
        run(self, item, *args)

    how: dict[str, Any] = {"depth": "uls:3", "task": few, "max_new_tokens": 4, "batch_size": 2}
    with monkeypatch.context() as patched:
        patched.setattr(Sweep, "run", stop)
        with pytest.raises(KeyboardInterrupt):
            dd.export(model, tokenizer, **how, out=tmp_path / "out")
    again = dd.export(model, tokenizer, **how, out=tmp_path / "out")
    whole = dd.export(model, tokenizer, **how, out=tmp_path / "whole")
    assert again.quality == whole.quality


def test_a_task_without_references_has_fidelity_alone(model, tokenizer, tmp_path: Path) -> None:
    task = make_task(["the cat", "a dog sat"], [None, None])
    quality = dd.export(model, tokenizer, depth="uls:3", out=tmp_path / "out", task=task).quality
    assert {*quality.of(SHIPPED).values} == {"agreement", "kl"}
    assert "agreement with the full model is" in quality.sentence
