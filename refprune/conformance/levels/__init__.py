"""What is judged, a file for each level; together they hold one `Method` for every method of `Implementation`.

What is in LEVELS has one right answer; what is in SAMPLED gives random numbers, which `sequential` judges."""

from __future__ import annotations

from ..asking.methods import Method
from . import complexity, layers, networks, pruning, sampled, scalars, similarity, theta, training

#: Levels, from the smallest part to the whole.
LEVELS: dict[str, tuple[Method, ...]] = {
    "scalars": scalars.METHODS,
    "layers": layers.METHODS,
    "network": networks.METHODS,
    "theta": theta.METHODS,
    "training": training.METHODS,
    "pruning": pruning.METHODS,
    "complexity": complexity.METHODS,
    "similarity": similarity.METHODS,
}

METHODS: dict[str, Method] = {method.name: method for methods in LEVELS.values() for method in methods}

#: Methods that draw random numbers of their own.
SAMPLED: dict[str, Method] = {method.name: method for method in sampled.METHODS}
