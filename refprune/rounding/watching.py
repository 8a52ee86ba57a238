"""A backend that keeps what goes into its functions with kinks: ReLU and max pooling."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..arrays import Array
from ..backend import Backend


class KinkInput(NamedTuple):
    """One call of a function with a kink.

    x: its input. options: its keyword arguments without `branch`; "slope" is among them for ReLU, "kernel" for max pooling.
    """

    x: Array
    options: Mapping[str, Any]


def watching(backend: Backend, seen: list[KinkInput]) -> Backend:
    """The same backend, whose `leaky_relu` and `max_pool` append what they are called with to `seen`."""

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(x: Array, **options: Any) -> Any:
            seen.append(KinkInput(x, {name: value for name, value in options.items() if name != "branch"}))
            return function(x, **options)

        return run

    return dataclasses.replace(backend, leaky_relu=noting(backend.leaky_relu), max_pool=noting(backend.max_pool))
