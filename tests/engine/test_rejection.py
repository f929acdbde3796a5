"""Verification of drafts: the exact distribution of the target, by enumeration, by counting, and for any shapes."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from depthdial.engine.rejection import verify_chosen, verify_sampled
from depthdial.engine.sampling import pick_tokens

GRID = 40


def simplex(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def uniform(*shape, seed):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def first_tokens(p, q, drafts):
    """The distribution of the first token that one draft leads to, over a grid of its three draws."""
    grid = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID
    accept, replace = (one.flatten() for one in torch.meshgrid(grid, grid, indexing="ij"))
    n, total = len(accept), torch.zeros(p.shape[-1], dtype=torch.float64)
    target = torch.stack([p, p]).expand(n, 2, -1)
    for token, odds in drafts:
        drafted = torch.full((n, 1), token)
        found = verify_sampled(
            target,
            None if q is None else q.expand(n, 1, -1),
            drafted,
            accept[:, None],
            torch.stack([replace, replace], dim=1),
        )
        kept = torch.where(found.n_accepted > 0, drafted[:, 0], found.tokens)
        total += odds * kept.bincount(minlength=len(total)) / n
    return total


PAIRS = {
    "alike": ([0.5, 0.3, 0.2], [0.5, 0.3, 0.2]),
    "unlike": ([0.7, 0.2, 0.1], [0.1, 0.3, 0.6]),
    "the draft cannot draw what the target can": ([0.25, 0.25, 0.5], [0.5, 0.5, 0.0]),
    "the target cannot draw what the draft can": ([0.5, 0.5, 0.0], [0.25, 0.25, 0.5]),
    "nothing in common": ([0.0, 0.0, 1.0], [0.5, 0.5, 0.0]),
    "a greedy target": ([0.0, 1.0, 0.0], [0.3, 0.3, 0.4]),
    "a greedy draft": ([0.3, 0.3, 0.4], [0.0, 1.0, 0.0]),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_drafted_position_has_the_targets_distribution(name):
    p, q = (simplex(one)[0] for one in PAIRS[name])
    drafts = [(token, odds) for token, odds in enumerate(q.tolist()) if odds > 0]
    torch.testing.assert_close(first_tokens(p, q, drafts), p, atol=1.5 / GRID, rtol=0)


@pytest.mark.parametrize("token", [0, 1, 2])
def test_a_draft_that_nothing_was_drawn_for_is_one_hot(token):
    p = simplex([0.6, 0.1, 0.3])[0]
    one_hot = torch.nn.functional.one_hot(torch.tensor(token), 3).double()
    without = first_tokens(p, None, [(token, 1.0)])
    assert torch.equal(without, first_tokens(p, one_hot, [(token, 1.0)]))
    torch.testing.assert_close(without, p, atol=1.5 / GRID, rtol=0)


def test_whole_sequences_have_the_targets_distribution():
    """Three drafted tokens and the one behind them, of models in which the last token decides: 3^4 sequences counted."""
    n, k, vocabulary = 60_000, 3, 3
    target_model = simplex([0.6, 0.3, 0.1], [0.0, 0.5, 0.5], [0.2, 0.2, 0.6])
    draft_model = simplex([0.2, 0.5, 0.3], [0.4, 0.6, 0.0], [0.3, 0.3, 0.4])
    last, drafted, q = torch.zeros(n, dtype=torch.long), [], []
    for position in range(k):
        q.append(draft_model[last])
        last = pick_tokens(q[-1], uniform(n, seed=position))
        drafted.append(last)
    tokens = torch.stack(drafted, dim=1)
    p = target_model[torch.cat([torch.zeros(n, 1, dtype=torch.long), tokens], dim=1)]
    found = verify_sampled(p, torch.stack(q, dim=1), tokens, uniform(n, k, seed=7), uniform(n, k + 1, seed=8))
    # What a row lacks after its first rejection comes from the target, as its later rounds would.
    sequences = torch.zeros(n, k + 1, dtype=torch.long)
    for position in range(k + 1):
        own = tokens[:, position] if position < k else found.tokens
        own = torch.where(found.n_accepted == position, found.tokens, own)
        before = sequences[:, position - 1] if position else torch.zeros(n, dtype=torch.long)
        later = pick_tokens(target_model[before], uniform(n, seed=20 + position))
        sequences[:, position] = torch.where(found.n_accepted < position, later, own)
    codes = (sequences * vocabulary ** torch.arange(k + 1)).sum(-1).bincount(minlength=vocabulary ** (k + 1))
    expected = torch.zeros(vocabulary ** (k + 1), dtype=torch.float64)
    for sequence in itertools.product(range(vocabulary), repeat=k + 1):
        steps = zip((0, *sequence), sequence, strict=False)
        code = sum(token * vocabulary**i for i, token in enumerate(sequence))
        expected[code] = torch.stack([target_model[a, b] for a, b in steps]).prod()
    assert codes[expected == 0].sum() == 0
    possible = expected > 0
    assert chisquare(codes[possible].numpy(), (n * expected[possible]).numpy()).pvalue > 1e-3
    assert found.n_accepted.unique().tolist() == [0, 1, 2, 3]


def test_greedy_rows_beside_sampled_ones_are_as_verified_by_their_choices():
    n, k, vocabulary = 50, 4, 6
    chosen = torch.randint(vocabulary, (n, k + 1), generator=torch.Generator().manual_seed(0))
    drafted = torch.where(uniform(n, k, seed=1) < 0.7, chosen[:, :k], (chosen[:, :k] + 1) % vocabulary)
    greedy = torch.nn.functional.one_hot(chosen, vocabulary).double()
    drawn = uniform(n, k + 1, vocabulary, seed=2).softmax(-1)
    q = torch.cat([uniform(n, k, vocabulary, seed=3).softmax(-1)] * 2)
    draws = uniform(2 * n, k, seed=4), uniform(2 * n, k + 1, seed=5)
    together = verify_sampled(torch.cat([greedy, drawn]), q, torch.cat([drafted, drafted]), *draws)
    expected = verify_chosen(drafted, chosen)
    assert torch.equal(together.n_accepted[:n], expected.n_accepted) and torch.equal(together.tokens[:n], expected.tokens)
    alone = verify_sampled(drawn, q[n:], drafted, *(one[n:] for one in draws))
    assert torch.equal(together.n_accepted[n:], alone.n_accepted) and torch.equal(together.tokens[n:], alone.tokens)


@given(
    rows=st.lists(st.integers(0, 4), min_size=1, max_size=6),
    vocabulary=st.integers(1, 7),
    seed=st.integers(0, 10_000),
    is_drawn=st.booleans(),
)
def test_rows_are_as_alone_however_many_tokens_others_drafted(rows, vocabulary, seed, is_drawn):
    n, k = len(rows), max(rows)
    p = simplex_like(uniform(n, k + 1, vocabulary, seed=seed))
    q = simplex_like(uniform(n, k, vocabulary, seed=seed + 1)) if is_drawn else None
    drafted = torch.randint(vocabulary, (n, k), generator=torch.Generator().manual_seed(seed))
    accept, replace = uniform(n, k, seed=seed + 2), uniform(n, k + 1, seed=seed + 3)
    found = verify_sampled(p, q, drafted, accept, replace, torch.tensor(rows))
    for row, n_drafted in enumerate(rows):
        one = slice(row, row + 1)
        alone = verify_sampled(
            p[one, : n_drafted + 1],
            None if q is None else q[one, :n_drafted],
            drafted[one, :n_drafted],
            accept[one, :n_drafted],
            replace[one, : n_drafted + 1],
        )
        n_accepted = int(found.n_accepted[row])
        assert (n_accepted, int(found.tokens[row])) == (int(alone.n_accepted), int(alone.tokens))
        assert n_accepted <= n_drafted
        # Nothing comes out that the target cannot say, and a token in place of a rejected draft is another one.
        out = [*drafted[row, :n_accepted].tolist(), int(found.tokens[row])]
        assert all(p[row, i, token] > 0 for i, token in enumerate(out))
        if q is None and n_accepted < n_drafted and p[row, n_accepted, drafted[row, n_accepted]] < 1:
            assert found.tokens[row] != drafted[row, n_accepted]


def simplex_like(weights):
    """Probabilities of which many are 0."""
    kept = weights.masked_fill(weights < 0.4, 0.0)
    kept = torch.where(kept.sum(-1, keepdim=True) > 0, kept, torch.ones_like(kept))
    return kept / kept.sum(-1, keepdim=True)


def test_an_equal_draft_is_always_accepted_also_where_a_draw_rounds_to_one():
    p = torch.rand(4, 3, 9, generator=torch.Generator().manual_seed(0)).softmax(-1)
    almost = torch.full((4, 2), 1 - 1e-12, dtype=torch.float64)
    found = verify_sampled(p, p[:, :2], p[:, :2].argmax(-1), almost, torch.full((4, 3), 0.5))
    assert found.n_accepted.tolist() == [2] * 4


def test_a_token_that_its_draft_could_not_draw_is_rejected():
    p, q = torch.tensor([[[0.5, 0.5], [1.0, 0.0]]]), torch.tensor([[[1.0, 0.0]]])
    found = verify_sampled(p, q, torch.tensor([[1]]), torch.zeros(1, 1), torch.tensor([[0.3, 0.3]]))
    assert (found.n_accepted.item(), found.tokens.item()) == (0, 1)


def test_no_drafts_are_a_plain_draw():
    p = torch.rand(3, 1, 5, generator=torch.Generator().manual_seed(0)).softmax(-1)
    draws = uniform(3, 1, seed=1)
    found = verify_sampled(p, None, torch.empty(3, 0, dtype=torch.long), uniform(3, 0, seed=0), draws)
    assert torch.equal(found.tokens, pick_tokens(p[:, 0], draws[:, 0])) and found.n_accepted.tolist() == [0, 0, 0]
    assert verify_chosen(torch.empty(1, 0, dtype=torch.long), torch.tensor([[4]])).tokens.tolist() == [4]


@pytest.mark.parametrize(("name", "shape"), [("target", (2, 3, 5)), ("draft", (2, 2, 5)), ("token_draws", (2, 3))])
def test_shapes_that_do_not_fit_are_refused(name, shape):
    given = {
        "target": torch.ones(2, 4, 5),
        "draft": torch.ones(2, 3, 5),
        "drafted": torch.zeros(2, 3, dtype=torch.long),
        "accept_draws": torch.zeros(2, 3),
        "token_draws": torch.zeros(2, 4),
    }
    with pytest.raises(ValueError, match=f"{name} has shape .* where 2 rows drafted 3 tokens"):
        verify_sampled(**{**given, name: torch.zeros(shape)})
    with pytest.raises(ValueError, match="chosen has shape"):
        verify_chosen(given["drafted"], given["drafted"])
