"""Every verb of the command line, end to end on a tiny random model; and every kind of bad input."""

from __future__ import annotations

import html
import io
import json
import logging
import os
import shutil
import string
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, get_peft_model

import depthdial as dd
from depthdial.cli.app import main
from depthdial.data.leakage import prompt_hashes
from depthdial.hf.weights import weights_hash
from tests.latencies import make_latency

N_LAYERS = 4
WORDS = string.ascii_lowercase


@dataclass(frozen=True)
class Run:
    """How a command ended and what it said."""

    status: int
    out: str
    err: str


def depthdial(*arguments: object) -> Run:
    """Run the command line in this process, as its entry point does."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    log = logging.getLogger("depthdial")
    with (
        mock.patch.multiple(log, handlers=[], level=log.level),  # the entry point lets the library's notices through
        mock.patch.object(sys, "argv", ["depthdial", *map(str, arguments)]),
        mock.patch.dict(os.environ, COLUMNS="240", NO_COLOR="1"),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as done:
            status = int(done.code or 0)
    return Run(status, out.getvalue(), err.getvalue())


def succeed(*arguments: object) -> Run:
    run = depthdial(*arguments)
    assert run.status == 0, run.err
    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of 4 layers, and a word-level tokenizer with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "llama"
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "user", ":", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **special)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} </s>{% endfor %}"
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen instructions with references: ten to search on, two to test on when divided."""
    path = tmp_path_factory.mktemp("data") / "small.jsonl"
    rows = [{"instruction": " ".join(WORDS[i : i + 3 + i % 4]), "output": " ".join(WORDS[i + 3 : i + 8])} for i in range(14)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def swept(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished sweep of six sequences on four routes; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "sweep"
    run = succeed(*sweep_arguments(model, data, folder))
    assert str(folder / "rows.parquet") in run.out and run.out.splitlines()[-1] == f"Next: depthdial oracle {folder}"
    assert "small: 6 sequences" in run.out
    return folder


def sweep_arguments(model: Path, data: Path, folder: Path, routes: str = "full,uls:75%,uls:50%,rls:2@3") -> list[object]:
    size = ["--limit", 6, "--batch-size", 4, "--max-new-tokens", 4]
    return ["sweep", model, "--data", data, "--routes", routes, "--out", folder, *size]


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    return lambda folder: Path(shutil.copytree(folder, tmp_path / folder.name))


# What is there


def test_help_has_study_first_and_research_in_a_panel_of_its_own() -> None:
    told = succeed("--help").out
    listed = [line.split()[1] for line in told.splitlines() if line[:2] == "│ " and line[2:3] != " "]
    verbs = ["study", "generate", "search", "sweep", "oracle", "controller"]
    assert [verb for verb in listed if verb in verbs] == verbs
    assert told.index("│ sweep") < told.index("Research") < told.index("│ oracle")
    assert succeed("--version").out.split() == ["depthdial", dd.__version__]


def test_help_loads_no_torch_and_has_the_common_options_first() -> None:
    code = "import sys; sys.argv[1:] = ['train-gates', '--help']; from depthdial.cli.app import main\n"
    code += "try: main()\nfinally: print('torch' in sys.modules, 'numpy' in sys.modules)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.split()[-2:] == ["False", "False"]
    places = [child.stdout.index(option) for option in ("--target", "--epochs", "--temperature-end", "--weight-decay")]
    assert places == sorted(places)


# Every verb does its work


def test_routes_prints_a_family() -> None:
    lines = succeed("routes", "--layers", 6, "--family", "uls").out.splitlines()
    drawn = {line.split()[0]: line.split()[-1] for line in lines if line.startswith("uls:")}
    assert list(drawn) == [f"uls:{c}" for c in range(1, 7)]
    route = dd.Route.parse("uls:4", 6)
    assert isinstance(route, dd.Route)
    runs, skips = drawn["uls:4"][0], drawn["uls:4"][2]
    assert runs != skips
    assert drawn["uls:4"] == "".join(runs if i in route.layers else skips for i in range(6))


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_routes_draws_a_picture(tmp_path: Path, suffix: str) -> None:
    picture = tmp_path / f"routes{suffix}"
    run = succeed("routes", "--layers", 6, "--routes", "full,rls-wo1:50%@1,0-1,5", "--out", picture)
    assert all(name in run.out for name in ("full", "rls-wo1:3@1", "0-1,5", str(picture)))
    assert picture.read_bytes().startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")


def test_generate_streams_what_the_library_answers(model: Path) -> None:
    run = succeed("generate", model, "a b c", "--route", "uls:50%", "--max-new-tokens", 5)
    loaded, tokenizer = dd.load(model)
    (answer,) = dd.generate(loaded, tokenizer, "a b c", depth="uls:50%", max_new_tokens=5)
    assert answer.text
    assert run.out.strip() == answer.text.strip()
    assert "2 of 4 layers" in run.err
    assert f"{answer.new_tokens} tokens" in run.err
    assert "full depth" in run.err


def test_generate_says_how_speculation_went(model: Path) -> None:
    run = succeed("generate", model, "a b c", "--depth", "lossless:ee:2", "--max-new-tokens", 5)
    plain = succeed("generate", model, "a b c", "--max-new-tokens", 5)
    assert run.out == plain.out
    assert "\nspeculation: o" in run.err and "speculation" not in plain.err
    assert "runs all 4 layers" in refused("generate", model, "a b", "--depth", "lossless:full")


def test_generate_may_send_the_prompt_through_the_route(model: Path) -> None:
    run = succeed("generate", model, "a b", "--route", "ee:1", "--prompt-depth", "route", "--max-new-tokens", 2)
    assert "1 of 4 layers" in run.err
    assert "route depth" in run.err


@pytest.mark.filterwarnings("default::depthdial.errors.RouteWarning")
def test_generate_with_an_adapter_warns_of_a_route_outside_in_one_line(model: Path, tmp_path: Path) -> None:
    loaded, _ = dd.load(model)
    about = {"base_weights_hash": weights_hash(loaded), "base_dtype": "float32", "n_layers": N_LAYERS}
    with warnings.catch_warnings():  # PEFT asks transformers for what a later transformers calls deprecated
        warnings.simplefilter("ignore", FutureWarning)
        get_peft_model(loaded, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    dd.AdapterCard("specialist", "base", **about, prompt_depth="full", routes=(dd.Route((0, 3), 4, "own"),)).save(tmp_path)
    inside = succeed("generate", model, "a b", "--adapter", tmp_path, "--route", "0,3", "--max-new-tokens", 3)
    assert "warn" not in inside.err and "nearest" not in inside.err
    outside = succeed("generate", model, "a b", "--adapter", tmp_path, "--route", "ee:2", "--max-new-tokens", 3)
    told = "depthdial: The specialist adapter of base was not trained for route 'ee:2': the nearest is 'own'"
    assert [line for line in outside.err.splitlines() if line.startswith(told)]
    replace(dd.AdapterCard.load(tmp_path), base_weights_hash="0" * 64).save(tmp_path)
    assert "is for base (4 layers" in refused("generate", model, "a b", "--adapter", tmp_path)


def test_search_writes_routes_that_sweep_takes(model: Path, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "routes.json"
    run = succeed("search", model, "--data", data, "--limit", 3, "--answer-tokens", 3, "--min-layers", 2, "--out", path)
    family = dd.RouteFamily.load(path)
    assert [route.cost_layers for route in family.cheapest_first()] == [2, 3, 4]
    assert {layer for route in family.routes for layer in route.skipped} == set(family.made_by["drop_order"])
    assert str(path) in run.out
    assert list(tmp_path.iterdir()) == [path]
    command = f"Next: depthdial sweep {model} --data OTHER.jsonl --depth {path} --out {tmp_path / 'routes'}"
    assert run.out.splitlines()[-1] == command
    assert "rows: 3 to search, 11 unused" in run.out
    size = ["--limit", 2, "--max-new-tokens", 2, "--metrics", "rouge_l"]
    swept = ["sweep", model, "--data", data, "--routes", path, "--out", tmp_path / "sweep", *size]
    assert "2 of the 2 sequences (such as 'small-all-00001') were used to search the routes" in refused(*swept)
    assert "rows: 3 searched, 2 to judge, 11 unused" in succeed(*swept, "--allow-searched-rows").out
    rows = pq.read_table(tmp_path / "sweep" / "rows.parquet")
    assert set(rows["route"].to_pylist()) == {route.name for route in family.routes}


def test_similarity_of_every_sequence_and_route(model: Path, data: Path, tmp_path: Path) -> None:
    size = ["--limit", 3, "--fidelity-tokens", 3, "--out", tmp_path]
    run = succeed("similarity", model, "--data", data, "--routes", "full,ee:50%,uls:50%", *size)
    rows = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert len(rows) == 9
    assert all(row["cosine_final"] == pytest.approx(1, abs=1e-5) for row in rows if row["route"] == "full")
    assert all(row["cosine_final"] < 0.999 for row in rows if row["route"] != "full")
    assert all(name in run.out for name in ("full", "ee:2", "uls:2", "cosine, final", "agreement"))


def test_sweep_has_a_row_for_every_sequence_and_route(swept: Path) -> None:
    rows = pq.read_table(swept / "rows.parquet").to_pylist()
    assert len(rows) == 6 * 4
    assert len({(row["sequence_id"], row["route"]) for row in rows}) == 24
    assert {row["route"] for row in rows} == {"full", "uls:3", "uls:2", "rls:2@3"}
    for row in rows:
        assert row["layers_run"] == {"full": 4, "uls:3": 3}.get(row["route"], 2)
        assert 1 <= row["new_tokens"] <= 4
        assert 0 <= row["rouge_l"] <= 1
        assert row["nll"] > 0
        assert (row["kl"] < 1e-6 and row["agreement"] == 1) == (row["route"] == "full")
        assert row["answer"] is None
        assert row["dtype"] == "float32"
        assert len(row["weights_hash"]) == 64
    drawn = {row["route_layers"] for row in rows if row["route"] == "rls:2@3"}
    assert len(drawn) > 1
    rule = dd.Route.parse("rls:2@3", N_LAYERS)
    assert all(str(rule.for_sequence(r["sequence_id"])) == r["route_layers"] for r in rows if r["route"] == "rls:2@3")


def test_sweep_takes_fields_and_keeps_texts(model: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.jsonl").write_text('{"ask": "a b", "told": "c d"}\n{"ask": "e", "told": "f"}\n')
    chosen = ["--data", tmp_path / "odd.jsonl", "--fields", "prompt=ask, reference=told", "--keep-text"]
    size = ["--routes", "full", "--metrics", "rouge_l", "--max-new-tokens", 2, "--out", tmp_path / "out"]
    succeed("sweep", model, *chosen, *size)
    rows = pq.read_table(tmp_path / "out" / "rows.parquet").to_pylist()
    assert [row["reference_tokens"] for row in rows] == [2, 1]
    assert all(isinstance(row["answer"], str) for row in rows)


def test_sweep_on_the_built_in_set(model: Path, tmp_path: Path) -> None:
    size = ["--limit", 2, "--max-new-tokens", 2, "--max-prompt-tokens", 32, "--metrics", "agreement", "--out", tmp_path]
    succeed("sweep", model, "--task", "builtin", "--routes", "full,ee:1", *size)
    rows = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert {row["task"] for row in rows} == {"builtin"}
    assert {row["split"] for row in rows} == {"test"}
    assert len(rows) == 4


def test_oracle_and_report_of_a_sweep(swept: Path, copy_of: Callable[[Path], Path]) -> None:
    folder = copy_of(swept)
    assert "at a budget of 75%: " in succeed("oracle", folder, "--budget", "75%", "--quality", "tokens").out
    run = succeed("oracle", folder, "--budget", 3)
    assert "Oracle by rouge_l (mean over sequences), spending layer_steps" in run.out and "measured ms" in run.out
    run = succeed("oracle", folder, "--budget", 3, "--cost", "layers")
    assert "spending layers: mean layers run per sequence" in run.out
    (chosen,) = [line for line in run.out.splitlines() if line.startswith("at a budget of 3: ")]
    picks = [part.split(" x ") for part in chosen.removeprefix("at a budget of 3: ").split(", ")]
    layers = {"full": 4, "uls:3": 3, "uls:2": 2, "rls:2@3": 2}
    assert sum(int(count) for count, _ in picks) == 6
    assert sum(int(count) * layers[name] for count, name in picks) <= 3 * 6

    make_latency(4).save(folder / "bench.json")
    run = succeed(
        "oracle", folder, "--metric", "kl", "--cost", "ms", "--latency", folder / "bench.json", "--latency-rows", 8
    )
    assert "spending ms: measured ms per sequence" in run.out
    (folder / "bench.json").unlink()
    succeed("oracle", folder, "--metric", "kl", "--cost", "decode_flops")
    succeed("oracle", folder, "--weight-by", "new_tokens")
    kept = json.loads((folder / "oracle.json").read_text())
    by_layers = "rouge_l by layers"
    names = {"rouge_l", "rouge_l, mean weighted by tokens", by_layers, f"{by_layers}, weighted by new_tokens"}
    assert set(kept) == names | {"kl by decode_flops", "kl by ms"}

    run = succeed("report", folder)  # which takes whatever curves it finds
    (page,) = folder.glob("*.html")
    assert str(page) in run.out
    html = page.read_text(encoding="utf-8")
    assert "uls:3" in html
    assert "data:image/" in html or "<svg" in html
    assert not [link for link in ('src="http', 'href="http', "@import") if link in html]  # self-contained


def study_arguments(model: Path, data: Path, folder: Path) -> list[object]:
    size = ["--limit", 2, "--calibration-limit", 3, "--max-new-tokens", 3]
    return ["study", model, "--data", data, "--out", folder, *size]


def page_text(folder: Path) -> str:
    return html.unescape((folder / "report.html").read_text())


@pytest.mark.slow
def test_study_does_all_in_order_and_goes_on_where_it_stopped(model: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    run = succeed(*study_arguments(model, data, folder))
    names = ("search", "similarity", "sweep", "time", "oracle", "report")
    steps = [run.err.index(f"{i}/6 {name}") for i, name in enumerate(names, start=1)]
    assert steps == sorted(steps)
    assert f"report: {folder / 'report.html'}" in run.out
    last = run.out.strip().splitlines()
    assert any(line.startswith("On these 2 prompts ") and line in page_text(folder) for line in last)
    assert "invalid keep" in refused(*study_arguments(model, data, tmp_path / "other"), "--keep", 2).lower()
    for name in ("routes.json", "study.json", "oracle.json", "report.html", "similarity/rows.parquet", "sweep/rows.parquet"):
        assert (folder / name).stat().st_size > 0
    rows = pq.read_table(folder / "sweep" / "rows.parquet")
    assert set(rows["split"].to_pylist()) == {"test"}

    lost = [folder / "oracle.json", min((folder / "sweep" / "units").glob("*.parquet"))]
    for path in lost:
        path.unlink()
    before = stamps(folder)
    with mock.patch("depthdial.studies.study.write_report", return_value="the page") as drawn:
        again = succeed(*study_arguments(model, data, folder))
    assert "report: the page" in again.out
    assert drawn.call_args.args == (folder,)
    assert all(path.exists() for path in lost)
    assert unchanged(before, folder) >= {"routes.json", "study.json"} | {name for name in before if "/units/" in name}
    assert without_seconds(pq.read_table(folder / "sweep" / "rows.parquet")) == without_seconds(rows)
    # a verb that reads results reads the folder of a study
    assert "Oracle by agreement" in succeed("oracle", folder, "--metric", "agreement").out


def test_study_fits_a_controller_on_train_rows_that_no_route_is_searched_on(model: Path, tmp_path: Path) -> None:
    texts = [f"{a} {b} {c}" for a in WORDS[:5] for b in WORDS[:5] for c in WORDS[:3]]
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"instruction": text, "output": text}) + "\n" for text in texts))
    arguments = ["study", model, "--data", path, "--out", tmp_path / "out", "--calibration-limit", 3]
    with mock.patch("depthdial.studies.study.study", side_effect=dd.InputError("Seen.")) as run:
        assert refused(*arguments, "--controller-limit", 33) == "Seen."
        assert refused(*arguments) == "Seen."
    given, without = (call.kwargs for call in run.call_args_list)
    rows, searched, judged = (given[name] for name in ("controller_rows", "calibration", "task"))
    assert (len(rows.examples), rows.split, judged.split) == (33, "train", "test")
    ids = [{example.id for example in part.examples} for part in (rows, searched, judged)]
    assert len(set.union(*ids)) == sum(map(len, ids))
    assert without["controller_rows"] is None
    assert "12 sequences are too few to fit a controller" in refused(*arguments, "--controller-limit", 12)
    assert "at least 0, not -1" in refused(*arguments, "--controller-limit", -1)
    assert "The built-in set has no prompts to fit" in refused(
        "study", model, "--out", tmp_path / "o", "--controller-limit", 40
    )


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """By name what changes when a file is written anew."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def unchanged(before: dict[str, tuple[int, int]], folder: Path) -> set[str]:
    now = stamps(folder)
    return {name for name, stamp in before.items() if now.get(name) == stamp}


def without_seconds(table: pa.Table) -> list[dict[str, object]]:
    return table.select([name for name in table.column_names if not name.endswith("_sec")]).to_pylist()


def test_sampled_answers_and_what_is_predictable_of_them(model: Path, data: Path, tmp_path: Path) -> None:
    sampled = [*sweep_arguments(model, data, tmp_path), "--samples", 4, "--temperature", 0.7, "--top-p", 0.9]
    assert "small: 6 sequences" in succeed(*sampled).out
    rows = pq.read_table(tmp_path / "rows.parquet")
    assert rows.num_rows == 6 * 4 * 4 and set(rows["sample"].to_pylist()) == {0, 1, 2, 3}
    assert json.loads((tmp_path / "settings.json").read_text())["temperature"] == 0.7
    run = succeed("oracle", tmp_path, "--budget", 3)
    for told in ("Oracle by rouge_l", "Predictable oracle by rouge_l: chosen on 2 of 4 samples", "at a budget of 3", "full"):
        assert told in run.out
    stored = json.loads((tmp_path / "predictable.json").read_text())["rouge_l"]
    assert dd.PredictableCurve.from_dict(stored).to_dict() == dd.predictable_oracle(rows).to_dict()
    means = dd.OracleCurve.from_dict(json.loads((tmp_path / "oracle.json").read_text())["rouge_l"])
    assert means.full_value == pytest.approx(stored["full_value"])
    assert "Predictable oracle: the oracle" in Path(succeed("report", tmp_path).out.split()[-1]).read_text()
    assert (tmp_path / "figures" / "predictable-rouge_l.svg").exists()
    assert "leave --weight-by out" in refused("oracle", tmp_path, "--weight-by", "new_tokens")


# A stopped run goes on


def test_a_sweep_redoes_only_what_is_missing(model: Path, data: Path, swept: Path, copy_of: Callable[[Path], Path]) -> None:
    folder = copy_of(swept)
    whole = pq.read_table(folder / "rows.parquet")
    units = sorted((folder / "units").glob("*.parquet"))
    assert len(units) == 2 * 4  # two batches, four routes
    lost = [units[0], units[5], folder / "rows.parquet"]
    for path in lost:
        path.unlink()
    before = stamps(folder)
    succeed(*sweep_arguments(model, data, folder))
    assert unchanged(before, folder) == set(before)
    assert set(stamps(folder)) == {*before, *(path.relative_to(folder).as_posix() for path in lost)}
    assert without_seconds(pq.read_table(folder / "rows.parquet")) == without_seconds(whole)


def test_a_sweep_grows_by_routes_and_keeps_its_rows(
    model: Path, data: Path, swept: Path, copy_of: Callable[[Path], Path]
) -> None:
    folder = copy_of(swept)
    before = stamps(folder)
    succeed(*sweep_arguments(model, data, folder, routes="full,ee:3"))
    assert unchanged(before, folder) == set(before) - {"rows.parquet"}
    assert set(pq.read_table(folder / "rows.parquet")["route"].to_pylist()) == {"full", "ee:3", "uls:2", "uls:3", "rls:2@3"}


def test_ctrl_c_is_one_line(model: Path, data: Path, tmp_path: Path) -> None:
    with mock.patch("depthdial.hf.load.load", side_effect=KeyboardInterrupt):
        run = depthdial(*sweep_arguments(model, data, tmp_path))
    assert run.status == 130
    assert run.err.strip().splitlines() == ["depthdial: stopped; the same command goes on from here."]


def test_a_bug_is_not_dressed_up_as_bad_input(model: Path) -> None:
    bug = RuntimeError("a bug")
    with mock.patch("depthdial.hf.load.load", side_effect=bug), pytest.raises(RuntimeError, match="a bug"):
        depthdial("generate", model, "a b")


# Bad input: exit status 2 and one line


def refused(*arguments: object) -> str:
    """The sentence of a command that must end with exit status 2 and say one line."""
    run = depthdial(*arguments)
    assert run.status == 2
    (line,) = run.err.strip().splitlines()
    assert line.startswith("depthdial: ")
    assert "Traceback" not in run.out
    return line.removeprefix("depthdial: ")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["sing"], "sing"),
        (["routes", "--layers", "6", "--family", "uls", "--nope"], "--nope"),
        (["routes", "--family", "uls"], "--layers"),
        (["routes", "--layers", "six", "--family", "uls"], "--layers"),
        (["generate", "a-model"], "prompt"),
        (["routes", "--layers", "6", "--family", "uls", "surplus"], "surplus"),
    ],
)
def test_misused_commands(arguments: list[str], told: str) -> None:
    assert told in refused(*arguments)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--layers", "6", "--routes", "nonsense"], "Unknown route 'nonsense': use full, ee:12"),
        (["--layers", "6", "--routes", "uls:7"], "Route 'uls:7' asks for 7 of 6 layers: use a count from 1 to 6"),
        (["--layers", "6", "--routes", "3,1"], "write it as '1,3'"),
        (["--layers", "6", "--routes", "4"], "Route '4' is a bare number, which does not say which layers run: write uls:4"),
        (["--layers", "6", "--routes", "4,full"], "4-4 for layer 4 alone."),
        (["--layers", "6", "--family", "nonsense"], "Unknown family 'nonsense': use one of ee, uls"),
        (["--layers", "0", "--family", "uls"], "Invalid n_layers 0: use a whole number of at least 1"),
        (["--layers", "1000000000", "--family", "uls"], "Invalid n_layers 1000000000"),
        (["--layers", "6"], "either --family uls or --routes"),
        (["--layers", "6", "--family", "uls", "--routes", "full"], "either --family uls or --routes"),
        (["--layers", "6", "--family", "rls", "--seed", "-1"], "as its seed"),
    ],
)
def test_refused_routes(arguments: list[str], told: str) -> None:
    assert told in refused("routes", *arguments)


def test_a_route_family_for_another_depth(model: Path, data: Path, tmp_path: Path) -> None:
    path = dd.RouteFamily("mine", 6, (dd.Route((0, 1), 6, "mine:2"),)).save(tmp_path / "routes.json")
    told = "is for 6 layers but this model has 4: search again"
    assert told in refused(*sweep_arguments(model, data, tmp_path / "out", routes=str(path)))
    assert told in refused("similarity", model, "--data", data, "--routes", path, "--out", tmp_path / "out")
    assert "damaged" in refused("routes", "--layers", 4, "--routes", damaged(path))
    assert not (tmp_path / "out").exists()


def damaged(path: Path) -> Path:
    path.write_text(path.read_text().replace('"layers"', '"layer"'))
    return path


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--route", "nonsense"], "Unknown route 'nonsense'"),
        (["--route", "uls:5"], "asks for 5 of 4 layers"),
        (["--route", "ee:0"], "asks for 0 of 4 layers"),
        (["--prompt-depth", "half"], "Unknown prompt depth 'half': use full or route"),
        (["--dtype", "int3"], "Unknown dtype 'int3'"),
        (["--device", "toaster"], "Unknown device 'toaster'"),
        (["--template", "nonsense"], "Unknown template 'nonsense'"),
        (["--max-new-tokens", "0"], "Invalid max_new_tokens 0: use a whole number of at least 1"),
        (["--adapter", "nowhere"], "no adapter folder nowhere"),
        (["--adapter", "elastic"], "No elastic adapter ships for"),
    ],
)
def test_refused_generation(model: Path, arguments: list[str], told: str) -> None:
    assert told in refused("generate", model, "a b", *arguments)


def test_a_prompt_longer_than_the_context(model: Path) -> None:
    assert "context is 64" in refused("generate", model, "a b " * 40)


def test_refused_models(tmp_path: Path, data: Path) -> None:
    assert "There is no folder" in refused("generate", tmp_path / "nowhere", "a b")
    assert "has no weights" in refused("generate", tmp_path, "a b")
    assert "There is no file" in refused("generate", tmp_path / "model.gguf", "a b")
    assert "There is no folder" in refused("study", tmp_path / "nowhere", "--data", data, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "There is no file or folder"),
        ("", "holds no rows"),
        ("\n\n", "holds no rows"),
        ("{", "Row 1 of"),
        ('{"words": "a b"}\n', "has none of the known prompt fields, only words"),
        ('{"instruction": "a", "output": "b"}\n{"output": "b"}\n', "Row 2 of 'data.jsonl' has no field 'instruction'"),
        ('{"instruction": "a", "output": true}\n', "Row 1 of 'data.jsonl' has a value of type bool in field 'output'"),
        ('{"instruction": " "}\n', "Row 1 of 'data.jsonl' has an empty 'instruction'"),
    ],
)
def test_refused_data_files(tmp_path: Path, content: str | None, told: str) -> None:
    path = tmp_path / "data.jsonl"
    if content is not None:
        path.write_text(content)
    for verb in (["sweep", "a-model", "--routes", "full"], ["similarity", "a-model"], ["search", "a-model"]):
        assert told in refused(*verb, "--data", path, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--task", "nonsense"], "Unknown task 'nonsense': name one of builtin, alpaca"),
        (["--task", "builtin", "--data", "a.jsonl"], "give one of them"),
        (["--task", "builtin", "--split", "nonsense"], "Unknown split 'nonsense'"),
        (["--task", "builtin", "--limit", "0"], "Invalid limit 0: use a whole number of at least 1"),
        (["--task", "builtin", "--template", "nonsense"], "Unknown template 'nonsense'"),
        (["--task", "builtin", "--fields", "prompt"], "Cannot read 'prompt' in the fields"),
        (["--task", "builtin", "--fields", "nonsense=a"], "Unknown role 'nonsense'"),
    ],
)
def test_refused_tasks(tmp_path: Path, arguments: list[str], told: str) -> None:
    assert told in refused("sweep", "a-model", "--routes", "full", "--out", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--routes", "nonsense"], "Unknown route 'nonsense'"),
        (["--routes", ""], "No route was given"),
        (["--routes", "full,uls:9"], "asks for 9 of 4 layers"),
        (["--routes", "nowhere.json"], "There is no route family file nowhere.json"),
        (["--routes", "full", "--metrics", "nonsense"], "Unknown metric 'nonsense'"),
        (["--routes", "full", "--metrics", " , "], "Unknown metric"),
        (["--routes", "full", "--samples", "-1"], "Invalid samples -1: use a whole number"),
        (["--routes", "full", "--samples", "2", "--temperature", "0"], "Invalid temperature 0"),
        (["--routes", "full", "--temperature", "0.7"], "say how many with samples"),
        (["--routes", "full", "--samples", "2", "--metrics", "nll"], "sweep it without samples"),
        (["--routes", "full", "--batch-size", "0"], "Invalid batch_size"),
        (["--routes", "full", "--max-new-tokens", "-3"], "Invalid max_new_tokens"),
        (["--routes", "full", "--prompt-depth", "half"], "Unknown prompt depth 'half'"),
        (["--routes", "full", "--max-prompt-tokens", "2"], "max_prompt_tokens"),
    ],
)
def test_refused_sweeps(model: Path, data: Path, tmp_path: Path, arguments: list[str], told: str) -> None:
    assert told in refused("sweep", model, "--data", data, "--out", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_other_settings_never_mix_with_old_rows(model: Path, data: Path, swept: Path) -> None:
    before = stamps(swept)
    other = [*sweep_arguments(model, data, swept)[:-1], 5]
    assert "another max_new_tokens (4 then, 5 now)" in refused(*other)
    assert unchanged(before, swept) == set(before) == set(stamps(swept))


def test_a_folder_that_cannot_be_written(model: Path, data: Path) -> None:
    assert "Cannot write" in refused(*sweep_arguments(model, data, data))  # a file where the folder should be


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--budget", "1", "--cost", "layers"], "The budget 1 is below the cheapest assignment, whose mean cost is 2"),
        (["--budget", "0.1"], "The budget 0.1 is below the cheapest assignment"),
        (["--budget", "lots"], "The budget 'lots' is not a number or a percentage: give a share (0.8 or '80%')"),
        (["--metric", "cost"], "The name of the metric 'cost' does not say whether high or low values are good"),
        (["--steps", "mine"], "Unknown steps 'mine'"),
        (["--quality", "best"], "Unknown quality 'best'"),
        (["--budget", "nan"], "The budget is NaN"),
        (["--metric", "nonsense"], "no column 'nonsense'"),
        (["--metric", "finish_reason"], "does not hold numbers"),
        (["--cost", "nonsense"], "no column 'nonsense'"),
        (["--weight-by", "nonsense"], "no column 'nonsense'"),
    ],
)
def test_refused_oracles(swept: Path, arguments: list[str], told: str) -> None:
    assert told in refused("oracle", swept, *arguments)
    assert not (swept / "oracle.json").exists()


def test_one_route_leaves_an_oracle_nothing_to_choose(swept: Path, tmp_path: Path) -> None:
    rows = pq.read_table(swept / "rows.parquet")
    pq.write_table(rows.filter(pc.equal(rows["route"], "full")), tmp_path / "rows.parquet")
    assert "The rows hold one route, 'full', so an oracle has nothing to choose" in refused("oracle", tmp_path)


@pytest.mark.parametrize("verb", ["oracle", "report"])
def test_folders_without_rows(tmp_path: Path, verb: str) -> None:
    assert "There are no result rows at" in refused(verb, tmp_path)
    assert "There are no result rows at" in refused(verb, tmp_path / "nowhere")
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 but no more")
    assert "is not a readable Parquet file" in refused(verb, tmp_path)


# Studies find out about bad input before they work, and leave nothing behind that stands in the way


def test_a_study_refuses_a_route_before_it_begins(model: Path, data: Path, tmp_path: Path) -> None:
    told = refused(*study_arguments(model, data, tmp_path / "out"), "--routes", "full,nonsense")
    assert "Unknown route 'nonsense'" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_study_takes_a_route_family_file_and_family_names(model: Path, data: Path, tmp_path: Path) -> None:
    path = dd.RouteFamily("mine", N_LAYERS, (dd.Route((0, 3), N_LAYERS, "mine:2"),)).save(tmp_path / "routes.json")
    for i, routes in enumerate((path, f"full,{path}", "full,unified")):
        with mock.patch("depthdial.studies.study.write_report", return_value="page"):
            succeed(*study_arguments(model, data, tmp_path / f"out{i}"), "--routes", routes)
        names = set(pq.read_table(tmp_path / f"out{i}" / "sweep" / "rows.parquet")["route"].to_pylist())
        assert names >= ({"unified:1", "unified:2"} if routes == "full,unified" else {"mine:2"})


def test_splits_with_row_numbers_of_their_own_are_separate(model: Path, tmp_path: Path) -> None:
    # Exported data sets count the rows of every split from 0: the same ids are not the same sequences.
    for name, words in (("train", WORDS[:8]), ("test", WORDS[8:16])):
        rows = [{"id": i, "instruction": f"a {word}", "output": word} for i, word in enumerate(words)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with mock.patch("depthdial.studies.study.write_report", return_value="page"):
        succeed(*study_arguments(model, tmp_path, tmp_path / "out"))


def test_a_study_refuses_to_search_on_what_it_evaluates_on(model: Path, data: Path, tmp_path: Path) -> None:
    told = refused(*study_arguments(model, data, tmp_path / "out"), "--calibration-split", "test")
    assert "were used to search the routes" in told
    assert not (tmp_path / "out").exists()


def test_a_search_on_a_folder_of_splits_leaves_the_test_split_alone(model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "splits").mkdir()
    for name in ("train", "test"):
        shutil.copy(data, tmp_path / "splits" / f"{name}.jsonl")
    size = ["--limit", 2, "--answer-tokens", 2, "--min-layers", 3, "--out", tmp_path / "routes.json"]
    succeed("search", model, "--data", tmp_path / "splits", *size)
    assert dd.RouteFamily.load(tmp_path / "routes.json").made_by["settings"]["split"] == "train"


def test_a_study_never_goes_on_in_the_folder_of_another(model: Path, data: Path, tmp_path: Path) -> None:
    with mock.patch("depthdial.studies.study.write_report", return_value="page"):
        succeed(*study_arguments(model, data, tmp_path))
    other = study_arguments(model, data, tmp_path)
    assert "max_new_tokens" in refused(*other[:-1], 4)


def test_a_study_of_a_file_judges_what_is_not_searched_on_and_says_so(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"prompt {i}", "reference": "the cat"}) + "\n" for i in range(20)))
    arguments = ["study", model, "--data", path, "--out", tmp_path / "out", "--calibration-limit", 3]
    for limit, judged, unused in ((None, 17, 0), (4, 4, 13)):
        with mock.patch("depthdial.studies.study.study", side_effect=dd.InputError("Seen.")) as run:
            told = depthdial(*arguments, *([] if limit is None else ["--limit", limit])).out
        assert f"rows: 3 to search, {judged} to judge, {unused} unused" in told
        task, searched = run.call_args.kwargs["task"], run.call_args.kwargs["calibration"]
        assert len(task.examples) == judged and len(searched.examples) == 3
        assert not {e.id for e in task.examples} & {e.id for e in searched.examples}


def test_a_study_of_a_file_leaves_out_what_the_adapter_was_trained_on(model: Path, data: Path, tmp_path: Path) -> None:
    seen = list(prompt_hashes(dd.task(data))[-4:])
    for name, prompts in (("four", seen), ("all", prompt_hashes(dd.task(data)))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "depthdial.json").write_text(json.dumps({"training": {"data": {"prompts": prompts}}}))
    arguments = ["study", model, "--data", data, "--out", tmp_path / "out", "--calibration-limit", 3]
    with (
        mock.patch("depthdial.studies.study.study", side_effect=dd.InputError("Seen.")) as run,
        mock.patch("depthdial.hf.load.load", return_value=(None, None)),
        mock.patch("depthdial.views.adapted.adapted_view"),
    ):
        out = depthdial(*arguments, "--adapter", tmp_path / "four").out
        assert "rows: 4 trained on, 3 to search, 7 to judge, 0 unused" in out
        assert not set(prompt_hashes(run.call_args.kwargs["task"])) & set(seen)
        told = "All 14 rows are searched or trained on, so none is left to judge: give more rows, or a smaller --calib"
        assert told in refused(*arguments, "--adapter", tmp_path / "all")
