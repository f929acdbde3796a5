"""Policies decide by what they are told and nothing else, and chance is the same however tokens are batched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depthdial.errors import InputError
from depthdial.hf.architectures import decoder_stack, head_of
from depthdial.routes import Route
from depthdial.views.tokens.policy import (
    Bernoulli,
    ConfidenceExit,
    FunctionPolicy,
    StaticRoutes,
    TokenPolicy,
    TokenStep,
    as_policy,
    logistic_noise,
    sequence_key,
    uniform_draws,
)
from tests.tiny import ARCHITECTURES, tiny
from tests.views.tokens.dense import batch

GOLDEN = [[[0.092035592, 0.789762676], [0.898661792, 0.88533169]], [[0.29504627, 0.765701234], [0.63779217, 0.388639867]]]
KEYS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5)


def step(n_sequences: int = 2, n_tokens: int = 3, n_layers: int = 4, **changed: Any) -> TokenStep:
    fields: dict[str, Any] = {
        "n_layers": n_layers,
        "positions": torch.arange(n_tokens).expand(n_sequences, n_tokens),
        "keys": torch.arange(n_sequences),
        "is_prompt": torch.zeros(n_sequences, n_tokens, dtype=torch.bool),
        "embeddings": lambda: torch.zeros(n_sequences, n_tokens, 8),
        "logits": lambda hidden: hidden,
    }
    return TokenStep(**fields | changed)


@given(seed=st.integers(), keys=KEYS, n_layers=st.integers(1, 5), data=st.data())
def test_a_draw_follows_from_seed_sequence_place_and_layer(seed: int, keys: list[int], n_layers: int, data: Any) -> None:
    n_tokens = 9
    places = torch.tensor(data.draw(st.lists(st.integers(0, 2**20), min_size=n_tokens, max_size=n_tokens)))
    positions = places.expand(len(keys), -1)
    draws = uniform_draws(seed, torch.tensor(keys), positions, n_layers)
    assert draws.shape == (n_layers, len(keys), n_tokens) and draws.dtype == torch.float32
    assert ((draws > 0) & (draws < 1)).all()
    assert torch.equal(draws, uniform_draws(seed, torch.tensor(keys), positions, n_layers))
    cut = data.draw(st.integers(1, n_tokens - 1))
    parts = [uniform_draws(seed, torch.tensor(keys), part, n_layers) for part in (positions[:, :cut], positions[:, cut:])]
    assert torch.equal(torch.cat(parts, 2), draws)
    order = data.draw(st.permutations(range(len(keys))))
    rows = uniform_draws(seed, torch.tensor(keys)[order], positions[order], n_layers)
    assert torch.equal(rows, draws[:, order])
    assert torch.equal(uniform_draws(seed, torch.tensor(keys[:1]), positions[:1], n_layers + 3)[:n_layers], draws[:, :1])


def test_draws_are_uniform_and_unrelated_to_one_another() -> None:
    keys = torch.arange(40)
    draws = uniform_draws(0, keys, torch.arange(100).expand(40, -1), 30)
    counts = torch.histc(draws, 20, 0, 1)
    expected = draws.numel() / 20
    assert ((counts - expected) ** 2 / expected).sum() < 50  # chi-square of 19 degrees of freedom: 43.8 at p = 0.001
    others = (
        uniform_draws(1, keys, torch.arange(100).expand(40, -1), 30),
        uniform_draws(0, keys + 40, torch.arange(100).expand(40, -1), 30),
        uniform_draws(0, keys + 2**31, torch.arange(100).expand(40, -1), 30),
        draws.roll(1, 0),
        draws.roll(1, 1),
        draws.roll(1, 2),
    )
    for other in others:
        both = torch.stack([draws.flatten(), other.flatten()])
        assert torch.corrcoef(both)[0, 1].abs() < 0.015  # of 120,000 numbers: five standard errors
    # Every layer, sequence and place is fair by itself.
    for dims in ((1, 2), (0, 2), (0, 1)):
        assert (draws.mean(dims) - 0.5).abs().max() < 5 * (1 / 12 / (draws.numel() / draws.mean(dims).numel())) ** 0.5


def test_the_numbers_themselves_stay_what_they_are() -> None:
    # Committed rows depend on them.
    draws = uniform_draws(3, torch.tensor([5, 2**40]), torch.tensor([[0, 1], [7, 8]]), 2)
    torch.testing.assert_close(draws, torch.tensor(GOLDEN), rtol=0, atol=1e-7)
    assert sequence_key("alpaca-1") == sequence_key("alpaca-1") != sequence_key("alpaca-2")
    assert 0 <= sequence_key(("any", 1)) < 2**56


def test_rates_zero_and_one_are_exact_and_others_right() -> None:
    policy = Bernoulli((0, 1, 0.3, 0.9), seed=1)
    decide = policy.start(step(50, 200))
    hidden = torch.zeros(50, 200, 8)
    assert decide(1, hidden) is None
    for layer, rate in ((0, 0.0), (2, 0.3), (3, 0.9)):
        ran = decide(layer, hidden)
        assert ran is not None and ran.shape == (50, 200) and ran.dtype == torch.bool
        assert abs(float(ran.float().mean()) - rate) < 5 * (rate * (1 - rate) / 10_000) ** 0.5 + 1e-9


def test_noise_added_to_log_odds_draws_at_those_odds() -> None:
    draws = uniform_draws(2, torch.arange(50), torch.arange(400).expand(50, -1), 1)
    noise = logistic_noise(draws)
    assert torch.isfinite(noise).all()
    for rate in (0.1, 0.5, 0.9):
        log_odds = torch.tensor(rate).logit()
        assert abs(float((log_odds + noise > 0).float().mean()) - rate) < 0.015


def test_static_routes_run_the_same_layers_for_every_token_of_a_row() -> None:
    routes = (Route((0, 2, 3), 4), Route((1, 2), 4))
    decide = StaticRoutes(routes).start(step())
    hidden = torch.zeros(2, 3, 8)
    ran = [decide(layer, hidden) for layer in range(4)]
    assert ran[2] is None  # both run it
    assert [None if one is None else one.all(1).tolist() for one in ran] == [
        [True, False],
        [False, True],
        None,
        [True, False],
    ]
    one = StaticRoutes(routes[1])  # type: ignore[arg-type]
    assert one.routes == routes[1:] and one.for_sequences([3, 9]) is one
    assert StaticRoutes(routes).for_sequences([1, 1, 0]).routes == (routes[1], routes[1], routes[0])  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="2 routes for a batch of 3: give one, or one a sequence"):
        StaticRoutes(routes).start(step(3))


def test_what_passes_for_a_policy() -> None:
    route = Route((0,), 4)
    policy = Bernoulli((0.5,))
    assert as_policy(policy) is policy
    assert as_policy(route) == as_policy([route]) == StaticRoutes((route,))

    def every_second(layer: int, hidden: torch.Tensor) -> torch.Tensor:
        return torch.full(hidden.shape[:2], layer % 2 == 0)

    assert as_policy(every_second) == FunctionPolicy(every_second, "every_second")
    assert as_policy(every_second).start(step()) is every_second
    assert policy.flops_per_token(8, 90, 3.0) == 0
    with pytest.raises(NotImplementedError):
        TokenPolicy().start(step())
    for wrong in ("ee:3", 0.5, None, [], [route, 3], Bernoulli):
        with pytest.raises(InputError, match="is no token policy: pass gates, Bernoulli"):
            as_policy(wrong)


def test_gates_themselves_are_no_policy_yet() -> None:
    class Gates(torch.nn.Module):
        def policy(self, mode: str) -> TokenPolicy:
            raise NotImplementedError

    with pytest.raises(InputError, match=r"pass gates.policy\('sampled'\) or gates.policy\('argmax'\)"):
        as_policy(Gates())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Bernoulli((0.5, 1.2)),
            "Invalid probability that a layer runs 1.2: use a number",
        ),
        (lambda: Bernoulli((float("nan"),)), "Invalid probability that a layer runs nan"),
        (lambda: Bernoulli(0.5), "Rates are numbers, one a layer, not 0.5"),  # type: ignore[arg-type]
        (lambda: Bernoulli("half"), "Rates are numbers"),  # type: ignore[arg-type]
        (lambda: Bernoulli((0.5,), seed=0.5), "Invalid seed 0.5"),  # type: ignore[arg-type]
        (lambda: Bernoulli((0.5,) * 3).check(4, 8), "3 rates for a model of 4 layers: give one a layer"),
        (lambda: StaticRoutes("ee:3"), "takes Route objects, not 'ee:3'"),  # type: ignore[arg-type]
        (lambda: StaticRoutes(5), "takes Route objects, not 5"),  # type: ignore[arg-type]
        (lambda: StaticRoutes(()), "takes Route objects"),
        (lambda: StaticRoutes((Route((0,), 3),)).check(4, 8), "for a model of 3 layers, and this one has 4"),
        (lambda: ConfidenceExit("entropy", 0.5), "Unknown confidence 'entropy': use margin or saturation"),  # type: ignore[arg-type]
        (lambda: ConfidenceExit("margin", -0.1), "lies between 0 and 1, not at -0.1"),
        (lambda: ConfidenceExit("saturation", 1.1), "lies between -1 and 1, not at 1.1"),
        (lambda: ConfidenceExit("margin", "high"), "lies between 0 and 1, not at 'high'"),  # type: ignore[arg-type]
        (lambda: ConfidenceExit("margin", 0.5, first_layer=0), "Invalid first_layer"),
        (lambda: ConfidenceExit("margin", 0.5, first_layer=4).check(4, 8), "first_layer 4 lies outside a model of 4 layers"),
    ],
)
def test_settings_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_confidence_is_the_margin_of_the_two_likeliest_tokens() -> None:
    hidden = torch.tensor([[[2.0, 0.0, 0.0], [9.0, 0.0, 1.0], [0.0, 0.5, 0.0]]])
    margins = []
    for row in hidden[0]:
        likeliest, second, _ = sorted((row.exp() / row.exp().sum()).tolist(), reverse=True)
        margins.append(likeliest - second)
    for threshold in (0.0, 0.3, 0.9, 1.0):
        decide = ConfidenceExit("margin", threshold).start(step(1, 3))
        assert decide(0, hidden) is None
        ran = decide(1, hidden)
        assert ran is not None and ran[0].tolist() == [margin <= threshold for margin in margins]
        # Whoever has left is not asked again.
        ran = decide(2, hidden.flip(1))
        assert ran is not None
        assert ran[0].tolist() == [a <= threshold and b <= threshold for a, b in zip(margins, margins[::-1], strict=True)]


def test_saturation_is_the_cosine_of_a_layers_input_and_output_and_never_above_one() -> None:
    states = torch.randn(1, 500, 64, generator=torch.Generator().manual_seed(0))
    decide = ConfidenceExit("saturation", 1).start(step(1, 500))
    assert decide(0, states) is None
    for layer in range(1, 4):  # each layer left its input as it was
        ran = decide(layer, states)
        assert ran is not None and ran.all()
    decide = ConfidenceExit("saturation", 0.5).start(step(1, 2))
    decide(0, torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]))
    ran = decide(1, torch.tensor([[[1.0, 1.0], [1.0, 2.0]]]))  # cosines 0.71 and 0.45
    assert ran is not None and ran.tolist() == [[False, True]]


def test_a_policy_keeps_nothing_between_passes() -> None:
    policy = ConfidenceExit("margin", 0.1)
    hidden = torch.tensor([[[9.0, 0.0], [0.0, 0.0]]])
    first = policy.start(step(1, 2))
    assert first(1, hidden).tolist() == [[False, True]]  # type: ignore[union-attr]
    assert policy.start(step(1, 2))(1, hidden * 0).tolist() == [[True, True]]  # type: ignore[union-attr]


def test_names_say_what_is_asked_and_costs_grow_with_the_head() -> None:
    margin, cosine = ConfidenceExit("margin", 0.5), ConfidenceExit("saturation", 0.5)
    assert (margin.name, cosine.name) == ("margin>0.5", "saturation>0.5")
    assert margin.flops_per_token(8, 900, 3.0) > margin.flops_per_token(8, 90, 3.0) > cosine.flops_per_token(8, 90, 3.0) > 0
    assert margin.fingerprint != ConfidenceExit("margin", 0.6).fingerprint


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_of_a_hidden_state_are_the_models_own(name: str) -> None:
    """Scaled, capped and projected: a margin is of what the model would say if this were its last layer."""
    model, outputs = tiny(name), []
    hook = decoder_stack(model).layers[-1].register_forward_hook(lambda _, __, output: outputs.append(output))
    given = batch((5, 3))
    with torch.no_grad():
        expected = model(**given.inputs(model)).logits
        hook.remove()
        last = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
        assert torch.equal(head_of(model, last), expected)
        torch.testing.assert_close(head_of(model, last[:, 2]), expected[:, 2], rtol=1e-5, atol=1e-6)
    assert "forward" not in model.__dict__
