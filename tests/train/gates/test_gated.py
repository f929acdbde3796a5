"""Hard decisions forward, soft gradients back; and what the fraction of layers run is a mean over."""

from __future__ import annotations

import pytest
import torch

from depthdial.engine.prefill import left_padded
from depthdial.engine.teacher_forcing import right_padded, whole_logits
from depthdial.train.gates.gated import GatedModel, RelaxedGates
from depthdial.views.tokens.gates import GateConfig, TokenGates
from depthdial.views.tokens.view import token_view

PROMPTS = [[1, 5, 9, 4], [1, 7]]
RESPONSES = [[8, 6, 10, 2], [9, 11, 2]]


def batch_of(prompts=PROMPTS, responses=RESPONSES) -> dict[str, torch.Tensor]:
    prompt_ids, prompt_mask = left_padded(prompts, 0, "cpu")
    response_ids, response_mask = right_padded(responses, 0, "cpu")
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "response_ids": response_ids,
        "response_mask": response_mask,
    }


def gates_with(**config) -> TokenGates:
    return TokenGates(GateConfig(6, 32, **config))


def run(model, gates: TokenGates, batch=None, temperature: float = 1.0, **options):
    return GatedModel(model, gates, **options)(**(batch or batch_of()), temperature=temperature)


def test_gates_that_all_run_are_the_model_itself(model):
    output = run(model, gates_with(run_bias=60.0))
    torch.testing.assert_close(output.logits, whole_logits(model, **batch_of()), atol=2e-5, rtol=1e-4)
    assert output.ran == output.expected == 1
    assert output.n_routed == 5  # every token but the last of a response


def test_prompts_run_every_layer_and_so_do_first_predictions(model):
    full = whole_logits(model, **batch_of())
    output = run(model, gates_with(run_bias=-60.0))
    torch.testing.assert_close(output.logits[:, 0], full[:, 0], atol=2e-5, rtol=1e-4)
    assert not torch.allclose(output.logits[:, 1:], full[:, 1:], atol=1e-2)
    assert output.ran.item() == output.expected.item() == pytest.approx(2 / 6)
    on_route = run(model, gates_with(run_bias=-60.0), prompt_depth="route")
    assert not torch.allclose(on_route.logits[:, 0], full[:, 0], atol=1e-2)
    assert on_route.ran.item() == pytest.approx(2 / 6)


def test_the_fraction_is_a_mean_over_tokens_and_not_over_padding(model):
    gates = gates_with(input="position", run_bias=0.5)
    together = run(model, gates)
    alone = [run(model, gates, batch_of([prompt], [response])) for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    assert [one.n_routed for one in alone] == [3, 2]
    assert together.expected.item() == pytest.approx((3 * alone[0].expected + 2 * alone[1].expected).item() / 5, abs=1e-6)
    torch.testing.assert_close(together.rates.sum() + 2, together.expected * 6)
    # The second response's inputs stand behind a prompt of two tokens.
    decide = gates.log_odds(2, gates.inputs(_step([[2, 3]]))(torch.zeros(1, 2, 32))).sigmoid().mean()
    assert alone[1].rates[1].item() == pytest.approx(decide.item(), abs=1e-6)


def _step(positions):
    from depthdial.views.tokens.policy import TokenStep

    places = torch.tensor(positions)
    return TokenStep(6, places, places[:, 0], places < 0, lambda: torch.zeros(()), lambda hidden: hidden)


def test_what_ran_is_drawn_at_the_odds(model):
    torch.manual_seed(0)
    gates = gates_with(input="fixed", run_bias=0.3)
    drawn = torch.stack([run(model, gates).ran for _ in range(60)])
    assert drawn.mean().item() == pytest.approx(run(model, gates).expected.item(), abs=0.03)
    assert drawn.unique().numel() > 5


def test_the_gradient_of_the_expected_fraction_is_exact(model):
    gates = gates_with(input="fixed", run_bias=0.7)
    run(model, gates).expected.backward()
    for layer in (1, 4):
        p = gates.log_odds(layer, gates.get_buffer("fixed")).sigmoid()
        assert gates.gates[str(layer)].biases[0].grad[1].item() == pytest.approx((p * (1 - p)).item() / 6, rel=1e-4)


@pytest.mark.parametrize("name", ["hidden", "fixed", "embedding+position"])
def test_gradients_reach_gates_at_tokens_that_run_and_at_those_that_skip(model, name):
    torch.manual_seed(1)
    policy = RelaxedGates(gates_with(input=name, run_bias=0.0))
    odds: list[torch.Tensor] = []
    decide_of = policy.start

    def start(step):
        decide = decide_of(step)

        def kept(layer, hidden):
            decision = decide(layer, hidden)
            if decision is not None:
                policy.odds[-1].retain_grad()
                assert set(decision.detach().unique().tolist()) <= {0.0, 1.0}
            return decision

        return kept

    policy.start = start
    logits = whole_logits(token_view(model, policy, execution="dense"), **batch_of(), prompt_columns=4)
    logits.square().sum().backward()
    odds, hard = policy.odds, policy.hard
    assert len(odds) == 4
    real = batch_of()["response_mask"][:, :-1].bool()
    gradients = torch.stack([one.grad[:, 4:] for one in odds])
    ran = torch.stack(hard)[:, :, 4:].bool() & real
    skipped = ~torch.stack(hard)[:, :, 4:].bool() & real
    assert ran.any() and skipped.any()
    assert (gradients[ran] != 0).all() and (gradients[skipped] != 0).all()
    assert (torch.stack([one.grad[:, :4] for one in odds]) == 0).all()  # the prompt decides nothing
    assert model.model.layers[2].mlp.up_proj.weight.grad is not None


def test_the_temperature_is_honoured():
    gates = gates_with(input="fixed", run_bias=0.4)

    def slope(temperature):
        torch.manual_seed(5)
        policy = RelaxedGates(gates)
        policy.temperature = temperature
        decide = policy.start(_step([[0, 1, 2]]))
        decision = decide(1, torch.zeros(1, 3, 32))
        gates.zero_grad()
        decision.sum().backward()
        return decision.detach(), gates.gates["1"].biases[0].grad[1].item()

    torch.manual_seed(5)
    draws = torch.rand(1, 3)
    noisy = gates.log_odds(1, gates.get_buffer("fixed")).item() + draws.logit()
    for temperature in (0.3, 1.0, 4.0):
        decision, gradient = slope(temperature)
        soft = (noisy / temperature).sigmoid()
        assert torch.equal(decision, (noisy > 0).float())
        assert gradient == pytest.approx((soft * (1 - soft) / temperature).sum().item(), rel=1e-4)


def test_a_response_without_routed_tokens_counts_for_nothing(model):
    output = run(model, gates_with(), batch_of([[1, 5]], [[8, 0]]) | {"response_mask": torch.tensor([[1, 0]])})
    assert output.n_routed == 0 and torch.isfinite(output.expected)


def test_parameters_are_those_of_the_model_and_stand_there_once(model):
    gated = GatedModel(model, gates_with())
    names = {name for name, _ in gated.named_parameters()}
    gated(**batch_of(), temperature=1.0).logits.sum().backward()
    assert {name for name, _ in gated.named_parameters()} == names
    assert {name.partition(".")[0] for name in names} == {"model", "gates"}
    assert all(p.grad is not None for p in gated.parameters())
