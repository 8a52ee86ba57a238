"""A network as the calls that run it: layer → backend function, names of its arrays, conventions. No arrays here.

They are made once for a network and a mode, so that running the network costs no more than its calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..arrays import Array, Shape
from .layers import (
    Activation,
    AveragePool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Layer,
    MaxPool,
    Section,
    SubsamplePad,
    UnitGate,
)
from .network import Network


@dataclass(frozen=True)
class LayerGate(Layer):
    """The gate ξ of a section, as an element of its path."""


class Operation(NamedTuple):
    """One layer as the call function(x, *arrays, **options).

    parameters, statistics: names of the arrays, in the order in which the function takes them. gate: index into the gate
    vector that gives the function's g. macs: multiply-accumulates for one example.
    """

    layer: Layer
    function: str
    options: Mapping[str, Any]
    parameters: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ()
    gate: Any = None
    macs: int = 0


class SectionOperations(NamedTuple):
    """A section: its parts, the layer gate standing in the path; gate: ξ's index in the gate vector; post: ρ, none or one."""

    layer: Section
    gate: int | None
    shortcut: tuple[Operation, ...]
    path: tuple[Operation, ...]
    post: tuple[Operation, ...]

    def is_closed(self, gates: Array) -> bool:
        """Is there a gate, and ξ = 0?"""
        return self.gate is not None and bool(gates[self.gate] == 0)


Operations = tuple[Operation | SectionOperations, ...]

#: Layer type → the backend function that runs it, and the fields of the layer that are its conventions.
FUNCTIONS: dict[type[Layer], tuple[str, tuple[str, ...]]] = {
    Dense: ("dense", ()),
    Conv: ("conv2d", ("stride", "padding", "dilation", "groups")),
    MaxPool: ("max_pool", ("kernel", "stride", "padding", "ties")),
    AveragePool: ("average_pool", ("kernel", "stride", "padding", "count_padding")),
    GlobalAveragePool: ("global_average_pool", ()),
    Flatten: ("flatten", ()),
    SubsamplePad: ("subsample_pad", ("stride", "before", "after")),
    UnitGate: ("gate", ()),
    LayerGate: ("gate", ()),
}


def function_of(layer: Layer, *, train: bool) -> tuple[str, dict[str, Any]]:
    """The backend function that runs `layer`, and its conventions as keyword arguments."""
    if isinstance(layer, BatchNorm):
        return "batch_norm" if train else "batch_norm_eval", {"eps": layer.eps}
    if isinstance(layer, Activation):
        if layer.kind in ("relu", "leaky_relu"):
            return "leaky_relu", {"slope": layer.slope if layer.kind == "leaky_relu" else 0.0, "at_zero": layer.at_zero}
        return layer.kind, {}
    name, fields = FUNCTIONS[type(layer)]
    return name, {field: getattr(layer, field) for field in fields}


def network_operations(network: Network, *, train: bool) -> Operations:
    """The calls that run the network in train or eval mode, one item per element of its chain.

    A network keeps its own, as it keeps its cached properties: a table of all networks would have to hash a whole
    specification before every pass (0.8 ms for ResNet-110).
    """
    kept: dict[bool, Operations] = vars(network).setdefault("_operations", {})
    if train not in kept:
        kept[train] = operations_of(network.layers, network.input_shapes, network.gate_slices, train=train)
    return kept[train]


def operations_of(
    layers: tuple[Layer, ...], shapes: Mapping[str, Shape], gates: Mapping[str, slice], *, train: bool
) -> Operations:
    """The calls that run a chain of layers and sections.

    shapes: the input shape of every layer by name.
    gates: the place of every group of gates in the gate vector by name.
    """

    def plain(layer: Layer) -> Operation:
        function, options = function_of(layer, train=train)
        parameters = tuple(f"{layer.name}.{key}" for key in layer.parameter_keys())
        statistics = tuple(f"{layer.name}.{key}" for key in ("mean", "variance") if function == "batch_norm_eval")
        gate = gates[layer.name] if isinstance(layer, UnitGate) else None
        macs = layer.macs(shapes[layer.name]) if parameters else 0
        return Operation(layer, function, options, parameters, statistics, gate, macs)

    def section(layer: Section) -> SectionOperations:
        shortcut, path = (tuple(map(plain, chain)) for chain in (layer.shortcut, layer.path))
        post = (plain(Activation("relu", name=f"{layer.name}.post")),) if layer.post == "relu" else ()
        if not layer.gate:
            return SectionOperations(layer, None, shortcut, path, post)
        at, xi = layer.gate_index(), gates[layer.name].start
        gate = plain(LayerGate(name=f"{layer.name}.gate"))._replace(gate=(xi, ...))  # an array of shape (), not a number
        return SectionOperations(layer, xi, shortcut, (*path[:at], gate, *path[at:]), post)

    return tuple(section(layer) if isinstance(layer, Section) else plain(layer) for layer in layers)
