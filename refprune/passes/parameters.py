"""Initial parameters and running statistics of a network."""

from __future__ import annotations

import numpy as np

from ..arrays import Arrays
from ..spec.layers import Section
from ..spec.network import Network
from ..streams import Streams


def initialise(network: Network, streams: Streams, *, section_scale: float = 1.0, dtype: str = "float64") -> Arrays:
    """Initial parameters: weights N(0, 2/fan-in), biases 0, gains of batch-norms 1 (He et al. 2015).

    network: the network that they are for.
    streams: random numbers; each array has the stream "init/NAME", so that it does not depend on the other layers.
    section_scale: factor on the weights inside the paths of sections.
    dtype: "float64" or "float32".

    Returns name → array, as in `network.parameter_shapes`.

    >>> from refprune import Dense, Network, Streams, initialise
    >>> params = initialise(Network((4,), (Dense(3),)), Streams(0))
    >>> {name: array.shape for name, array in params.items()}
    {'dense1.weight': (3, 4), 'dense1.bias': (3,)}
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
    """Running statistics of all batch-norms before training: means 0, variances 1.

    network: the network that they are for.
    dtype: "float64" or "float32".

    Returns name → array, as in `network.statistics_shapes`.

    >>> from refprune import BatchNorm, Dense, Network, initial_statistics
    >>> statistics = initial_statistics(Network((4,), (Dense(2), BatchNorm(), Dense(3))))
    >>> {name: array.tolist() for name, array in statistics.items()}
    {'batchnorm1.mean': [0.0, 0.0], 'batchnorm1.variance': [1.0, 1.0]}
    """
    return {
        name: np.full(shape, 1.0 if name.endswith(".variance") else 0.0, dtype=dtype)
        for name, shape in network.statistics_shapes.items()
    }
