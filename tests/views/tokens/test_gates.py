"""Gates: what they look at, how they decide, their files, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from depthdial.errors import InputError
from depthdial.hf.cache_name import cache_name, cache_of
from depthdial.views.tokens.gates import (
    GATE_INPUTS,
    GATE_KINDS,
    GateBase,
    GateConfig,
    TokenGates,
    position_features,
    unit_rms,
)
from depthdial.views.tokens.policy import TokenStep
from depthdial.views.tokens.view import TokenTrace, token_view
from tests.tiny import tiny

CONFIG = GateConfig(6, 32)


def step_of(n_sequences: int = 3, n_tokens: int = 5, width: int = 32, first: int = 0) -> TokenStep:
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(n_sequences, 40, width, generator=generator)
    positions = torch.arange(first, first + n_tokens).expand(n_sequences, n_tokens)
    return TokenStep(
        n_layers=6,
        positions=positions,
        keys=torch.arange(n_sequences) + 7,
        is_prompt=torch.zeros(n_sequences, n_tokens, dtype=torch.bool),
        embeddings=lambda: embeddings[:, first : first + n_tokens],
        logits=lambda hidden: hidden,
    )


def hidden_for(step: TokenStep, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*step.positions.shape, 32, generator=torch.Generator().manual_seed(2)) * scale


def undecided(gates: TokenGates, spread: float = 6.0) -> TokenGates:
    """Weights so large that decisions differ from token to token."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for gate in gates.gates.children():
            gate.biases[-1].zero_()
            gate.weights[-1].copy_(torch.randn(gate.weights[-1].shape, generator=generator) * spread * 32**0.5)
    return gates


# ---------------------------------------------------------------- the configuration


whole_configs = st.integers(3, 80).flatmap(
    lambda n_layers: st.builds(
        GateConfig,
        n_layers=st.just(n_layers),
        width=st.integers(1, 64),
        input=st.sampled_from(GATE_INPUTS),
        kind=st.sampled_from(GATE_KINDS),
        hidden_width=st.integers(1, 16),
        controlled=st.none() | st.sets(st.integers(0, n_layers - 1), min_size=1).map(tuple),
        run_bias=st.floats(-100, 100),
        seed=st.integers(-(2**70), 2**70),
    )
)


@given(whole_configs)
def test_a_configuration_is_itself_again_from_json(config: GateConfig) -> None:
    fields = json.loads(json.dumps(asdict(config)))
    assert GateConfig(**{**fields, "controlled": tuple(fields["controlled"])}) == config


@given(whole_configs)
def test_controlled_layers_are_sorted_and_say_what_can_be_reached(config: GateConfig) -> None:
    assert list(config.layers) == sorted(set(config.layers)) and set(config.layers) <= set(range(config.n_layers))
    assert config.lowest_fraction * config.n_layers == pytest.approx(config.n_layers - len(config.layers))


@given(whole_configs)
def test_gates_start_near_their_bias_and_give_two_logits(config: GateConfig) -> None:
    gates = TokenGates(config)
    x = unit_rms(torch.randn(4, config.width, generator=torch.Generator().manual_seed(0)))
    for layer in config.layers[:3]:
        assert gates.logits(layer, x).shape == (4, 2)
        assert (gates.log_odds(layer, x) - config.run_bias).abs().max() < 8 / min(
            config.width, config.hidden_width
        ) ** 0.5 + 4


def test_by_default_all_layers_but_the_ends_are_controlled() -> None:
    assert GateConfig(6, 32).controlled == (1, 2, 3, 4)
    assert GateConfig(6, 32, controlled=[5, 0]).controlled == (0, 5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"n_layers": 0}, "Invalid n_layers 0: use a whole number of at least 1"),
        ({"width": 2.5}, "Invalid width"),
        ({"hidden_width": True}, "Invalid hidden_width"),
        ({"input": "attention"}, "Unknown input of gates 'attention': use hidden, fixed"),
        ({"kind": "cnn"}, "Unknown kind of gates 'cnn': use linear or mlp"),
        ({"seed": "a"}, "Invalid seed"),
        ({"run_bias": float("nan")}, "Invalid run_bias"),
        ({"run_bias": 1e6}, "Invalid run_bias"),
        ({"run_bias": "2"}, "Invalid run_bias"),
        ({"n_layers": 2}, "2 layers has none between the first and the last"),
        ({"controlled": ()}, "No layer is controlled"),
        ({"controlled": (1, 6)}, "Invalid controlled layer 6: use a whole number of at least 0 and at most 5"),
        ({"controlled": (-1,)}, "Invalid controlled layer -1"),
        ({"controlled": (1.0,)}, "Invalid controlled layer 1.0"),
        ({"controlled": (2, 2)}, "named twice"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        replace(CONFIG, **{"controlled": None, **changes})


# ---------------------------------------------------------------- what gates look at


@pytest.mark.parametrize("name", GATE_INPUTS)
def test_inputs_have_unit_rms_and_no_gradient(name: str) -> None:
    step = step_of()
    see = TokenGates(replace(CONFIG, input=name)).inputs(step)
    seen = see(hidden_for(step, scale=1e3).requires_grad_())
    assert seen.shape == (3, 5, 32) and seen.dtype == torch.float32 and not seen.requires_grad
    torch.testing.assert_close(seen.square().mean(-1), torch.ones(3, 5))
    other = see(hidden_for(step) + 1)
    assert torch.equal(seen, other) == (name != "hidden")  # only a hidden state changes with the layer


def test_a_hidden_state_is_seen_without_its_norm() -> None:
    step = step_of()
    see = TokenGates(CONFIG).inputs(step)
    torch.testing.assert_close(see(hidden_for(step)), see(hidden_for(step, scale=1e3)))
    half = see(hidden_for(step).bfloat16())
    assert half.dtype == torch.float32


def test_a_fixed_input_is_one_vector_of_the_seed() -> None:
    def seen(seed: int) -> torch.Tensor:
        step = step_of()
        return TokenGates(replace(CONFIG, input="fixed", seed=seed)).inputs(step)(hidden_for(step))

    assert torch.equal(seen(4), seen(4)) and not torch.equal(seen(4), seen(5))
    assert torch.equal(seen(4), seen(4)[0, 0].expand(3, 5, 32))


def test_positions_are_told_apart_whatever_came_before() -> None:
    features = position_features(torch.arange(200), 32)
    assert (features @ features.T / 32).fill_diagonal_(0).max() < 0.999
    assert torch.equal(position_features(torch.tensor([[7, 8]]), 32)[0], features[7:9])
    assert position_features(torch.arange(3), 5).shape == (3, 5)  # an odd width


def test_embedding_and_position_is_their_sum() -> None:
    step, first = step_of(), step_of(first=3)
    gates = TokenGates(replace(CONFIG, input="embedding+position"))
    expected = unit_rms(unit_rms(step.embeddings()) + position_features(step.positions, 32))
    torch.testing.assert_close(gates.inputs(step)(hidden_for(step)), expected)
    assert not torch.equal(gates.inputs(first)(hidden_for(first)), expected)


# ---------------------------------------------------------------- how they decide


@pytest.mark.parametrize("name", GATE_INPUTS)
@pytest.mark.parametrize("kind", GATE_KINDS)
def test_argmax_runs_what_is_likelier_to_run(name: str, kind: str) -> None:
    gates = undecided(TokenGates(replace(CONFIG, input=name, kind=kind)))
    step = step_of()
    decide, hidden = gates.policy("argmax").start(step), hidden_for(step)
    assert decide(0, hidden) is None and decide(5, hidden) is None
    for layer in (1, 4):
        odds = gates.log_odds(layer, gates.inputs(step)(hidden))
        assert torch.equal(decide(layer, hidden), odds > 0)


def test_samples_come_at_the_gates_odds_and_by_counter() -> None:
    gates = TokenGates(replace(CONFIG, input="fixed", run_bias=-0.5))
    step = step_of(n_sequences=40, n_tokens=40)
    decide, hidden = gates.policy("sampled", seed=5).start(step), torch.zeros(40, 40, 32)
    rate = gates.log_odds(2, gates.get_buffer("fixed")).sigmoid().item()
    drawn = decide(2, hidden)
    assert drawn.float().mean().item() == pytest.approx(rate, abs=0.05)
    assert torch.equal(gates.policy("sampled", seed=5).start(step)(2, hidden), drawn)
    assert not torch.equal(gates.policy("sampled", seed=6).start(step)(2, hidden), drawn)
    assert not torch.equal(decide(3, hidden), drawn)
    # A token draws the same alone, later in the cache, and in another batch.
    alone = replace(step, positions=step.positions[7:8, 30:31], keys=step.keys[7:8], is_prompt=step.is_prompt[7:8, 30:31])
    assert torch.equal(gates.policy("sampled", seed=5).start(alone)(2, hidden[:1, :1]), drawn[7:8, 30:31])


@pytest.mark.parametrize("name", GATE_INPUTS)
@pytest.mark.parametrize("mode", ["sampled", "argmax"])
def test_cached_decoding_decides_as_one_pass_does(name: str, mode: str) -> None:
    model = tiny("llama")
    policy = undecided(TokenGates(replace(CONFIG, input=name, kind="mlp")), spread=2.0).policy(mode)
    ids = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(0))
    whole, pieces = TokenTrace(), TokenTrace()
    with torch.no_grad():
        expected = token_view(model, policy, trace=whole)(ids, prompt_columns=4).logits[:, 4:]
        routed = token_view(model, policy, trace=pieces)
        cache = cache_of(routed(ids[:, :4], use_cache=True))
        outputs = [routed(ids[:, i : i + 1], **{cache_name(): cache}, use_cache=True).logits for i in range(4, 9)]
    torch.testing.assert_close(torch.cat(outputs, 1), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(torch.cat([one.ran for one in pieces.passes], 1)[:, 4:], whole.passes[0].ran[:, 4:])
    ran = whole.passes[0].ran[:, 4:]
    assert ran[..., [0, 5]].all() and 0 < ran[..., 1:5].float().mean() < 1


def test_unknown_modes_and_other_models_are_refused() -> None:
    gates = TokenGates(CONFIG)
    with pytest.raises(InputError, match="Unknown mode of gates 'greedy': use sampled or argmax"):
        gates.policy("greedy")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"gates are for a model of 6 layers of width 32, and this one has 5 of width 32"):
        token_view(tiny("llama", 5), gates.policy("argmax"))
    named = TokenGates(replace(CONFIG, width=48), GateBase("my-model", "0" * 64, "float32"))
    with pytest.raises(InputError, match=r"of width 48 \(my-model\)"):
        token_view(tiny("llama"), named.policy("argmax"))


def test_what_deciding_costs() -> None:
    def flops(**changes) -> float:
        return TokenGates(replace(CONFIG, **changes)).policy("argmax").flops_per_token(32, 96, 4.0)

    assert flops(input="fixed") == 4 * 2 * 32 * 2
    assert flops() == 4 * (2 * 32 * 2 + 3 * 32)
    assert flops(input="fixed", kind="mlp", hidden_width=8) == 4 * (2 * 8 * 32 + 2 * 8 * 2)
    assert TokenGates(CONFIG).policy("sampled").name == "gates:hidden:sampled"


# ---------------------------------------------------------------- their files


@pytest.mark.parametrize("kind", GATE_KINDS)
def test_gates_come_back_as_they_were_saved(tmp_path, kind: str) -> None:
    gates = undecided(TokenGates(replace(CONFIG, kind=kind, seed=9), GateBase("a", "b" * 64, "float32"), {"steps": 3}))
    assert gates.save_pretrained(tmp_path / "new") == tmp_path / "new"
    again = TokenGates.from_pretrained(tmp_path / "new")
    assert (again.config, again.base, again.about) == (gates.config, gates.base, gates.about)
    assert all(torch.equal(tensor, gates.state_dict()[name]) for name, tensor in again.state_dict().items())
    assert again.state_dict().keys() == gates.state_dict().keys()
    assert torch.equal(again.get_buffer("fixed"), gates.get_buffer("fixed"))


def test_damaged_folders_are_refused(tmp_path) -> None:
    def complaint() -> str:
        with pytest.raises(InputError) as caught:
            TokenGates.from_pretrained(tmp_path)
        return str(caught.value)

    assert "holds no gates: give a folder that `depthdial train-gates` made" in complaint()
    (tmp_path / "gates.json").write_text("[]")
    assert "is not a gates file" in complaint()
    TokenGates(CONFIG).save_pretrained(tmp_path)
    document = json.loads((tmp_path / "gates.json").read_text())
    for changed, expected in (
        ({"version": 2}, "of version 2, not 1: make some with `depthdial train-gates`"),
        ({"config": {"n_layers": 6}}, "is a damaged gates file"),
        ({"config": {**document["config"], "input": "x"}}, "Unknown input of gates 'x'"),
        ({"base": {"name": "a"}}, "is a damaged gates file"),
        ({"config": {**document["config"], "width": 33}}, "does not hold the gates of gates.json"),
        ({"config": {**document["config"], "controlled": [1, 2]}}, "does not hold the gates of gates.json"),
    ):
        (tmp_path / "gates.json").write_text(json.dumps({**document, **changed}))
        assert expected in complaint()
    (tmp_path / "gates.json").write_text(json.dumps(document))
    tensors = load_file(tmp_path / "gates.safetensors")
    save_file(dict(list(tensors.items())[1:]), tmp_path / "gates.safetensors")
    assert "does not hold the gates of gates.json" in complaint()
    (tmp_path / "gates.safetensors").write_bytes(b"no tensors")
    assert "does not hold the gates of gates.json" in complaint()
    (tmp_path / "gates.safetensors").unlink()
    assert "does not hold the gates of gates.json" in complaint()
