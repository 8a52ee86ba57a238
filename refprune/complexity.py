"""What a network costs: parameters and multiply-accumulates, per layer and in all (SPEC N6, C6).

MACs count convolutions and dense layers, for one input; FLOPs are 2·MACs. Parameters count every trainable array (weights,
biases, batch-norm gains and biases), not gates and not running statistics.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from .layerspec import Layer, Shape
from .spec import Network


class Cost(NamedTuple):
    """Cost of one layer: its spec, shapes without the batch axis, parameters, MACs for one input."""

    layer: Layer
    input_shape: Shape
    output_shape: Shape
    parameters: int
    macs: int


def per_layer(network: Network) -> list[Cost]:
    """One row a layer in data-flow order; a section's own row holds nothing, its parts follow."""
    return [
        Cost(
            layer,
            shape,
            layer.output_shape(shape),
            sum(math.prod(size) for size in layer.parameter_shapes(shape).values()),
            layer.macs(shape),
        )
        for layer, shape in network.placed()
    ]


def parameters(network: Network) -> int:
    """Trainable numbers."""
    return sum(cost.parameters for cost in per_layer(network))


def macs(network: Network) -> int:
    """Multiply-accumulates of one inference, all gates on."""
    return sum(cost.macs for cost in per_layer(network))


def training_macs(network: Network) -> int:
    """Multiply-accumulates of one training step for one example, all gates on: forward, weight and input gradients.

    The first trainable layer needs no gradient with respect to its input, unless it lies in a section.
    """
    if network.first_trainable == len(network.layers):
        return macs(network)
    first = network.layers[network.first_trainable]
    return 3 * macs(network) - first.macs(network.input_shapes[first.name])
