"""What a Keras file says of its own layers, compared with the spec under which it is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import DataError, SpecError
from ..spec.layers import Activation, AveragePool, BatchNorm, Conv, Layer, MaxPool, Section
from ..spec.network import Inputs, Network

#: Keras' names of activations → ours; those in None are none.
ACTIVATIONS = {kind: kind for kind in ("relu", "tanh", "sigmoid", "gelu")} | dict.fromkeys(("linear", "softmax", None))

#: Of a Rescaling layer.
DEFAULTS = {"scale": 1.0, "offset": 0.0}

Layers = Mapping[str, Mapping[str, Any]]


def check(network: Network, names: Mapping[str, str], layers: Layers) -> None:
    """DataError names the first layer of which file and spec say different things. names: ours → the file's."""
    for layer, shape in network.placed():
        said = layers.get(names.get(layer.name, ""), {}).get("config", {})
        if not said:
            continue
        if isinstance(layer, BatchNorm):
            _same(layer, "epsilon", said.get("epsilon"), layer.eps)
        elif isinstance(layer, Conv):
            _same(layer, "strides", _pair(said.get("strides")), layer.stride)
            _same(layer, "dilation_rate", _pair(said.get("dilation_rate")), layer.dilation)
            _same(layer, "groups", said.get("groups"), layer.groups)
            _padding(layer, said.get("padding"), shape, _padded_before(layers, names[layer.name]))
    _order(network, names, layers)
    _activations(network, layers)
    _pools(network, layers)


def inputs(network: Network, layers: Layers) -> Inputs | None:
    """A Rescaling layer, x·scale + offset, as (pixel − shift)·scale; None if there is none. DataError for what is no number."""
    said = [layer["config"] for layer in layers.values() if layer.get("class_name") == "Rescaling"]
    if not said:
        return None
    channels = network.input_shape[0]
    try:
        scale, offset = (np.broadcast_to(np.asarray(said[0].get(n, d), np.float64), channels) for n, d in DEFAULTS.items())
        return Inputs(tuple(map(float, -offset / scale)), tuple(map(float, scale)))
    except (ValueError, TypeError, SpecError) as error:
        raise DataError(f"Rescaling: {said[0]} is not understood ({error})") from error


def _same(layer: Layer, what: str, theirs: Any, ours: Any) -> None:
    if theirs is not None and theirs != ours:
        raise DataError(f"{layer.name}: the file says {what} = {theirs}, the spec {ours}")


def _pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _padded_before(layers: Layers, name: str) -> bool:
    """Does a ZeroPadding2D stand right before this layer?"""
    listed = list(layers)
    before = listed.index(name) - 1
    return before >= 0 and layers[listed[before]].get("class_name") == "ZeroPadding2D"


def _padding(layer: Conv, said: Any, shape: tuple[int, ...], padded: bool) -> None:
    """TensorFlow's "same" is as much as makes ⌈size/stride⌉ outputs, the odd pixel behind."""
    if said not in ("same", "valid") or padded:
        return
    wanted = []
    for size, k, s, d in zip(shape[1:], layer.kernel, layer.stride, layer.dilation, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0) if said == "same" else 0
        wanted.append((total // 2, total - total // 2))
    _same(layer, f"padding '{said}'", tuple(wanted), layer.padding)


def _order(network: Network, names: Mapping[str, str], layers: Layers) -> None:
    """In a chain without sections the layers must follow each other as in the file."""
    listed = [name for name in layers if name in names.values()]
    ours = [names[layer.name] for layer, _ in network.placed() if layer.name in names]
    chain = not any(isinstance(layer, Section) for layer in network.layers)
    if chain and listed != ours:
        first = next((a, b) for a, b in zip(listed, ours, strict=False) if a != b)
        raise DataError(f"{first[0]}: comes in the file where the spec has {first[1]}")


def _activations(network: Network, layers: Layers) -> None:
    """How many activations of each kind there are; softmax at the end is part of the loss."""
    theirs: Counter[str | None] = Counter()
    for layer in layers.values():
        kind, said = layer.get("class_name"), layer.get("config", {}).get("activation")
        if kind in ("ReLU", "LeakyReLU"):
            slope = layer["config"].get("negative_slope") or layer["config"].get("alpha") or 0.0
            theirs["leaky_relu" if kind == "LeakyReLU" or slope else "relu"] += 1
        elif isinstance(said, str) or said is None:
            theirs[ACTIVATIONS.get(said, said)] += 1
    ours: Counter[str | None] = Counter(layer.kind for layer, _ in network.placed() if isinstance(layer, Activation))
    ours.update("relu" for layer in network.layers if isinstance(layer, Section) and layer.post == "relu")
    for kind in sorted({*theirs, *ours} - {None, "identity"}, key=str):
        if theirs[kind] != ours[kind]:
            raise DataError(f"activations: the file has {theirs[kind]} of kind {kind}, the spec {ours[kind]}")


def _pools(network: Network, layers: Layers) -> None:
    pools = [layer for layer, _ in network.placed() if isinstance(layer, MaxPool | AveragePool)]
    for name, kind in {"MaxPooling2D": MaxPool, "AveragePooling2D": AveragePool}.items():
        theirs = [_pair(x["config"].get("pool_size")) for x in layers.values() if x.get("class_name") == name]
        ours = [layer.kernel for layer in pools if isinstance(layer, kind)]
        if theirs != ours:
            raise DataError(f"pools: the file has {name} of sizes {theirs}, the spec {ours}")
