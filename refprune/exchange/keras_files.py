"""Keras' files: HDF5 of Keras 2 (weights or whole models), `.weights.h5` and `.keras` of Keras 3.

An array is called "layer.kind", with the kinds kernel, bias, gamma, beta, moving_mean, moving_variance.

HDF5's library is C, and a damaged file can hold it in a loop that nothing interrupts. So it reads in a process of its own
(`keras_process`), which is ended after a time.
"""

from __future__ import annotations

import importlib.util
import io
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..arrays import Array
from ..errors import DataError, InputError
from ..output import install
from ..output.sizes import check_size

#: Seconds that reading may take, and bytes that it may take a second more for.
SECONDS, BYTES_PER_SECOND = 30.0, 10e6

#: Layers' names → class_name and config, as the model says.
Layers = dict[str, Mapping[str, Any]]

#: arrays; whether their order tells the order of the layers; what the file says of its layers.
Found = tuple[dict[str, Array], bool, Layers | None]


def read(content: bytes) -> Found:
    """An HDF5 file of Keras 2 or 3. DataError for anything else, InputError without h5py."""
    if importlib.util.find_spec("h5py") is None:
        raise InputError(f"Keras HDF5 files need h5py:  {install.command('exchange')}")
    command = [sys.executable, "-P", "-m", "refprune.exchange.keras_process"]
    limit = SECONDS + len(content) / BYTES_PER_SECOND
    try:
        done = subprocess.run(command, input=content, capture_output=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"HDF5's library was not done with it within {limit:.0f} s") from error
    if done.returncode or not done.stdout:
        raise DataError(f"HDF5's library ended with code {done.returncode}: {done.stderr.decode(errors='replace')[-300:]}")
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as archive:
        arrays = {name.removeprefix("array/"): archive[name] for name in archive.files if name.startswith("array/")}
        said = json.loads(str(archive["said"]))
    if "error" in said:
        raise DataError(said["error"])
    return arrays, said["ordered"], said["layers"]


def read_here(content: bytes) -> Found:
    """The same in this process."""
    import h5py

    with h5py.File(io.BytesIO(content), "r") as file:
        root = file.get("model_weights", file)
        if "layer_names" in root.attrs:
            said = file.attrs.get("model_config")
            layers = None if said is None else _layers(json.loads(said), lambda layer: str(layer["config"]["name"]))
            return _keras_2(root, len(content)), True, layers
        if "layers" in file or "_layer_checkpoint_dependencies" in file:
            return _keras_3(file, len(content)), False, None
    raise DataError("holds neither the attribute layer_names of Keras 2 nor the group layers of Keras 3")


def read_archive(content: bytes) -> Found:
    """A `.keras` file: config.json and model.weights.h5 in a zip."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        check_size("unpacked, it", sum(member.file_size for member in archive.infolist()), len(content))
        arrays, ordered, _ = read(archive.read("model.weights.h5"))
        numbers: dict[str, int] = {}

        def name(layer: Mapping[str, Any]) -> str:
            """Keras 3 names the groups by class, and counts."""
            kind = re.sub(r"(?<!^)(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])", "_", str(layer["class_name"])).lower()
            numbers[kind] = numbers.get(kind, -1) + 1
            return f"{kind}_{numbers[kind]}" if numbers[kind] else kind

        return arrays, ordered, _layers(json.loads(archive.read("config.json")), name)


def _layers(config: Any, name: Any) -> Layers | None:
    """The layers of a model's config, nested models opened, in its order."""
    found: Layers = {}

    def walk(layer: Any, depth: int = 0) -> None:
        if not isinstance(layer, Mapping) or not isinstance(layer.get("config"), Mapping) or depth > 20:
            return
        inner = layer["config"].get("layers")
        if isinstance(inner, list):
            for one in inner:
                walk(one, depth + 1)
        elif depth:
            found[name(layer)] = layer

    try:
        walk(config)
    except (KeyError, TypeError) as error:
        raise DataError(f"its model_config is damaged ({type(error).__name__}: {error})") from error
    return found or None


def _keras_2(root: Any, size: int) -> dict[str, Array]:
    """ "conv2d_1/kernel:0" of the layer conv2d_1 is called conv2d_1.kernel here."""
    arrays: dict[str, Array] = {}
    for layer in _texts(root.attrs["layer_names"]):
        for name in _texts(root[layer].attrs["weight_names"]):
            ours = f"{layer}.{name.rpartition('/')[2].removesuffix(':0')}"
            if ours in arrays:
                raise DataError(f"{layer}: has two arrays of the name {ours}, the second {name}")
            arrays[ours] = _array(ours, root[layer][name], size)
    return arrays


def _keras_3(file: Any, size: int) -> dict[str, Array]:
    """layers/conv2d/vars/0, …/1: kernel and bias, or gamma, beta, mean and variance."""
    found: dict[str, dict[int, Array]] = {}
    for path, dataset in _datasets(file):
        layer, vars_, number = path.rpartition("/vars/")
        parts = [part for part in layer.split("/") if part not in ("layers", "_layer_checkpoint_dependencies")]
        if vars_ and number.isdecimal() and "seed_generator" not in parts and parts[:1] != ["optimizer"]:
            found.setdefault(".".join(parts), {})[int(number)] = _array(path, dataset, size)
    arrays: dict[str, Array] = {}
    for layer, numbered in found.items():
        own = [numbered[i] for i in sorted(numbered)]
        for kind, array in zip(_kinds(layer, own), own, strict=True):
            arrays[f"{layer}.{kind}"] = array
    return arrays


def _datasets(file: Any) -> Iterator[tuple[str, Any]]:
    import h5py

    found: list[tuple[str, Any]] = []
    file.visititems(lambda path, item: found.append((path, item)) if isinstance(item, h5py.Dataset) else None)
    return iter(found)


def _kinds(layer: str, own: list[Array]) -> tuple[str, ...]:
    if own[0].ndim > 1 and len(own) <= 2:
        return ("kernel", "bias")[: len(own)]
    norm = {4: ("gamma", "beta", "moving_mean", "moving_variance"), 2: ("moving_mean", "moving_variance")}.get(len(own))
    if norm is None or any(array.ndim != 1 for array in own):
        shapes = ", ".join(str(array.shape) for array in own)
        raise DataError(f"{layer}: arrays of shapes {shapes} belong to no convolution, dense layer or batch-norm")
    return norm


def _array(name: str, dataset: Any, size: int) -> Array:
    """What is declared is compared with the file's size: chunks that were never written cost nothing there."""
    check_size(name, int(dataset.size) * dataset.dtype.itemsize, size)
    return np.asarray(dataset)


def _texts(names: Any) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]
