"""The block of weights that closes what a gate gates: where it is 0, the gate's value does not matter (SPEC D, D7).

A layer gate's block W holds the parameters with path ≡ 0 at W = 0: the path's last affine map with its bias, or the gain and
bias of a batch-norm that follows it. A unit gate's block is the unit's outgoing column; a unit that ends a section's path
has none, and its block is its row with its bias, or its gain and bias.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..arrays import Array
from ..errors import InputError
from ..spec.layers import Activation, BatchNorm, Conv, Dense, Flatten, GlobalAveragePool, Layer, Pool, Section, UnitGate
from ..spec.network import GateGroup, Network


class Block(NamedTuple):
    """The blocks of one gate group, as parts of the arrays `names`.

    gates: gates of the group. axis: the arrays' axis that is divided among them, in runs of equal length; with one gate the
    whole arrays are its block, whatever the axis.
    """

    names: tuple[str, ...]
    gates: int
    axis: int = 0

    def split(self, array: Array) -> Array:
        """The array as (before, gate, rest): [:, j] is gate j's part. No copy."""
        before = math.prod(array.shape[: self.axis])
        return array.reshape(before, self.gates, math.prod(array.shape[self.axis :]) // self.gates)


def blocks(network: Network) -> tuple[Block, ...]:
    """One Block per group of `network.gate_groups`. InputError where a path or unit is not 0 at any value of such a block."""
    return tuple(closing_block(network, group) for group in network.gate_groups)


def closing_block(network: Network, group: GateGroup) -> Block:
    gates = group.stop - group.start
    holder = network.layers[group.position]
    if group.kind == "unit":
        consumer = network.unit_links[group.name].consumer
        if consumer is not None:
            return Block((f"{consumer}.weight",), gates, axis=1)
    if not isinstance(holder, Section):
        raise InputError(f"{group.name}: gates units that no layer reads")
    end = len(holder.path) if group.kind == "layer" else [part.name for part in holder.path].index(group.name)
    closing = _closing_layer(holder.path[:end], group.name)
    return Block(tuple(f"{closing.name}.{key}" for key in closing.parameter_keys()), gates)


def _closing_layer(chain: Sequence[Layer], gate: str) -> Layer:
    """The last layer of the chain with parameters, behind which zero stays zero."""
    for layer in reversed(chain):
        if isinstance(layer, (Dense, Conv, BatchNorm)):
            return layer
        if not layer.keeps_zero():
            break
    raise InputError(f"{gate}: {layer.name} ({type(layer).__name__}) is not 0 at 0, so that no block of weights closes it")


def unscaled_layer(network: Network, group: GateGroup) -> Layer | None:
    """The first layer between the group's block and its gate that does not scale with its input; None if there is none.

    Without such a layer the loss depends on a gate ξ and its block W through ξW alone, so that |∂c/∂ξ| ≤ κ‖W‖ (SPEC D9).
    InputError as for `blocks`.
    """
    return next((layer for layer in _between(network, group) if not scales(layer)), None)


def scales(layer: Layer) -> bool:
    """Is the layer positively homogeneous: does a·x with a ≥ 0 always give a·y?"""
    if isinstance(layer, Activation):
        return layer.kind in ("identity", "relu", "leaky_relu")
    return isinstance(layer, (Pool, GlobalAveragePool, Flatten, UnitGate))


def _between(network: Network, group: GateGroup) -> Sequence[Layer]:
    """The layers that stand between the affine map with the group's block and the group's gate."""
    holder = network.layers[group.position]
    chain = holder.path if isinstance(holder, Section) else network.layers
    names = [layer.name for layer in chain]
    consumer = network.unit_links[group.name].consumer if group.kind == "unit" else None
    if consumer is not None:
        return chain[names.index(group.name) + 1 : names.index(consumer)]
    end = holder.gate_index() if isinstance(holder, Section) and group.kind == "layer" else names.index(group.name)
    closing = _closing_layer(chain[:end], group.name)
    return chain[names.index(closing.name) + 1 : end]


def block_norms(network: Network, arrays: Mapping[str, Array]) -> Array:
    """‖W‖ of every gate's block, (G,) float64; arrays: parameters, or their gradients under the same names."""
    norms = [np.zeros(0)]
    for block in blocks(network):
        squares = [np.square(block.split(arrays[name]), dtype=np.float64).sum(axis=(0, 2)) for name in block.names]
        norms.append(np.sqrt(sum(squares, start=np.zeros(block.gates))))
    return np.concatenate(norms)


def bias_norms(network: Network, arrays: Mapping[str, Array]) -> Array:
    """(G,) float64: of a layer gate's block that is an affine map with a bias the norm of the bias, else 0; arrays as above."""
    norms = np.zeros(network.gate_count)
    for group, block in zip(network.gate_groups, blocks(network), strict=True):
        bias = block.names[0].replace(".weight", ".bias")
        if group.kind == "layer" and block.names[1:] == (bias,):
            norms[group.start] = np.linalg.norm(arrays[bias].astype(np.float64))
    return norms
