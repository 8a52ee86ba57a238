"""Networks that others trained: the arrays of a file, under a spec that names their conventions; or a run's own checkpoint.

A file's arrays are taken by name where most of its layers have the spec's names, else in its own order, a layer after the
other, in a section the path before the shortcut, as frameworks define them. What a `Layout` calls the arrays, and how it orders
the axes of weights, is told by the last parts of their names. Every array must fit and none may be left over: the first that
does not is named.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ..arrays import Array, Arrays
from ..data.dataset import Dataset
from ..errors import DataError, InputError
from ..output.texts import parse_json, read_json
from ..passes.tape import check_arrays
from ..spec import json_form
from ..spec.network import Network
from ..training import checkpoint
from . import weight_files
from .arrays_onto_spec import check_numbers, from_arrays
from .spec_of_file import network_for
from .trained import NPZ_FORMAT, Trained

NEEDS_SPEC = "a file of weights needs --spec, a name of `refprune zoo` or a .json file"


def load(
    source: str | os.PathLike[str], spec_name: str | None = None, names: str | None = None, *, dtype: str = "float32"
) -> Trained:
    """The network in `source`: a folder with a checkpoint, or a file of weights with a spec.

    source: as given, or, where that does not exist, below the folder REFPRUNE_MODELS. spec_name: one of the zoo, with options
    as in "resnet-56:shortcut=\\"B\\"", or a .json file that `spec.json_form.to_json` wrote. names: a .json file, an object
    from the file's names of layers to those of the spec. InputError names what does not fit.
    """
    path, said = _checkpoint_in(find_file(source))
    if path.is_dir():
        if spec_name is not None or names is not None:
            given = "--names" if spec_name is None else "--spec"
            raise InputError(f"{given}: {path} is a folder with a checkpoint, which holds its own spec")
        try:
            trained = read_checkpoint(path)
        except InputError as error:
            raise InputError("; ".join([str(error), *said])) from error
    elif spec_name is not None:
        trained = _under_spec(path, spec_name, names)
    elif names is not None:
        raise InputError("--names: needs --spec, whose names of layers it gives")
    elif path.suffix == ".npz":
        trained = read_npz(path)
    else:
        raise InputError(f"{path}: {NEEDS_SPEC}")
    params, statistics = (_as(arrays, dtype) for arrays in (trained.params, trained.statistics))
    return trained._replace(params=params, statistics=statistics, said=(*said, *trained.said))


def _checkpoint_in(path: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder with a checkpoint: `path`, or in a run directory that of the pruned or trained network; what to say."""
    runs = sorted(p.parent.name for p in path.glob(f"*/{checkpoint.NAME}")) if path.is_dir() else []
    if not runs or (path / checkpoint.NAME).exists():
        return path, ()
    if rounds := [name for name in runs if name.startswith("round-")]:
        return path / rounds[-1], (f"network: {path} is a run of pruning; its last round, {rounds[-1]}, is taken",)
    taken = next((name for name in ("pruned", "trained") if name in runs), runs[0])
    others = ", ".join(str(path / name) for name in runs if name != taken)
    return path / taken, (f"network: {path} is a run directory; {taken} is taken" + (f", not {others}" if others else ""),)


def read_checkpoint(path: Path) -> Trained:
    """The network in a folder with a checkpoint. InputError where its run has not ended."""
    state, run = checkpoint.load(path)
    if not state.finished:
        raise InputError(f"{path}: its run has not ended; finish it first (--resume)")
    origin = (run["data"], run.get("training_images")) if "data" in run else _data_of(path)
    return Trained(state.network, state.params, state.statistics, *origin)


def _under_spec(path: Path, spec_name: str, names: str | None) -> Trained:
    weights = weight_files.read(path)
    try:
        if names is not None:
            weights = weights._replace(arrays=_renamed(weights.arrays, names))
        return from_arrays(weights, network_for(spec_name, weights.arrays))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def read_npz(path: Path) -> Trained:
    """What `exchange.export.write_npz` wrote. InputError names the file and what is wrong."""
    arrays = weight_files.read(path).arrays
    if "spec" not in arrays:
        raise InputError(f"{path}: {NEEDS_SPEC}")
    try:
        header = parse_json(str(arrays.pop("spec")), "spec")
        network = json_form.from_json(header["network"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no weights of refprune ({type(error).__name__}: {error})") from error
    if header.get("format") != NPZ_FORMAT:
        raise InputError(f"{path}: expected format {NPZ_FORMAT!r}, found {header.get('format')!r}")
    check_arrays(f"{path}: params", network.parameter_shapes, arrays)
    check_arrays(f"{path}: statistics", network.statistics_shapes, arrays)
    for name, array in arrays.items():
        check_numbers(f"{path}: {name}", array)
    params = {name: arrays[name] for name in network.parameter_shapes}
    statistics = {name: arrays[name] for name in network.statistics_shapes}
    return Trained(network, params, statistics, header.get("data"), header.get("training_images"))


def find_file(source: str | os.PathLike[str]) -> Path:
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
        table = read_json(Path(names))
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
    from ..training import config

    for folder in (directory, directory.parent):
        if (folder / "config.toml").is_file():
            used = config.load(str(folder / "config.toml")).data
            return used.name, used.train_limit - used.holdout or None
    return None, None
