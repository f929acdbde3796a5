"""The options of `dd.generate`: at full depth each gives what transformers gives to each prompt alone, or one sentence."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig, WatermarkingConfig

import depthdial as dd
from depthdial.engine.options import HONOURED, OTHERS
from depthdial.engine.refusals import REFUSED
from depthdial.errors import InputError
from depthdial.hf.cache_name import cache_name

PROMPTS = ["the cat sat on the mat and ran", "a dog", "one two three four five six of in it is was"]
HONOURED_CASES = [
    {},
    {"repetition_penalty": 1.6},
    {"no_repeat_ngram_size": 2},
    {"encoder_repetition_penalty": 1.7},
    {"encoder_no_repeat_ngram_size": 1},
    {"bad_words_ids": [[5], [4, 6]]},
    {"sequence_bias": [[[7], 5.0]]},
    {"suppress_tokens": [4, 5, 6, 23]},
    {"begin_suppress_tokens": [0, 10, 2]},
    {"min_length": 10},
    {"min_new_tokens": 6},
    {"max_length": 14},
    {"forced_bos_token_id": 3},
    {"forced_eos_token_id": 2},
    {"exponential_decay_length_penalty": (1, 4.0)},
    {"watermarking_config": WatermarkingConfig(bias=6.0)},
    {"renormalize_logits": True, "remove_invalid_values": True},
    {"eos_token_id": [2, 28]},
    {"eos_token_id": None},
    {"num_beams": 1, "use_cache": True, "return_dict_in_generate": False, "guidance_scale": 1.0, "temperature": 1.0},
]


def alone(model, tokenizer, prompt, **options):
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    given = {"eos_token_id": 2, "pad_token_id": 0, **({} if "max_length" in options else {"max_new_tokens": 8}), **options}
    out = model.generate(ids, attention_mask=torch.ones_like(ids), **given)
    return out[0, ids.shape[1] :].tolist()


def ours(model, tokenizer, prompts=PROMPTS, **options):
    length = {} if "max_length" in options else {"max_new_tokens": 8}
    return [list(answer.tokens) for answer in dd.generate(model, tokenizer, prompts, **length, **options)]


@pytest.mark.parametrize("options", HONOURED_CASES, ids=lambda o: next(iter(o), "plain"))
def test_an_honoured_option_gives_each_prompt_what_transformers_gives_it(model, tokenizer, options):
    expected = [alone(model, tokenizer, prompt, **options) for prompt in PROMPTS]
    assert ours(model, tokenizer, **options) == expected
    assert ours(model, tokenizer, batch_size=1, **options) == expected


@pytest.mark.parametrize("own", [{"repetition_penalty": 1.6}, {"no_repeat_ngram_size": 2}, {"suppress_tokens": [23, 28]}])
def test_the_models_own_settings_are_honoured(model, tokenizer, own):
    for name, value in own.items():
        setattr(model.generation_config, name, value)
    expected = [alone(model, tokenizer, prompt) for prompt in PROMPTS]
    assert ours(model, tokenizer) == expected
    assert ours(model, tokenizer, **dict.fromkeys(own, None)) != expected


def test_what_only_changes_speed_or_memory_of_the_models_own_settings_is_passed_over(model, tokenizer):
    plain = ours(model, tokenizer)
    own = model.generation_config
    own.cache_implementation, own.use_cache, own.output_scores, own.prompt_lookup_num_tokens = "hybrid", False, True, 2
    assert ours(model, tokenizer) == plain


@pytest.mark.parametrize("own", [{"num_beams": 3}, {"penalty_alpha": 0.6}, {"dola_layers": "low"}, {"max_time": 3.0}])
def test_what_would_change_answers_is_refused_wherever_it_comes_from(model, tokenizer, own):
    ((name, value),) = own.items()
    plain = ours(model, tokenizer)
    with pytest.raises(InputError, match=rf"^The option {name}={value!r} .*: leave {name} out"):
        ours(model, tokenizer, **own)
    for config in (own, GenerationConfig(**own)):
        with pytest.raises(InputError, match=rf"{name}={value!r} of generation_config"):
            ours(model, tokenizer, generation_config=config)
    setattr(model.generation_config, name, value)
    with pytest.raises(InputError, match=rf"of the model's generation_config .*: give {name}=None to do without it"):
        ours(model, tokenizer)
    assert ours(model, tokenizer, **{name: None}) == plain


@pytest.mark.parametrize(
    "options",
    [
        {"prompt_lookup_num_tokens": 2},
        {"assistant_early_exit": 2},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"output_scores": True},
        {"num_beams": True},
        {"length_penalty": 2.0},
        {cache_name(): ()},
        {"assistant_model": "x"},
        {"token_healing": True},
    ],
)
def test_what_cannot_be_asked_for_is_one_sentence(model, tokenizer, options):
    (name,) = options
    with pytest.raises(InputError, match=rf"^The option {name}=.*: leave {name} out, or call generate on .*\.$"):
        ours(model, tokenizer, **options)


def test_every_field_of_transformers_is_honoured_or_refused():
    """A new transformers brings new fields: each needs a decision."""
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")} - {"transformers_version"}
    assert fields <= HONOURED | REFUSED.keys()
    assert not HONOURED & REFUSED.keys() and not OTHERS & fields


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"temprature": 1.0}, "There is no argument 'temprature' .*: did you mean 'temperature'"),
        ({"wholly": 1}, "There is no argument 'wholly'"),
        ({"generation_config": {"wholly": 1}}, "There is no argument 'wholly' that generate knows of generation_config"),
        ({"generation_config": 3}, "generation_config is a GenerationConfig or a dict, not int"),
        ({"generation_config": {3: 3}}, "generation_config has a key 3"),
        ({"temperature": 0.7}, "temperature=0.7 is for sampled answers: give do_sample=True"),
        ({"temperature": 0, "do_sample": True}, "temperature=0 leaves nothing to draw from"),
        ({"do_sample": "yes"}, "do_sample is True or False, not 'yes'"),
        ({"do_sample": True, "top_p": 3.0}, "top_p=3.0 cannot be used"),
        ({"do_sample": True, "min_p": "x"}, "min_p='x' cannot be used"),
        ({"do_sample": True, "seed": 1.5}, "A seed is a whole number, not 1.5"),
        ({"seed": True}, "A seed is a whole number"),
        ({"repetition_penalty": 0}, "repetition_penalty=0 cannot be used"),
        ({"bad_words_ids": [999]}, "cannot be used"),
        ({"sequence_bias": [[[999], 2.0]]}, "sequence_bias=.* cannot be used"),
        ({"eos_token_id": -1}, "eos_token_id takes token ids"),
        ({"eos_token_id": "</s>"}, "eos_token_id takes token ids"),
        ({"stop_strings": [""]}, "A stop string is a text of at least one character"),
        ({"stop_strings": 7}, "stop_strings is a text or a list of texts, not 7"),
        ({"max_length": 2}, "max_length=2 counts them too"),
        ({"watermarking_config": {"greenlist_ratio": 7.0}}, "watermarking_config=.* cannot be used"),
    ],
)
def test_values_that_cannot_be_used(model, tokenizer, options, told):
    with pytest.raises(InputError, match=told) as refused:
        ours(model, tokenizer, **options)
    assert "\n" not in str(refused.value)


def test_keywords_win_over_generation_config_and_that_over_the_models(model, tokenizer):
    model.generation_config.repetition_penalty = 1.2
    config = GenerationConfig(repetition_penalty=1.6, max_new_tokens=3)
    assert [len(a.tokens) for a in dd.generate(model, tokenizer, PROMPTS[0], generation_config=config)] == [3]
    for given in (config, {"repetition_penalty": 1.6}):
        assert ours(model, tokenizer, generation_config=given) == [
            alone(model, tokenizer, prompt, repetition_penalty=1.6) for prompt in PROMPTS
        ]
        assert ours(model, tokenizer, generation_config=given, repetition_penalty=2.5) == [
            alone(model, tokenizer, prompt, repetition_penalty=2.5) for prompt in PROMPTS
        ]
    assert config.repetition_penalty == 1.6 and model.generation_config.max_new_tokens is None


SAMPLED = [
    {"temperature": 1.5},
    {"temperature": 2.0, "top_k": 0},
    {"temperature": 2.0, "top_k": 3},
    {"top_p": 0.5},
    {"min_p": 0.1},
    {"typical_p": 0.5},
    {"epsilon_cutoff": 0.05},
    {"eta_cutoff": 0.05},
    {"top_h": 0.4},
    {"temperature": 2.0, "repetition_penalty": 1.5},
]


@pytest.mark.parametrize("options", SAMPLED, ids=lambda o: "-".join(o))
def test_a_seed_gives_a_prompt_the_same_answer_in_any_batch(model, tokenizer, options):
    def sample(prompts=PROMPTS, **more):
        return ours(model, tokenizer, prompts, do_sample=True, **{"seed": 3, "depth": "uls:4", **options, **more})

    before = torch.get_rng_state()
    answers = sample()
    assert torch.equal(torch.get_rng_state(), before)
    assert answers == sample(batch_size=1) == sample(batch_size=2) == [sample(prompt)[0] for prompt in PROMPTS]
    assert sample(PROMPTS[::-1]) == answers[::-1]


def test_another_seed_or_a_repeated_prompt_is_another_answer(model, tokenizer):
    hot = {"do_sample": True, "temperature": 5.0, "top_k": 0, "eos_token_id": None}
    several = ours(model, tokenizer, PROMPTS[:1] * 4, seed=1, **hot)
    assert len({tuple(one) for one in several}) == 4
    assert several == ours(model, tokenizer, PROMPTS[:1] * 4, seed=1, batch_size=1, **hot)
    assert ours(model, tokenizer, PROMPTS[:1], seed=2, **hot) != several[:1]


def test_tokens_are_drawn_as_often_as_their_probability_says(model, tokenizer):
    n = 400
    firsts = [t[0] for t in ours(model, tokenizer, ["the cat"] * n, do_sample=True, temperature=2.0, top_k=4, seed=0)]
    with torch.no_grad():
        logits = model(**tokenizer("the cat", return_tensors="pt")).logits[0, -1]
    top = logits.topk(4)
    assert set(firsts) <= set(top.indices.tolist())
    for token, p in zip(top.indices.tolist(), (top.values / 2.0).softmax(-1).tolist(), strict=True):
        assert abs(firsts.count(token) / n - p) < 4 * (p * (1 - p) / n) ** 0.5 + 1e-3


def test_a_model_that_samples_by_its_own_settings_samples(model, tokenizer):
    model.generation_config.do_sample, model.generation_config.temperature = True, 3.0
    torch.manual_seed(1)
    first = ours(model, tokenizer)
    torch.manual_seed(1)
    assert ours(model, tokenizer) == first
    assert ours(model, tokenizer) != first
    assert ours(model, tokenizer, do_sample=False) == [alone(model, tokenizer, p, do_sample=False) for p in PROMPTS]


def test_the_callers_processors_and_criteria_see_one_row_without_padding(model, tokenizer):
    seen = []

    def no_repeat(ids, scores):
        seen.append(ids.tolist()[0])
        return scores.index_fill(1, ids[0], -torch.inf)

    def until_ten(ids, scores, **_):
        return torch.tensor([ids.shape[1] >= 10])

    options = {"logits_processor": [no_repeat], "stopping_criteria": [until_ten], "eos_token_id": None}
    answers = dd.generate(model, tokenizer, PROMPTS[:2], max_new_tokens=8, **options)
    starts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS[:2]]
    assert all(any(ids[: len(start)] == start for start in starts) for ids in seen)
    assert [(a.finish_reason, a.new_tokens) for a in answers] == [("stop", 2), ("stop", 8)]
    for start, answer in zip(starts, answers, strict=True):
        ids = torch.tensor([start])
        own = {"max_new_tokens": 8, "logits_processor": [no_repeat], "stopping_criteria": [until_ten]}
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **own)
        assert list(answer.tokens)[: out.shape[1] - len(start)] == out[0, len(start) :].tolist()[: answer.new_tokens]
