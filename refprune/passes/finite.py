"""Results that are no numbers: refused with the layer in which they begin, because an accuracy of NaN is that of class 0."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..arrays import Array
from ..backend import Backend
from ..errors import InputError
from ..spec.network import Network
from .tape import forward


def check_finite(
    what: str,
    values: Array,
    network: Network,
    backend: Backend,
    params: Mapping[str, Array],
    statistics: Mapping[str, Array],
    x: Array,
) -> None:
    """InputError unless all `values`, computed by the network from x (N×input_shape), are finite numbers.

    what: what the values are, for the message.
    """
    if np.isfinite(values).all():
        return
    first = "of none of its layers alone, but of several taken together"
    if not np.isfinite(x).all():
        first = "already of the inputs"
    else:
        for name in _not_finite(network, backend, params, statistics, x):
            first = f"first of the layer {name}"
            break
    raise InputError(f"network: {what} are not all finite numbers, {first}; its weights do not fit its inputs or its spec")


def _not_finite(
    network: Network, backend: Backend, params: Mapping[str, Array], statistics: Mapping[str, Array], x: Array
) -> list[str]:
    """The layers whose outputs for x are not all finite, in the order of data flow."""
    found: list[str] = []

    def look(name: str, y: Array) -> None:
        if not np.isfinite(y).all():
            found.append(name)

    with np.errstate(all="ignore"):
        forward(network, backend, params, x, statistics=statistics, observe=look)
    return found
