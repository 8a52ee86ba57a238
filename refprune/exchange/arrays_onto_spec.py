"""Arrays of others under a spec: names, order, axes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from ..arrays import Array, Arrays
from ..errors import DataError
from ..passes.tape import check_arrays
from ..spec.layers import BatchNorm, Conv, Dense, Flatten, Layer, Section
from ..spec.network import Network
from .trained import Trained

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


def from_arrays(arrays: Mapping[str, Array], network: Network, *, ordered: bool = True) -> Trained:
    """The network with those arrays as parameters and running statistics. DataError names the first that does not fit.

    ordered: may the order of the arrays be trusted, where their names are not the network's?
    """
    layout = layout_of(arrays)
    modules = _modules(arrays, layout)
    layers = [layer for layer in _in_order(network) if _keys(layer)]
    by_name = 2 * sum(layer.name in modules for layer in layers) > len(layers)
    if not by_name and not ordered:
        raise DataError(f"{next(iter(modules))}: is no layer of the spec, and such a file keeps no order: name them (--names)")
    orders = _orders_behind_flatten(network) if layout.channels_last else {}
    found: Arrays = {}
    for layer, name in zip(
        layers, [layer.name for layer in layers] if by_name else [*modules, *[""] * len(layers)], strict=False
    ):
        theirs = modules.pop(name, {})
        for key in _keys(layer):
            ours = f"{layer.name}.{key}"
            shape = {**network.parameter_shapes, **network.statistics_shapes}[ours]
            array = _taken(theirs, name or layer.name, layout.keys(layer)[key], layout.axes.get(type(layer)), ours, shape)
            reads_image = layer.name in orders and (key == "weight" or isinstance(layer, BatchNorm))
            found[ours] = np.ascontiguousarray(array[..., orders[layer.name]]) if reads_image else array
        if theirs:
            raise DataError(f"{name}.{next(iter(theirs))} belongs to no array of layer {layer.name} ({type(layer).__name__})")
    if modules:
        name, left = next(iter(modules.items()))
        raise DataError(f"{name}.{next(iter(left))} belongs to no layer of the network")
    params = {name: found[name] for name in network.parameter_shapes}
    statistics = {name: found[name] for name in network.statistics_shapes}
    check_arrays("params", network.parameter_shapes, params)
    return Trained(network, params, statistics)


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


def _modules(arrays: Mapping[str, Array], layout: Layout) -> dict[str, dict[str, Array]]:
    """Module → last part of the name → array, in the file's order."""
    modules: dict[str, dict[str, Array]] = {}
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
    return np.ascontiguousarray(turned)


def check_numbers(name: str, array: Array) -> None:
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        raise DataError(f"{name}: must be finite floating-point numbers, got {array.dtype} with other entries or type")
