"""Initial parameters and running statistics of a network."""

from __future__ import annotations

import numpy as np

from ..arrays import Arrays
from ..spec.layers import Section
from ..spec.network import Network
from ..streams import Streams


def initialise(network: Network, streams: Streams, *, section_scale: float = 1.0, dtype: str = "float64") -> Arrays:
    """Weights N(0, 2/fan-in) (He), biases 0, batch-norm gains 1; `section_scale` multiplies the weights inside section paths.

    Each array has its own stream "init/<name>", so that a layer's first weights do not depend on the other layers.
    """
    in_paths = {f"{part.name}.weight" for e in network.layers if isinstance(e, Section) for part in e.path}
    params: Arrays = {}
    for name, shape in network.parameter_shapes.items():
        if name.endswith(".weight"):
            scale = (2.0 / max(int(np.prod(shape[1:])), 1)) ** 0.5 * (section_scale if name in in_paths else 1.0)
            params[name] = (scale * streams.normal(f"init/{name}", 0, shape)).astype(dtype)
        else:
            params[name] = np.full(shape, 1.0 if name.endswith(".gain") else 0.0, dtype=dtype)
    return params


def initial_statistics(network: Network, *, dtype: str = "float64") -> Arrays:
    """Running means 0 and variances 1."""
    return {
        name: np.full(shape, 1.0 if name.endswith(".variance") else 0.0, dtype=dtype)
        for name, shape in network.statistics_shapes.items()
    }
