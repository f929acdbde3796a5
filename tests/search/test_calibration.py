from __future__ import annotations

import pytest

from depthdial.routes import Route


@pytest.mark.parametrize("prompt_depth", ["full", "route"])
def test_the_full_route_has_no_kl_and_any_other_has(calibrated, prompt_depth):
    calibration = calibrated("kl", prompt_depth=prompt_depth)
    assert calibration.harm(calibration.session.full) == 0
    assert calibration.harm(Route((0, 1, 3), 6)) > 0


@pytest.mark.parametrize("prompt_depth", ["full", "route"])
@pytest.mark.parametrize("metric", ["kl", "nll"])
def test_harm_does_not_depend_on_batches(calibrated, metric, prompt_depth):
    one, other = (calibrated(metric, size, prompt_depth=prompt_depth) for size in (1, 6))
    for route in (Route((0, 2, 5), 6), one.session.full):
        assert one.harm(route) == pytest.approx(other.harm(route), abs=1e-5)
    assert (one.n_sequences, one.n_tokens, one.context_tokens) == (other.n_sequences, other.n_tokens, other.context_tokens)


def test_states_are_of_prompts_and_answers_and_may_start_later(calibrated):
    calibration = calibrated(None, 2)
    whole = list(calibration.states())
    assert sum(units.shape[1] for units in whole) == calibration.n_tokens + calibration.n_prompt_tokens
    assert [units.shape[1] for units in calibration.states(1)] == [units.shape[1] for units in whole[1:]]


@pytest.mark.parametrize("prompt_depth", ["full", "route"])
def test_with_an_adapter_the_answers_are_the_untouched_models(calibrated, model, with_lora, prompt_depth):
    own = calibrated("kl").batches[0].texts
    adapted = with_lora(model, scale=4.0)
    calibration = calibrated("kl", over=adapted, prompt_depth=prompt_depth)
    assert calibration.batches[0].texts == own
    assert calibration.harm(calibration.session.full) > 0
