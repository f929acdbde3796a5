"""The benchmark of peers on a tiny random model: each runs or says why not, samples survive a stop, layers are counted."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import depthdial as dd
from benchmarks.peers.__main__ import main, read_arguments, run
from benchmarks.peers.gguf_files import as_float
from benchmarks.peers.kinds.hf import Eager
from benchmarks.peers.layer_calls import counting, layers_per_token
from benchmarks.peers.merging import check_fits, with_scores
from benchmarks.peers.peer import REFERENCE, Answers, Peer, Prompt, Subject
from benchmarks.peers.remote import PeerError, Remote
from benchmarks.peers.results import speed_rows
from benchmarks.peers.roster import CUT, chosen, roster
from benchmarks.peers.rounds import Cells, Sample, measure
from benchmarks.peers.run import Settings
from benchmarks.peers.workload import Workload
from depthdial.engine.requests import read_requests
from depthdial.errors import InputError
from depthdial.views.signature import signature

DEPTHS = ("0,2,5", "0,1,2,5")
NEW_TOKENS = 6
TEXTS = ["the cat", "a dog sat on the mat", "one two three", "it was"]
# Processes and compilers of their own: see `test_a_peer_in_a_process_of_its_own`.
SLOW = ("hf-compiled",)


@pytest.fixture
def subject(model, tokenizer, tmp_path):
    return Subject("tiny", DEPTHS[0], tmp_path / "work", 1, (model, tokenizer))


@pytest.fixture
def prompts(tokenizer):
    requests = read_requests(TEXTS, None, "auto", tokenizer)
    return [Prompt(text, request.ids, "the cat sat") for text, request in zip(TEXTS, requests, strict=True)]


@pytest.fixture
def settings(model, tokenizer, tmp_path):
    """Of a run that takes seconds: a saved model, four prompts, three peers."""
    base = tmp_path / "base"
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    lines = [json.dumps({"prompt": text, "reference": "the cat sat on"}) for text in TEXTS]
    (base / "rows.jsonl").write_text("\n".join(lines) + "\n")
    sizes = {"prompts": 4, "scored_prompts": 2, "new_tokens": NEW_TOKENS, "rows": (1, 2), "rounds": 2, "threads": 1}
    which = {"depth": DEPTHS[0], "depths": DEPTHS[1:], "peers": (CUT, "dial*")}
    return Settings(tmp_path / "out", str(base), str(base / "rows.jsonl"), **sizes, **which)


@pytest.mark.parametrize("name", [name for name in roster(DEPTHS) if name not in SLOW])
def test_a_peer_answers_or_says_why_it_is_absent(name, subject, prompts):
    peer = roster(DEPTHS)[name]
    why = peer.why_absent(subject)
    if why is not None:
        assert why[0].isupper() and (why.endswith((".", ".)")) and len(why) > 20)
        return
    before = signature(subject.model)
    peer.prepare(subject)
    rows = min(len(prompts), peer.most_rows or len(prompts))
    found = peer.generate(prompts[:rows], NEW_TOKENS)
    peer.close()
    assert signature(subject.model) == before  # a hook that stays would slow all others
    assert len(found.tokens) == rows and found.seconds > 0
    assert all(len(tokens) <= NEW_TOKENS for tokens in found.tokens) and found.n_tokens > 0
    if peer.like is not None:
        model = roster(DEPTHS)[peer.like]
        model.prepare(subject)
        assert found.tokens == model.generate(prompts[:rows], NEW_TOKENS).tokens


@pytest.mark.parametrize("name", [name for name, peer in roster(DEPTHS).items() if peer.scored_as == name])
def test_a_scored_peer_predicts_what_it_generates(name, subject, prompts, model):
    peer = roster(DEPTHS)[name]
    if peer.why_absent(subject) is not None:
        pytest.skip("absent")
    peer.prepare(subject)
    (tokens,) = peer.generate(prompts[:1], NEW_TOKENS).tokens
    logits = peer.logits(prompts[0], tokens)
    if logits is not None:
        same = [a == b for a, b in zip(logits.argmax(-1).tolist(), tokens, strict=True)]
        # Inputs in 8 bits are rounded by the largest of a pass, which is another where all tokens are in one.
        assert sum(same) >= NEW_TOKENS - 2 if name == "int8-dynamic" else all(same)
    predicted, told = peer.text_logits("the", " cat sat on the mat")
    assert predicted.shape[0] == len(told) and torch.isfinite(predicted).all()


def test_layers_a_token_are_those_that_ran(subject, prompts):
    """6 layers: a route of 3 runs 3; a draft of a view or of first layers, and its verification, run more than all."""
    found = {}
    for name in (REFERENCE, CUT, "dial-full", "dial-route", "dial@0,1,2,5", "hf-assisted-view", "hf-early-exit"):
        with counting(subject.model) as seen:
            peer = roster(DEPTHS)[name]
            peer.prepare(subject)
            found[name] = layers_per_token(seen, lambda n, p=peer: p.generate(prompts[:1], n), NEW_TOKENS, 1)
    assert found[REFERENCE] == found["dial-full"] == 6
    assert found[CUT] == found["dial-route"] == 3 and found["dial@0,1,2,5"] == 4
    assert min(found["hf-assisted-view"], found["hf-early-exit"]) > 6
    with counting(subject.model) as seen:
        pass
    subject.model(torch.tensor([[4, 5]]))
    assert seen.calls == 0  # the hooks are gone


class RunsAllAndMasks(Eager):
    """What early-exit libraries do: every layer runs, and the output is taken from an earlier one."""

    name = "masks"

    def generate(self, prompts, new_tokens):
        ids = torch.tensor([prompts[0].ids])
        for _ in range(new_tokens):
            with torch.no_grad():
                states = self.model(ids, output_hidden_states=True).hidden_states[3]
            logits = self.model.lm_head(self.model.model.norm(states))
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        return Answers((tuple(ids[0, len(prompts[0].ids) :].tolist()),), 1.0)


def test_layers_that_run_and_are_thrown_away_are_counted(subject, prompts):
    peer = RunsAllAndMasks()
    peer.prepare(subject)
    (exited,) = peer.generate(prompts[:1], 1).tokens
    early = dd.view(subject.model, "ee:3")
    assert exited == (int(early(torch.tensor([prompts[0].ids])).logits[0, -1].argmax()),)
    with counting(subject.model) as seen:
        peer.generate(prompts[:1], 1)
    assert seen.calls == 6


class Counts(Peer):
    """Answers the same every time, and can be told to fail."""

    def __init__(self, name, like=None, fails_at=None):
        self.name, self.what, self.like, self.fails_at, self.calls = name, name, like, fails_at, []

    def prepare(self, subject):
        pass

    def generate(self, prompts, new_tokens):
        self.calls.append((len(prompts), new_tokens))
        if self.fails_at == len(self.calls):
            raise RuntimeError("out of\nmemory")
        return Answers(tuple((1,) * new_tokens for _ in prompts), 0.5)


def rounds_of(peers, cells, session, n_rounds=3, rows=2):
    work = Workload(tuple(Prompt(str(i), (i,)) for i in range(5)), 5, ())
    steps = []
    why = measure({peer.name: peer for peer in peers}, work, rows, 8, n_rounds, cells, session, steps.append)
    return why, sum(steps)


def test_rounds_go_on_where_they_stopped_and_a_newcomer_is_timed_beside_the_reference(tmp_path):
    cells = Cells(tmp_path)
    first, second = Counts(REFERENCE), Counts("other", fails_at=3)  # its warm-up, a round, and no more
    why, _ = rounds_of([first, second], cells, cells.next_session())
    assert why == {"other": "RuntimeError: out of memory"}
    assert cells.finished(REFERENCE, 2) == {0, 1, 2} and cells.finished("other", 2) == {0}
    again, newcomer = Counts(REFERENCE), Counts("other")
    assert cells.next_session() == 1
    assert rounds_of([again, newcomer], cells, 1) == ({}, 6)
    # A short warm-up, then the two rounds that were missing; the reference as often, to be compared with.
    assert newcomer.calls == again.calls == [(2, 4), (2, 8), (2, 8)]
    rows = {row["peer"]: row for row in speed_rows(cells.samples(), {"other": newcomer, REFERENCE: again})}
    assert rows["other"]["n_rounds"] == 3 and rows[REFERENCE]["n_rounds"] == 5
    assert rows["other"]["over_reference"] == {"p20": 1.0, "p50": 1.0, "p80": 1.0}
    idle = Counts(REFERENCE)
    assert rounds_of([idle, newcomer], cells, 2) == ({}, 6) and idle.calls == []


def test_ratios_are_taken_within_a_round_and_spread_over_them():
    seconds = {REFERENCE: (1.0, 2.0, 4.0), "fast": (0.5, 1.0, 1.0)}  # the machine slows down
    tokens = ((1, 2, 3, 4), (5, 6, 7, 8))
    samples = [Sample(n, 2, 0, i, Answers(tokens, sec)) for n, secs in seconds.items() for i, sec in enumerate(secs)]
    other = Sample("differs", 2, 0, 0, Answers(((1, 2, 3, 4), (5, 6, 7, 9)), 1.0))
    peers = {REFERENCE: Counts(REFERENCE), "fast": Counts("fast", like=REFERENCE), "differs": Counts("differs")}
    rows = {row["peer"]: row for row in speed_rows([*samples, other], peers)}
    assert rows["fast"]["over_reference"]["p50"] == 2.0
    speeds = rows["fast"]["tokens_per_sec"]
    assert [speeds["p20"], speeds["p50"], speeds["p80"]] == pytest.approx(np.percentile([16, 8, 8], (20, 50, 80)).tolist())
    assert rows["fast"]["equal_answers"] == 1.0
    assert rows["differs"]["equal_answers"] is None and rows["differs"]["equal_to_full"] == 0.5
    assert rows["fast"]["ms_per_token"]["p50"] == pytest.approx(125)
    assert rows["fast"]["ms_in_turns"] == pytest.approx(125) and rows[REFERENCE]["ms_in_turns"] == pytest.approx(250)


@pytest.mark.slow
def test_a_run_writes_tables_figures_and_provenance_and_repeats_nothing(settings, monkeypatch, capsys):
    document = run(settings)
    names = {row["peer"] for row in document["rows"]}
    assert {REFERENCE, CUT, "dial-full", "dial-route", "dial@0,2,5", "dial@0,1,2,5"} <= names
    by_cell = {(row["peer"], row["rows"]): row for row in document["rows"]}
    assert by_cell["dial-full", 2]["equal_answers"] == by_cell["dial-route", 1]["equal_answers"] == 1
    assert document["layers_per_token"]["dial@0,1,2,5"] == 4
    assert document["quality"][REFERENCE]["kl"]["mean"] < 1e-6
    assert document["quality"][REFERENCE]["agreement"]["mean"] == 1
    assert document["quality"]["dial@0,2,5"]["kl"]["low"] > 1e-3
    assert document["versions"] and document["commit"] and document["hardware"]
    files = {path.name for path in settings.out.iterdir()}
    assert {"peers.json", "peers.md", "throughput.png", "time-quality.png", "run.json"} <= files
    page = (settings.out / "peers.md").read_text()
    assert "| dial-full | 2 |" in page and "dial-lossless" in page
    assert "tokens/s" in capsys.readouterr().out
    monkeypatch.setattr(Eager, "generate", lambda *_: pytest.fail("a finished round ran again"))
    again = run(settings)
    assert again["rows"] == document["rows"] and again["quality"] == document["quality"]
    with pytest.raises(InputError, match="another new_tokens"):
        run(replace(settings, new_tokens=5))


def document_of(names, commit, **settings):
    same = ("model", "task", "depth", "depths", "prompts", "scored_prompts", "new_tokens", "with_quality")
    about = {"when": "now", "versions": "v", "hardware": "h", "commit": commit}
    quality = {name: {"kl": commit} for name in (REFERENCE, *names)}
    return {
        **about,
        "quality": quality,
        "settings": {**dict.fromkeys(same, 1), "depths": ["60%"], **settings},
        "rows": [commit],
    }


def test_scores_of_a_later_run_take_their_place_and_times_stay():
    before = document_of(["one", "two"], "old")
    after = with_scores(before, document_of(["one", "two"], "new"), [REFERENCE, "two"])
    assert after["quality"] == {REFERENCE: {"kl": "old"}, "one": {"kl": "old"}, "two": {"kl": "new"}}
    assert after["rows"] == ["old"] and after["commit"] == "old"
    assert after["later"] == {"two": {"when": "now", "versions": "v", "hardware": "h", "commit": "new"}}


def test_scores_that_cannot_stand_beside_others_are_refused_before_a_run(tmp_path, capsys):
    before = document_of(["one"], "old")
    settings = {**before["settings"], "depths": ("60%",)}
    check_fits(before, settings, ["one", REFERENCE])
    for document, given, names, told in (
        (before, {**settings, "new_tokens": 2}, ["one"], "has new_tokens 1 and this one 2: give the same"),
        (before, {**settings, "with_quality": False}, ["one"], "has with_quality 1"),
        (before, settings, ["three"], "has no scores of three"),
        ([], settings, ["one"], "no peers.json"),
    ):
        with pytest.raises(InputError, match=told):
            check_fits(document, given, names)
    (tmp_path / "peers.json").write_text(json.dumps(before))
    for into, told in ((tmp_path / "peers.json", "has model 1 and this one smollm2-135m"), (tmp_path / "none", "none")):
        assert main(["--out", str(tmp_path / "out"), "--peers", CUT, "--scores-into", str(into)]) == 2
        assert told in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_command_line(tmp_path, capsys):
    given, into = read_arguments(
        ["--out", str(tmp_path), "--peers", "hf*, pruned", "--rows", "1,4", "--python", "tide=/opt/python"]
    )
    assert into is None
    assert given.peers == ("hf*", "pruned") and given.rows == (1, 4) and given.python == (("tide", "/opt/python"),)
    assert chosen(("pruned",), list(roster())) == [REFERENCE, CUT]
    assert main(["--out", str(tmp_path), "--peers", "vllm"]) == 2
    assert "There is no peer 'vllm': give some of hf-eager, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--rows", "1,x"), "'x' is not a whole number of at least 1"),
        (("--rows", ","), "no number is given"),
        (("--rounds", "0"), "'0' is not a whole number of at least 1"),
        (("--python", "tide"), "'tide' is not a peer and its Python"),
    ],
)
def test_numbers_and_interpreters_that_are_none(tmp_path, capsys, given, told):
    with pytest.raises(SystemExit) as left:
        read_arguments(["--out", str(tmp_path), *given])
    assert left.value.code == 2 and told in capsys.readouterr().err


@pytest.mark.slow
def test_a_peer_in_a_process_of_its_own(settings, tmp_path):
    subject = Subject(settings.model, DEPTHS[0], tmp_path / "work", 1)
    requests = read_requests(TEXTS, None, "auto", subject.tokenizer)
    prompts = [Prompt(text, request.ids) for text, request in zip(TEXTS, requests, strict=True)]
    here, there = roster(DEPTHS)["dial-route"], Remote(roster(DEPTHS)["dial-route"], DEPTHS)
    try:
        assert there.why_absent(subject) is None
        there.prepare(subject)
        here.prepare(subject)
        assert there.generate(prompts, NEW_TOKENS).tokens == here.generate(prompts, NEW_TOKENS).tokens
        with pytest.raises(PeerError, match="InputError: "):
            there.generate([Prompt("the " * 200, ())], NEW_TOKENS)
        there.time_limit_sec = 1e-3  # of a shape that is new
        with pytest.raises(PeerError, match="It took more than 0 s and was stopped"):
            there.generate(prompts[:2], NEW_TOKENS)
    finally:
        there.close()


def test_a_python_that_is_not_there(subject, tmp_path):
    with pytest.raises(PeerError, match="does not start"):
        Remote(roster(DEPTHS)["dial-route"], DEPTHS, str(tmp_path / "python")).why_absent(subject)


def test_a_gguf_file_is_written_with_the_numbers_of_its_blocks(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_block_count(2)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    numbers = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    blocks = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.ffn_up.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    name = str(tmp_path / "a.gguf")
    assert as_float(name, tmp_path / "work", "native") == tmp_path / "a.gguf"
    for kind, dtype in (("F32", np.float32), ("F16", np.float16)):
        found = gguf.GGUFReader(as_float(name, tmp_path / "work", kind))
        assert found.fields["llama.block_count"].contents() == 2
        assert found.fields["tokenizer.ggml.tokens"].contents() == ["a", "b"]
        wide, norm = found.tensors
        known = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0)
        assert wide.data.dtype == dtype and np.array_equal(wide.data, known.astype(dtype))
        assert norm.data.dtype == np.float32
