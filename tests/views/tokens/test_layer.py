"""Layers run for some tokens equal the dense reference, which computes everything and masks: to 1e-5 in fp32."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from depthdial.errors import InputError
from depthdial.views.tokens.layer import check_arguments, gathered
from depthdial.views.tokens.view import token_view
from tests.tiny import ARCHITECTURES, tiny
from tests.views.tokens.dense import (
    KEY_VALUES,
    MAIN,
    NO_COPY,
    ONLY_EAGER,
    REFUSED,
    Batch,
    Dense,
    Table,
    batch,
    drawn,
    error,
    in_chunks,
)

SUPPORTED = [name for name in ARCHITECTURES if name not in REFUSED]
OTHERS = [name for name in SUPPORTED if name not in MAIN]
CHUNKS = {"one token at a time": range(1, 13), "uneven": (7, 8, 9, 12)}
BATCH, RAN = batch(), drawn()
TWO = batch((12, 7), seed=4)
PADDED_AWAY = batch((12, 2, 5, 1, 4), seed=3)  # whole passes of padding, for some rows, in chunks


@functools.cache
def base(name: str, attention: str) -> PreTrainedModel:
    model = tiny(name, attn_implementation=attention)
    assert model.config._attn_implementation == attention
    return model


@functools.cache
def reference(name: str, attention: str, key_values: str, given: Batch = BATCH) -> list[torch.Tensor]:
    dense = Dense(base(name, attention))
    with torch.no_grad():
        return [dense(ids, ran[: len(ids)], key_values).logits[0] for ids, ran in zip(given.rows(), RAN, strict=False)]


@torch.no_grad()
def routed(
    name: str, attention: str, key_values: str, execution: str, ends: Sequence[int] | None = None, given: Batch = BATCH
) -> list[torch.Tensor]:
    model = base(name, attention)
    view = token_view(model, Table(RAN), key_values=key_values, prompt_depth="route", execution=execution)  # type: ignore[arg-type]
    logits = in_chunks(view, given, ends) if ends else view(**given.inputs(model), use_cache=False).logits
    return given.rows(logits)


def attentions(names: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, kind) for name in names for kind in ("sdpa", "eager") if kind == "eager" or name not in ONLY_EAGER]


@pytest.mark.parametrize("key_values", KEY_VALUES)
@pytest.mark.parametrize(("name", "attention"), attentions(MAIN))
def test_routed_tokens_equal_the_dense_reference(name: str, attention: str, key_values: str) -> None:
    expected = reference(name, attention, key_values)
    for execution in ("gather", "dense"):
        assert error(routed(name, attention, key_values, execution), expected) < 1e-5
        for ends in CHUNKS.values() if execution == "gather" else [CHUNKS["uneven"]]:
            assert error(routed(name, attention, key_values, execution, ends), expected) < 1e-5


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_equal_it_too(name: str) -> None:
    attention = "eager" if name in ONLY_EAGER else "sdpa"
    for key_values in KEY_VALUES:
        if key_values == "copy" and name in NO_COPY:
            with pytest.raises(InputError, match=r"caches of different shapes.*'project' or 'drop'"):
                routed(name, attention, key_values, "gather")
            continue
        expected = reference(name, attention, key_values, TWO)
        assert error(routed(name, attention, key_values, "gather", CHUNKS["uneven"], TWO), expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("execution", ["gather", "dense"])
@pytest.mark.parametrize("key_values", KEY_VALUES)
@pytest.mark.parametrize(("name", "attention"), attentions(SUPPORTED))
def test_all_of_it(name: str, attention: str, key_values: str, execution: str) -> None:
    if key_values == "copy" and name in NO_COPY:
        with pytest.raises(InputError, match="caches of different shapes"):
            routed(name, attention, key_values, execution)
        return
    for padded in (BATCH, PADDED_AWAY):
        expected = reference(name, attention, key_values, padded)
        for ends in (None, *CHUNKS.values()):
            assert error(routed(name, attention, key_values, execution, ends, padded), expected) < 1e-5


@pytest.mark.parametrize("key_values", KEY_VALUES)
@pytest.mark.parametrize("name", MAIN)
def test_one_sequence_alone_and_rows_whose_chunks_are_all_padding(name: str, key_values: str) -> None:
    attention = "eager"
    expected = reference(name, attention, key_values)
    alone = Batch(BATCH.ids[:1], BATCH.mask[:1])
    assert error(routed(name, attention, key_values, "gather", CHUNKS["uneven"], alone), expected[:1]) < 1e-5
    expected = reference(name, attention, key_values, PADDED_AWAY)
    assert error(routed(name, attention, key_values, "gather", CHUNKS["uneven"], PADDED_AWAY), expected) < 1e-5


@pytest.mark.parametrize("execution", ["gather", "dense"])
def test_padding_on_the_right_as_in_training(execution: str) -> None:
    model, lengths = base("llama", "sdpa"), (12, 5, 9)
    mask = (torch.arange(12) < torch.tensor(lengths)[:, None]).long()
    given = Batch(BATCH.ids[[0]].expand(3, -1).masked_fill(mask == 0, 0), mask)
    view = token_view(model, Table(RAN), key_values="drop", prompt_depth="route", execution=execution)  # type: ignore[arg-type]
    dense = Dense(model)
    with torch.no_grad():
        ours = given.rows(view(**given.inputs(model)).logits)
        theirs = [dense(ids, ran[: len(ids)], "drop").logits[0] for ids, ran in zip(given.rows(), RAN[:3], strict=True)]
    assert error(ours, theirs) < 1e-5


def test_the_reference_can_tell_modes_and_decisions_apart() -> None:
    for name in MAIN:
        one = {key_values: reference(name, "eager", key_values) for key_values in KEY_VALUES}
        assert all(error(one[a], one[b]) > 1e-2 for a in KEY_VALUES for b in KEY_VALUES if a != b)
        with torch.no_grad():
            other = RAN[0].clone()
            other[3, 2] ^= True
            changed = Dense(base(name, "eager"))(BATCH.rows()[0], other).logits[0]
        assert error([changed], one["project"][:1]) > 1e-3


def test_no_mask_at_all_is_a_batch_without_padding() -> None:
    for name in ("llama", "gpt2"):
        for attention in ("sdpa", "eager"):
            model = base(name, attention)
            view = token_view(model, Table(RAN), key_values="drop", prompt_depth="route")
            with torch.no_grad():
                ours = view(input_ids=BATCH.ids[:1]).logits
            assert error([ours[0]], reference(name, attention, "drop")[:1]) < 1e-5


def test_where_attention_is_scaled_by_place_the_length_is_bounded() -> None:
    model = tiny("llama4_text", floor_scale=12, attn_scale=0.5)
    view = token_view(model, Table(RAN), prompt_depth="route")
    short = Batch(BATCH.ids[:1, :11], BATCH.mask[:1, :11])
    with torch.no_grad():
        ours = in_chunks(view, short, (5, 6, 11))
        expected = Dense(model)(short.ids[0], RAN[0, :11]).logits
        assert error([ours], [expected]) < 1e-5
        with pytest.raises(InputError, match="scales its attention by place from token 12 on"):
            view(**BATCH.inputs(model))
    everything = token_view(model, Table(torch.ones_like(RAN)), prompt_depth="route")
    with torch.no_grad():
        for ends in ((11,), (5, 6, 11)):
            # Not bit for bit: a stock cache lets go of what its windows hide, and a token cache masks it.
            assert error([in_chunks(everything, short, ends)], [in_chunks(model, short, ends)]) < 1e-6


@given(rows=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
def test_a_plan_takes_the_chosen_tokens_in_order_and_fills_up_with_others(rows: list[list[bool]]) -> None:
    plan = gathered(torch.tensor(rows))
    chosen = {i: [j for j, is_chosen in enumerate(row) if is_chosen] for i, row in enumerate(rows) if any(row)}
    if not chosen:
        assert plan is None
        return
    assert plan is not None and plan.rows is not None and plan.columns is not None
    assert plan.rows.tolist() == list(chosen)
    assert plan.columns.shape[1] == max(map(len, chosen.values()))
    is_real = torch.ones_like(plan.columns, dtype=torch.bool) if plan.is_real is None else plan.is_real
    for columns, real, expected in zip(plan.columns, is_real, chosen.values(), strict=True):
        assert columns[real].tolist() == expected
        assert len(set(columns.tolist())) == len(columns)
        assert real.tolist() == sorted(real.tolist(), reverse=True)


def test_unknown_tensors_for_a_layer_are_refused() -> None:
    check_arguments("Layer", {"position_ids": torch.zeros(1), "flag": True, "attention_mask": torch.zeros(1)})
    with pytest.raises(InputError, match=r"Layer calls its layers with 'memory'.*dd\.view"):
        check_arguments("Layer", {"memory": torch.zeros(1)})
