"""The folder that `depthdial train-gates` leaves, put on a model: gates, and the adapter that was trained beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from depthdial.errors import InputError
from depthdial.hf.adapter import compare_weights
from depthdial.hf.architectures import unwrap
from depthdial.hf.facts import ModelFacts
from depthdial.hf.untouched import adapter_modules
from depthdial.views.adapted import adapted_view
from depthdial.views.tokens.depth import TokenDepth
from depthdial.views.tokens.gates import GATES_FILE, GateMode, TokenGates

_ADAPTER_FILE = "adapter_config.json"


def load_gates(folder: Path | str, model: Any, *, weights_hash: str | None = None) -> tuple[Any, TokenGates]:
    """Gates with the weights that they were trained beside.

    Args:
        folder: what `train_gates` left.
        model: the model that they were trained on; where the whole backbone was trained with them, the model in the same
            folder. It is not changed.
        weights_hash: of its weights in the type that it is held in, where known; otherwise all weights are read once.

    Returns:
        (model, gates), for `token_view(model, gates.policy("sampled"))`: the model itself or, where an adapter was trained
        beside the gates, PEFT's wrapper of a view of it with the adapter on.

    Raises:
        InputError: if the folder holds no gates or damaged ones, or they are for another model.

    Example:
        >>> model, gates = dd.load_gates(folder / "gates", model)
        >>> view = dd.token_view(model, gates.policy("argmax"))
    """
    folder = Path(folder).expanduser()
    gates = TokenGates.from_pretrained(folder)
    base = unwrap(model)
    facts = ModelFacts.of(base)
    gates.check_fit(facts.n_layers, facts.width)
    has_adapter = (folder / _ADAPTER_FILE).is_file()
    if has_adapter and adapter_modules(base):
        raise InputError(f"The gates {folder} bring an adapter of their own: load the model without one.")
    if gates.base is not None and weights_hash != gates.base.weights_hash:
        is_same, held = compare_weights(model, gates.base.weights_hash, gates.base.dtype)
        if not is_same:
            raise InputError(
                f"The gates of {folder / GATES_FILE} are for {gates.base.name} ({gates.base.dtype}, weights "
                f"{gates.base.weights_hash[:12]}), and this model holds others ({held}): load that model, or train gates "
                "for this one."
            )
    if has_adapter:
        model = adapted_view(base, folder, facts.name)
    gates.to(next(base.get_input_embeddings().parameters()).device)
    return model, gates.eval().requires_grad_(False)


def gates_depth(gates: TokenGates, mode: GateMode, seed: int = 0) -> TokenDepth:
    """Gates at work, with the keys and values that they were trained with."""
    policy = gates.policy(mode, seed)
    key_values = gates.about.get("settings", {}).get("key_values", "project")
    return TokenDepth(policy, gates.config.n_layers, key_values, policy.name)
