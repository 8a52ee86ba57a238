"""Networks that others trained: the arrays of a file, under a spec that names their conventions; or a run's own checkpoint.

A file's arrays are taken by name where most of its layers have the spec's names, else in its own order, a layer after the
other, in a section the path before the shortcut, as frameworks define them. What a `Layout` calls the arrays, and how it orders
the axes of weights, is told by the last parts of their names. Every array must fit and none may be left over: the first that
does not is named.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import weightfiles
from .arrays import Array, Arrays
from .data.dataset import Dataset
from .errors import DataError, InputError
from .passes.tape import check_arrays
from .spec import json_form, zoo
from .spec.layers import BatchNorm, Conv, Dense, Flatten, Layer, Section
from .spec.network import Network
from .training import checkpoint

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


NEEDS_SPEC = "a file of weights needs --spec, a name of `refprune zoo` or a .json file"
#: Of .npz files that hold their spec.
NPZ_FORMAT = "refprune-weights-1"


class Trained(NamedTuple):
    """A network with weights. data: the set it is for, if the folder it comes from says so.

    training_images: the end of the slice of that set which it was trained on, from the back if negative; None: all of it.
    """

    network: Network
    params: Arrays
    statistics: Arrays
    data: str | None = None
    training_images: int | None = None


def digest(trained: Trained) -> str:
    """SHA-256 of the spec and every array."""
    found = hashlib.sha256(json.dumps(json_form.to_json(trained.network), sort_keys=True).encode())
    for name, array in sorted((trained.params | trained.statistics).items()):
        found.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def load(
    source: str | os.PathLike[str], spec_name: str | None = None, names: str | None = None, *, dtype: str = "float32"
) -> Trained:
    """The network in `source`: a folder with a checkpoint, or a file of weights with a spec.

    source: as given, or, where that does not exist, below the folder REFPRUNE_MODELS. spec_name: one of the zoo, with options
    as in "resnet-56:shortcut=\\"B\\"", or a .json file that `spec.to_json` wrote. names: a .json file, an object from the
    file's names of layers to those of the spec. InputError names what does not fit.
    """
    path = find(source)
    if path.is_dir():
        if spec_name is not None or names is not None:
            given = "--names" if spec_name is None else "--spec"
            raise InputError(f"{given}: {path} is a folder with a checkpoint, which holds its own spec")
        trained = of_checkpoint(path)
    elif spec_name is not None:
        trained = _under_spec(path, spec_name, names)
    elif names is not None:
        raise InputError("--names: needs --spec, whose names of layers it gives")
    elif path.suffix == ".npz":
        trained = read_npz(path)
    else:
        raise InputError(f"{path}: {NEEDS_SPEC}")
    return trained._replace(params=_as(trained.params, dtype), statistics=_as(trained.statistics, dtype))


def of_checkpoint(path: Path) -> Trained:
    """The network in a folder with a checkpoint. InputError where its run has not ended."""
    state, run = checkpoint.load(path)
    if not state.finished:
        raise InputError(f"{path}: its run has not ended; finish it first (--resume)")
    origin = (run["data"], run.get("training_images")) if "data" in run else _data_of(path)
    return Trained(state.network, state.params, state.statistics, *origin)


def _under_spec(path: Path, spec_name: str, names: str | None) -> Trained:
    arrays = weightfiles.read(path)
    try:
        arrays = _renamed(arrays, names) if names is not None else arrays
        ordered = path.suffix not in weightfiles.WITHOUT_ORDER
        return from_arrays(arrays, network_for(spec_name, arrays), ordered=ordered)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def read_npz(path: Path) -> Trained:
    """What `export.write_npz` wrote. InputError names the file and what is wrong."""
    arrays = weightfiles.read(path)
    if "spec" not in arrays:
        raise InputError(f"{path}: {NEEDS_SPEC}")
    try:
        header = json.loads(str(arrays.pop("spec")))
        network = json_form.from_json(header["network"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no weights of refprune ({type(error).__name__}: {error})") from error
    if header.get("format") != NPZ_FORMAT:
        raise InputError(f"{path}: expected format {NPZ_FORMAT!r}, found {header.get('format')!r}")
    check_arrays(f"{path}: params", network.parameter_shapes, arrays)
    check_arrays(f"{path}: statistics", network.statistics_shapes, arrays)
    for name, array in arrays.items():
        _check_numbers(f"{path}: {name}", array)
    params = {name: arrays[name] for name in network.parameter_shapes}
    statistics = {name: arrays[name] for name in network.statistics_shapes}
    return Trained(network, params, statistics, header.get("data"), header.get("training_images"))


def find(source: str | os.PathLike[str]) -> Path:
    """`source`, or the file or folder of that name below REFPRUNE_MODELS."""
    models = os.environ.get("REFPRUNE_MODELS")
    candidates = [Path(source), *([Path(models) / source] if models else [])]
    for path in candidates:
        if path.exists():
            return path
    hint = "" if models else " (REFPRUNE_MODELS, the folder of others' models, is not set)"
    raise InputError(f"{source}: is neither here nor below REFPRUNE_MODELS{hint}")


def check_images(network: Network, dataset: Dataset) -> None:
    """InputError unless the data set's images and classes are what the network takes."""
    shape = dataset.train_images.shape[1:]
    if (shape, dataset.classes) != (network.input_shape, network.output_shape[0]):
        raise InputError(
            f"data set {dataset.name}: has images {shape} of {dataset.classes} classes; "
            f"the network needs {network.input_shape} and {network.output_shape[0]}"
        )


def _renamed(arrays: Mapping[str, Array], names: str) -> Arrays:
    try:
        table = json.loads(Path(names).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{names}: no JSON file of names ({error})") from error
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise InputError(f"{names}: must be an object from the file's names of layers to the spec's")
    modules = {name.rpartition(".")[0] for name in arrays}
    strange = [name for name in table if name not in modules]
    if strange:
        raise InputError(f"{names}: {strange[0]} is no layer of the file; those are {', '.join(sorted(modules))}")
    renamed: Arrays = {}
    for name, array in arrays.items():
        module, _, suffix = name.rpartition(".")
        ours = f"{table.get(module, module)}.{suffix}"
        if ours in renamed:
            raise InputError(f"{names}: {ours} would be two arrays, the second {name}")
        renamed[ours] = array
    return renamed


def _as(arrays: Mapping[str, Array], dtype: str) -> Arrays:
    return {name: array.astype(dtype) for name, array in arrays.items()}


def _data_of(directory: Path) -> tuple[str | None, int | None]:
    """`data` and `training_images` by the nearest config.toml, in the folder or the one above."""
    from .training import config

    for folder in (directory, directory.parent):
        if (folder / "config.toml").is_file():
            used = config.load(str(folder / "config.toml")).data
            return used.name, used.train_limit - used.holdout or None
    return None, None


# --------------------------------------------------------------------------------------------------------------------
# The spec of a file


def network_for(spec_name: str, arrays: Mapping[str, Array]) -> Network:
    """The network that `spec_name` says; resnet-cifar-keras takes its blocks per stage from the arrays' names, if not given."""
    if spec_name.endswith(".json"):
        try:
            return json_form.from_json(json.loads(Path(spec_name).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise error if isinstance(error, InputError) else InputError(f"{spec_name}: no JSON spec ({error})") from error
    name, _, text = spec_name.partition(":")
    options: dict[str, Any] = {}
    for entry in filter(None, text.split(";")):
        key, _, value = entry.partition("=")
        try:
            options[key.strip()] = json.loads(value)
        except ValueError as error:
            raise InputError(f"{spec_name}: expected NAME:key=value;…, values as JSON ({error})") from error
    if name == "resnet-cifar-keras" and "blocks" not in options and arrays:
        options["blocks"] = blocks_per_stage(arrays)
    return zoo.build(name, options)


def blocks_per_stage(arrays: Mapping[str, Array]) -> list[int]:
    """How many blocks the names "stageS.blockB.…" count in each stage. DataError unless S and B run from 0 without a gap."""
    found = sorted({(int(m[1]), int(m[2])) for m in map(re.compile(r"stage(\d+)\.block(\d+)\.").match, arrays) if m})
    stages = [sum(stage == s for s, _ in found) for stage in range(found[-1][0] + 1)] if found else []
    expected = [(s, b) for s, count in enumerate(stages) for b in range(max(count, 1))]
    if not found or found != expected:
        missing = next(((s, b) for s, b in expected if (s, b) not in found), None)
        what = (
            "no array is called stage0.block0.…" if missing is None else "no array is called stage{}.block{}.…".format(*missing)
        )
        raise DataError(f"{what}; without such names, give the blocks, as in --spec 'resnet-cifar-keras:blocks=[9,9,9]'")
    return stages


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
    _check_numbers(f"{module}.{key}", array)
    return np.ascontiguousarray(turned)


def _check_numbers(name: str, array: Array) -> None:
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        raise DataError(f"{name}: must be finite floating-point numbers, got {array.dtype} with other entries or type")
