"""Routes: which layers of a decoder run. Value objects, their grammar and their families; standard library only.

A *route* is the set of layers that run; the others leave the hidden state as it is (arXiv 2410.20022, section 3). Layers
are counted from 0. The grammar, for a model of L layers (a count `c` may be a percentage of L, such as `50%`):

| text              | runs                                                                                    |
| ----------------- | --------------------------------------------------------------------------------------- |
| `full`            | every layer                                                                             |
| `ee:c`            | early exit: the first c layers                                                          |
| `uls:c`           | uniform layer skipping: layers floor(i * L / c), i = 0..c-1                             |
| `unified:c`       | uniform layer skipping with its last index replaced by L-1 (Liu et al., arXiv 2404.06954) |
| `rls:c@seed`      | random layer skipping: layer 0 and c-1 others, drawn anew for every sequence            |
| `rls-wo1:c@seed`  | the same without layer 0 being certain                                                  |
| `drop:20-24`      | every layer but these                                                                   |
| `0-3,8,12-29`     | exactly these                                                                           |
| `24-24`           | layer 24 alone: a bare `24` is refused, for it reads as a count of layers               |

The random ones are rules and not routes: `for_sequence(id)` draws the route of one sequence from (seed, id).
"""

from __future__ import annotations

import hashlib
import itertools
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypeVar

from depthdial.checks import whole
from depthdial.errors import InputError

GRAMMAR = (
    "full, ee:12, uls:12, unified:12, rls:12@0, rls-wo1:12@0, drop:20-24 or layers such as 0-3,8,12-29 "
    "(a count may be a percentage, as in uls:50%)"
)
# Numbers of at most nine digits: Python refuses to read those of thousands, with an error of its own.
_LAYER_ITEM = re.compile(r"\d{1,9}(?:\s*-\s*\d{1,9})?")
_BARE_COUNT = re.compile(r"\d{1,9}(?:\.\d{1,9})?\s*%?")
_MOST_LAYERS = 10_000  # a typing slip such as 1000000000 layers must be an error, not a full memory


class _Costed:
    """Of routes and rules: what follows from how many of the `n_layers` layers run."""

    n_layers: Any
    cost_layers: Any

    @property
    def cost(self) -> float:
        """The fraction of the model's layers that run, in (0, 1]."""
        return self.cost_layers / self.n_layers

    @property
    def is_full(self) -> bool:
        return self.cost_layers == self.n_layers

    def __len__(self) -> int:
        return self.cost_layers


@dataclass(frozen=True)
class Route(_Costed):
    """The layers that run, out of a model's `n_layers`. Frozen and hashable; equal when layers and depth are equal.

    Attributes:
        layers: indices from 0, strictly increasing, at least one.
        n_layers: number of layers of the whole model, L.
        name: how reports call the route; the text it was parsed from, or its canonical text. Not compared.
        searched_on: hashes of the prompts that a search found it on, which may not judge it. Not compared.
        searched_for: `full` or `route`, how prompts ran in the search that found it; None if not known. Not compared.

    Raises:
        InputError: (a ValueError) for no layers, or layers that are unsorted, repeated, or outside the model.

    Example:
        >>> route = dd.Route.parse("uls:50%", n_layers=6)
        >>> route.layers, route.cost
        ((0, 2, 4), 0.5)
    """

    layers: tuple[int, ...]
    n_layers: int
    name: str = field(default="", compare=False)
    searched_on: frozenset[str] = field(default=frozenset(), compare=False, repr=False)
    searched_for: str | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        whole("n_layers", self.n_layers, 1, _MOST_LAYERS)
        if isinstance(self.layers, str | bytes) or not isinstance(self.layers, Iterable):
            raise InputError(
                f"Route takes layer indices, not {self.layers!r}: use Route.parse for text, or a tuple such as (0, 1, 5)."
            )
        layers = tuple(_as_index(layer) for layer in self.layers)
        object.__setattr__(self, "layers", layers)
        _check_layers(layers, self.n_layers)
        if not self.name:
            object.__setattr__(self, "name", str(self))

    @classmethod
    def parse(cls, text: str, n_layers: int) -> Route | RandomRoute:
        """The route (or, for `rls` and `rls-wo1`, the random rule) that `text` names for a model of `n_layers` layers.

        Raises:
            InputError: if the text is not in the grammar or names layers that the model does not have.
        """
        whole("n_layers", n_layers, 1, _MOST_LAYERS)
        if not isinstance(text, str):
            raise InputError(f"A route is written as text, not {text!r}: use {GRAMMAR}.")
        spec = text.strip().lower()
        if not spec:
            raise InputError(f"The route is empty: use {GRAMMAR}.")
        if spec == "full":
            return cls(tuple(range(n_layers)), n_layers, "full")
        if _BARE_COUNT.fullmatch(spec):
            raise _bare_count(spec, n_layers)
        kind, colon, argument = spec.partition(":")
        if not colon:
            return cls(_layer_items(spec, spec, n_layers), n_layers)
        if kind == "drop":
            return _parse_drop(argument, n_layers)
        if kind in RANDOM_FAMILIES:
            return _parse_random(kind, argument, n_layers)
        if kind in FIXED_FAMILIES:
            cost_layers = _parse_count(argument, n_layers, spec)
            return cls(FIXED_FAMILIES[kind](cost_layers, n_layers), n_layers, f"{kind}:{cost_layers}")
        raise InputError(f"Unknown route {text!r}: use {GRAMMAR}.")

    @property
    def cost_layers(self) -> int:
        """How many layers run."""
        return len(self.layers)

    @property
    def skipped(self) -> tuple[int, ...]:
        """The layers that do not run."""
        return tuple(sorted(set(range(self.n_layers)) - set(self.layers)))

    def for_sequence(self, sequence_id: object) -> Route:
        """Itself: a fixed route is the same for every sequence (the counterpart of `RandomRoute.for_sequence`)."""
        return self

    def __str__(self) -> str:
        """Canonical text (`full` or layer ranges); `Route.parse(str(route), route.n_layers) == route`."""
        if self.is_full:
            return "full"
        if len(self.layers) == 1:  # never the bare number, which reads as a count of layers
            return f"{self.layers[0]}-{self.layers[0]}"
        return format_layers(self.layers)


@dataclass(frozen=True)
class RandomRoute(_Costed):
    """A rule that draws one route per sequence: random layer skipping (arXiv 2410.20022, section 3; Figure 4).

    Drawn once per sequence from (seed, sequence id), the same in every process, run and Python version: the layers with
    the smallest SHA-256 of (kind, seed, cost, id, layer) run, which is a uniform draw without replacement.

    Attributes:
        kind: `rls` (layer 0 always runs) or `rls-wo1` (no layer is certain).
        cost_layers: how many layers run.

    Example:
        >>> dd.Route.parse("rls:3@0", n_layers=6).for_sequence("prompt-7").n_layers
        6
    """

    kind: str
    cost_layers: int
    n_layers: int
    seed: int = 0

    def __post_init__(self) -> None:
        whole("n_layers", self.n_layers, 1, _MOST_LAYERS)
        if self.kind not in RANDOM_FAMILIES:
            raise InputError(f"Unknown random family {self.kind!r}: use one of {', '.join(RANDOM_FAMILIES)}.")
        for name, value in (("cost_layers", self.cost_layers), ("seed", self.seed)):
            whole(f"{name} of a random route", value, 0)
        _check_count(self.cost_layers, self.n_layers, self.name)

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.cost_layers}@{self.seed}"

    def for_sequence(self, sequence_id: object) -> Route:
        """The route of one sequence. `sequence_id` is identified by its text, so that 7 and "7" are one sequence."""
        certain = (0,) if self.kind == "rls" else ()
        others = sorted((i for i in range(self.n_layers) if i not in certain), key=lambda i: self._rank(sequence_id, i))
        drawn = others[: self.cost_layers - len(certain)]
        return Route(tuple(sorted((*certain, *drawn))), self.n_layers, self.name)

    def _rank(self, sequence_id: object, layer: int) -> bytes:
        key = f"{self.kind}|{self.seed}|{self.cost_layers}|{self.n_layers}|{layer}|{sequence_id}"
        return hashlib.sha256(key.encode()).digest()

    def __str__(self) -> str:
        return self.name


AnyRoute = Route | RandomRoute


R = TypeVar("R", bound=Any)  # a route, a rule, or a policy in a route's place


def _uniform(cost_layers: int, n_layers: int) -> tuple[int, ...]:
    # As the paper's released preset (L=24, c=12: 0, 2, .., 22) and Figure 3. In integers: no rounding can move a layer.
    return tuple(i * n_layers // cost_layers for i in range(cost_layers))


FIXED_FAMILIES: dict[str, Callable[[int, int], tuple[int, ...]]] = {
    "ee": lambda cost_layers, n_layers: tuple(range(cost_layers)),
    "uls": _uniform,
    "unified": lambda cost_layers, n_layers: (*_uniform(cost_layers, n_layers)[:-1], n_layers - 1),
}
RANDOM_FAMILIES = ("rls", "rls-wo1")
FAMILIES = (*FIXED_FAMILIES, *RANDOM_FAMILIES)


def family_routes(name: str, n_layers: int, *, seed: int = 0) -> tuple[AnyRoute, ...]:
    """The routes of a family at every cost 1..L, cheapest first (paper, Figure 3).

    Raises:
        InputError: if `name` is not one of `FAMILIES` or `n_layers` is not a positive whole number.

    Example:
        >>> [route.name for route in dd.family_routes("ee", n_layers=3)]
        ['ee:1', 'ee:2', 'ee:3']
    """
    whole("n_layers", n_layers, 1, _MOST_LAYERS)
    if name not in FAMILIES:
        raise InputError(f"Unknown family {name!r}: use one of {', '.join(FAMILIES)}.")
    suffix = f"@{seed}" if name in RANDOM_FAMILIES else ""
    return tuple(Route.parse(f"{name}:{c}{suffix}", n_layers) for c in range(1, n_layers + 1))


def require_depth(route: R, n_layers: int) -> R:
    """`route`, once it is sure that it was made for a model of `n_layers` layers; InputError otherwise."""
    if not isinstance(getattr(route, "n_layers", None), int):
        raise InputError(f"A route is text such as 'uls:50%', or layers such as (0, 1, 5), not {repr(route)[:60]}.")
    if route.n_layers != n_layers:
        raise InputError(
            f"Route {route.name!r} is for a model of {route.n_layers} layers but this one has {n_layers}: "
            f"parse it again with n_layers={n_layers}."
        )
    return route


def stored_route(text: str, n_layers: int) -> AnyRoute:
    """The route that a document holds as `str(route)`: there a bare number is a layer, as older versions wrote it.

    Raises:
        InputError: if the text is not in the grammar or names layers that the model does not have.
    """
    if isinstance(text, str) and re.fullmatch(r"\d{1,9}", text):
        text = f"{text}-{text}"
    return Route.parse(text, n_layers)


def leading_layers(route: Route) -> int:
    """How many layers run before the first that a route skips."""
    return next((place for place, layer in enumerate(route.layers) if layer != place), len(route.layers))


def format_layers(layers: Sequence[int]) -> str:
    """Layer indices as ranges: (0, 1, 2, 5) -> "0-2,5"."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def split_routes(text: str) -> list[str]:
    """The single routes of a list such as `full,uls:12,0-3,8,drop:4-6`.

    Commas separate both routes and layers: a bare layer item joins the layer list (or `drop:`) before it. Two layer lists
    in a row are separated by `;` or a space.
    """
    routes: list[str] = []
    text = re.sub(r"\s*,\s*", ",", text)  # "0-3, 8" is one layer list
    for part in re.split(r"[;\s]+", text.strip()):
        joins = False
        for item in filter(None, part.split(",")):
            is_layer = _LAYER_ITEM.fullmatch(item) is not None
            if is_layer and joins:
                routes[-1] += f",{item}"
            else:
                routes.append(item)
            joins = is_layer or item.lower().startswith("drop:")
    return routes


def _bare_count(spec: str, n_layers: int) -> InputError:
    number = int(spec) if spec.isdigit() else -1
    ways = [] if number >= 0 else ["uls:50% or ee:50% for a share of the layers"]
    if 1 <= number <= n_layers:
        ways.append(f"uls:{number} or ee:{number} for {number} of the {n_layers} layers")
    if 0 <= number < n_layers:
        ways.append(f"{number}-{number} for layer {number} alone")
    told = ", ".join(ways) or f"uls:{n_layers} or less, as this model has {n_layers} layers"
    return InputError(f"Route {spec!r} is a bare number, which does not say which layers run: write {told}.")


def _parse_drop(argument: str, n_layers: int) -> Route:
    dropped = _layer_items(argument, f"drop:{argument}", n_layers)
    _check_layers(dropped, n_layers)
    if len(dropped) == n_layers:
        raise InputError(f"Route 'drop:{argument}' leaves no layer to run: keep at least one of the {n_layers}.")
    layers = tuple(sorted(set(range(n_layers)) - set(dropped)))
    return Route(layers, n_layers, f"drop:{format_layers(dropped)}")


def _parse_random(kind: str, argument: str, n_layers: int) -> RandomRoute:
    count, at, seed = argument.partition("@")
    spec = f"{kind}:{argument}"
    if at and not re.fullmatch(r"\d{1,18}", seed.strip()):
        raise InputError(f"Route {spec!r} needs a whole number from 0 as its seed: write it as {kind}:{count or 12}@0.")
    return RandomRoute(kind, _parse_count(count, n_layers, spec), n_layers, int(seed) if at else 0)


def _parse_count(text: str, n_layers: int, spec: str) -> int:
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*(%?)\s*", text)
    if match is None or ("." in match[1] and not match[2]):
        raise InputError(
            f"Route {spec!r} needs a number of layers from 1 to {n_layers} or a percentage after the colon: use {GRAMMAR}."
        )
    # Half a layer rounds up: 50% of 15 layers are 8. In fractions, for in floats 29% of 50 is less than 14.5.
    count = int(Fraction(match[1]) * n_layers / 100 + Fraction(1, 2)) if match[2] else int(match[1])
    return _check_count(count, n_layers, spec)


def _check_count(count: int, n_layers: int, spec: str) -> int:
    if not 1 <= count <= n_layers:
        raise InputError(
            f"Route {spec!r} asks for {count} of {n_layers} layers: use a count from 1 to {n_layers} or up to 100%."
        )
    return count


def _layer_items(text: str, spec: str, n_layers: int) -> tuple[int, ...]:
    layers: list[int] = []
    for item in (part.strip() for part in text.split(",")):
        if _LAYER_ITEM.fullmatch(item) is None:
            raise InputError(f"Unknown route {spec!r}: use {GRAMMAR}.")
        first, _, last = (part.strip() for part in item.partition("-"))
        if last and int(last) < int(first):
            raise InputError(f"The range {item!r} in route {spec!r} runs backwards: write it as {last}-{first}.")
        _check_exists(int(last or first), n_layers)  # before the range is written out
        layers.extend(range(int(first), int(last or first) + 1))
    return tuple(layers)


def _as_index(layer: object) -> int:
    try:
        if not isinstance(layer, bool):
            return operator.index(layer)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise InputError(f"Layer indices are whole numbers, not {layer!r}: write the route as (0, 1, 5).")


def _check_layers(layers: Sequence[int], n_layers: int) -> None:
    if not layers:
        raise InputError("The route is empty: keep at least one layer.")
    for before, after in itertools.pairwise(layers):
        if after == before:
            raise InputError(f"Layer {after} stands twice in the route: name every layer once.")
        if after < before:
            right = format_layers(sorted(set(layers)))
            raise InputError(f"The layers of a route must rise, but {after} follows {before}: write it as {right!r}.")
    for layer in (layers[0], layers[-1]):
        _check_exists(layer, n_layers)


def _check_exists(layer: int, n_layers: int) -> None:
    if not 0 <= layer < n_layers:
        raise InputError(f"Layer {layer} does not exist: this model has layers 0 to {n_layers - 1}.")
