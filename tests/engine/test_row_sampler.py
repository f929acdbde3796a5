"""One request's tokens: the same alone and in any company, the same by steps, by distribution and by speculation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from depthdial.engine.options import read_options
from depthdial.engine.processors import Row
from depthdial.engine.row_sampler import RowSampler, distributions, draft_tokens, next_tokens, verify_tokens
from depthdial.engine.sampling import Chance, DecodingPolicy, DrawTable, draw_tokens
from tests.conftest import make_tokenizer

VOCABULARY = 30
KINDS = {
    "greedy": {},
    "greedy, biased": {"logit_bias": {4: 3.0, 9: -100}},
    "greedy, penalised": {"presence_penalty": 1.5, "repetition_penalty": 1.3},
    "drawn": {"do_sample": True, "top_k": 0},
    "drawn, cut": {"do_sample": True, "temperature": 1.7, "top_k": 12, "top_p": 0.8, "min_p": 0.02},
    "drawn, cut and penalised": {"do_sample": True, "temperature": 0.8, "frequency_penalty": 0.7, "no_repeat_ngram_size": 2},
    "drawn, a list in its options": {"do_sample": True, "suppress_tokens": [3, 4, 5]},
}


def options_of(kind, seed=3, **more):
    given = {**KINDS[kind], **more}
    return read_options(
        None,
        ends=(2,),
        pad_token_id=0,
        max_new_tokens=given.pop("max_new_tokens", 12),
        stop_strings=given.pop("stop_strings", None),
        generation_config=None,
        seed=seed if given.get("do_sample") else None,
        given=given,
    )


def sampler_of(kind, prompt=(1, 5, 9), repeat=0, options=None, **more):
    options = options or options_of(kind, **more)
    row = Row(torch.tensor([prompt]), 12, VOCABULARY, options.ends)
    chance = None if options.seed is None else Chance.of_request(options.seed, prompt, repeat)
    return RowSampler.from_options(options, make_tokenizer(), row, chance=chance)


def random_logits(n_rows, seed=0):
    return 3 * torch.randn(n_rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


@given(
    kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=8),
    lengths=st.lists(st.integers(0, 11), min_size=8, max_size=8),
    seed=st.integers(0, 1000),
)
def test_a_row_in_company_is_as_alone(kinds, lengths, seed):
    samplers = [sampler_of(kind, (1, 5 + i), options=options_of(kind)) for i, kind in enumerate(kinds)]
    answers = [[(seed + i * j) % VOCABULARY for j in range(n)] for i, n in zip(range(len(kinds)), lengths, strict=False)]
    logits = random_logits(len(kinds), seed)
    before = logits.clone()
    together = next_tokens(samplers, answers, logits).tolist()
    probabilities = distributions(samplers, answers, logits)
    assert torch.equal(logits, before)
    for i, (sampler, answer) in enumerate(zip(samplers, answers, strict=True)):
        assert sampler.next_token(logits[i], answer) == together[i]
        assert torch.equal(sampler.distribution(logits[i], answer), probabilities[i])
        assert probabilities[i, together[i]] > 0


def test_rows_of_equal_settings_share_their_work_and_rows_that_read_tokens_do_not():
    assert sampler_of("drawn, cut", (1, 2)).key == sampler_of("drawn, cut", (1, 3), seed=9).key
    assert sampler_of("drawn, cut").key != sampler_of("drawn").key
    assert sampler_of("greedy").key == RowSampler().key != sampler_of("greedy, biased").key
    assert sampler_of("greedy, biased").key == sampler_of("greedy, biased").key
    assert sampler_of("greedy, penalised").key is None
    listed = options_of("drawn, a list in its options")
    own = [sampler_of("", options=one) for one in (listed, listed, options_of("drawn, a list in its options"))]
    assert own[0].key == own[1].key != own[2].key


def test_all_greedy_rows_are_one_argmax(monkeypatch):
    calls = []
    choose = RowSampler.choose
    monkeypatch.setattr(RowSampler, "choose", lambda *given: calls.append(len(given[1])) or choose(*given))
    logits = random_logits(5)
    samplers = [sampler_of("greedy", (1, i)) for i in range(4)] + [sampler_of("drawn")]
    assert next_tokens(samplers[:4], [[]] * 4, logits[:4]).tolist() == logits[:4].argmax(-1).tolist()
    next_tokens(samplers, [[]] * 5, logits)
    assert calls == [4, 4, 1]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("drawn")])
def test_tokens_are_drawn_from_the_distribution(kind):
    n, logits, answer = 1500, random_logits(1, seed=4), [7, 7, 8, 7]
    options = options_of(kind)
    samplers = [sampler_of(kind, repeat=i, options=options) for i in range(n)]
    counts = next_tokens(samplers, [answer] * n, logits.expand(n, -1)).bincount(minlength=VOCABULARY)
    expected = n * samplers[0].distribution(logits[0], answer).double()
    likely = expected >= 5
    assert counts[expected == 0].sum() == 0
    rest = [counts[~likely].sum(), expected[~likely].sum()]
    observed, hoped = (torch.cat([a[likely], b[None]]) for a, b in ((counts, rest[0]), (expected, rest[1])))
    kept = hoped > 0
    assert chisquare(observed[kept].numpy(), (hoped[kept] * n / hoped.sum()).numpy()).pvalue > 1e-3


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (0.7, 1.0), (1.5, 0.6)])
def test_a_policys_distribution_is_that_of_its_draws(temperature, top_p):
    policy, logits, n = DecodingPolicy(temperature, top_p), random_logits(1)[0], 20_000
    draws = (torch.arange(n) + 0.5) / n
    found = RowSampler(policy=policy, chance=DrawTable([])).distribution(logits, [])
    if policy.is_greedy:
        assert found.nonzero().tolist() == [[int(logits.argmax())]]
    else:
        drawn = draw_tokens(logits.expand(n, -1), draws, policy).bincount(minlength=VOCABULARY) / n
        torch.testing.assert_close(found, drawn, atol=2e-4, rtol=0)
    assert abs(float(found.sum()) - 1) < 1e-5


def test_chance_is_counted_by_request_purpose_and_position():
    one, other = Chance.of_request(1, (5, 7)), Chance.of_request(1, (5, 7))
    late = [one.draw("token", i) for i in (200, 3, 65, 0)]
    assert late == [other.draws("token", 0, 300)[i] for i in (200, 3, 65, 0)]
    assert one.draws("bonus", 2, 3) == one.draws("token", 2, 3)
    streams = [tuple(one.draws(purpose, 0, 4)) for purpose in ("token", "draft", "accept", "residual")]
    streams += [tuple(Chance.of_request(*key).draws("token", 0, 4)) for key in ((2, (5, 7)), (1, (5,)), (1, (5, 7), 1))]
    assert len(set(streams)) == 7
    with pytest.raises(ValueError, match="Unknown purpose of a draw 'luck'"):
        one.draw("luck", 0)
    with pytest.raises(ValueError, match="none to accept tokens"):
        DrawTable([0.1]).draw("accept", 0)
    with pytest.raises(ValueError, match="needs a Chance"):
        RowSampler(policy=DecodingPolicy(1.0))


def test_an_answer_ends_for_its_own_reasons():
    row = sampler_of("greedy", stop_strings=["cat dog"])
    row_ids = make_tokenizer().convert_tokens_to_ids
    cat, dog, end = row_ids("cat"), row_ids("dog"), 2
    assert [row.ended(answer) for answer in ([], [cat], [cat, dog], [cat, end], [7] * 11, [7] * 12)] == [
        *(None, None, "stop", "eos", None, "length")
    ]
    assert row.cut([7, cat, dog, 8, end], 1) == ([7, cat, dog], "stop")
    assert row.cut([7, 8, end, cat, dog], 1) == ([7, 8, end], "eos")
    assert row.cut([7, 8], 0) == ([7, 8], None)
    assert row.cut([7] * 15, 3) == ([7] * 12, "length")
    options = options_of("greedy")
    looking = RowSampler.from_options(
        options, None, Row(torch.tensor([[1, 5]]), 12, VOCABULARY, (2,)), criteria=[lambda ids, scores: ids[0, -1] == 9]
    )
    assert looking.ended([9]) == "stop" and looking.ended([9, 8]) is None


class Toy:
    """A language model of tables: the next token's logits are those of the last token's row."""

    def __init__(self, seed):
        self.table = random_logits(VOCABULARY, seed)

    def logits(self, prompt, answer):
        return self.table[[*prompt, *answer][-1]]


def plain(sampler, prompt, target, n_tokens):
    answer: list[int] = []
    while len(answer) < n_tokens:
        answer.append(sampler.next_token(target.logits(prompt, answer), answer))
    return answer


def speculated(samplers, prompts, target, draft, n_tokens, n_drafts):
    """Answers by rounds of drafts, all rows in one batch; `n_drafts(row, round)` tokens are drafted."""
    answers: list[list[int]] = [[] for _ in samplers]
    for turn in range(n_tokens):
        numbers = [n_drafts(row, turn) for row in range(len(samplers))]
        drafted, q, ahead = [], [], [list(answer) for answer in answers]
        for _ in range(max(numbers)):
            tokens, one = draft_tokens(samplers, ahead, rows(draft, prompts, ahead))
            drafted.append(tokens)
            q.append(one)
            ahead = [[*a, t] for a, t in zip(ahead, tokens.tolist(), strict=True)]
        behind = [[a[: len(answer) + i] for i in range(max(numbers) + 1)] for a, answer in zip(ahead, answers, strict=True)]
        flat = [one for several in behind for one in several]
        several = max(numbers) + 1
        p = distributions(
            [sampler for sampler in samplers for _ in range(several)],
            flat,
            rows(target, [prompt for prompt in prompts for _ in range(several)], flat),
        ).unflatten(0, (len(samplers), several))
        chosen = torch.stack(drafted, dim=1) if drafted else torch.empty(len(samplers), 0, dtype=torch.long)
        found = verify_tokens(samplers, answers, chosen, p, torch.stack(q, dim=1) if q else None, numbers)
        for row, n in enumerate(found.n_accepted.tolist()):
            answers[row] += [*chosen[row, :n].tolist(), int(found.tokens[row])]
    return [answer[:n_tokens] for answer in answers]


def rows(model, prompts, answers):
    return torch.stack([model.logits(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)])


@pytest.mark.parametrize("n_drafts", [0, 1, 3])
def test_speculation_gives_greedy_rows_their_tokens_and_sampled_rows_the_same_in_any_company(n_drafts):
    target, draft = Toy(1), Toy(2)
    draft.table = 0.7 * target.table + 0.3 * draft.table
    prompts = [(1, 5 + i) for i in range(len(KINDS))]
    samplers = [sampler_of(kind, prompt) for kind, prompt in zip(KINDS, prompts, strict=True)]
    together = speculated(samplers, prompts, target, draft, 12, lambda row, turn: min(n_drafts, row))
    for i, (kind, prompt) in enumerate(zip(KINDS, prompts, strict=True)):
        alone = speculated([samplers[i]], [prompt], target, draft, 12, lambda *_, i=i: min(n_drafts, i))[0]
        assert together[i] == alone
        if kind.startswith("greedy") or min(n_drafts, i) == 0:  # without drafts it is the plain path, draw for draw
            assert alone == plain(sampler_of(kind, prompt), prompt, target, 12)


def test_speculated_answers_have_the_distribution_of_plain_ones():
    """Pairs of tokens under penalties that read what was drafted before; round by round, adaptive drafts included."""
    n, target, draft, prompt = 800, Toy(1), Toy(2), (1, 5)
    options = options_of("drawn, cut and penalised", temperature=3.0, frequency_penalty=2.0, top_k=4)
    samplers = [sampler_of("", prompt, repeat=i, options=options) for i in range(n)]
    found = speculated(samplers, [prompt] * n, target, draft, 2, lambda row, turn: (row + turn) % 3)
    exact: dict[tuple[int, int], float] = {}
    for first, p in enumerate(samplers[0].distribution(target.logits(prompt, []), []).tolist()):
        if p:
            for second, then in enumerate(samplers[0].distribution(target.logits(prompt, [first]), [first]).tolist()):
                exact[first, second] = p * then
    pairs = [pair for pair, p in exact.items() if p > 0]
    counts = [sum(tuple(answer) == pair for answer in found) for pair in pairs]
    assert sum(counts) == n and 9 <= len(pairs) <= 16
    scale = sum(exact[pair] for pair in pairs)
    assert chisquare(counts, [n * exact[pair] / scale for pair in pairs]).pvalue > 1e-3


def test_the_seed_of_options_is_the_requests_chance():
    options = options_of("drawn")
    row = Row(torch.tensor([[1, 5]]), 12, VOCABULARY, (2,))
    own = RowSampler.from_options(options, None, row)
    assert own.draws("draft", 3, 2) == Chance.of_request(3, (1, 5)).draws("draft", 3, 2)
    assert RowSampler.from_options(replace(options, seed=4), None, row).draws("token", 0, 1) != own.draws("token", 0, 1)
    assert sampler_of("greedy").draws("accept", 5, 2) == [0.0, 0.0]
