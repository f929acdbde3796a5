"""The best routes that are known of a model without searching: of its adapter, of its kind, or by rule of thumb."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from depthdial.errors import InputError, RouteWarning
from depthdial.hf.adapter import adapter_card
from depthdial.hf.architectures import count_layers, unwrap
from depthdial.routes import Route, family_routes
from depthdial.routes.families import RouteFamily

# Families that come with the package, searched on the untouched model, by the alias that each is for.
_SHIPPED = {name: f"{name}.json" for name in ("smollm2-135m", "qwen2.5-coder-1.5b")}


def best_known_routes(model: Any) -> tuple[Route, ...]:
    """Routes of a model, the full one among them, cheapest first.

    `searched_routes`; else uniform skipping that keeps the last layer (`unified`), with a RouteWarning that a search would
    find better ones.
    """
    if (known := searched_routes(model)) is not None:
        return known
    warnings.warn(
        "Nothing is known of which layers this model can do without, so layers are skipped uniformly: `depthdial search` "
        "finds better routes, to be given as routes=FILE.",
        RouteWarning,
        stacklevel=3,
    )
    n_layers = count_layers(model)
    return _with_full(family_routes("unified", n_layers), n_layers)


def searched_routes(model: Any) -> tuple[Route, ...] | None:
    """Those that its adapter was trained for, or that ship for this very model, cheapest first; None without any."""
    n_layers = count_layers(model)
    card = adapter_card(model)
    if card is not None:
        return _with_full(card.routes, n_layers)
    shipped = _SHIPPED.get(str(getattr(unwrap(model).config, "name_or_path", "")))
    family = None if shipped is None else RouteFamily.load(Path(__file__).parents[1] / "searched" / shipped)
    return _with_full(family.routes, n_layers) if family is not None and family.n_layers == n_layers else None


def check_share(share: float) -> float:
    """InputError unless a depth in numbers is a share of the layers."""
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise InputError(f"A depth is a route, or a share of the layers above 0 and at most 1 such as 0.5, not {share!r}.")
    return share


def route_within(routes: tuple[Route, ...], share: float) -> Route:
    """The deepest of some routes that costs at most this share of the layers."""
    check_share(share)
    # A share such as 0.8 of 30 layers may come out a hair below 24.
    fitting = [route for route in routes if route.cost <= share * (1 + 1e-9)]
    if not fitting:
        least = min(routes, key=len)
        raise InputError(
            f"No known route of this model costs at most {share:g} of its layers: the cheapest, {least.name!r}, costs "
            f"{least.cost:.3g}; give more, or a route of your own."
        )
    return max(fitting, key=len)


def _with_full(routes: Any, n_layers: int) -> tuple[Route, ...]:
    full = Route(tuple(range(n_layers)), n_layers, "full")
    shallow = [route for route in routes if not route.is_full]
    return (*sorted(shallow, key=len), full)
