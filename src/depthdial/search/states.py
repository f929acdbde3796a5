"""Hidden states of whole texts at full depth: what methods look at that drop layers without trying them.

States are directions: (n_layers + 1, n_tokens, width) of length 1, in fp32, the input of each layer and the output of the
last one before the final norm, padding left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from depthdial.engine.session import Session
from depthdial.engine.teacher_forcing import right_padded
from depthdial.errors import InputError
from depthdial.hf.architectures import accepts, decoder_stack, layer_states
from depthdial.search.method import Memory, Problem
from depthdial.views.passes import positions
from depthdial.views.snapshot import as_is
from depthdial.views.view import quiet_view


def text_states(session: Session, texts: Sequence[Sequence[int]]) -> torch.Tensor:
    """One pass of every layer over some texts.

    Raises:
        InputError: if a state is not finite.
    """
    model = quiet_view(session.model, session.full)
    last: list[Any] = []
    # The last of transformers' hidden states is after the final norm; the view's layers are its own to hook.
    decoder_stack(model).layers[-1].register_forward_hook(lambda _, __, output: last.append(output))
    tokens, mask = right_padded(texts, session.pad_token_id, session.device)
    inputs: dict[str, Any] = {"input_ids": tokens, "attention_mask": mask, "output_hidden_states": True, "use_cache": False}
    if accepts(model, "position_ids"):
        inputs["position_ids"] = positions(mask)
    if accepts(model, "logits_to_keep"):
        inputs["logits_to_keep"] = 1
    with as_is(session.device):
        states = model(**inputs).hidden_states[:-1]
    is_token = mask.bool()
    return directions(torch.stack([state[is_token].float() for state in (*states, layer_states(last[0]))]))


def directions(states: torch.Tensor) -> torch.Tensor:
    """States scaled to length 1; InputError if one is not finite."""
    if not torch.isfinite(states).all():
        raise InputError("The model's hidden states are not finite: try --dtype float32.")
    return torch.nn.functional.normalize(states, dim=-1)


def mean_over_tokens(
    problem: Problem, memory: Memory, of: Callable[[torch.Tensor], torch.Tensor], advance: Callable[[float], None]
) -> torch.Tensor:
    """Mean over all tokens of `of`, which makes states one score, or one table of scores, for each token: (n_tokens, ..).

    Summed batch by batch, going on where a stop left it.
    """
    n_done, n_tokens = memory.state.get("batches", 0), memory.state.get("tokens", 0)
    total = torch.tensor(memory.state.get("total", 0.0), dtype=torch.float64)
    for i, units in enumerate(problem.states(n_done), start=n_done + 1):
        total = total + of(units).double().sum(0).cpu()
        n_tokens += units.shape[1]
        memory.keep({"batches": i, "tokens": n_tokens, "total": total.tolist()})
        advance(1)
    return total / n_tokens
