"""Speculation gives the plain answers, whatever drafts; rows accept by themselves; keys and values are the plain run's."""

from __future__ import annotations

from collections import Counter

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from scipy.stats import chisquare

import depthdial as dd
from depthdial.engine.batch import RowBatch
from depthdial.engine.draft_length import PLAIN, Setting
from depthdial.engine.loop import decode_tokens
from depthdial.engine.prefill import left_padded, prefill
from depthdial.engine.row_sampler import RowSampler
from depthdial.engine.sampler import Sampler
from depthdial.engine.sampling import Chance, DecodingPolicy
from depthdial.engine.speculation import Drafting
from depthdial.engine.speculative_stream import SpeculativeStream
from depthdial.engine.walk import Prefix
from depthdial.errors import InputError
from depthdial.routes import Route, leading_layers
from tests.conftest import make_llama
from tests.tiny import tiny

N_LAYERS = 6
FULL = Route(tuple(range(N_LAYERS)), N_LAYERS, "full")
PROMPTS = [[1, 5, 9], [1, 7], [1, 8, 8, 4, 6], [1, 9], [1, 4, 4, 4], [1, 12], [1, 20, 3, 7, 9, 11, 5], [1, 6, 6]]
ROUTES = {
    "late": Route((0, 1, 2, 3, 5), N_LAYERS),
    "early": Route((1, 2, 3, 4, 5), N_LAYERS),
    "hostile": Route((5,), N_LAYERS),
    "sparse": Route((0, 2, 4), N_LAYERS),
}
DRAWN = DecodingPolicy(1.2, 0.9)


def answered(model, prompts, n_tokens, drafting=None, ends=(), told=None, samplers=None, limits=None):
    ready = prefill(model, *left_padded(prompts, 0, "cpu"))
    rows = [RowSampler(ends, limit=limit) for limit in limits or [None] * len(prompts)]
    sampler = Sampler(samplers or rows, n_logprobs=1)
    new = decode_tokens(
        model,
        FULL,
        ready,
        sampler,
        max_new_tokens=n_tokens,
        pad_token_id=0,
        on_tokens=None if told is None else told.append,
        drafting=drafting,
    )
    assert [len(row) for row in new] == [max(len(sampler.answer(row)[0]) for row in range(len(prompts)))] * len(prompts)
    return [(*sampler.answer(row), sampler.logprobs(row)) for row in range(len(prompts))]


def tokens_of(answers):
    return [(tokens, reason) for tokens, reason, _ in answers]


def drawing(n_rows, seed=3, limits=None):
    return [
        RowSampler(limit=limit, policy=DRAWN, chance=Chance.of_request(seed, (), row))
        for row, limit in enumerate(limits or [None] * n_rows)
    ]


@pytest.fixture
def running(model):
    return model.eval()


@pytest.mark.parametrize("n_rows", [1, 3, 8])
@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("name", ROUTES)
def test_tokens_and_counts_are_those_of_plain_decoding(running, n_rows, k, name):
    plain = answered(running, PROMPTS[:n_rows], 12)
    drafting = Drafting(ROUTES[name], draft_tokens=k)
    found = answered(running, PROMPTS[:n_rows], 12, drafting)
    assert tokens_of(found) == tokens_of(plain)
    for row in range(n_rows):
        told = drafting.told(row)
        # The prompt's pass gives the first token, every step or round one, and drafts the others.
        assert 1 + told.steps + told.rounds + sum(told.accepted) == 12
        assert told.rounds == told.drafted[0] and len(told.drafted) == len(told.accepted) <= k
        assert all(accepted <= drafted for accepted, drafted in zip(told.accepted, told.drafted, strict=True))
        for one, same in zip(found[row][2], plain[row][2], strict=True):
            assert one.token == same.token and one.logprob == pytest.approx(same.logprob, abs=1e-4)


def test_a_draft_of_the_full_model_is_accepted_whole(running):
    drafting = Drafting(ROUTES["late"], model=running, draft_tokens=3)
    drafting.route = FULL
    answered(running, PROMPTS[:2], 13, drafting)
    assert drafting.told(1).accepted == drafting.told(1).drafted == (3, 3, 3)
    assert drafting.told(1).rounds == 3


@pytest.mark.parametrize("name", ["gpt2", "opt", "gemma2", "qwen3_moe_sparse", "falcon_alibi", "llama4_text", "gpt_oss"])
def test_every_kind_of_layer_can_be_drafted_on(name):
    model = tiny(name).eval()
    n_layers = model.config.get_text_config().num_hidden_layers
    full = Route(tuple(range(n_layers)), n_layers, "full")
    drafting = Drafting(Route((*range(n_layers - 2), n_layers - 1), n_layers), draft_tokens=3)
    ready = prefill(model, *left_padded(PROMPTS[:3], 0, "cpu"))
    found = []
    for one in (None, drafting):
        sampler = Sampler([RowSampler()] * 3)
        found.append(decode_tokens(model, full, ready, sampler, max_new_tokens=11, pad_token_id=0, drafting=one))
    assert found[0] == found[1]
    assert drafting.told(0).rounds or drafting.told(0).why_off


@pytest.mark.parametrize("k", [2, 8])
def test_an_answer_ends_inside_a_draft_as_it_would_end_alone(running, k):
    free = answered(running, PROMPTS[:5], 12)
    for place in range(1, 8):
        ends = tuple({tokens[(place + row) % 12] for row, (tokens, _, _) in enumerate(free)})
        told: list[torch.Tensor] = []
        found = answered(running, PROMPTS[:5], 12, Drafting(ROUTES["late"], draft_tokens=k), ends, told)
        assert tokens_of(found) == tokens_of(answered(running, PROMPTS[:5], 12, None, ends))
        assert {reason for _, reason, _ in found} <= {"eos", "length"}
        width = max(len(tokens) for tokens, _, _ in found)
        padded = [tokens + [0] * (width - len(tokens)) for tokens, _, _ in found]
        assert torch.stack(told, dim=1).tolist() == padded


@pytest.mark.parametrize("k", [1, 2, 4])
def test_every_row_stops_at_its_own_limit(running, k):
    for first in range(1, 7):
        limits = [first, first + 1, first + 3]
        found = answered(running, PROMPTS[:3], max(limits), Drafting(ROUTES["late"], draft_tokens=k), limits=limits)
        assert [len(tokens) for tokens, _, _ in found] == limits
        assert tokens_of(found) == tokens_of(answered(running, PROMPTS[:3], max(limits), limits=limits))


@pytest.mark.parametrize("name", ["late", "sparse"])
@pytest.mark.parametrize("k", [1, 4])
def test_sampled_answers_are_the_plain_ones_of_their_seed(running, name, k):
    plain = answered(running, PROMPTS, 12, samplers=drawing(8))
    drafting = Drafting(ROUTES[name], draft_tokens=k)
    assert tokens_of(answered(running, PROMPTS, 12, drafting, samplers=drawing(8))) == tokens_of(plain)
    assert sum(sum(drafting.told(row).accepted) for row in range(8))


@pytest.mark.parametrize("rejects", [False, True])
def test_sampled_answers_have_the_distribution_of_the_full_model(rejects):
    """All answers of three tokens over a small vocabulary, against their probabilities by enumeration."""
    model = make_llama(seed=5).eval()
    n, kept = 1500, [5, 7, 9, 11, 13]
    blocked = torch.full((30,), -torch.inf)
    blocked[kept] = 0.0

    def leave_five(_, scores):
        return scores + blocked

    samplers = [
        RowSampler(policy=DecodingPolicy(1.0), chance=Chance.of_request(1, (), i), processors=[leave_five], shared="five")
        for i in range(n)
    ]
    drafting = Drafting(ROUTES["late"], draft_tokens=2, rejects=rejects)
    found = Counter(tuple(tokens) for tokens, _, _ in answered(model, [[1, 5]] * n, 3, drafting, samplers=samplers))
    with torch.no_grad():
        behind = [[1, 5], *[[1, 5, a] for a in kept], *[[1, 5, a, b] for a in kept for b in kept]]
        p = {
            tuple(ids[2:]): (model(torch.tensor([ids])).logits[0, -1] + blocked).softmax(-1)[kept].tolist() for ids in behind
        }
    exact = {
        (a, b, c): p[()][i] * p[a,][j] * p[a, b][m]
        for i, a in enumerate(kept)
        for j, b in enumerate(kept)
        for m, c in enumerate(kept)
    }
    # Rare answers count as one.
    common = [answer for answer, chance in exact.items() if n * chance >= 5]
    counts, expected = [found[answer] for answer in common], [n * exact[answer] for answer in common]
    assert len(common) > 15 and sum(exact.values()) == pytest.approx(1)
    assert chisquare([*counts, n - sum(counts)], [*expected, n - sum(expected)]).pvalue > 1e-3
    assert (
        0 < sum(sum(drafting.told(row).accepted) for row in range(n)) < sum(sum(drafting.told(r).drafted) for r in range(n))
    )


@hypothesis.given(
    k=st.integers(1, 8), rows=st.lists(st.integers(0, 7), min_size=1, max_size=4, unique=True), seed=st.integers(0, 9)
)
def test_a_row_has_the_same_answer_alone_and_in_company(k, rows, seed):
    model = make_llama().eval()
    samplers = [drawing(8, seed)[row] for row in rows]
    found = answered(model, [PROMPTS[row] for row in rows], 9, Drafting(ROUTES["late"], draft_tokens=k), samplers=samplers)
    alone = [
        answered(model, [PROMPTS[row]], 9, Drafting(ROUTES["sparse"], draft_tokens=1), samplers=[drawing(8, seed)[row]])[0]
        for row in rows
    ]
    assert tokens_of(found) == tokens_of(alone)


def slabs_of(batch: RowBatch):
    return {
        layer: [(slab.keys[at, :, :n].clone(), slab.values[at, :, :n].clone()) for at, n in enumerate(batch.lengths)]
        for layer, slab in batch._slabs.items()
    }


@pytest.mark.parametrize("name", ["late", "hostile"])
def test_keys_and_values_are_those_of_a_plain_run_after_every_round(running, name):
    ready = prefill(running, *left_padded(PROMPTS[:3], 0, "cpu"))
    plain = RowBatch(running)
    plain.join(ready, [FULL] * 3, keys=range(3))
    sampler = Sampler([RowSampler()] * 3)
    stream = SpeculativeStream(running, ready, 16, sampler, Drafting(ROUTES[name], draft_tokens=4))
    answers = [one[0] for one in answered(running, PROMPTS[:3], 16)]
    for _ in range(4):
        tokens = sampler.next_tokens(stream.last_logits())
        stream.step(tokens, torch.tensor(sampler.ended(tokens)))
        batch = stream._batch
        while any(a < b for a, b in zip(plain.lengths, batch.lengths, strict=True)):
            done = [have - len(prompt) for have, prompt in zip(plain.lengths, PROMPTS, strict=False)]
            plain.run(torch.tensor([[answers[row][n]] for row, n in enumerate(done)]))
            plain.advance([int(a < b) for a, b in zip(plain.lengths, batch.lengths, strict=True)])
        expected = slabs_of(plain)
        for layer, rows in slabs_of(batch).items():
            for (keys, values), (same_keys, same_values) in zip(rows, expected[layer], strict=True):
                assert torch.allclose(keys, same_keys, atol=1e-4) and torch.allclose(values, same_values, atol=1e-4)


def test_what_lies_behind_a_rows_length_is_not_looked_at(running):
    ready = prefill(running, *left_padded(PROMPTS[:2], 0, "cpu"))
    found = []
    for poison in (0.0, 1e4):
        batch = RowBatch(running)
        batch.join(ready, [FULL] * 2, keys=range(2), new_tokens=8)
        for slab in batch._slabs.values():
            for at, n in enumerate(batch.lengths):
                slab.keys[at, :, n:] = poison
                slab.values[at, :, n:] = poison
        found.append(batch.run(torch.tensor([[4, 5, 6], [7, 8, 9]])))
    assert torch.equal(*found)


def test_layers_that_draft_and_model_share_run_once(running):
    """The states that a check starts from are those that it would have computed, and its first layers run one token."""
    ready = prefill(running, *left_padded(PROMPTS[:2], 0, "cpu"))
    seen: Counter[int] = Counter()
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _, inputs, i=i: seen.update({i: inputs[0].shape[1]}))
        for i, layer in enumerate(running.model.layers)
    ]
    batch = RowBatch(running)
    batch.join(ready, [FULL] * 2, keys=range(2), new_tokens=8)
    route, tokens = ROUTES["late"], torch.tensor([[4, 5, 6], [7, 8, 9]])
    assert leading_layers(route) == 4
    batch.run(tokens[:, :1], layers=frozenset(route.layers))  # asks once what a class of layers returns
    prefix = Prefix(4)
    seen.clear()
    for place in range(2):
        batch.run(tokens[:, place : place + 1], ahead=place, layers=frozenset(route.layers), keep=prefix)
    resumed = batch.run(tokens, resume=prefix)
    assert seen == {0: 3, 1: 3, 2: 3, 3: 3, 4: 3, 5: 5}
    for hook in hooks:
        hook.remove()
    again = RowBatch(running)
    again.join(ready, [FULL] * 2, keys=range(2), new_tokens=8)
    assert torch.allclose(resumed, again.run(tokens), atol=1e-4)
    batch.advance([3, 3])
    again.advance([3, 3])
    expected = slabs_of(again)
    for layer, rows in slabs_of(batch).items():
        for (keys, values), (same_keys, same_values) in zip(rows, expected[layer], strict=True):
            assert torch.allclose(keys, same_keys, atol=1e-4) and torch.allclose(values, same_values, atol=1e-4)


def test_in_bfloat16_every_token_is_nearly_the_full_models_choice():
    model = make_llama().to(torch.bfloat16).eval()
    found = answered(model, PROMPTS, 12, Drafting(ROUTES["late"], draft_tokens=3))
    for prompt, (tokens, _, _) in zip(PROMPTS, found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1].float()
        gaps = logits.amax(-1) - logits.gather(-1, torch.tensor(tokens)[:, None])[:, 0]
        assert float(gaps.max()) <= 0.05 * float(logits.abs().max())


def test_a_row_near_the_end_of_the_context_keeps_the_others_within_it():
    model = tiny("gpt2").eval()
    context, n_layers = 64, model.config.num_hidden_layers
    prompts = [[1 + i % 40 for i in range(52)], [1, 5]]
    full = Route(tuple(range(n_layers)), n_layers, "full")
    drafting = Drafting(Route(tuple(range(n_layers - 1)), n_layers), draft_tokens=8)
    ready, found = prefill(model, *left_padded(prompts, 0, "cpu")), []
    for one in (None, drafting):
        sampler = Sampler([RowSampler(limit=context - 52), RowSampler(limit=20)])
        decode_tokens(model, full, ready, sampler, max_new_tokens=20, pad_token_id=0, drafting=one)
        found.append([sampler.answer(row) for row in range(2)])
    assert found[0] == found[1]
    assert drafting.told(0).rounds


def test_what_copies_is_accepted_in_an_answer_that_repeats_itself(running):
    loop = answered(running, PROMPTS[:1], 40)[0][0]
    drafting = Drafting(None, lookup=True, draft_tokens=4)
    prompt = [*PROMPTS[0], *loop[:20]]
    plain = answered(running, [prompt, PROMPTS[1]], 20)
    assert tokens_of(answered(running, [prompt, PROMPTS[1]], 20, drafting)) == tokens_of(plain)
    assert drafting.told(0).rounds


class Never:
    """A latency model by which drafts never pay."""

    def route_sec(self, route=None, rows=1, context_tokens=None):
        return 1.0

    def verify_sec(self, rows, tokens, layers=None, context_tokens=None, *, reused_layers=0):
        return 1.0 + tokens


def test_switched_off_it_is_the_plain_path_call_by_call(running):
    seen: list[tuple[int, tuple[int, ...]]] = []
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _, inputs, i=i: seen.append((i, tuple(inputs[0].shape))))
        for i, layer in enumerate(running.model.layers)
    ]
    answered(running, PROMPTS[:3], 3)  # whatever is asked once
    calls = []
    for drafting in (None, Drafting(ROUTES["late"], lookup=True, latency=Never())):
        seen.clear()
        answered(running, PROMPTS[:3], 30, drafting, limits=[30, 12, 20])
        calls.append(list(seen))
    for hook in hooks:
        hook.remove()
    assert calls[0] == calls[1] and len(calls[0]) == N_LAYERS * 30
    told = drafting.told(0)
    assert (told.rounds, told.steps, told.layers_run) == (0, 29, 29 * N_LAYERS)
    assert str(told) == f"speculation: off (expected {told.expected_speedup:.2f}x)" and told.expected_speedup < 1


@hypothesis.given(st.lists(st.integers(0, 8), min_size=1, max_size=12), st.booleans())
def test_drafts_of_any_length_switched_on_and_off_at_any_step(lengths, is_sampled):
    model, drafting = make_llama().eval(), Drafting(ROUTES["late"])
    ready = prefill(model, *left_padded(PROMPTS[:3], 0, "cpu"))
    limits = [14, 9, 14]
    sampler = Sampler(drawing(3, limits=limits) if is_sampled else [RowSampler(limit=limit) for limit in limits])
    stream = SpeculativeStream(model, ready, 14, sampler, drafting)
    plans = iter(lengths)
    stream._chosen = lambda _, offers: Setting("route", k) if offers and (k := next(plans, 0)) else PLAIN
    is_over = torch.zeros(3, dtype=torch.bool)
    while not bool(is_over.all()):
        tokens = sampler.next_tokens(stream.last_logits())
        is_over = torch.tensor(sampler.ended(tokens))
        stream.step(tokens, is_over)
    plain = answered(model, PROMPTS[:3], 14, samplers=drawing(3, limits=limits) if is_sampled else None, limits=limits)
    assert [sampler.answer(row) for row in range(3)] == tokens_of(plain)


# --- the depth ------------------------------------------------------------------------------------------------------------

TEXTS = ["the cat", "a dog sat on the mat", "one two three one two three one two"]


def plain_answers(model, tokenizer, **options):
    return [answer.tokens for answer in dd.generate(model, tokenizer, TEXTS, max_new_tokens=14, **options)]


@pytest.mark.parametrize(
    "depth",
    [
        "lossless",
        "lossless:lookup",
        "lossless:uls:50%",
        "lossless:0-3,5",
        dd.Lossless("uls:50%", lookup=True, draft_tokens=2),
    ],
)
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 0.8, "seed": 4}, {"repetition_penalty": 1.3}])
def test_the_depth_gives_the_answers_of_full_depth(model, tokenizer, depth, options):
    found = dd.generate(model, tokenizer, TEXTS, depth=depth, max_new_tokens=14, **options)
    assert [answer.tokens for answer in found] == plain_answers(model, tokenizer, **options)
    assert all(answer.route.is_full and str(answer.speculation).startswith("speculation: ") for answer in found)


def test_stop_strings_inside_drafts_and_text_as_it_comes(model, tokenizer):
    free = dd.generate(model, tokenizer, TEXTS[0], max_new_tokens=14)[0]
    word = free.text.split()[5]
    depth, pieces = dd.Lossless("0-3,5", draft_tokens=4), []
    found = dd.generate(
        model, tokenizer, TEXTS[0], depth=depth, max_new_tokens=14, stop_strings=word, on_text=pieces.append
    )[0]
    plain = dd.generate(model, tokenizer, TEXTS[0], max_new_tokens=14, stop_strings=word)[0]
    assert (found.tokens, found.finish_reason) == (plain.tokens, "stop") and "".join(pieces) == found.text
    assert found.speculation.rounds


def test_an_adapter_drafts_and_the_untouched_model_answers(model, tokenizer, with_lora):
    plain = plain_answers(model, tokenizer)
    adapted = with_lora(model)
    depth = dd.Lossless("0-3,5", draft_tokens=2)
    found = dd.generate(adapted, tokenizer, TEXTS, depth=depth, max_new_tokens=14)
    assert [answer.tokens for answer in found] == plain
    assert any(sum(answer.speculation.drafted) for answer in found)
    own = dd.Lossless("0-3,5", draft_tokens=2, verify="adapted")
    found = dd.generate(adapted, tokenizer, TEXTS, depth=own, max_new_tokens=14)
    assert [answer.tokens for answer in found] == plain_answers(adapted, tokenizer) != plain


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"guidance_scale": 1.5}, "guidance_scale runs two prompts at once"),
        ({"logits_processor": [lambda ids, scores: scores]}, "logits processors that may keep a state would see drafts"),
        ({"max_new_tokens": 1}, "nothing to draft"),
    ],
)
def test_where_nothing_may_be_drafted_that_is_said(model, tokenizer, options, why):
    found = dd.generate(model, tokenizer, TEXTS, depth="lossless:ee:3", **{"max_new_tokens": 6, **options})
    plain = dd.generate(model, tokenizer, TEXTS, **{"max_new_tokens": 6, **options})
    assert [answer.tokens for answer in found] == [answer.tokens for answer in plain]
    assert {str(answer.speculation) for answer in found} == {f"speculation: off ({why})"}


def test_an_architecture_that_is_not_decoded_in_rows_is_decoded_plainly(model, tokenizer, monkeypatch):
    plain = plain_answers(model, tokenizer)
    for module in ("loop", "speculation", "generate"):
        monkeypatch.setattr(f"depthdial.engine.{module}.in_rows", lambda _: False)
    found = dd.generate(model, tokenizer, TEXTS, depth="lossless:ee:3", max_new_tokens=14)
    assert [answer.tokens for answer in found] == plain
    assert str(found[0].speculation) == "speculation: off (this architecture is not decoded in rows)"


def test_by_rejection_more_drafts_are_accepted_and_greedy_answers_stay(running):
    shares, prompts = [], [[1, 5 + i % 20] for i in range(60)]
    for rejects in (False, True):
        drafting = Drafting(ROUTES["late"], draft_tokens=2, rejects=rejects)
        answered(running, prompts, 12, drafting, samplers=drawing(60))
        told = [drafting.told(row) for row in range(60)]
        shares.append(sum(sum(one.accepted) for one in told) / sum(sum(one.drafted) for one in told))
    assert shares[1] > shares[0] + 0.02
    drafting = Drafting(ROUTES["late"], draft_tokens=2, rejects=True)
    assert tokens_of(answered(running, PROMPTS, 12, drafting)) == tokens_of(answered(running, PROMPTS, 12))


def test_by_rejection_an_answer_depends_on_its_seed_alone_where_drafts_have_one_length(running):
    def found(rows):
        samplers = [drawing(8)[row] for row in rows]
        drafting = Drafting(ROUTES["late"], draft_tokens=3, rejects=True)
        return tokens_of(answered(running, [PROMPTS[row] for row in rows], 12, drafting, (9,), samplers=samplers))

    together = found(range(8))
    assert [found([row])[0] for row in range(8)] == together


def test_settings_that_draft_nothing_are_refused():
    with pytest.raises(InputError, match="The draft 'lookup' with lookup=False drafts nothing: "):
        dd.Lossless("lookup", lookup=False)
    with pytest.raises(InputError, match="draft_tokens"):
        dd.Lossless(draft_tokens=0)
    with pytest.raises(InputError, match="way of sampling"):
        dd.Lossless(sampling="exact")
    with pytest.raises(InputError, match="model that verifies"):
        dd.Lossless(verify="base")
    with pytest.raises(ValueError, match="Drafts come from"):
        Drafting(None)


def test_the_model_is_left_as_it_was(model, tokenizer, weights_of, assert_same):
    before = weights_of(model)
    dd.generate(model, tokenizer, TEXTS, depth=dd.Lossless("uls:50%", lookup=True, draft_tokens=3), max_new_tokens=9)
    assert_same(before, weights_of(model))
