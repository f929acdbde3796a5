from __future__ import annotations

import numpy as np
import pytest
import torch

from depthdial.engine.session import Session
from depthdial.errors import InputError
from depthdial.hf.untouched import untouched
from depthdial.measure import features as module
from depthdial.measure.features import FeatureRows, FeatureSpec, features_of, watched_prefill
from depthdial.measure.plan import make_plan
from depthdial.routes import Route

FULL = Route(tuple(range(6)), 6, "full")
SHALLOW = Route((0, 1, 3, 5), 6)


def full_spec(**changes):
    return FeatureSpec.of(6, 32, [FULL, SHALLOW], "full")


def plan_of(model, tokenizer, task, kind="sweep"):
    return make_plan(model, tokenizer, task, ["full"], prompt_depth="full", identity=None, settings={"kind": kind})


def test_features_are_what_the_model_itself_says(model, tokenizer, small_task):
    spec = full_spec()
    assert spec.watched == (1, 2, 3, 5) and spec.n_features == 4 + 4 * 2 * 32
    found = FeatureRows(plan_of(model, tokenizer, small_task), spec, 3).collect()
    assert found.sequence_ids == tuple(e.id for e in small_task.examples)
    for row, example in zip(found.matrix, small_task.examples, strict=True):
        ids = torch.tensor([tokenizer(example.instruction)["input_ids"]])
        with torch.no_grad():
            output = model(ids, output_hidden_states=True)
        p = output.logits[0, -1].softmax(-1)
        top = p.topk(2).values
        scalars = [np.log(ids.shape[1]), -(p * p.log()).sum(), top[0], top[0] - top[1]]
        assert row[:4] == pytest.approx([float(s) for s in scalars], abs=1e-4)
        # transformers' hidden_states[l + 1] is after layer l, but for the last, which is after the norm
        for group, layer in zip(spec.groups[1:], (1, 1, 2, 2, 3, 3), strict=False):
            states = output.hidden_states[layer + 1][0]
            pooled = states[-1] if (group.start - 4) // 32 % 2 == 0 else states.mean(0)
            assert row[group] == pytest.approx(pooled.numpy(), abs=1e-4)


def test_groups_part_the_features():
    spec = full_spec()
    covered = np.concatenate([np.arange(group.start, group.stop) for group in spec.groups])
    assert covered.tolist() == list(range(spec.n_features))


def test_on_the_route_only_the_shared_layers_are_known(model, tokenizer):
    spec = FeatureSpec.of(6, 32, [FULL, SHALLOW], "route")
    assert (spec.prompt_layers, spec.watched, spec.scalars) == (2, (1,), ("log_prompt_tokens",))
    session = Session.of(model, tokenizer)
    prefilled = watched_prefill(session, [[5, 6, 7], [8]], spec)
    assert prefilled.route.layers == (0, 1)
    whole = features_of(watched_prefill(session, [[5, 6, 7], [8]], full_spec()), full_spec())
    np.testing.assert_allclose(features_of(prefilled, spec)[:, 1:], whole[:, 4 : 4 + 64], atol=1e-5)
    with pytest.raises(InputError, match="do not share the first layer"):
        FeatureSpec.of(6, 32, [FULL, Route((1, 2), 6)], "route")


def test_an_adapter_does_not_show_in_the_prompt(model, tokenizer, with_lora):
    plain = features_of(watched_prefill(Session.of(model, tokenizer), [[5, 6]], full_spec()), full_spec())
    adapted = with_lora(model)
    session = Session.of(adapted, tokenizer)
    np.testing.assert_allclose(features_of(watched_prefill(session, [[5, 6]], full_spec()), full_spec()), plain, atol=1e-5)
    with untouched(adapted):
        pass


def test_a_stopped_run_goes_on(model, tokenizer, small_task, tmp_path, monkeypatch):
    plan, spec = plan_of(model, tokenizer, small_task), full_spec()
    whole = FeatureRows(plan, spec, 2).collect()
    real, passes = module.features_of, []

    def dies_in_the_third(*arguments):
        passes.append(1)
        if len(passes) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "features_of", dies_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        FeatureRows(plan, spec, 2, tmp_path).collect()
    passes[:] = [1, 1, 1]
    again = FeatureRows(plan, spec, 2, tmp_path).collect()
    assert len(passes) == 3 + 2
    assert np.array_equal(again.matrix, whole.matrix) and again.sequence_ids == whole.sequence_ids


def test_specifications_round_trip_and_damage_is_told():
    spec = full_spec()
    assert FeatureSpec.restore(spec.settings()) == spec
    for change in ({"watched": []}, {"watched": [6]}, {"prompt_layers": 0}, {"width": "x"}):
        with pytest.raises(InputError, match="stored features are damaged"):
            FeatureSpec.restore({**spec.settings(), **change})


def test_states_that_are_not_finite_are_told(model, tokenizer, small_task):
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.fill_(torch.nan)
    with pytest.raises(InputError, match="not finite"):
        FeatureRows(plan_of(model, tokenizer, small_task), full_spec(), 3).collect()
