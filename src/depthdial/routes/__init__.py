"""Routes, their grammar, and families of them."""

from depthdial.routes.route import (
    FAMILIES,
    FIXED_FAMILIES,
    RANDOM_FAMILIES,
    AnyRoute,
    RandomRoute,
    Route,
    family_routes,
    format_layers,
    require_depth,
    split_routes,
    stored_route,
)

__all__ = [
    "FAMILIES",
    "FIXED_FAMILIES",
    "RANDOM_FAMILIES",
    "AnyRoute",
    "RandomRoute",
    "Route",
    "family_routes",
    "format_layers",
    "require_depth",
    "split_routes",
    "stored_route",
]
