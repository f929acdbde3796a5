"""What a prompt gets does not depend on its neighbours, on the model's mode, or on what is done to the model meanwhile."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import depthdial as dd
from depthdial.errors import InputError
from depthdial.routes import Route
from tests.conftest import WORDS, make_llama, make_tokenizer
from tests.tiny import tiny

LONG = "the cat " * 60 + "sat"  # 121 of 128 tokens
PROMPTS = ["one two three", LONG, "a dog", "the cat " * 50, "it was", LONG + " on the mat and ran", "six"]
DEPTHS = [
    "full",
    "uls:4",
    Route((1, 2, 4), 6),
    (0, 3, 5),
    "rls:3@1",
    dd.Bernoulli((1.0, 0.5, 0.5, 0.5, 0.5, 1.0), seed=4),
    dd.ConfidenceExit("margin", 0.3),
    ["full", "uls:3", "ee:2", "full", (0, 5), "uls:3", 5],
]


def said(answers):
    return [(a.prompt, a.text, a.tokens, a.finish_reason, a.new_tokens, a.layers_run) for a in answers]


@pytest.mark.filterwarnings("ignore::depthdial.errors.RouteWarning")
@pytest.mark.parametrize("depth", DEPTHS, ids=str)
@pytest.mark.parametrize("sampled", [False, True])
def test_alone_is_as_in_a_batch(model, tokenizer, depth, sampled):
    chance = {"do_sample": True, "temperature": 2.0, "seed": 7} if sampled else {}
    options = {"depth": depth, "max_new_tokens": 40, "eos_token_id": [2, 11], "stop_strings": ["six"], **chance}
    by_size = [said(dd.generate(model, tokenizer, PROMPTS, batch_size=n, **options)) for n in (1, 3, 7)]
    assert by_size[0] == by_size[1] == by_size[2]
    if depth == "full" and sampled:
        assert {reason for _, _, _, reason, *_ in by_size[0]} == {"eos", "length", "stop"}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    lengths=st.lists(st.integers(1, 127), min_size=2, max_size=5),
    limit=st.integers(1, 60),
    seed=st.none() | st.integers(0, 9),
)
def test_any_lengths_together_are_as_each_alone(lengths, limit, seed):
    model, tokenizer = make_llama(3), make_tokenizer()
    prompts = [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(n)) for i, n in enumerate(lengths)]
    options = {"depth": "uls:2", "max_new_tokens": limit, "do_sample": seed is not None, "seed": seed}
    together = dd.generate(model, tokenizer, prompts, **options)
    assert all(a.new_tokens <= min(limit, 128 - n) for a, n in zip(together, lengths, strict=True))
    if len(set(prompts)) == len(prompts):
        assert said(together) == said([dd.generate(model, tokenizer, prompt, **options)[0] for prompt in prompts])


def test_each_prompt_has_its_own_room(model, tokenizer):
    short, long = dd.generate(model, tokenizer, ["one two three", LONG], max_new_tokens=40, eos_token_id=None)
    assert (short.new_tokens, long.new_tokens) == (40, 7)
    assert (short.finish_reason, long.finish_reason) == ("length", "length")
    assert [a.new_tokens for a in dd.generate(model, tokenizer, ["a", "a dog"], max_new_tokens=999, eos_token_id=None)] == [
        127,
        126,
    ]


@pytest.mark.parametrize("prompt_depth", ["full", "route"])
def test_a_model_in_training_mode_answers_as_in_eval_mode_and_stays_in_it(tokenizer, prompt_depth):
    model = tiny("gpt2")
    options = {"depth": "ee:4", "prompt_depth": prompt_depth, "max_new_tokens": 12}
    expected = said(dd.generate(model, tokenizer, PROMPTS[::2], **options))
    model.train()
    model.transformer.h[2].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    assert said(dd.generate(model, tokenizer, PROMPTS[::2], **options)) == expected

    def fails(ids, scores):
        assert {name: module.training for name, module in model.named_modules()} == modes  # not for a moment either
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        dd.generate(model, tokenizer, "the cat", logits_processor=[fails])
    assert {name: module.training for name, module in model.named_modules()} == modes


@pytest.mark.slow
def test_a_controllers_untouched_prompts_do_not_switch_the_callers_adapters(model, tokenizer, many, with_lora):
    adapted = with_lora(model)
    controller = dd.SequenceController.fit(
        adapted, tokenizer, task=many, routes=["full", "ee:3"], budget=6, response_tokens=3, n_folds=3
    )
    switches = []

    def look(ids, scores):
        switches.append({m._disable_adapters for m in adapted.modules() if hasattr(m, "_disable_adapters")})
        return scores

    dd.generate(adapted, tokenizer, PROMPTS[:1], depth=controller, max_new_tokens=3, logits_processor=[look])
    assert switches and all(switch == {False} for switch in switches)


def test_stop_strings_end_the_text_with_the_reason_stop(model, tokenizer):
    plain = dd.generate(model, tokenizer, "the cat sat on the mat and ran", max_new_tokens=20, eos_token_id=None)[0]
    words = plain.text.split()
    stop = f"{words[1]} {words[2]}"
    for stops in (stop, [stop, "never"]):
        cut = dd.generate(model, tokenizer, plain.prompt, max_new_tokens=20, eos_token_id=None, stop_strings=stops)[0]
        assert cut.finish_reason == "stop" and cut.text.endswith(stop) and cut.text.count(stop) == 1
        assert cut.tokens == plain.tokens[: len(cut.tokens)]
    pieces: list[str] = []
    dd.generate(model, tokenizer, plain.prompt, eos_token_id=None, stop_strings=stop, on_text=pieces.append)
    assert "".join(pieces) == cut.text
    never = dd.generate(model, tokenizer, plain.prompt, max_new_tokens=20, eos_token_id=None, stop_strings=["zzz"])[0]
    assert (never.tokens, never.finish_reason) == (plain.tokens, "length")


@pytest.mark.parametrize("name", ["TextStreamer", "TextIteratorStreamer"])
def test_transformers_streamers_get_the_text(model, tokenizer, name, capsys):
    import transformers

    streamer = getattr(transformers, name)(tokenizer, skip_prompt=True, skip_special_tokens=True)
    (answer,) = dd.generate(model, tokenizer, "the cat", depth="uls:4", max_new_tokens=6, streamer=streamer)
    text = capsys.readouterr().out.rstrip("\n") if name == "TextStreamer" else "".join(streamer)
    assert text == answer.text != ""
    with pytest.raises(InputError, match="one prompt at a time: leave streamer out"):
        dd.generate(model, tokenizer, PROMPTS, streamer=streamer)
    with pytest.raises(InputError, match="streamer is str, which has no put and end"):
        dd.generate(model, tokenizer, "the cat", streamer="x")


def test_a_bare_model_is_one_sentence(model, tokenizer):
    with pytest.raises(InputError, match="LlamaModel cannot generate, for it has no language-modelling head"):
        dd.generate(model.model, tokenizer, "the cat")


def test_sampled_answers_of_routes_leave_torchs_generator_alone(model, tokenizer):
    state = torch.get_rng_state()
    dd.generate(model, tokenizer, PROMPTS, do_sample=True, seed=1, max_new_tokens=3)
    assert torch.equal(torch.get_rng_state(), state)
