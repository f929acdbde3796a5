"""The cost of every layer in one unit, for a search to weigh against the harm of dropping it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Layers(Protocol):
    """A route, of which this room needs no more."""

    @property
    def layers(self) -> tuple[int, ...]: ...

    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class LayerCosts:
    """The cost of every layer in one unit.

    Attributes:
        unit: `layers`, `flops` (per response token) or `ms` (per decoding step, measured).
        by_layer: (n_layers,), all above 0.
        about: JSON-ready, how they were found.
    """

    unit: str
    by_layer: tuple[float, ...]
    about: Mapping[str, Any]

    def of(self, route: Layers) -> float:
        return sum(self.by_layer[i] for i in route.layers)

    def saved(self, dropped: Sequence[int]) -> float:
        """What dropping these layers saves, in units of the costliest layer: their number, where all cost the same."""
        most = max(self.by_layer)
        return sum(self.by_layer[i] / most for i in dropped)

    def rate(self, harm: float, dropped: Sequence[int]) -> float:
        """Harm for each unit of cost that dropping these layers saves; to be ordered by, the smallest first.

        A drop that does good (`harm` below 0) does the more of it the more it saves. Where all layers cost the same, it
        orders sets of as many layers as `harm` does.
        """
        saved = self.saved(dropped)
        return harm / saved if harm > 0 else harm * saved

    def record(self, routes: Sequence[Layers]) -> dict[str, Any]:
        """For a family's `made_by`: the unit, the cost of each layer and of each route."""
        return {
            "unit": self.unit,
            **self.about,
            "by_layer": list(self.by_layer),
            "routes": {route.name: self.of(route) for route in routes},
        }
