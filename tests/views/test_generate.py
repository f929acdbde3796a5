"""Whatever `generate` is asked of a prompted or a token view, it writes what the dense reference writes, or refuses."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel, StaticCache

from depthdial.engine.prefill import prefill
from depthdial.errors import InputError
from depthdial.hf.cache_name import cache_name, cache_of
from depthdial.routes import Route
from depthdial.views.prompted import prompted_view
from depthdial.views.tokens.policy import Bernoulli
from depthdial.views.tokens.view import TokenTrace, token_view
from depthdial.views.view import view
from tests.tiny import tiny
from tests.views.test_view_shares import checkpoint_gradients
from tests.views.tokens.dense import N_LAYERS, Batch, Dense, Table, batch, drawn

NAMES = ("llama", "gpt2", "gemma3_text", "mpt")
ROUTE = (1, 2, 4)  # without layer 0, where lengths are read
PROMPTS = batch((9, 6, 7), seed=5)  # padded on the left, and longer than the windows of `tiny`
RAN = drawn(3, 24)
N_NEW = 6
GREEDY: dict[str, Any] = {"max_new_tokens": N_NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
KINDS = ("prompted", "tokens")


@functools.cache
def _base(name: str) -> PreTrainedModel:
    return tiny(name)


def base(name: str = "llama") -> PreTrainedModel:
    return _base(name)


def made(kind: str, name: str = "llama", **options: Any) -> Any:
    return (
        prompted_view(base(name), ROUTE, **options) if kind == "prompted" else token_view(base(name), Table(RAN), **options)
    )


def runs(kind: str, row: int, n_prompt: int) -> torch.Tensor:
    """(n_tokens, L): what runs for each token of a sequence: everything in the prompt, then what the view says."""
    table = RAN[row].clone()
    if kind == "prompted":
        table[:] = torch.tensor([i in ROUTE for i in range(N_LAYERS)])
    table[:n_prompt] = True
    return table


@functools.cache
def expected(kind: str, name: str, n_sequences: int = 3) -> list[list[int]]:
    """By hand: no cache, no padding, no view, no generate."""
    dense = Dense(base(name))
    rows = enumerate(PROMPTS.rows()[:n_sequences])
    return [dense.greedy(ids, runs(kind, i, len(ids)), "project", N_NEW) for i, ids in rows]


def prompt(given: Batch = PROMPTS) -> dict[str, torch.Tensor]:
    return {"input_ids": given.ids, "attention_mask": given.mask}


FIRST = Batch(PROMPTS.ids[:1], PROMPTS.mask[:1])


def written(model: Any, given: Batch = PROMPTS, **options: Any) -> list[list[int]]:
    return model.generate(**prompt(given), **{**GREEDY, **options})[:, given.ids.shape[1] :].tolist()


def full_cache(name: str, given: Batch, n_columns: int) -> DynamicCache:
    """The whole model's cache of the first columns of a batch."""
    model = base(name)
    with torch.no_grad():
        return cache_of(model(**given.inputs(model, 0, n_columns), **{cache_name(): DynamicCache()}, use_cache=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_caches_and_chunks_do_not_change_what_is_written(name: str, kind: str) -> None:
    model, wanted = made(kind, name), expected(kind, name)
    cached: dict[str, Any] = {"use_cache": True}  # MPT's configuration says that it has none
    assert written(model, **cached) == wanted
    assert written(model) == wanted
    assert written(model, use_cache=False) == wanted
    for size in (1, 4, 8):
        assert written(model, **cached, prefill_chunk_size=size) == wanted
    for n_columns in (2, 5, 8):
        assert written(model, **cached, **{cache_name(): full_cache(name, PROMPTS, n_columns)}) == wanted
    assert written(model, **cached, **{cache_name(): full_cache(name, PROMPTS, 3)}, prefill_chunk_size=2) == wanted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_drafted_tokens_do_not_change_what_is_written(name: str, kind: str) -> None:
    """As the target, behind candidates of all kinds, and as the assistant of the model itself."""
    [wanted] = expected(kind, name, 1)
    for assistant in (base(name), view(base(name), (0, 1, 2)), made(kind, name)):
        assert written(made(kind, name), FIRST, use_cache=True, assistant_model=assistant) == [wanted]
    repeating = Batch(FIRST.ids[:, :3].repeat(1, 4), torch.ones(1, 12, dtype=torch.long))
    ends: dict[str, Any] = {"use_cache": True, "eos_token_id": 95}  # older releases look tokens up only with an end
    alone = written(made(kind, name), repeating, **ends)
    assert written(made(kind, name), repeating, **ends, prompt_lookup_num_tokens=3) == alone
    whole = written(base(name), FIRST, use_cache=True)
    assert written(base(name), FIRST, use_cache=True, assistant_model=made(kind, name)) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_an_assistant_runs_the_prompt_once(kind: str) -> None:
    """What has been drafted and accepted is its response: it does not run every layer again."""
    drafts: list[int] = []
    assistant = made(kind)
    skipped = assistant.get_submodule("model.layers.0")
    skipped.register_forward_hook(lambda *_: drafts.append(1))
    prefills: list[int] = []
    handle = base("llama").model.layers[0].register_forward_hook(lambda *_: prefills.append(1))
    target = tiny("llama", seed=1)
    target.generate(**prompt(FIRST), **{**GREEDY, "max_new_tokens": 12}, assistant_model=assistant)
    handle.remove()
    assert len(prefills) == (1 if kind == "prompted" else 0)
    assert len(drafts) > 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_an_earlier_answer_runs_again_as_part_of_the_next_prompt(name: str, kind: str) -> None:
    model, cache = made(kind, name), DynamicCache(config=base(name).config)
    first = model.generate(**prompt(FIRST), **GREEDY, **{cache_name(): cache})
    turn = torch.cat([first, torch.tensor([[7, 11, 3]])], dim=1)
    dense = Dense(base(name))
    wanted = dense.greedy(turn[0], runs(kind, 0, turn.shape[1]), "project", N_NEW)
    given = Batch(turn, torch.ones_like(turn))
    assert written(model, given, **{cache_name(): copy.deepcopy(cache)}) == [wanted]
    assert written(model, given) == [wanted]
    with pytest.raises(InputError, match=r"columns of an earlier answer, which must run again .*: pass all of them"):
        model.generate(turn[:, -3:], attention_mask=torch.ones_like(turn), **GREEDY, **{cache_name(): copy.deepcopy(cache)})
    # Or as the response that it was, where the caller says so.
    n_prompt = FIRST.ids.shape[1]
    goes_on = dense.greedy(first[0], runs(kind, 0, n_prompt), "project", N_NEW)
    again = Batch(first, torch.ones_like(first))
    assert written(model, again, **{cache_name(): copy.deepcopy(cache)}, prompt_columns=n_prompt) == [goes_on]
    assert written(model, again, prompt_columns=n_prompt) == [goes_on]


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_follows_a_second_prompt_of_its_own(kind: str) -> None:
    scale, n_prompt = 2.5, 9
    ids, negative = FIRST.ids[0], FIRST.ids[0, -1:]
    dense, answer = Dense(base()), []
    with torch.no_grad():
        for _ in range(N_NEW):
            new = torch.tensor(answer, dtype=torch.long)
            given, other = (torch.cat([start, new]) for start in (ids, negative))
            one = dense(given, runs(kind, 0, n_prompt)[: len(given)]).logits[0, -1].log_softmax(-1)
            two = dense(other, runs(kind, 0, 1)[: len(other)]).logits[0, -1].log_softmax(-1)
            answer.append(int((scale * (one - two) + two).argmax()))
    assert written(made(kind), FIRST, guidance_scale=scale) == [answer]


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_and_several_answers(kind: str) -> None:
    wanted, model = expected(kind, "llama"), made(kind)
    embedded = base().get_input_embeddings()(PROMPTS.ids)
    ours = model.generate(inputs_embeds=embedded, attention_mask=PROMPTS.mask, **GREEDY)
    assert ours.tolist() == wanted
    chunked = model.generate(input_ids=PROMPTS.ids, attention_mask=PROMPTS.mask, logits_to_keep=0, **GREEDY)
    assert chunked[:, 9:].tolist() == wanted
    if kind == "prompted":
        twice = model.generate(**prompt(), **{**GREEDY, "do_sample": True, "top_k": 1}, num_return_sequences=2)
        assert twice[:, 9:].tolist() == [answer for answer in wanted for _ in range(2)]


def test_scores_and_states_of_each_step() -> None:
    asked = {"return_dict_in_generate": True, "output_logits": True, "output_hidden_states": True, "output_attentions": True}
    model = prompted_view(tiny("llama", attn_implementation="eager"), ROUTE)
    out = model.generate(**prompt(), **GREEDY, **asked)
    assert torch.stack(out.logits, 1).argmax(-1).tolist() == expected("prompted", "llama")
    assert [len(states) for states in out.hidden_states] == [N_LAYERS + 1, *[len(ROUTE) + 1] * (N_NEW - 1)]
    with pytest.raises(
        InputError, match="A pass over prompt and response, which run different layers, has no output_hidden"
    ):
        model.generate(**prompt(), **GREEDY, **asked, use_cache=False)


def test_a_quantized_cache_is_one_for_the_prompt_too() -> None:
    caches = pytest.importorskip("transformers.cache_utils")
    if not hasattr(caches, "Fp8QuantizedLayer"):
        pytest.skip("the quantized cache of this transformers needs another package")
    out = prompted_view(base(), ROUTE).generate(
        **prompt(FIRST),
        **GREEDY,
        cache_implementation="quantized",
        cache_config={"backend": "fp8"},
        return_dict_in_generate=True,
    )
    assert [type(layer).__name__ for layer in cache_of(out).layers] == ["Fp8QuantizedLayer"] * len(ROUTE)
    assert all(layer.get_seq_length() == 9 + N_NEW - 1 for layer in cache_of(out).layers)
    with pytest.raises(InputError, match=r"not in a QuantizedCache: leave cache_implementation as it is"):
        made("tokens").generate(**prompt(FIRST), **GREEDY, cache_implementation="quantized", cache_config={"backend": "fp8"})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"assistant_early_exit": 2}, r"cannot honour assistant_early_exit=2: .*assistant_model=dd.view\(model, 'ee:2'\)"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "cannot honour penalty_alpha=0.6: leave it out, or use greedy"),
        ({"dola_layers": "low"}, "cannot honour dola_layers='low'"),
        ({"num_beam_groups": 2, "num_beams": 4}, "cannot honour num_beam_groups=2: leave it out, or use num_beams"),
        ({"force_words_ids": [[5]], "num_beams": 2}, r"cannot honour force_words_ids=\[\[5\]\]"),
        ({"token_healing": True}, r"cannot honour token_healing=True: .*model.heal_tokens\(input_ids, tokenizer\)"),
        ({"custom_generate": "someone/loop"}, "cannot honour custom_generate='someone/loop': .* pass a function"),
        ({"cache_implementation": "paged"}, r"Continuous batching mixes prompts and responses .*: use generate\(\)"),
        ({"cache_implementation": "static"}, "leave cache_implementation"),
        ({cache_name(): ()}, f"{cache_name()} is a tuple: pass a transformers Cache"),
        ({"guidance_scale": 2.0, "use_cache": False}, "guidance_scale=2.0 with use_cache=False"),
        ({"guidance_scale": 2.0, "prompt_lookup_num_tokens": 2}, "guidance_scale=2.0 with drafted tokens"),
        ({"prompt_columns": -1}, "Invalid prompt_columns"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_honoured_is_refused_in_one_sentence(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        written(made(kind), FIRST, **options)
    text = str(caught.value)
    assert text[0].isupper()
    assert text.count(": ") == 1
    assert "\n" not in text


@pytest.mark.parametrize("kind", KINDS)
def test_continuous_batching_is_refused(kind: str) -> None:
    for name in ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager"):
        with pytest.raises(InputError, match="Continuous batching"):
            getattr(made(kind), name)([[5, 6]])


def test_a_cache_that_is_full_or_of_other_layers_is_refused() -> None:
    model = prompted_view(base(), ROUTE)
    with pytest.raises(InputError, match=r"holds all 9 columns of the prompt, .*: crop the cache"):
        written(model, **{cache_name(): full_cache("llama", PROMPTS, 9)})
    other = prompted_view(base(), (0, 2, 3))
    with torch.no_grad():
        theirs = cache_of(other(**prompt()))
        with pytest.raises(InputError, match="The KV cache is of layers 0, 2, 3, and this view runs 1, 2, 4"):
            model(PROMPTS.ids[:, :1], **{cache_name(): theirs})
        ours = prefill(base(), **prompt()).cache_for(Route((0, 2, 3), 6))
        with pytest.raises(InputError, match="layers 0, 2, 3, and this view runs 1, 2, 4"):
            model(PROMPTS.ids[:, :1], **{cache_name(): ours})
        with pytest.raises(
            InputError, match="of route '1-2,4' alone, and 3 more columns of the prompt must run every layer"
        ):
            model(PROMPTS.ids[:, :3], **{cache_name(): cache_of(model(**prompt()))}, prompt_columns=12)


@pytest.mark.parametrize("name", NAMES)
def test_passes_by_hand_are_the_dense_reference(name: str) -> None:
    """One pass over prompt and response, or cut anywhere, with and without a cache."""
    given, n_prompt = batch((12, 9, 11), seed=3), 7
    model, dense = prompted_view(base(name), ROUTE), Dense(base(name))
    table = [runs("prompted", 0, int(mask[:n_prompt].sum())) for mask in given.mask]
    with torch.no_grad():
        theirs = [dense(ids, t[: len(ids)]).logits[0] for ids, t in zip(given.rows(), table, strict=True)]

        def check(logits: torch.Tensor) -> None:
            for ours, wanted in zip(given.rows(logits), theirs, strict=True):
                torch.testing.assert_close(ours, wanted, atol=2e-4, rtol=2e-4)

        columns: dict[str, Any] = {"prompt_columns": n_prompt}
        check(model(**given.inputs(base(name)), **columns).logits)
        check(model(**given.inputs(base(name)), **columns, use_cache=False).logits)
        as_tuple = model(**given.inputs(base(name)), **columns, return_dict=False)
        check(as_tuple[0])
        cache, logits = None, []
        for first, last in ((0, 3), (3, 9), (9, 12)):
            out = model(**given.inputs(base(name), first, last), **{cache_name(): cache}, use_cache=True, **columns)
            cache = cache_of(out)
            logits.append(out.logits)
        check(torch.cat(logits, 1))
        behind = full_cache(name, given, 3)
        rest = model(
            **given.inputs(base(name), 3, 7), **{cache_name(): behind}, use_cache=True
        )  # what remains of the prompt
        last = model(**given.inputs(base(name), 7), **{cache_name(): cache_of(rest)}, use_cache=True)
        head = torch.zeros_like(last.logits[:, :1]).expand(-1, 3, -1)
        ours = torch.cat([head, rest.logits, last.logits], 1)
        for row, (mine, wanted) in enumerate(zip(given.rows(ours), theirs, strict=True)):
            skip = int(given.mask[row, :3].sum())
            torch.testing.assert_close(mine[skip:], wanted[skip:], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("keep", [1, 4, 5, 6, 0, torch.tensor([0, 6, 11])], ids=str)
def test_logits_to_keep_of_a_pass_over_both(keep: Any) -> None:
    given, model = batch((12, 9), seed=3), prompted_view(base(), ROUTE)
    with torch.no_grad():
        whole = model(**given.inputs(base()), prompt_columns=7).logits
        kept = model(**given.inputs(base()), prompt_columns=7, logits_to_keep=keep).logits
    wanted = whole[:, keep] if isinstance(keep, torch.Tensor) else whole[:, -keep:]
    torch.testing.assert_close(kept, wanted)


def test_a_pass_by_hand_refuses_what_it_cannot_tell() -> None:
    model = prompted_view(base(), ROUTE)
    for shallow in (model, made("tokens")):
        with pytest.raises(InputError, match=r"use_cache=False does not say where the response starts.*prompt_columns"):
            shallow(**prompt(), use_cache=False)
        with pytest.raises(InputError, match=r"labels would be scored at the prompt's depth.*prompt_columns"):
            shallow(**prompt(), labels=PROMPTS.ids)
        with pytest.raises(InputError, match="pass input_ids or inputs_embeds"):
            shallow(attention_mask=PROMPTS.mask)
    with pytest.raises(InputError, match="A StaticCache has no room for the keys"):
        model(**prompt(), **{cache_name(): StaticCache(config=base().config, max_cache_len=32)})
    trained = tiny("llama").train()
    checkpoint_gradients(trained)
    with pytest.raises(InputError, match=r"leaves no KV cache .*gradient_checkpointing_disable"):
        prompted_view(trained, ROUTE)(**prompt())


def test_a_trace_is_of_one_pass_a_token() -> None:
    traced = token_view(base(), Bernoulli((0.5,) * N_LAYERS), trace=TokenTrace())
    for options in ({"use_cache": False}, {"guidance_scale": 2.0}, {"prompt_lookup_num_tokens": 2}):
        with pytest.raises(InputError, match="A trace is of one pass a token"):
            written(traced, FIRST, **options)


def test_a_view_takes_caches_of_its_own_layers() -> None:
    """A plain view's prompt runs its route, so that a whole model's prefix is not its own; an empty cache is made to fit."""
    for name in ("llama", "gemma3_text"):
        shallow = view(base(name), ROUTE)
        wanted = written(shallow)
        assert written(shallow, **{cache_name(): DynamicCache(config=base(name).config)}) == wanted
        assert written(shallow, **{cache_name(): DynamicCache()}) == wanted
        assert written(shallow, prefill_chunk_size=4) == wanted
        cache = cache_of(shallow(**PROMPTS.inputs(shallow, 0, 4), use_cache=True))
        assert written(shallow, **{cache_name(): cache}) == wanted
        for inner in (shallow, view(shallow, (0, 2))):
            with pytest.raises(InputError, match=r"of 6 layers, and this view runs \d: .*dd.prompted_view"):
                written(inner, **{cache_name(): full_cache(name, PROMPTS, 5)})
        assert len(shallow.model._forward_pre_hooks) == len(view(shallow, (0, 2)).model._forward_pre_hooks) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_is_bit_identical_afterwards(kind: str, weights_of: Any, assert_same: Any) -> None:
    before = weights_of(base())
    written(made(kind), FIRST, assistant_model=made(kind))
    written(made(kind), use_cache=False)
    written(made(kind), **{cache_name(): full_cache("llama", PROMPTS, 5)}, prefill_chunk_size=2)
    assert_same(before, weights_of(base()))
