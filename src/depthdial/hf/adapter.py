"""The card of an adapter trained by Depthdial, and the warning for a route that it was not trained for.

`depthdial finetune` leaves PEFT's own files and beside them `depthdial.json`, which names the base that the adapter was
trained on and the routes that it was trained for.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from depthdial.checks import choice
from depthdial.errors import InputError, RouteWarning, one_line
from depthdial.files import Document
from depthdial.hf.architectures import count_layers, unwrap
from depthdial.hf.trained import note_merging
from depthdial.hf.weights import weights_hash
from depthdial.routes import AnyRoute, Route
from depthdial.routes.families import RouteFamily, restored_routes, stored_routes

CARD_FILE = "depthdial.json"
# On the model inside PEFT's wrapper, from where views take it along.
_ATTRIBUTE = "depthdial_adapter"

_FILE = Document("depthdial-adapter", 1, "adapter card", "make one with `depthdial finetune`")

AdapterKind = Literal["elastic", "specialist"]
# The adapters that come with the package, by the built-in model that each is for.
_SHIPPED = {"smollm2-135m": "smollm2-135m-elastic"}


@dataclass(frozen=True)
class AdapterCard:
    """The contents of `depthdial.json`.

    Attributes:
        kind: `elastic` (one set of weights for several routes) or `specialist` (for one).
        base_name: what the base was loaded by when the adapter was trained.
        base_weights_hash, base_dtype: `weights_hash` of the untouched base and the type, such as `float32`, it was held in.
        prompt_depth: how prompts ran in training, `full` or `route`.
        routes: those it was trained for, under their names.
        training: JSON-ready record of the training.

    Raises:
        InputError: if there is no route, a route is for another depth, two share a name, or kind or type are unknown.

    Example:
        >>> dd.AdapterCard.load(folder / "adapter").kind
        'elastic'
    """

    kind: AdapterKind
    base_name: str
    base_weights_hash: str
    base_dtype: str
    n_layers: int
    prompt_depth: str
    routes: tuple[Route, ...]
    training: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        choice("kind of adapter", self.kind, get_args(AdapterKind))
        if not isinstance(getattr(torch, self.base_dtype, None), torch.dtype):
            raise InputError(f"Unknown type of weights {self.base_dtype!r}: write it as PyTorch does, such as float32.")
        RouteFamily(self.kind, self.n_layers, self.routes)  # its rules are the rules here

    def save(self, folder: Path | str) -> Path:
        """Write `depthdial.json` into a folder, by atomic rename."""
        changed = {"routes": stored_routes(self.routes), "training": dict(self.training)}
        return _FILE.write(Path(folder) / CARD_FILE, {**vars(self), **changed})

    @classmethod
    def load(cls, folder: Path | str) -> AdapterCard:
        """Read the card of a folder that `save` wrote to; InputError for a damaged or foreign one."""
        return _FILE.read(Path(folder) / CARD_FILE, cls._of)

    @classmethod
    def _of(cls, document: dict[str, Any]) -> AdapterCard:
        texts = ("base_name", "base_weights_hash", "base_dtype", "prompt_depth")
        if not all(isinstance(document[name], str) for name in texts):
            raise TypeError(f"{', '.join(texts)} are texts")
        told = {name: document[name] for name in ("kind", "n_layers", *texts)}
        routes = restored_routes(document["routes"], document["n_layers"])
        return cls(**told, routes=routes, training=dict(document.get("training", {})))

    def nearest(self, route: AnyRoute) -> Route:
        """The route of the family that stands in for another one.

        One with as many layers comes first, then the one that treats most layers alike (both run them or both skip them: by
        what both run alone, the full route would be near to everything), then the closest count.
        """
        layers = set(route.layers if isinstance(route, Route) else ())

        def distance(own: Route) -> tuple[bool, int, int, tuple[int, ...]]:
            return len(own) != len(route), len(layers ^ set(own.layers)), abs(len(own) - len(route)), own.layers

        return min(self.routes, key=distance)


@dataclass(frozen=True)
class _Attached:
    """A card on a model and all its views, with the names and layers of routes that have been warned of."""

    card: AdapterCard
    warned: set[tuple[str, str]] = field(default_factory=set)


def attach_card(model: Any, card: AdapterCard) -> None:
    """Have `adapter_card` find `card` on a model, PEFT-wrapped or not, and on the views made of it from now on."""
    unwrap(model).__dict__[_ATTRIBUTE] = _Attached(card)


def adapter_card(model: Any) -> AdapterCard | None:
    """The card of the adapter that `dd.load` put on a model: on PEFT's wrapper, the model inside it, or a view of either.

    None for a model without an adapter, or with one that has no card.

    Example:
        >>> adapted, _ = dd.load(folder / "model", adapter=folder / "adapter")
        >>> dd.adapter_card(adapted).routes[0].name
        'uls:3'
    """
    attached = unwrap(model).__dict__.get(_ATTRIBUTE)
    return None if attached is None else attached.card


def merged(model: Any) -> Any:
    """A model with its adapter merged into its weights, which changes them; a model without one as it is."""
    if not hasattr(model, "merge_and_unload"):
        return model
    training = model.training
    try:
        whole = model.merge_and_unload(safe_merge=True)
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        reason = one_line(error).rstrip(".")
        raise InputError(f"The adapter cannot be merged into the model ({reason}): use a LoRA, or a whole model.") from error
    whole.__dict__.pop(_ATTRIBUTE, None)
    note_merging(whole)
    return whole.train(training)


def check_base(card: AdapterCard, model: Any, folder: Path, label: str) -> None:
    """Refuse an adapter on a model, loaded by the name `label`, that it was not trained on."""
    n_layers = count_layers(model)
    is_same, held = compare_weights(model, card.base_weights_hash, card.base_dtype)
    if n_layers == card.n_layers and is_same:
        return
    raise InputError(
        f"The adapter {folder} is for {card.base_name} ({card.n_layers} layers, {card.base_dtype}, weights "
        f"{card.base_weights_hash[:12]}), and this is {label} ({n_layers} layers, {held}): load that model, in that type, "
        "or train an adapter for this one."
    )


def compare_weights(model: Any, expected_hash: str, expected_dtype: str) -> tuple[bool, str]:
    """Whether a model holds the weights that a hash was taken of, and what to say of those that it holds.

    A hash of weights holds for one floating type. Where the model is held in another one than `expected_dtype`, it is
    hashed as if it were in that one. This settles it if the model's own type is the wider; if it is the narrower, what
    rounding took away cannot be told from other weights, and they pass.
    """
    base = unwrap(model)
    dtype: torch.dtype = getattr(torch, expected_dtype)
    is_same_type = dtype == base.dtype
    is_rounded = torch.promote_types(dtype, base.dtype) != base.dtype
    found = weights_hash(base, None if is_same_type else dtype)
    seen = found[:12] if is_same_type else f"{found[:12]} as {expected_dtype}"
    return found == expected_hash or is_rounded, f"{str(base.dtype).removeprefix('torch.')}, weights {seen}"


def shipped_adapter(label: str) -> Path:
    """The folder of the elastic adapter that comes with Depthdial for a model's alias."""
    if label not in _SHIPPED:
        raise InputError(
            f'No elastic adapter ships for {label}: adapter="elastic" is for {", ".join(_SHIPPED)}; train one for another '
            "model with `depthdial finetune --elastic`."
        )
    folder = Path(__file__).parents[1] / "adapters" / _SHIPPED[label]
    if not (folder / CARD_FILE).is_file():
        raise InputError(
            f"The elastic adapter of {label} is not in this build of Depthdial: give the folder of an adapter that "
            "`depthdial finetune --elastic` made."
        )
    return folder


def warn_if_outside(model: Any, route: AnyRoute, *, stacklevel: int = 3) -> None:
    """Warn, once for each adapter and route, of a route that a model's adapter was not trained for.

    Of a view of fewer layers nothing can be said, for its layers are numbered anew.

    Args:
        stacklevel: whose line the warning names; 3 is the caller of the function that calls this one.
    """
    attached = unwrap(model).__dict__.get(_ATTRIBUTE)
    if attached is None or route.n_layers != attached.card.n_layers or route in attached.card.routes:
        return
    key = (route.name, str(route))
    if key in attached.warned:
        return
    attached.warned.add(key)
    card, nearest = attached.card, attached.card.nearest(route)
    instead = "; dd.untouched(model) runs the full model without it" if route.is_full else ""
    warnings.warn(
        f"The {card.kind} adapter of {card.base_name} was not trained for route {route.name!r}: the nearest is "
        f"{nearest.name!r} ({len(nearest)} layers: {nearest}){instead}.",
        RouteWarning,
        stacklevel=stacklevel,
    )
