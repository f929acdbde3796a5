"""What vLLM answers on a route, beside what the views of this package answer: token by token, greedily, in fp32."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import depthdial as dd
from depthdial.routes.route_file import RouteFile
from tests.tiny import tiny

PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20], [40]]
N_TOKENS = 12
# Layers of a pair of states and of one; lists called `layers` and `h`; two kinds of attention. Kinds of which vLLM's own
# tokens on a CPU are not transformers' (Mixtral, Cohere 2) say nothing of routes.
KINDS = {
    "llama": {"head_dim": 32},
    "gemma3_text": {"head_dim": 32},
    "gpt2": {"num_attention_heads": 1, "num_key_value_heads": 1},
}
ROUTES = ["0,2-3,5", "1,3-5"]
REFUSED = {
    "a layer that is not there": ({"depthdial_route": "0,9"}, {}, "Layer 9 does not exist: this model has layers 0 to 5."),
    "a rule": (
        {"depthdial_route": "rls:3@0"},
        {},
        "'rls:3@0' is a rule, not one route: draw one with .for_sequence(id) first.",
    ),
    "prefixes": (
        {"depthdial_route": "ee:3"},
        {"enable_prefix_caching": True},
        "Prompts at full depth do not go with --enable-prefix-caching: leave it out, or set depthdial_prompt_depth to "
        "'route'.",
    ),
    "a loader without layers": (
        {"depthdial_route": "ee:3", "depthdial_prompt_depth": "route"},
        {"load_format": "dummy"},
        "The load format dummy cannot leave out layers: use --load-format auto, or set the prompt depth to 'full'.",
    ),
}


def answers_of(jobs, folder) -> dict:
    """What vLLM makes of jobs (`answers.py`), by name."""
    source, target, log = folder / "jobs.json", folder / "answers.json", folder / "log.txt"
    source.write_text(json.dumps(jobs), encoding="utf-8")
    command = [sys.executable, str(Path(__file__).with_name("answers.py")), str(source), str(target)]
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    assert done.returncode == 0, log.read_text(encoding="utf-8")[-4000:]
    return json.loads(target.read_text(encoding="utf-8"))


def greedy(model, prompts=PROMPTS, n_tokens: int = N_TOKENS):
    # An end that is no token: vLLM is asked to go on behind the end of an answer too, which may be the likeliest again.
    options = {"max_new_tokens": n_tokens, "do_sample": False, "pad_token_id": 0, "eos_token_id": model.config.vocab_size}
    with torch.inference_mode():
        return [model.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist() for ids in prompts]


def job(folder, overrides=None, *, prompts=PROMPTS, n_tokens: int = N_TOKENS, variables=None, **options):
    options = {"model": str(folder), "dtype": "float32", "hf_overrides": overrides or {}, **options}
    return {"options": options, "prompts": prompts, "n_tokens": n_tokens, "variables": variables or {}}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of whole models, by kind; `file`: Llama with a route file beside it; `draft`: a route of Llama."""
    top, made = tmp_path_factory.mktemp("models"), {}
    for kind, fields in KINDS.items():
        made[kind] = tiny(kind, **fields)
        made[kind].save_pretrained(top / kind)
    made["llama"].save_pretrained(top / "file")
    RouteFile(dd.Route.parse(ROUTES[0], 6), "tiny", ".", "0" * 64, "float32").save(top / "file")
    dd.view(made["llama"], ROUTES[0]).save_pretrained(top / "draft")
    return top, made


@pytest.fixture(scope="module")
def answers(models, tmp_path_factory):
    top, _ = models
    jobs = {}
    for kind in KINDS:
        jobs[f"{kind} plain"] = job(top / kind)
        for route in ROUTES[: 2 if kind == "llama" else 1]:
            asked = {"depthdial_route": route}
            jobs[f"{kind} {route} route"] = job(top / kind, {**asked, "depthdial_prompt_depth": "route"})
            # eight tokens a step: prompts come in parts, beside answers that have begun
            jobs[f"{kind} {route} full"] = job(top / kind, asked, max_num_batched_tokens=8)
    llama = top / "llama"
    jobs["all layers"] = job(llama, {"depthdial_route": "full"})
    # three answers of 40 tokens need six blocks of 32 tokens, and there are three
    jobs["preempted"] = job(
        llama,
        {"depthdial_route": ROUTES[0]},
        **{"num_gpu_blocks_override": 4, "block_size": 32, "n_tokens": 40, "disable_log_stats": False},
    )
    jobs["file"] = job(top / "file")
    jobs["variable"] = job(llama, variables={"DEPTHDIAL_ROUTE": str(top / "file"), "DEPTHDIAL_PROMPT_DEPTH": "route"})
    draft = {"method": "draft_model", "num_speculative_tokens": 3}
    jobs["draft"] = job(llama, speculative_config={**draft, "model": str(top / "draft")})
    jobs["draft by file"] = job(llama, speculative_config={**draft, "model": str(top / "file")})
    for name, (overrides, options, _) in REFUSED.items():
        jobs[name] = job(llama, overrides, **options)
    return answers_of(jobs, tmp_path_factory.mktemp("answers"))


@pytest.mark.parametrize("kind", KINDS)
def test_vllm_itself_answers_as_transformers_does(kind, models, answers) -> None:
    assert answers[f"{kind} plain"] == {"tokens": greedy(models[1][kind])}


@pytest.mark.parametrize(
    ("kind", "route"), [(kind, route) for kind in KINDS for route in ROUTES[: 2 if kind == "llama" else 1]]
)
def test_a_route_is_answered_as_by_its_views(kind, route, models, answers) -> None:
    model = models[1][kind]
    shallow, prompted = greedy(dd.view(model, route)), greedy(dd.prompted_view(model, route))
    assert shallow != prompted
    assert answers[f"{kind} {route} route"] == {"tokens": shallow}
    assert answers[f"{kind} {route} full"] == {"tokens": prompted}


def test_all_layers_are_vllm_s_own_model(answers) -> None:
    assert answers["all layers"] == answers["llama plain"]


def test_requests_that_are_computed_again_get_the_same_tokens(models, answers) -> None:
    assert answers["preempted"]["tokens"] == greedy(dd.prompted_view(models[1]["llama"], ROUTES[0]), n_tokens=40)
    assert answers["preempted"]["preemptions"] >= 1


def test_a_route_file_is_found_beside_the_weights_and_in_the_environment(answers) -> None:
    assert answers["file"] == answers[f"llama {ROUTES[0]} full"]
    assert answers["variable"] == answers[f"llama {ROUTES[0]} route"]


def test_a_route_drafts_for_the_whole_model(answers) -> None:
    assert answers["draft"] == answers["draft by file"] == answers["llama plain"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_refused_in_one_sentence(name, answers) -> None:
    assert answers[name] == {"error": REFUSED[name][2]}


@pytest.fixture(scope="module")
def smollm2():
    from depthdial.hf.load import checkpoint_of

    model, tokenizer = dd.load("smollm2-135m")
    return checkpoint_of("smollm2-135m"), model, tokenizer


def test_the_built_in_model(smollm2, tmp_path) -> None:
    folder, model, tokenizer = smollm2
    route, options = "0-9,11-17,19-29", {"kv_cache_memory_bytes": 256 << 20, "max_model_len": 512}
    dd.view(model, route).save_pretrained(tmp_path / "draft")
    texts = ["Name three fruits.", "Write one sentence about the sea.", "What is the capital of France?"]
    prompts = [
        list(tokenizer.apply_chat_template([{"role": "user", "content": t}], add_generation_prompt=True, return_dict=False))
        for t in texts
    ]
    draft = {"method": "draft_model", "model": str(tmp_path / "draft"), "num_speculative_tokens": 3}
    asked = {"depthdial_route": route}
    common = {"prompts": prompts, "n_tokens": 16, **options}
    jobs = {
        "plain": job(folder, **common),
        "route": job(folder, {**asked, "depthdial_prompt_depth": "route"}, **common),
        "full": job(folder, asked, **common),
        "draft": job(folder, speculative_config=draft, **common),
    }
    answers = answers_of(jobs, tmp_path)
    models = {"plain": model, "route": dd.view(model, route), "full": dd.prompted_view(model, route), "draft": model}
    assert answers == {name: {"tokens": greedy(one, prompts, 16)} for name, one in models.items()}
