"""The examples in the docstrings of all public names, run on a tiny random model."""

from __future__ import annotations

import doctest
import functools
import inspect
import json
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import depthdial as dd
from depthdial.measure import bench
from tests.conftest import make_llama, make_tokenizer
from tests.latencies import make_latency

WORDS = (
    "the cat",
    "a dog",
    "two cat",
    "one dog",
    "six mat",
    "four cat",
    "the mat",
    "a cat sat",
    "it is",
    "by two",
    "ran on",
)


def namespace(folder: Path) -> dict[str, Any]:
    """What examples may use: a model of 6 layers, its tokenizer, tasks, result rows, and a folder with all of it on disk."""
    model, tokenizer = make_llama().eval(), make_tokenizer()
    for part in (model, tokenizer):
        part.save_pretrained(folder / "model")
    rows = [
        {"instruction": f"{words} in {other}", "output": "the cat sat on"}
        for words in WORDS
        for other in ("it", "two", "one")
    ]
    data, more = folder / "data.jsonl", folder / "more.jsonl"
    data.write_text("".join(json.dumps({"instruction": words, "output": "the cat sat on"}) + "\n" for words in WORDS[:4]))
    more.write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_latency().save(folder / "bench.json")
    dd.TokenGates(dd.GateConfig(n_layers=6, width=32)).save_pretrained(folder / "gates")
    task = dd.task(data)
    draws = np.random.default_rng(0).random((4, 2, 4)).round(2)
    cells = [(s, r, k) for s in range(4) for r in range(2) for k in range(4)]
    samples = {
        "sequence_id": [f"s{s}" for s, _, _ in cells],
        "route": [("full", "uls:3")[r] for _, r, _ in cells],
        "sample": [k for _, _, k in cells],
        "agreement": [draws[cell] for cell in cells],
        "layers_run": [(6, 3)[r] for _, r, _ in cells],
        "n_layers": [6] * len(cells),
    }
    routes = ["uls:50%", "full"]
    many = dd.task(more)
    settings = dd.FinetuneSettings(max_tokens=40)
    dd.finetune(model, tokenizer, task=many, routes=routes, out=folder / "adapter", settings=settings)
    return {
        "dd": dd,
        "np": np,
        "warnings": warnings,
        "model": model,
        "tokenizer": tokenizer,
        "folder": folder,
        "data": data,
        "task": task,
        "many": many,
        "rows": dd.sweep(model, tokenizer, task=task, routes=["full", "uls:50%"], metrics=["agreement"]),
        "samples": samples,
    }


_MARKS = {
    "gates_study": pytest.mark.slow,
    "evaluate": pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs the extra eval"),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return namespace(tmp_path_factory.mktemp("examples"))


@pytest.mark.parametrize("name", [pytest.param(name, marks=_MARKS[name]) if name in _MARKS else name for name in dd.__all__])
def test_the_example_of_a_public_name(shared: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for page in (
        "gates.write_gates_report",
        "search.write_search_report",
        "study.write_report",
    ):  # drawn in tests of their own
        monkeypatch.setattr(f"depthdial.studies.{page}", lambda folder, **_: folder / "report.html")
    monkeypatch.setattr(bench, "measure_ceilings", functools.partial(bench.measure_ceilings, rounds=1, scale=1 / 1024))
    text = inspect.getdoc(getattr(dd, name)) or ""
    example = doctest.DocTestParser().get_doctest(text, dict(shared), name, None, 0)
    assert example.examples, f"dd.{name} has no example"
    told: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dd.RouteWarning)  # no route is known for a random model
        doctest.DocTestRunner().run(example, out=told.append)
    assert not told, "".join(told)


@pytest.mark.parametrize(
    "name",
    [
        *("metrics", "oracles.costs", "oracles.drafts", "stats.bootstrap", "stats.intervals", "stats.keeping"),
        *("stats.serialize", "routes.route", "report.kit.differences"),
    ],
)
def test_the_examples_of_a_module_without_a_model(name: str) -> None:
    failed, tried = doctest.testmod(import_module(f"depthdial.{name}"), extraglobs={"dd": dd, "np": np})
    assert tried and not failed
