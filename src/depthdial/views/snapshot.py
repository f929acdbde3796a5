"""The model as measurements run it: all layers as a view in evaluation mode, with its adapters or without them.

A view has modes and adapter switches of its own. So neither is ever set on the model that was given: whoever trains or uses
it in another thread meanwhile notices nothing, and afterwards, or after an exception, there is nothing to put back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from depthdial.hf.architectures import count_layers, unwrap
from depthdial.hf.untouched import refuse_without_switch, switch_off
from depthdial.views.view import quiet_view

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def snapshot(model: Any, *, adapters: bool = True) -> PreTrainedModel:
    """A view of all layers in evaluation mode; without `adapters` the untouched model's, whose adapters are off for good.

    Raises:
        InputError: for a model that cannot be viewed, and for adapters that cannot be switched off exactly.
    """
    base = unwrap(model)
    if not adapters:
        refuse_without_switch(base)
    view: Any = quiet_view(base, range(count_layers(base))).eval()
    if not adapters:
        switch_off(view)
    return view


@contextmanager
def as_is(device: torch.device) -> Iterator[None]:
    """What is measured is the model as it is: inside, neither autocast nor a default device of the caller's is in force.

    Gradients are off. All three are this thread's own and come back afterwards. `device` is the model's.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield
