"""Layers that are skipped are not computed, in any way of running a model: counted inside the layers themselves.

What is counted is calls of each layer's MLP and the tokens in them, by a hook on the caller's own model that every view of
it inherits. So a layer that ran and was then undone or masked, as early-exit libraries do, would be seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch

import depthdial as dd
from depthdial.engine.prefill import left_padded
from depthdial.engine.prefixes import SharedPrefixes
from depthdial.engine.session import Session
from depthdial.engine.teacher_forcing import forced_logits, forced_states
from depthdial.routes import Route
from tests.tiny_controllers import fit_tiny, prompts

N_LAYERS = 6
# Of at least two tokens each, so that a pass over a prompt is told from a step of decoding.
PROMPTS = ["the cat", "a dog sat on the mat", "one two three", "it was", "the dog ran to the cat and sat"]
NEW_TOKENS = 5
SKIPPING = Route((0, 2, 5), N_LAYERS)
SKIPPED = (1, 3, 4)


@dataclass
class Seen:
    """What ran of a model.

    Attributes:
        steps: tokens by layer, in calls of one token a sequence.
        tokens: by layer, in all calls.
        calls: by layer.
    """

    steps: Counter[int] = field(default_factory=Counter)
    tokens: Counter[int] = field(default_factory=Counter)
    calls: Counter[int] = field(default_factory=Counter)

    def note(self, layer: int, hidden: torch.Tensor) -> None:
        n_tokens = hidden.numel() // hidden.shape[-1]
        self.calls[layer] += 1
        self.tokens[layer] += n_tokens
        if hidden.shape[-2] == 1 or hidden.ndim == 2:
            self.steps[layer] += n_tokens


@pytest.fixture(autouse=True)
def probed(model, tokenizer):
    """The first view and the first batch of a kind of model are compared with transformers' own ways: not here."""
    dd.generate(model, tokenizer, PROMPTS, depth=SKIPPING, max_new_tokens=2)


@contextmanager
def counted(model) -> Iterator[Seen]:
    seen = Seen()

    def listen(layer: int):
        return lambda _, inputs: seen.note(layer, inputs[0])

    hooks = [layer.mlp.register_forward_pre_hook(listen(i)) for i, layer in enumerate(model.model.layers)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def expected_steps(answers) -> dict[int, int]:
    """Steps by layer of answers on routes: the first token of each comes out of the prompt's pass."""
    steps = Counter(dict.fromkeys(range(N_LAYERS), 0))
    for answer in answers:
        steps.update({layer: len(answer.tokens) - 1 for layer in answer.route.layers})
    return dict(steps)


def answer(model, tokenizer, depth, **options):
    asked = {"prompts": PROMPTS, "max_new_tokens": NEW_TOKENS, "eos_token_id": None, **options}
    return dd.generate(model, tokenizer, depth=depth, **asked)


def test_a_layer_that_runs_is_counted_whatever_runs_it(model, tokenizer):
    """The yardstick itself: a hook that undoes a layer leaves the counts as they are."""
    undo = model.model.layers[1].register_forward_hook(lambda _, inputs, __: inputs[0])
    with counted(model) as seen:
        answer(model, tokenizer, "full")
    undo.remove()
    assert seen.steps[1] == seen.steps[0] == len(PROMPTS) * (NEW_TOKENS - 1)


@pytest.mark.parametrize("depth", ["full", "0,2,5", "ee:2", "rls:3@1", ["0,2,5", "full", "ee:1", "1-4", "0,2,5"]], ids=str)
@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_step_runs_the_layers_of_each_prompts_own_route_alone(model, tokenizer, depth, batch_size):
    with counted(model) as seen:
        answers = answer(model, tokenizer, depth, batch_size=batch_size)
    steps = expected_steps(answers)
    assert {layer: seen.steps[layer] for layer in range(N_LAYERS)} == steps
    assert sum(steps.values()) == sum(len(a.route) * (len(a.tokens) - 1) for a in answers) > 0


@pytest.mark.parametrize("schedule", ["layer-major", "by-route"])
def test_an_engine_runs_the_layers_of_each_requests_own_route_alone(model, tokenizer, schedule):
    depths = ["0,2,5", "full", "ee:1", "1-4", "0,2,5"]
    with counted(model) as seen, dd.Engine(model, tokenizer, schedule=schedule) as engine:
        answers = engine.run(PROMPTS, depth=depths, max_new_tokens=NEW_TOKENS, eos_token_id=None)
    assert {layer: seen.steps[layer] for layer in range(N_LAYERS)} == expected_steps(answers)


@pytest.mark.parametrize("sampling", [{"do_sample": True, "seed": 1}, {"repetition_penalty": 1.2}, {"guidance_scale": 1.5}])
def test_sampling_processors_and_guidance_run_no_other_layers(model, tokenizer, sampling):
    with counted(model) as seen:
        answer(model, tokenizer, SKIPPING, prompt_depth="route", **sampling)
    assert all(seen.calls[layer] == 0 for layer in SKIPPED) and seen.steps[0] > 0


def test_a_prompt_on_the_route_meets_no_skipped_layer_either(model, tokenizer):
    with counted(model) as seen:
        answer(model, tokenizer, SKIPPING, prompt_depth="route")
    assert set(seen.calls) == set(SKIPPING.layers)


def test_views_run_their_layers_alone_under_transformers_generate(model, tokenizer):
    ids = torch.tensor([tokenizer(PROMPTS[1])["input_ids"]])
    options = {
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": NEW_TOKENS,
        "do_sample": False,
        "eos_token_id": None,
    }
    with counted(model) as seen:
        dd.view(model, SKIPPING).generate(ids, **options)
    assert set(seen.calls) == set(SKIPPING.layers)
    with counted(model) as seen:
        dd.prompted_view(model, SKIPPING).generate(ids, **options)
    assert [seen.calls[layer] for layer in range(N_LAYERS)] == [
        NEW_TOKENS if layer in SKIPPING.layers else 1 for layer in range(N_LAYERS)
    ]


@pytest.mark.parametrize("policy", [dd.Bernoulli((1.0, 0.5, 0.3, 0.6, 0.4, 1.0), seed=3), dd.ConfidenceExit("margin", 0.2)])
def test_token_policies_compute_a_layer_for_the_tokens_that_run_it(model, tokenizer, policy):
    with counted(model) as seen:
        answers = answer(model, tokenizer, policy, batch_size=5)
    ran = sum(a.layers_run * (len(a.tokens) - 1) for a in answers)
    all_of_them = N_LAYERS * len(PROMPTS) * (NEW_TOKENS - 1)
    assert 0 < ran < all_of_them
    # A layer that no token runs at first computes one, to learn the form of what it returns.
    assert ran <= sum(seen.steps.values()) <= ran + N_LAYERS


def test_a_controller_runs_the_route_that_it_picks(model, tokenizer):
    controller = fit_tiny(model, tokenizer)
    with counted(model) as seen:
        answers = answer(model, tokenizer, controller, batch_size=16, prompts=prompts())
    assert len({a.route for a in answers}) > 1
    assert {layer: seen.steps[layer] for layer in range(N_LAYERS)} == expected_steps(answers)


def test_teacher_forcing_runs_the_route_alone(model, tokenizer):
    session = Session.of(model, tokenizer)
    prefilled = session.prefill_ids([tokenizer(prompt)["input_ids"] for prompt in PROMPTS[:2]])
    tokens, mask = left_padded([[4, 5, 6, 7]] * 2, 0, "cpu")
    for run in (forced_logits, forced_states):
        with counted(model) as seen:
            own = Session.of(model, tokenizer)  # a session is a snapshot, which has the hooks of its time
            run(own.model, SKIPPING, prefilled, tokens, mask)
        assert set(seen.calls) == set(SKIPPING.layers) and set(seen.calls.values()) == {1}


def test_routes_that_begin_alike_run_what_they_share_once(model, tokenizer):
    with counted(model) as seen:
        session = Session.of(model, tokenizer)
        prefilled = session.prefill_ids([tokenizer(PROMPTS[1])["input_ids"]])
        tokens, mask = left_padded([[4, 5, 6, 7]], 0, "cpu")
        shared, routes = SharedPrefixes(), [Route(layers, N_LAYERS) for layers in ((0, 1, 2, 5), (0, 1, 5), (0, 1, 2, 4))]
        calls = []
        for route in (*routes, *routes):
            seen.calls.clear()
            forced_logits(session.model, route, prefilled, tokens, mask, shared)
            calls.append(dict(seen.calls))
    # The second tries both ways once, to see whether they agree.
    assert calls == [{0: 1, 1: 1, 2: 1, 5: 1}, {0: 1, 1: 1, 5: 2}, {4: 1}, {}, {}, {}]


@pytest.mark.parametrize("metrics", [("rouge_l",), ("nll", "kl", "agreement", "rouge_l")], ids="+".join)
def test_a_sweep_runs_no_layer_that_its_routes_skip(model, tokenizer, small_task, metrics):
    """But for the prompts and, where routes are compared with it, the full model itself."""

    def run(routes, prompt_depth):
        with counted(model) as seen:
            dd.sweep(
                model,
                tokenizer,
                task=small_task,
                routes=routes,
                metrics=metrics,
                max_new_tokens=NEW_TOKENS,
                fidelity_tokens=NEW_TOKENS,
                prompt_depth=prompt_depth,
            )
        return seen

    shallow = ["0,2,5", "0,5"]
    if metrics == ("rouge_l",):
        for seen in (run(shallow, "route"), run(shallow, "full")):
            # One batch, whose prompts run every layer once, for what else is measured of them.
            assert all(seen.steps[layer] == 0 and seen.calls[layer] == 1 for layer in SKIPPED)
            assert seen.steps[0] > seen.steps[2] > 0  # one route of two has layer 2
    beside, alone = run(["full", *shallow], "full"), run(["full"], "full")
    assert all(beside.tokens[layer] == alone.tokens[layer] for layer in SKIPPED)
    assert all(beside.tokens[layer] > alone.tokens[layer] for layer in (2, 5))


@pytest.mark.parametrize("method", ["greedy", "single-drop", "beam"])
def test_a_search_runs_at_most_the_layers_of_its_candidates(model, tokenizer, small_task, method):
    """Beside the full model's own answers, and their pass."""
    with counted(model) as seen:
        family = dd.search_routes(model, tokenizer, task=small_task, method=method, min_layers=4, answer_tokens=NEW_TOKENS)
    with counted(model) as reference:
        dd.search_routes(model, tokenizer, task=small_task, method="angular", min_layers=4, answer_tokens=NEW_TOKENS)
    assert {len(route) for route in family.routes} == {4, 5, 6}
    passes = family.made_by["passes"]
    # Every candidate drops a layer at least, and what it shares with an earlier one is not run again.
    assert 0 < sum(seen.calls.values()) - sum(reference.calls.values()) <= passes * (N_LAYERS - 1)
