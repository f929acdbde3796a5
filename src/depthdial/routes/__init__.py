"""Routes, their grammar, and families of them."""

from depthdial.routes.route import FAMILIES as FAMILIES
from depthdial.routes.route import FIXED_FAMILIES as FIXED_FAMILIES
from depthdial.routes.route import RANDOM_FAMILIES as RANDOM_FAMILIES
from depthdial.routes.route import AnyRoute as AnyRoute
from depthdial.routes.route import RandomRoute as RandomRoute
from depthdial.routes.route import Route as Route
from depthdial.routes.route import family_routes as family_routes
from depthdial.routes.route import leading_layers as leading_layers
from depthdial.routes.route import require_depth as require_depth
from depthdial.routes.route import split_routes as split_routes
from depthdial.routes.route import stored_route as stored_route
