from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaModel

import depthdial as dd
from depthdial.engine.batch import RowBatch
from depthdial.errors import InputError
from depthdial.hf.adapter import AdapterCard, attach_card
from depthdial.routes import Route

PROMPTS = ["the cat", "a dog sat on the mat", "one two three", "it was", "the dog ran to the cat and sat"]


def texts(model, tokenizer, **options):
    return [g.text for g in dd.generate(model, tokenizer, PROMPTS, **{"max_new_tokens": 6, **options})]


def test_full_depth_is_the_untouched_models_generation(model, tokenizer):
    answers = dd.generate(model, tokenizer, PROMPTS, max_new_tokens=6, batch_size=2)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        assert answer.tokens == tuple(out[0, ids.shape[1] :].tolist())
        assert answer.prompt == prompt and answer.route.is_full
        assert answer.new_tokens == len(answer.tokens)


def test_batches_do_not_change_answers(model, tokenizer):
    for depth in ("uls:3", Route((1, 2, 4), 6), "rls:3@1"):
        assert texts(model, tokenizer, depth=depth, batch_size=1) == texts(model, tokenizer, depth=depth, batch_size=5)


def test_a_random_rule_draws_one_route_for_each_prompt(model, tokenizer):
    rule = Route.parse("rls:3@1", 6)
    answers = dd.generate(model, tokenizer, PROMPTS, depth=rule, max_new_tokens=4)
    assert [a.route for a in answers] == [rule.for_sequence(i) for i in range(len(PROMPTS))]
    for i, answer in enumerate(answers):
        alone = dd.generate(model, tokenizer, PROMPTS[i], depth=answer.route, max_new_tokens=4)[0]
        assert alone.tokens == answer.tokens


def test_the_prompt_on_the_route_is_the_view(model, tokenizer):
    answer = dd.generate(model, tokenizer, PROMPTS[1], depth="ee:3", prompt_depth="route", max_new_tokens=5)[0]
    ids = torch.tensor([tokenizer(PROMPTS[1])["input_ids"]])
    out = dd.view(model, "ee:3").generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
    assert answer.tokens == tuple(out[0, ids.shape[1] :].tolist())


def test_streamed_pieces_make_up_the_text(model, tokenizer):
    lengths = []
    for prompt in PROMPTS:
        pieces: list[str] = []
        answer = dd.generate(model, tokenizer, prompt, depth="uls:4", max_new_tokens=6, on_text=pieces.append)[0]
        assert "".join(pieces) == answer.text
        lengths.append(len(pieces))
    assert max(lengths) > 1


def test_sampling_is_seeded_by_torch(model, tokenizer):
    def sample(seed):
        torch.manual_seed(seed)
        return texts(model, tokenizer, depth="uls:4", do_sample=True, temperature=2.0)

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_the_base_is_bit_identical_afterwards(model, tokenizer, weights_of, assert_same):
    before = weights_of(model)
    texts(model, tokenizer, depth="drop:0,3")
    assert_same(before, weights_of(model))


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "at least one"),
        ([7], {}, "at least one"),
        ("", {}, "A prompt is empty"),
        ("the " * 200, {}, "128"),
        ("the cat", {"depth": "uls:9"}, "asks for 9 of 6 layers"),
        ("the cat", {"depth": Route((0,), 3)}, "for a model of 3 layers"),
        ("the cat", {"depth": 7.5}, "depth is a route, or a share of the layers"),
        ("the cat", {"prompt_depth": "none"}, "Unknown prompt depth"),
        ("the cat", {"max_new_tokens": 0}, "max_new_tokens"),
        ("the cat", {"template": "chat"}, "no chat template"),
        ("the cat", {"temprature": 1.0}, "no argument 'temprature'"),
        (["a", "b"], {"on_text": print}, "one prompt at a time"),
        ("a", {"on_text": 3}, "on_text is a function that takes a text, not int"),
        ("a", {"stop_strings": [None]}, "at least one character, not None"),
        ("a", {"do_sample": True, "top_p": float("nan")}, "Invalid top_p nan"),
        ("a", {"do_sample": True, "temperature": "0.7"}, "Invalid temperature .0.7."),
    ],
)
def test_bad_arguments(model, tokenizer, prompts, options, message):
    with pytest.raises(InputError, match=message):
        dd.generate(model, tokenizer, prompts, **options)


@pytest.mark.parametrize("depth", ["full", "uls:2"])
def test_answers_end_where_the_context_does(tokenizer, depth):
    """Learned positions have no room beyond it; a crash there would lose a batch."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=3, n_head=2, n_positions=12, eos_token_id=None)
    model = GPT2LMHeadModel(config).eval()
    tokenizer.eos_token = None
    answers = dd.generate(model, tokenizer, ["the cat sat on", "a dog"], depth=depth, max_new_tokens=50)
    assert [a.new_tokens for a in answers] == [8, 10]
    assert {a.finish_reason for a in answers} == {"length"}


def test_an_adapted_model_answers_with_its_adapter_and_untouched_without(model, tokenizer, with_lora):
    bare = copy.deepcopy(model).requires_grad_(False)
    adapted = with_lora(model)
    on = {depth: texts(adapted, tokenizer, depth=depth) for depth in ("full", "uls:4")}
    with dd.untouched(adapted):
        for depth in on:
            assert texts(adapted, tokenizer, depth=depth) == texts(bare, tokenizer, depth=depth) != on[depth]
    assert {depth: texts(adapted, tokenizer, depth=depth) for depth in on} == on


def test_a_depth_outside_the_adapters_family_is_warned_of_once(model, tokenizer, with_lora):
    adapted = with_lora(model)
    routes = (Route((0, 5), 6, "own:2"), Route((0, 1, 2, 3, 4, 5), 6, "full"))
    attach_card(adapted, AdapterCard("elastic", "base", "0" * 64, "float32", 6, "full", routes))
    texts(adapted, tokenizer, depth="0,5")
    for depth, nearest in (("uls:2", "own:2"), ("rls:3@0", "own:2")):
        with pytest.warns(dd.RouteWarning, match=rf"for route '{depth}': the nearest is '{nearest}'") as caught:
            texts(adapted, tokenizer, depth=depth)
        assert [w.filename for w in caught] == [__file__]
        texts(adapted, tokenizer, depth=depth)


def test_the_usual_arguments_of_transformers_are_taken(model, tokenizer):
    plain = dd.generate(model, tokenizer, "the cat", max_new_tokens=6)[0]
    end = plain.tokens[2]
    cut = dd.generate(model, tokenizer, "the cat", max_new_tokens=6, pad_token_id=0, eos_token_id=end)[0]
    assert cut.tokens == plain.tokens[: plain.tokens.index(end) + 1] and cut.finish_reason == "eos"


@pytest.mark.parametrize(
    ("option", "why"),
    [({"num_beams": 2}, "each answer token by token"), ({"return_dict_in_generate": True}, "one Generation")],
)
def test_beams_and_other_outputs_are_refused(model, tokenizer, option, why):
    with pytest.raises(InputError, match=f"{why}.*: leave {next(iter(option))} out"):
        dd.generate(model, tokenizer, "the cat", **option)


def test_the_example_of_the_docstring_runs(model, tokenizer):
    lines = (dd.generate.__doc__ or "").split("Args:")[0].splitlines()
    example = [line.strip() for line in lines if line.startswith(" " * 8)]
    assert len(example) == 3
    names = {"dd": dd, "model": model, "tokenizer": tokenizer}
    exec("\n".join(example), names)
    assert [len(answer.route) for answer in names["answers"]] == [3, 6]


@pytest.mark.parametrize("options", [{"prefill_chunk_size": 1}, {"prefill_chunk_size": 3}, {"guidance_scale": 2.5}], ids=str)
def test_chunks_and_guidance_are_those_of_transformers_for_each_row(model, tokenizer, options):
    for depth in ("full", "1-4"):
        answers = dd.generate(model, tokenizer, PROMPTS, depth=depth, max_new_tokens=6, **options)
        plain = dd.generate(model, tokenizer, PROMPTS, depth=depth, max_new_tokens=6)
        for prompt, answer in zip(PROMPTS, answers, strict=True):
            ids = torch.tensor([tokenizer(prompt)["input_ids"]])
            out = dd.prompted_view(model, depth).generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, **options
            )
            assert answer.tokens == tuple(out[0, ids.shape[1] :].tolist())
        assert ([a.tokens for a in answers] == [a.tokens for a in plain]) == ("prefill_chunk_size" in options)


@pytest.mark.parametrize(
    "options", [{"prefill_chunk_size": 0}, {"guidance_scale": "much"}, {"guidance_scale": True}], ids=str
)
def test_chunks_and_guidance_of_nonsense_are_refused(model, tokenizer, options):
    with pytest.raises(InputError, match=next(iter(options))):
        dd.generate(model, tokenizer, PROMPTS, max_new_tokens=2, **options)


@pytest.mark.parametrize("where", ["prompt", "step"])
@pytest.mark.parametrize("chance", [{}, {"do_sample": True, "seed": 3, "n": 2}])
def test_out_of_memory_means_fewer_rows_and_then_one_sentence(model, tokenizer, monkeypatch, where, chance):
    prompts = ["the cat", "a dog sat on the mat", "it was", "by two", "six"]
    options = {"depth": ["uls:3", "full", "ee:2", "rls:3@1", "full"], "max_new_tokens": 6, **chance}
    expected = [answer.tokens for answer in dd.generate(model, tokenizer, prompts, **options)]
    most, owner, name = [2], *{"prompt": (LlamaModel, "forward"), "step": (RowBatch, "step")}[where]
    original = getattr(owner, name)

    def limited(self, tokens=None, **given):
        rows = given["input_ids"] if tokens is None else tokens
        if len(rows) > most[0]:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(self, tokens, **given) if tokens is not None else original(self, **given)

    monkeypatch.setattr(owner, name, limited)
    assert [answer.tokens for answer in dd.generate(model, tokenizer, prompts, **options)] == expected
    most[0] = 0
    with pytest.raises(InputError, match="does not hold a prompt of 2 tokens and an answer of up to 6 even alone"):
        dd.generate(model, tokenizer, prompts, **options)
