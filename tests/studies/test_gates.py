"""A whole gates study on a tiny random model: once for all tests, which each take up a copy of its folder."""

from __future__ import annotations

import json
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from filelock import FileLock

from depthdial.data.leakage import prompt_hashes
from depthdial.errors import InputError
from depthdial.hf.trained import note_training
from depthdial.hf.weights import weights_hash
from depthdial.measure.plan import ModelIdentity
from depthdial.report.gates.summary import gather_gates
from depthdial.report.gates.tables import controllers_table, differences_table
from depthdial.rows.gates import is_gates_study, load_gate_maps, load_gate_rows
from depthdial.rows.sharing import work_lock
from depthdial.stats import equivalence
from depthdial.studies import gates as gate_studies
from depthdial.studies.gates import gates_study
from depthdial.train.gates.study import GatesStudySettings
from tests.conftest import make_llama, make_task, make_tokenizer

SETTINGS = GatesStudySettings(
    budgets=(0.9, 0.7),
    seeds=2,
    other_inputs=("position",),
    other_budget=0.7,
    base_tokens=40,
    tokens=40,
    batch_size=4,
    rank=2,
    exit_rows=6,
    max_new_tokens=4,
    eval_batch_size=3,
    fidelity_tokens=3,
    map_sequences=1,
)
ONE_BUDGET = replace(SETTINGS, budgets=(0.7,))
N_LAYERS = 6
MEASURED = ("batch_decode_sec", "decode_sec")


def make_tasks():
    """Four sequences to measure on, one of them with an id that is a path, and a dozen others to learn from."""
    counts = ("one", "two", "three")
    animals = [(n, a, v) for n in counts for a in ("cat", "dog") for v in ("sat", "ran")]
    lessons = make_task([" ".join(words) for words in animals], [f"{v} the {a} {n}" for n, a, v in animals], "lesson")
    prompts, references = (
        ["the cat", "a dog sat on", "six", "it was the"],
        ["sat on the mat", "and ran", "four five", "is in"],
    )
    sequences = make_task(prompts, references)
    odd = replace(sequences.examples[0], id="set/a 0")
    return replace(sequences, examples=(odd, *sequences.examples[1:])), lessons


def run(model, tokenizer, out, **options):
    task, training = make_tasks()
    settings = options.pop("settings", SETTINGS)
    return gates_study(
        model, tokenizer, **{"task": task, "training": training, "out": out, "settings": settings, "name": "tiny", **options}
    )


def scores(table):
    return table.drop_columns([*MEASURED, "batch_steps"]).to_pylist()


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, model.training


@pytest.fixture(scope="module")
def words():
    return make_tokenizer()


SLOW = [pytest.param(settings, marks=pytest.mark.slow) for settings in (ONE_BUDGET, SETTINGS)]


@pytest.fixture(scope="module", params=SLOW, ids=["one", "two"])
def settings(request):
    """Of one budget and of two, in the slow lane."""
    return request.param


@pytest.fixture(scope="module")
def whole(settings, words, tmp_path_factory):
    """(folder, rows, the steps that were told) of a finished study; not to be changed."""
    folder = tmp_path_factory.mktemp("study") / "out"
    model, steps = make_llama(N_LAYERS), []
    model.train()  # somebody's model may be in any mode
    before = state(model)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with mock.patch.object(equivalence, "N_DRAWS", 200):
        result = run(model, words, folder, settings=settings, say=steps.append)
    after = state(model)
    assert before[1] == after[1] and all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert flags == [parameter.requires_grad for parameter in model.parameters()]
    assert result.report == folder / "report.html" and result.report.exists()
    return folder, result.rows, steps


@pytest.fixture
def copied(whole, tmp_path):
    return Path(shutil.copytree(whole[0], tmp_path / "copy"))


@pytest.fixture
def no_report(monkeypatch):
    """Figures take longer than a tiny study."""
    monkeypatch.setattr(gate_studies, "write_gates_report", lambda folder: folder / "report.html")


@pytest.fixture
def no_training(monkeypatch):
    """Finished trainings may be read, and nothing may train."""

    def trains(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr("depthdial.train.running.run_trainer", trains)


def test_every_controller_budget_seed_mode_and_sequence_has_its_row(whole, settings):
    folder, rows, steps = whole
    found = {(r["controller"], r["target"], r["train_seed"], r["mode"]) for r in rows.to_pylist()}
    trained = [(name, budget) for name in ("hidden", "fixed") for budget in settings.budgets] + [("position", 0.7)]
    expected = {(*one, seed, mode) for one in trained for seed in (0, 1) for mode in ("sampled", "argmax")}
    expected |= {("bernoulli", budget, seed, "sampled") for budget in settings.budgets for seed in (0, 1)}
    expected |= {("static", budget, seed, "none") for budget in settings.budgets for seed in (0, 1)}
    expected |= {(name, budget, None, "none") for name in ("margin", "saturation") for budget in settings.budgets}
    expected |= {("full", None, None, "none")}
    assert found == expected and rows.num_rows == 4 * len(expected)
    assert load_gate_rows(folder).equals(rows) and is_gates_study(folder) and not is_gates_study(folder / "sweep")
    n_runs = 4 * len(settings.budgets) + 4  # trainings of two controllers, two more of the third, full depth and exits
    assert [step.split(" ")[0] for step in steps] == ["fine-tuning", str(n_runs), "report"]


def test_the_numbers_of_a_study_are_what_they_say(whole):
    for row in whole[1].to_pylist():
        assert row["n_layers"] == N_LAYERS and row["kl"] >= 0 and 0 <= row["agreement"] <= 1 and row["nll"] > 0
        if row["controller"] == "full":
            assert (row["kl"], row["agreement"]) == (0.0, 1.0) and row["decide_flops"] is None
        elif row["layers_run"] is not None:
            # The first and the last layer have no gate, and an exit comes after the first at the earliest.
            assert (1 if row["controller"] in ("margin", "saturation", "static") else 2) <= row["layers_run"] <= N_LAYERS
        if row["controller"] == "static":
            assert row["layers_run"] == int(row["layers_run"])
    # Nothing but T is behind all rows: a merged copy's own name and hash would tell a reader of two models.
    assert {row["model"] for row in whole[1].to_pylist()} == {"tiny + T"}
    assert len({row["weights_hash"] for row in whole[1].to_pylist()}) == 1


def test_a_static_route_has_as_many_layers_as_its_gates_ran(whole):
    folder, rows, _ = whole
    for row in rows.to_pylist():
        if row["controller"] == "static":
            name = f"fixed-{row['target']:g}-s{row['train_seed']}"
            record = json.loads((folder / "runs" / name / "gates" / "training.json").read_text())
            assert row["layers_run"] == round(sum(record["layer_rates"]))


def test_pictures_and_tables_of_the_study(whole):
    folder, rows, _ = whole
    maps = load_gate_maps(folder)
    assert {(one.controller, one.mode, one.target, one.train_seed, one.sequence_id) for one in maps} == {
        (name, mode, 0.7, 0, "set/a 0") for name in ("hidden", "fixed") for mode in ("sampled", "argmax")
    }
    by_key = {(r["controller"], r["mode"], r["target"], r["train_seed"], r["sequence_id"]): r for r in rows.to_pylist()}
    for one in maps:
        row = by_key[one.controller, one.mode, one.target, one.train_seed, one.sequence_id]
        assert one.mean_layers == (None if row["layers_run"] is None else pytest.approx(row["layers_run"]))
        assert all(all(layers) for layers, prompt in zip(one.ran, one.is_prompt, strict=True) if prompt)
    cells = gather_gates(rows)
    assert {line["controller"] for line in controllers_table(cells)} >= {"full", "hidden", "fixed", "bernoulli", "margin"}
    assert differences_table(cells)[0]["seeds"] == 2
    assert "set/a 0" in (folder / "report.html").read_text()


def test_a_finished_study_has_nothing_to_do(whole, settings, copied, words, no_training, no_report):
    stamps = {path: path.stat().st_mtime_ns for path in copied.rglob("runs/*/rows.parquet")}
    again = run(make_llama(N_LAYERS), words, copied, settings=settings)
    assert again.rows.equals(whole[1])
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("runs/*/rows.parquet")} == stamps


def test_a_study_that_lost_rows_and_units_measures_them_again_and_trains_nothing(
    whole, settings, copied, words, no_training, no_report
):
    for name in ("hidden-0.7-s1", f"fixed-{settings.budgets[0]:g}-s0", "exits"):
        (copied / "runs" / name / "rows.parquet").unlink()
    units = sorted((copied / "sweep" / "units").glob("*.parquet"))
    for path in units[::2]:
        path.unlink()
    (copied / "rows.parquet").unlink()
    again = run(make_llama(N_LAYERS), words, copied, settings=settings)
    assert scores(again.rows) == scores(whole[1]) and load_gate_rows(copied).equals(again.rows)


def test_a_training_that_is_gone_is_made_again_with_the_same_rows(whole, settings, copied, words, no_report):
    """The units of its gates are found again, for the same seed trains the same gates."""
    shutil.rmtree(copied / "runs" / "hidden-0.7-s1")
    stamps = {path: path.stat().st_mtime_ns for path in (copied / "sweep" / "units").glob("*.parquet")}
    again = run(make_llama(N_LAYERS), words, copied, settings=settings)
    assert scores(again.rows) == scores(whole[1])
    assert {path: path.stat().st_mtime_ns for path in (copied / "sweep" / "units").glob("*.parquet")} == stamps


def test_another_processs_run_is_left_to_it_and_waited_for(whole, settings, copied, words, no_training, no_report):
    """Two runs are missing and one of them is held: the other one is done meanwhile, and the held one never is."""
    held, free = (copied / "runs" / name / "rows.parquet" for name in ("full", "exits"))
    theirs = held.read_bytes()
    held.unlink()
    free.unlink()
    found = []
    lock = FileLock(copied / "locks" / "full.lock")
    with lock:
        ours = threading.Thread(target=lambda: found.append(run(make_llama(N_LAYERS), words, copied, settings=settings)))
        ours.start()
        deadline = time.monotonic() + 120
        while not free.exists():
            assert ours.is_alive() and time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.1)
        assert ours.is_alive() and not held.exists()
        held.write_bytes(theirs)
    ours.join(timeout=120)
    assert held.read_bytes() == theirs and scores(found[0].rows) == scores(whole[1])


@pytest.mark.slow
def test_without_a_base_controls_and_pictures(words, tmp_path, no_report):
    """The model is T itself; the smallest study that there is, and inputs that are named twice."""
    model = make_llama(N_LAYERS)
    small = replace(
        SETTINGS, budgets=(0.9,), other_inputs=("fixed",), other_budget=0.9, base_tokens=0, controls=False, map_sequences=0
    )
    rows = run(model, words, tmp_path, settings=small).rows.to_pylist()
    assert {row["controller"] for row in rows} == {"full", "hidden", "fixed"}
    assert {row["weights_hash"] for row in rows} == {weights_hash(model)}
    assert not (tmp_path / "maps").exists() and not (tmp_path / "base").exists()


# What is refused, before anything trains or is written


@pytest.fixture
def refused(words, tmp_path, no_training):
    def go(message, model=None, out=tmp_path / "out", **options):
        with pytest.raises(InputError, match=message) as raised:
            run(model or make_llama(N_LAYERS), words, out, **options)
        assert "\n" not in str(raised.value)

    return go


def test_sequences_are_not_both_learned_from_and_measured(refused, tmp_path):
    task, _ = make_tasks()
    refused("were used to train the gates", training=task)
    renamed = replace(task, examples=tuple(replace(e, id=f"new-{i}", reference="") for i, e in enumerate(task.examples)))
    refused(
        r"^1 of the 4 sequences .* were used to train the gates", training=replace(renamed, examples=renamed.examples[2:3])
    )
    taught = make_llama(N_LAYERS)
    note_training(taught, prompt_hashes(renamed)[2:])
    refused(r"^2 of the 4 sequences .* were used to train the model: take rows", model=taught)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("settings", [replace(SETTINGS, budgets=(0.9, 0.2)), replace(SETTINGS, other_budget=0.2)])
def test_budgets_that_cannot_be_reached(refused, tmp_path, settings):
    refused("0.2 cannot be reached: 4 of 6 layers are controlled", settings=settings)
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_be_routed(refused, tmp_path):
    model = make_llama(N_LAYERS)
    model.config._attn_implementation = "flash_attention_2"
    refused("flash", model=model)
    assert not (tmp_path / "out").exists()


def test_another_studys_folder(refused, settings, copied):
    refused("with another tokens", out=copied, settings=replace(settings, tokens=41))
    refused("with another weights_hash", out=copied, settings=settings, model=make_llama(N_LAYERS, seed=4))


def test_a_folder_with_other_rows(refused, settings, whole):
    refused("holds rows of something else", out=whole[0] / "sweep", settings=settings)


def test_the_lock_of_a_run_is_its_own(tmp_path):
    with work_lock(tmp_path, "a"), work_lock(tmp_path, "b", timeout_sec=0):
        pass


def test_the_identity_of_a_merged_copy_is_t(whole):
    study = json.loads((whole[0] / "study.json").read_text())
    assert study["weights_hash"] == ModelIdentity.of(make_llama(N_LAYERS)).weights_hash and study["model"] == "tiny"
    assert {row["weights_hash"] for row in whole[1].to_pylist()} != {study["weights_hash"]}
