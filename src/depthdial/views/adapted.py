"""An adapter on a view: the model that it is put on stays as it is, and both share all of its weights."""

from __future__ import annotations

import os
from typing import Any

from depthdial.hf.architectures import count_layers, unwrap
from depthdial.hf.load import resolve_adapter, with_adapter
from depthdial.views.view import quiet_view


def adapted_view(model: Any, adapter: str | os.PathLike[str], label: str) -> Any:
    """PEFT's wrapper of a view of a whole model; PEFT would put its layers into the very modules that it is given.

    Args:
        adapter: as `dd.load` takes it.
        label: what the model was loaded by.

    Raises:
        InputError: if the adapter is damaged, or for another model.
    """
    base = unwrap(model)
    adapted = with_adapter(quiet_view(base, range(count_layers(base))), resolve_adapter(adapter, label), label)
    return adapted.eval()
