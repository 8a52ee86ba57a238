"""What is judged, a file for each level; together they hold one `Method` for every method of `Implementation`."""

from __future__ import annotations

from ..methods import Method
from . import layers, networks, scalars

#: Levels in data-flow order.
LEVELS: dict[str, tuple[Method, ...]] = {
    "scalars": scalars.METHODS,
    "layers": layers.METHODS,
    "network": networks.METHODS,
}

METHODS: dict[str, Method] = {method.name: method for methods in LEVELS.values() for method in methods}
