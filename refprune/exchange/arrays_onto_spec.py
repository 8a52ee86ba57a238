"""Arrays of others under a spec: names, order, axes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..arrays import Array, Arrays
from ..errors import DataError, SpecError
from ..passes.tape import check_arrays
from ..spec.layers import BatchNorm, Conv, Dense, Flatten, Layer, Section
from ..spec.network import Network
from . import declared, matching
from .trained import Trained
from .weight_files import Weights

#: Module → last part of the name → array, in the file's order.
Modules = dict[str, dict[str, Array]]

#: A layer's arrays: those of `Layer.parameter_keys`, and for batch-norm its running statistics.
STATISTICS = ("mean", "variance")


class Layout(NamedTuple):
    """A convention of files. norm, affine: our name of an array → theirs; axes: of a weight, in our order.

    channels_last: images are flattened with the channels innermost, where we have them outermost.
    """

    norm: Mapping[str, tuple[str, ...]]
    affine: Mapping[str, tuple[str, ...]]
    axes: Mapping[type[Layer], tuple[int, ...]]
    ignored: tuple[str, ...] = ()
    channels_last: bool = False

    def keys(self, layer: Layer) -> Mapping[str, tuple[str, ...]]:
        return self.norm if isinstance(layer, BatchNorm) else self.affine

    def knows(self, suffix: str) -> bool:
        return suffix in self.ignored or any(suffix in names for m in (self.norm, self.affine) for names in m.values())


LAYOUTS = {
    "refprune": Layout(
        {"gain": ("gain",), "bias": ("bias",), "mean": ("mean",), "variance": ("variance",)},
        {"weight": ("weight",), "bias": ("bias",)},
        {},
    ),
    "pytorch": Layout(
        {"gain": ("weight",), "bias": ("bias",), "mean": ("running_mean",), "variance": ("running_var",)},
        {"weight": ("weight",), "bias": ("bias",)},
        {},
        ("num_batches_tracked",),
    ),
    "keras": Layout(
        {
            "gain": ("gamma",),
            "bias": ("beta",),
            "mean": ("moving_mean", "mean"),
            "variance": ("moving_variance", "var"),
        },
        {"weight": ("kernel",), "bias": ("bias",)},
        {Conv: (3, 2, 0, 1), Dense: (1, 0)},  # HWIO → OIHW, input×units → units×input
        channels_last=True,
    ),
}


# --------------------------------------------------------------------------------------------------------------------
# Arrays onto a spec


def from_arrays(weights: Weights, network: Network) -> Trained:
    """The network with the file's arrays as parameters and running statistics. DataError names the first that does not fit.

    Widths of layers that the file has otherwise than the spec, as after pruning, are the file's.
    """
    arrays, said = _prepared(weights.arrays)
    layout = layout_of(arrays)
    modules = _modules(arrays, layout)
    layers = [layer for layer in _in_order(network) if _keys(layer)]
    names, gone = matching.unwrapped(list(modules))
    if gone and not any(layer.name in modules for layer in layers):
        modules = dict(zip(names, modules.values(), strict=True))
        said.append(f"names: {gone!r}, which a wrapper puts before every name, was taken off")
    order = _order(modules, layers, network, layout, ordered=weights.ordered)
    resized = _resized(network, {layer.name: modules.get(name, {}) for layer, name in order}, layout)
    if resized != network:
        said.append("widths: those of the file, which are not the spec's")
        network, layers = resized, [layer for layer in _in_order(resized) if _keys(layer)]
        order = list(zip(layers, [name for _, name in order], strict=True))
    if weights.layers is not None:
        declared.check(network, {layer.name: name for layer, name in order}, weights.layers)
        if network.inputs is None and (inputs := declared.inputs(network, weights.layers)) is not None:
            network = dataclasses.replace(network, inputs=inputs)
            said.append("inputs: scaled as the file's Rescaling says")
    found, notes = _taken_all(modules, order, network, layout)
    params = {name: found[name] for name in network.parameter_shapes}
    statistics = {name: found[name] for name in network.statistics_shapes}
    check_arrays("params", network.parameter_shapes, params)
    return Trained(network, params, statistics, said=(*said, *notes))


def _prepared(arrays: Mapping[str, Array]) -> tuple[Arrays, list[str]]:
    """The arrays with PyTorch's pruning masks multiplied in: weight_orig · weight_mask is weight."""
    masked = [name.removesuffix("_orig") for name in arrays if name.endswith("_orig")]
    made: Arrays = {}
    for name, array in arrays.items():
        base = name.removesuffix("_orig").removesuffix("_mask")
        if base == name or base not in masked:
            made[name] = array
        elif name.endswith("_orig"):
            mask = arrays.get(f"{base}_mask")
            if mask is None or mask.shape != array.shape:
                raise DataError(f"{name}: has no mask {base}_mask of its shape; prune.remove() makes one weight of both")
            made[base] = array * mask.astype(array.dtype)
    return made, [f"masks: multiplied into {len(masked)} arrays ({masked[0]}, …)"] if masked else []


Order = list[tuple[Layer, str]]


def _order(modules: Modules, layers: list[Layer], network: Network, layout: Layout, *, ordered: bool) -> Order:
    """Each layer of the spec with the module of the file that is its own; "" where the file has too few."""
    if 2 * sum(layer.name in modules for layer in layers) > len(layers):
        return [(layer, layer.name) for layer in layers]
    trusted = ordered and not matching.sorted_as_text(list(modules))
    wanted = [_signature_of(layer, network) for layer in layers]
    theirs = {name: _signature(own, layout) for name, own in modules.items()}
    if trusted and list(theirs.values()) == wanted:
        return list(zip(layers, modules, strict=True))
    reason = "its layers are fewer or more than those of the spec"
    for loose in (False, True):
        form = _without_widths if loose else lambda signature: signature
        try:
            names = matching.by_tree(
                {n: form(s) for n, s in theirs.items()}, [form(s) for s in wanted], _sections(layers, network)
            )
            return list(zip(layers, names, strict=True))
        except DataError as error:
            reason = reason if loose and not trusted else str(error)
        if trusted and loose and [form(s) for s in theirs.values()] == [form(s) for s in wanted]:
            return list(zip(layers, modules, strict=True))
    if trusted:  # the first that does not fit is named
        return list(zip(layers, [*modules, *[""] * len(layers)], strict=False))
    names = sorted(modules, key=matching.natural)
    template = json.dumps(dict(zip(names, [layer.name for layer in layers], strict=False)))
    raise DataError(f"{reason}, and the file keeps no order; name the layers by --names FILE, this for example: {template}")


def _sections(layers: list[Layer], network: Network) -> list[str]:
    """For every layer the section it stands in, or itself."""
    inside = {part.name: s.name for s in network.layers if isinstance(s, Section) for part in (*s.path, *s.shortcut)}
    return [inside.get(layer.name, layer.name) for layer in layers]


def _signature_of(layer: Layer, network: Network) -> tuple[Any, ...]:
    shapes = {**network.parameter_shapes, **network.statistics_shapes}
    if isinstance(layer, BatchNorm):
        return "norm", shapes[f"{layer.name}.mean"]
    return "affine", shapes[f"{layer.name}.weight"], shapes.get(f"{layer.name}.bias")


def _signature(own: Mapping[str, Array], layout: Layout) -> tuple[Any, ...]:
    """What kind of layer a module of a file is, its shapes with the axes in our order."""
    weight = next((own[name] for name in layout.affine["weight"] if name in own), None)
    if weight is None or weight.ndim < 2:
        return "norm", next(iter(own.values())).shape
    kind = Dense if weight.ndim == 2 else Conv
    axes = layout.axes.get(kind)
    shape = tuple(weight.shape[i] for i in axes) if axes is not None and len(axes) == weight.ndim else weight.shape
    return "affine", shape, next((own[name].shape for name in layout.affine["bias"] if name in own), None)


def _without_widths(signature: tuple[Any, ...]) -> tuple[Any, ...]:
    """Kind, size of the kernel, and whether there is a bias."""
    return signature[:1] if signature[0] == "norm" else ("affine", len(signature[1]), signature[1][2:], signature[2] is None)


def _resized(network: Network, own: Mapping[str, Mapping[str, Array]], layout: Layout) -> Network:
    """The network with the file's widths, if all arrays fit it then; else the network itself, so that the misfit is named."""

    def changed(layer: Layer) -> Layer:
        if isinstance(layer, Section):
            path, shortcut = (tuple(map(changed, chain)) for chain in (layer.path, layer.shortcut))
            return dataclasses.replace(layer, path=path, shortcut=shortcut)
        found = _signature(own[layer.name], layout) if own.get(layer.name) else ("",)
        if isinstance(layer, Dense) and found[0] == "affine":
            return dataclasses.replace(layer, units=found[1][0])
        if isinstance(layer, Conv) and found[0] == "affine":
            return dataclasses.replace(layer, channels=found[1][0])
        return layer

    try:
        made = dataclasses.replace(network, layers=tuple(map(changed, network.layers)))
    except SpecError:
        return network
    layers = [layer for layer in _in_order(made) if _keys(layer)]
    fits = all(own.get(x.name) and _signature_of(x, made) == _signature(own[x.name], layout) for x in layers)
    return made if fits else network


def _taken_all(modules: Modules, order: Order, network: Network, layout: Layout) -> tuple[Arrays, list[str]]:
    """Every array of the spec out of the modules, which must have no others."""
    orders = _orders_behind_flatten(network) if layout.channels_last else {}
    shapes = {**network.parameter_shapes, **network.statistics_shapes}
    left, found, plain = dict(modules), Arrays(), []
    for layer, name in order:
        theirs = dict(left.pop(name, {}))
        for key in _keys(layer):
            ours = f"{layer.name}.{key}"
            names = layout.keys(layer)[key]
            if isinstance(layer, BatchNorm) and key in ("gain", "bias") and theirs and not any(n in theirs for n in names):
                found[ours] = np.full(shapes[ours], float(key == "gain"), np.float32)
                plain.append(ours)
                continue
            array = _taken(theirs, name or layer.name, names, layout.axes.get(type(layer)), ours, shapes[ours])
            reads_image = layer.name in orders and (key == "weight" or isinstance(layer, BatchNorm))
            found[ours] = np.ascontiguousarray(array[..., orders[layer.name]]) if reads_image else array
        if theirs:
            raise DataError(f"{name}.{next(iter(theirs))} belongs to no array of layer {layer.name} ({type(layer).__name__})")
    if left:
        name, own = next(iter(left.items()))
        raise DataError(f"{name}.{next(iter(own))} belongs to no layer of the network")
    return found, [f"norms without gain or bias: 1 and 0 taken for {len(plain)} arrays ({plain[0]}, …)"] if plain else []


def _orders_behind_flatten(network: Network) -> dict[str, Array]:
    """Dense layer or batch-norm that reads a flattened image → for each of its inputs its place with channels innermost."""
    orders: dict[str, Array] = {}
    order: Array | None = None
    for layer in network.layers:
        if isinstance(layer, Flatten):
            channels, height, width = network.input_shapes[layer.name]
            order = np.arange(channels * height * width).reshape(height, width, channels).transpose(2, 0, 1).ravel()
            order = None if channels == 1 or height * width == 1 else order
        elif order is not None and isinstance(layer, Section):
            raise DataError(f"{layer.name}: a section reads a flattened image; such a file with channels innermost is not read")
        elif order is not None and isinstance(layer, (Dense, BatchNorm)):
            orders[layer.name] = order
            order = None if isinstance(layer, Dense) else order
    return orders


def layout_of(arrays: Mapping[str, Array]) -> Layout:
    """The first layout that knows the last part of every name. DataError names the first array that none knows."""
    for layout in LAYOUTS.values():
        if all(layout.knows(name.rpartition(".")[2]) for name in arrays):
            return layout
    counts = {key: sum(layout.knows(name.rpartition(".")[2]) for name in arrays) for key, layout in LAYOUTS.items()}
    best = max(counts, key=lambda key: counts[key])
    strange = next(name for name in arrays if not LAYOUTS[best].knows(name.rpartition(".")[2]))
    raise DataError(f"{strange}: is not what an array of a convolution, dense layer or batch-norm is called ({best})")


def _modules(arrays: Mapping[str, Array], layout: Layout) -> Modules:
    modules: Modules = {}
    for name, array in arrays.items():
        module, _, suffix = name.rpartition(".")
        if suffix not in layout.ignored:
            modules.setdefault(module, {})[suffix] = array
    return modules


def _in_order(network: Network) -> Iterator[Layer]:
    for layer in network.layers:
        yield layer
        if isinstance(layer, Section):
            yield from layer.path
            yield from layer.shortcut


def _keys(layer: Layer) -> tuple[str, ...]:
    return layer.parameter_keys() + (STATISTICS if isinstance(layer, BatchNorm) else ())


def _taken(
    theirs: dict[str, Array],
    module: str,
    names: tuple[str, ...],
    axes: tuple[int, ...] | None,
    ours: str,
    shape: tuple[int, ...],
) -> Array:
    """The array of a module under one of `names`, its axes in our order, out of `theirs`."""
    key = next((name for name in names if name in theirs), None)
    if key is None and ours.endswith(".mean") and not any("var" in name for name in theirs):
        raise DataError(
            f"{module}: keeps no {names[0]}; a norm that uses each batch's own statistics is nothing a spec can say"
        )
    if key is None:
        raise DataError(f"{module}.{names[0]} is missing; the network needs it as {ours} of shape {shape}")
    array = theirs.pop(key)
    turned = array.transpose(axes) if axes is not None and len(shape) == array.ndim == len(axes) else array
    if turned.shape != shape:
        wanted = (
            tuple(shape[axes.index(i)] for i in range(len(shape))) if axes is not None and len(axes) == len(shape) else shape
        )
        raise DataError(f"{module}.{key} has shape {array.shape}; the network needs {wanted} (as {ours})")
    check_numbers(f"{module}.{key}", array)
    if ours.endswith(".variance") and (array < 0.0).any():
        raise DataError(f"{module}.{key}: is a running variance and has negative entries")
    return np.ascontiguousarray(turned)


def check_numbers(name: str, array: Array) -> None:
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        raise DataError(f"{name}: must be finite floating-point numbers, got {array.dtype} with other entries or type")
