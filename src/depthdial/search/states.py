"""Hidden states of whole texts at full depth: what methods look at that drop layers without trying them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from depthdial.engine.session import Session
from depthdial.engine.teacher_forcing import right_padded
from depthdial.errors import InputError
from depthdial.hf.architectures import accepts, decoder_stack
from depthdial.views.passes import positions
from depthdial.views.snapshot import as_is
from depthdial.views.view import quiet_view


@dataclass(frozen=True)
class TextStates:
    """Directions of the hidden states of a batch of texts, padding left out.

    Attributes:
        units: (n_layers + 1, n_tokens, width) of length 1, in fp32: the input of each layer, and the output of the last
            one before the final norm.
    """

    units: torch.Tensor

    @property
    def n_tokens(self) -> int:
        return self.units.shape[1]


def text_states(session: Session, texts: Sequence[Sequence[int]]) -> TextStates:
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
    output = last[0][0] if isinstance(last[0], tuple) else last[0]
    is_token = mask.bool()
    stacked = torch.stack([state[is_token].float() for state in (*states, output)])
    if not torch.isfinite(stacked).all():
        raise InputError("The model's hidden states are not finite: try --dtype float32.")
    return TextStates(torch.nn.functional.normalize(stacked, dim=-1))
